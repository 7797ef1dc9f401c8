"""Each record gets its own score, however its file is named."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from inscp.data.sources import OnBadRecord, ReadReport, Source, read_records, source_fingerprint
from inscp.data.tagging import PlainTagger
from inscp.data.tokenization import tokenize
from inscp.errors import UserError
from inscp.pretrained import load_tokenizer
from inscp.records import Candidate, Record, Score, Turn
from inscp.selection.candidates import Candidates, bounded, counted, scored
from inscp.selection.scores import ScoreFolder


def test_what_is_too_long_is_counted_or_an_error() -> None:
    records = [Record("a:1", (Turn("document", "x" * 10),)), Record("a:2", (Turn("document", "x" * 11),))]
    report = ReadReport(seen=2)
    assert list(bounded(records, 10, "skip", report)) == records[:1]
    assert (report.records, report.skipped) == (1, {"a record of more than 10 characters": 1})
    with pytest.raises(UserError, match="a:2"):
        list(bounded(records, 10, "error", report))


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Three files of one name; the first was not scored."""
    for number, name in enumerate("abc", 1):
        (tmp_path / "docs" / name).mkdir(parents=True)
        (tmp_path / "docs" / name / "text.jsonl").write_text(json.dumps({"text": "word " * number}), "utf-8")
    return tmp_path / "docs"


def scores_of(docs: Path, named: str) -> ScoreFolder:
    sources = [{"name": named, "path": named, "fingerprint": source_fingerprint(Source(str(docs)))}]
    folder = ScoreFolder.create(docs.parent / "scores", {"sources": sources})
    folder.write(0, 0, [Score(f"{named}/{name}/text.jsonl:1", 1, 1, nll) for name, nll in (("b", 2.0), ("c", 3.0))], {})
    return folder


def candidates(path: str, folder: ScoreFolder, on_bad_record: OnBadRecord, report: ReadReport) -> Iterator[Candidate]:
    source = Source(path)
    return scored(source, source_fingerprint(source), folder, on_bad_record, report)


def test_a_record_without_a_score_leaves_the_others_theirs(docs: Path) -> None:
    folder, report = scores_of(docs, str(docs)), ReadReport()
    found = list(candidates(str(docs), folder, "skip", report))
    assert [(c.text.count("word"), c.perplexity) for c in found] == [(2, math.exp(2)), (3, math.exp(3))]
    assert report.skipped == {"it has no score": 1}


def test_the_data_may_be_named_from_another_folder(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = scores_of(docs, "elsewhere/docs")
    monkeypatch.chdir(docs.parent)
    assert [c.perplexity for c in candidates("docs", folder, "skip", ReadReport())] == [math.exp(2), math.exp(3)]
    assert [c.perplexity for c in candidates("./docs", folder, "skip", ReadReport())] == [math.exp(2), math.exp(3)]


@pytest.mark.parametrize(("scored_as", "named"), [("one", "one/a.jsonl"), ("one/a.jsonl", "one"), (".", "one")])
def test_a_folder_of_one_file_may_be_named_by_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored_as: str, named: str
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jsonl").write_text('{"text": "word"}', "utf-8")
    monkeypatch.chdir(tmp_path / "one" if scored_as == "." else tmp_path)
    [record] = read_records(Source(scored_as), "error", ReadReport())
    sources = [{"name": "a", "path": scored_as, "fingerprint": source_fingerprint(Source(scored_as))}]
    folder = ScoreFolder.create(tmp_path / "scores", {"sources": sources})
    folder.write(0, 0, [Score(record.source, 1, 1, 2.0)], {})
    monkeypatch.chdir(tmp_path)
    assert [c.perplexity for c in candidates(named, folder, "error", ReadReport())] == [math.exp(2)]


def test_scores_of_records_that_are_gone_are_an_error(docs: Path) -> None:
    folder = scores_of(docs, str(docs))
    folder.write(0, 1, [Score(f"{docs}/d/text.jsonl:1", 1, 1, 1.0)], {})
    with pytest.raises(UserError, match="was scored, but is not in"):
        list(candidates(str(docs), folder, "skip", ReadReport()))


def test_tokens_are_counted_source_by_source_and_what_is_left_out_with_them(
    docs: Path, chatml_tokenizer: PreTrainedTokenizerBase
) -> None:
    sources = [Source(str(docs / name / "text.jsonl")) for name in "abc"]
    with (docs / "b" / "text.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"text": "word " * 9}))
    every = Candidates(sources, None, chatml_tokenizer, max_characters=20, on_bad_record="skip")
    found = [(c.source, c.n_tokens) for c in every]
    sizes = [
        len(chatml_tokenizer.encode(" ".join(["word"] * number), add_special_tokens=False)) for number in (1, 2, 3)
    ]
    assert found == [(source.name, size) for source, size in zip(sources, sizes, strict=True)]
    skipped = {name: read.skipped for name, read in every.reads.items()}
    assert skipped == {name: {"a record of more than 20 characters": 1} if "/b/" in name else {} for name in skipped}


def test_tokens_are_counted_as_a_training_has_them(chatml_tokenizer: PreTrainedTokenizerBase) -> None:
    record = Record("a:1", (Turn("document", "He writes <|im_end|> and <|im_start|>."),))
    [trained] = tokenize(PlainTagger().bind(chatml_tokenizer)(record), chatml_tokenizer, 99, lambda *_: None)
    [found] = counted([Candidate(record, "a", 0)], chatml_tokenizer)
    assert found.n_tokens == len(trained.input_ids) - 1  # the end of the document


def test_a_source_is_named_once(docs: Path, chatml_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="given twice"):
        Candidates([Source(str(docs))] * 2, None, chatml_tokenizer, 100, "error")


def test_the_tokens_of_a_record_are_those_of_all_its_texts_whatever_was_scored(
    tmp_path: Path, tiny_model_folder: str
) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"question": "what is a long question?", "answer": "this"}), "utf-8")
    source = Source(str(path))
    made_by = {
        "given": "response",
        "sources": [{"name": "a", "path": str(path), "fingerprint": source_fingerprint(source)}],
    }
    folder = ScoreFolder.create(tmp_path / "scores", made_by)
    folder.write(0, 0, [Score(f"{path}:1", 1, 4, 2.0)], {})
    [found] = Candidates([source], folder, tokenizer, 1000, "error")
    expected = [len(tokenizer(text)["input_ids"]) for text in ("what is a long question?", "this")]
    assert (found.n_tokens, found.perplexity) == (sum(expected), math.exp(2.0))
