"""Rows are made once under a fingerprint of everything that decides them; a folder in the cache is whole or absent."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from inscp.data import pipeline as pipeline_module
from inscp.data.cache import FORMAT_VERSION, CachedRows, DataReport, cached_rows, fingerprint
from inscp.data.packing import PackReport, pack
from inscp.data.pipeline import Pipeline, as_sources
from inscp.data.sources import Source
from inscp.data.tagging import ConversationTagger, InsCPTagger, PlainTagger
from inscp.errors import UserError
from inscp.records import TokenSequence

PAIR = '{"question": "Who naps?", "answer": "The cat naps.", "other": "No one."}\n'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("INSCP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text(PAIR * 9)
    return path


@pytest.fixture
def tokenizer(tiny_model_folder: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


def made(digest: str, calls: list[str], n: int = 50) -> CachedRows:
    """Rows of `n` little sequences; every making is noted in `calls`."""

    def make():
        calls.append(digest)
        ids = [np.arange(2 + number % 7, dtype=np.int32) + number for number in range(n)]
        report = PackReport(16)
        return pack((TokenSequence("s", one, one) for one in ids), report), report

    return cached_rows(digest, make, lambda report: report.records.update(s=n), pad_id=0)


def equal(one: CachedRows, other: CachedRows) -> bool:
    counts = (one.n_targets == other.n_targets).all() and (one.n_tokens == other.n_tokens).all()
    return bool(counts) and one.table == other.table and one.report == other.report


def test_the_second_call_reads_what_the_first_made(cache):
    calls: list[str] = []
    first, second, other = (made(digest, calls) for digest in "aab")
    assert calls == ["a", "b"]
    assert equal(first, second)
    assert other.table == first.table
    assert sorted(path.name for path in (cache / "a").iterdir()) == ["report.json", "rows.arrow"]


def test_cached_rows_are_the_packed_rows():
    cached = made("a", [])
    ids = np.stack(cached.table.column("input_ids").to_numpy())
    targets = np.stack(cached.table.column("targets").to_numpy())
    assert cached.report == DataReport(
        "a",
        16,
        rows=len(ids),
        tokens=int(cached.n_tokens.sum()),
        targets=int((targets >= 0).sum()),
        padding=pytest.approx(1 - cached.n_tokens.sum() / ids.size),
        sequences=50,
        records={"s": 50},
    )
    assert (cached.n_targets == (targets >= 0).sum(axis=1)).all()
    assert [sum(lengths) for lengths in cached.table.column("lengths").to_pylist()] == [16] * len(ids)


def test_garbage_is_collected_as_before_when_rows_are_made():
    frozen: list[int] = []
    before = gc.get_freeze_count()

    def make():
        report = PackReport(16)

        def sequences():
            frozen.append(gc.get_freeze_count())
            yield TokenSequence("s", np.arange(5), np.arange(5))

        return pack(sequences(), report), report

    cached_rows("a", make, lambda report: None, pad_id=0)
    assert frozen[0] > 1000  # objects of the libraries
    assert gc.get_freeze_count() == before


def test_a_failed_making_leaves_nothing_behind(cache):
    def fail():
        def rows():
            yield from pack([TokenSequence("s", np.arange(16), np.arange(16))] * 2000, report)
            raise UserError("a.jsonl:3", "not valid JSON", "Mend it.")

        report = PackReport(16)
        return rows(), report

    with pytest.raises(UserError, match=r"a\.jsonl:3"):
        cached_rows("a", fail, lambda report: None, pad_id=0)
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == []
    assert equal(made("a", []), made("a", []))


def test_what_a_killed_process_left_does_not_matter(cache):
    (cache / ".a.partial").mkdir(parents=True)
    (cache / ".a.partial" / "rows.arrow").write_bytes(b"half a file")
    (cache / "a.lock").touch()
    calls: list[str] = []
    assert made("a", calls).report.sequences == 50
    assert calls == ["a"]
    assert not (cache / ".a.partial").exists()


PREPARE = """
import sys, time
from pathlib import Path

import numpy as np

from inscp.data.cache import cached_rows
from inscp.data.packing import PackReport, pack
from inscp.records import TokenSequence

meeting, name, other = Path(sys.argv[1]), *sys.argv[2:]

def make():
    with (meeting / "made").open("a") as file:
        file.write(name)
    time.sleep(0.3)  # so that the other process comes while this one is at it
    report = PackReport(16)
    ids = np.arange(50_000, dtype=np.int32).reshape(-1, 5)
    return pack((TokenSequence("s", one, one) for one in ids), report), report

(meeting / name).touch()
while not (meeting / other).exists():
    time.sleep(0.005)
cached = cached_rows("a", make, lambda report: None, pad_id=0)
print(repr(cached.report), cached.table.to_pydict(), cached.n_targets, cached.n_tokens)
"""


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_rows_are_made_and_read_without_pandas_which_takes_a_second_to_import(tmp_path):
    read = "\nfrom inscp.data.cache import to_numpy\nprint(to_numpy(cached.table.column('lengths')[1].values))"
    one = started(f"{PREPARE}{read}\nprint('pandas' in sys.modules)", str(tmp_path), "x", "x")
    assert one.communicate(timeout=60)[0].splitlines()[-2:] == ["[5 5 5 1]", "False"]


def test_two_processes_at_once_make_one_whole_folder(cache, tmp_path):
    processes = [started(PREPARE, str(tmp_path), *names) for names in ("xy", "yx")]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert (tmp_path / "made").read_text() in ("x", "y")
    assert said[0] == said[1]
    assert "sequences=10000" in said[0]
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == ["a"]


@pytest.fixture
def pipeline(pairs: Path, tokenizer: PreTrainedTokenizerBase) -> Pipeline:
    return Pipeline([Source(str(pairs))], tokenizer, InsCPTagger(), row_length=128)


def test_the_pipeline_makes_rows_once(pipeline, monkeypatch):
    first = pipeline.rows()
    assert first.report.records == {pipeline.sources[0].path: 9}
    assert first.report.sequences == 18
    monkeypatch.setattr(pipeline_module, "tokenized", None)  # which nothing calls any more
    assert equal(pipeline.rows(), first)


def test_a_source_of_another_weight_is_seen_as_often_as_that_says(pipeline):
    once = pipeline.rows().report
    for weight, records in ((2, 18), (1.5, 14), (0.25, 3), (0.01, 1)):
        weighted = source(pipeline, weight=weight).rows().report
        assert weighted.records == {f"{pipeline.sources[0].path} (weight {weight:g})": records}, weight
        assert weighted.sequences == once.sequences * records / 9


def other_template(pipeline: Pipeline) -> Pipeline:
    pipeline.tokenizer.chat_template += " "
    return pipeline


def other_tokenizer(pipeline: Pipeline) -> Pipeline:
    pipeline.tokenizer.add_tokens(["cat naps"])
    return pipeline


def other_special_token(pipeline: Pipeline) -> Pipeline:
    pipeline.tokenizer.eos_token = pipeline.tokenizer.pad_token
    return pipeline


def other_content(pipeline: Pipeline) -> Pipeline:
    with Path(pipeline.sources[0].path).open("a") as file:
        file.write(PAIR)
    return pipeline


def source(pipeline: Pipeline, **changes: object) -> Pipeline:
    return replace(pipeline, sources=[replace(pipeline.sources[0], **changes)])


CHANGES: dict[str, Callable[[Pipeline], Pipeline]] = {
    "content": other_content,
    "template": other_template,
    "tokenizer": other_tokenizer,
    "special token": other_special_token,
    "one more source": lambda p: replace(p, sources=p.sources * 2),
    "mapping": lambda p: source(p, fields={"user": "question", "assistant": "other"}),
    "limit": lambda p: source(p, limit=3),
    "weight": lambda p: source(p, weight=2),
    "row length": lambda p: replace(p, row_length=96),
    "document length": lambda p: replace(p, document_length=48),
    "bad records": lambda p: replace(p, on_bad_record="skip"),
    "loss": lambda p: replace(p, tagger=InsCPTagger(loss="response")),
    "pairs": lambda p: replace(p, tagger=InsCPTagger(pairs="join")),
    "no system turn": lambda p: replace(p, tagger=InsCPTagger(system="none")),
    "system turn": lambda p: replace(p, tagger=InsCPTagger(system="Purr.")),
    "request": lambda p: replace(p, tagger=InsCPTagger(user="Purr.")),
    "plain": lambda p: replace(p, tagger=PlainTagger()),
    "conversation": lambda p: replace(p, tagger=ConversationTagger()),
    "end of document": lambda p: replace(p, tagger=PlainTagger(end_of_document="<|endoftext|>")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_the_rows_changes_the_fingerprint(pipeline, change):
    before = pipeline.fingerprint()
    assert CHANGES[change](pipeline).fingerprint() != before


def test_the_fingerprints_of_all_changes_differ(pipeline):
    kept = [change for change in CHANGES.values() if change.__name__ == "<lambda>"]
    assert len({change(pipeline).fingerprint() for change in kept}) == len(kept)


def test_the_order_of_the_sources_changes_the_fingerprint(pipeline):
    sources = [pipeline.sources[0], replace(pipeline.sources[0], limit=3)]
    assert len({replace(pipeline, sources=of).fingerprint() for of in (sources, sources[::-1])}) == 2


def test_the_format_version_changes_the_fingerprint(monkeypatch):
    before = fingerprint("x")
    monkeypatch.setattr("inscp.data.cache.FORMAT_VERSION", FORMAT_VERSION + 1)
    assert fingerprint("x") != before


def test_what_does_not_decide_the_rows_leaves_the_fingerprint(pipeline, pairs, tiny_model_folder):
    before = pipeline.fingerprint()
    pipeline.tokenizer(
        ["a", "longer"], padding=True, truncation=True, max_length=4
    )  # leaves its state in the tokenizer
    assert pipeline.fingerprint() == before
    os.utime(pairs, (0, 0))
    again = AutoTokenizer.from_pretrained(tiny_model_folder)
    assert replace(pipeline, tokenizer=again).fingerprint() == before


def test_a_conversation_that_is_too_long_is_counted_under_its_source(tmp_path, pipeline):
    (tmp_path / "folder").mkdir()
    long = PAIR.replace("naps", "naps " * 200)
    (tmp_path / "folder" / "a.jsonl").write_text(PAIR + long + PAIR)
    sources = as_sources([str(tmp_path / "folder"), *(one.path for one in pipeline.sources)])
    chat = replace(pipeline, sources=sources, tagger=ConversationTagger(), row_length=96)
    with pytest.raises(UserError, match=r"a\.jsonl:2: a conversation of more than 96 tokens"):
        chat.rows()
    report = replace(chat, on_bad_record="skip").rows().report
    assert report.skipped == {sources[0].path: {"a conversation of more than 96 tokens, which cannot be split": 1}}
    assert report.sequences == 2 + 9
    assert report.records == {sources[0].path: 2, sources[1].path: 9}


def test_what_is_left_out_is_no_record(pairs, pipeline):
    pairs.write_text(PAIR * 5 + '{"text": "Nobody asks."}\n' * 20 + "{broken\n")
    report = replace(pipeline, tagger=ConversationTagger(), on_bad_record="skip").rows().report
    assert report.records == {str(pairs): report.sequences} == {str(pairs): 5}
    assert str(report).startswith("5 records (21 skipped), 5 sequences")


def test_a_report_names_the_sources_and_files_that_were_given(tmp_path, pairs, pipeline, monkeypatch):
    def given(*names: str) -> Pipeline:
        return replace(pipeline, sources=as_sources([str(tmp_path / name) for name in names]), on_bad_record="skip")

    bad = PAIR + "{broken\n"
    for name, text in {"one/a.jsonl": PAIR, "one/b.jsonl": bad, "two/c.jsonl": PAIR, "two/d.jsonl": bad}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    made = given("one", "one", "one/b.jsonl").rows()
    one, b, two, d = (str(tmp_path / name) for name in ("one", "one/b.jsonl", "two", "two/d.jsonl"))
    why = "not valid JSON"
    assert made.report.records == {one: 4, b: 1}
    assert made.report.skipped == {one: {why: 2}, b: {why: 1}}
    assert made.report.first_skipped == {one: {why: f"{b}:2"}, b: {why: f"{b}:2"}}
    monkeypatch.setattr(pipeline_module, "tokenized", None)  # which nothing calls any more
    report = given("one", "two", "two/d.jsonl").rows().report
    assert report.records == {one: 2, two: 2, d: 1}
    assert report.skipped == {one: {why: 1}, two: {why: 1}, d: {why: 1}}
    assert report.first_skipped == {one: {why: f"{b}:2"}, two: {why: f"{d}:2"}, d: {why: f"{d}:2"}}


def test_a_report_says_with_which_weight_records_count(tmp_path, pairs, pipeline):
    (tmp_path / "b.jsonl").write_text(PAIR * 4)
    sources = [Source(str(pairs), weight=3, licence="CC0-1.0"), Source(str(tmp_path / "b.jsonl"), weight=0.5)]
    report = replace(pipeline, sources=sources).rows().report
    assert report.records == {f"{pairs} (weight 3)": 27, f"{tmp_path / 'b.jsonl'} (weight 0.5)": 2}
    assert report.licences == {f"{pairs} (weight 3)": "CC0-1.0"}


def test_sources_of_one_name_count_as_one_and_what_was_skipped_first_is_reported():
    report = DataReport("", 8)
    report.add("a", 2, {"bad": 1}, {"bad": "a:1"})
    report.add("a", 3, {"bad": 1, "long": 1}, {"bad": "a:9", "long": "a:7"})
    assert report.records == {"a": 5}
    assert report.skipped == {"a": {"bad": 2, "long": 1}}
    assert report.first_skipped == {"a": {"bad": "a:1", "long": "a:7"}}


def test_no_row_at_all_is_an_error(pipeline):
    tiny = replace(pipeline, tagger=ConversationTagger(), row_length=8, on_bad_record="skip")
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: no record is left.*more than 8 tokens"):
        tiny.rows()
