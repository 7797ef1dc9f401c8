"""Sources are files, folders and saved data sets; bad records stop or are counted; fingerprints follow the contents."""

import math
import os
from pathlib import Path

import datasets
import pytest

from inscp.data.sources import (
    ReadReport,
    Source,
    read_records,
    require_outside,
    require_source,
    source_fingerprint,
    source_rows,
    weighted_rows,
)
from inscp.errors import UserError
from inscp.records import Turn

TEXTS = ["臺灣", "two words", "三"]


def texts(source: Source, report: ReadReport | None = None, on_bad_record: str = "error") -> list[str]:
    return [record.turns[0].text for record in read_records(source, on_bad_record, report or ReadReport())]


def jsonl(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return str(path)


def refused(source: Source, on_bad_record: str = "error") -> str:
    """The message of the one-line error that reading ends with."""
    with pytest.raises(UserError) as error:
        texts(source, on_bad_record=on_bad_record)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One text in each of three formats, one in a folder below, and files that are no data."""
    (tmp_path / "data/a").mkdir(parents=True)
    jsonl(tmp_path / "data/c.jsonl", f'{{"text": "{TEXTS[2]}"}}')
    jsonl(tmp_path / "data/b.csv", "text", TEXTS[1])
    jsonl(tmp_path / "data/a/z.txt", TEXTS[0])
    jsonl(tmp_path / "data/notes.docx", "no data")
    return tmp_path / "data"


def test_a_folder_is_the_files_in_it_in_order(folder):
    records = list(read_records(Source(str(folder)), "error", ReadReport()))
    assert [record.turns for record in records] == [(Turn("document", text),) for text in TEXTS]
    assert [record.source for record in records] == [f"{folder}/{at}" for at in ("a/z.txt:1", "b.csv:2", "c.jsonl:1")]


@pytest.mark.parametrize("splits", [False, True])
def test_a_data_set_saved_to_disk_gives_the_same_records(tmp_path, splits):
    saved = datasets.Dataset.from_dict({"text": TEXTS})
    path = str(tmp_path / "saved")
    (datasets.DatasetDict({"train": saved, "test": saved.select([0])}) if splits else saved).save_to_disk(path)
    records = list(read_records(Source(path), "error", ReadReport()))
    assert [record.turns[0].text for record in records] == TEXTS
    assert [record.source for record in records] == [f"{path}#{n}" for n in (1, 2, 3)]
    if splits:
        assert texts(Source(path, split="test")) == TEXTS[:1]
        assert "neither a local path nor" in refused(Source(path, split="none"))
        assert source_fingerprint(Source(path)) != source_fingerprint(Source(path, split="test"))


def test_samples_ship_with_the_package():
    records = list(read_records(Source("samples:zh_tw/train_pairs.jsonl"), "error", ReadReport()))
    assert len(records) >= 300
    assert {tuple(turn.role for turn in record.turns) for record in records} == {("user", "assistant")}
    assert "train_pairs.jsonl" in refused(Source("samples:zh_tw/none.jsonl"))


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """Three good records among four bad ones."""
    bad = ["{", '{"text": null}', '{"text": " "}', '{"text": "half \\ud83d"}']
    good = [f'{{"text": "{text}"}}' for text in TEXTS]
    return jsonl(tmp_path / "broken.jsonl", good[0], bad[0], bad[1], good[1], bad[2], bad[3], bad[0] + " ", good[2])


def test_a_bad_record_stops_with_its_position(broken):
    assert refused(Source(broken)).startswith(f"{broken}:2: not valid JSON (")


def test_skipped_records_are_counted_by_reason_and_the_others_kept(broken):
    report = ReadReport()
    assert texts(Source(broken), report, "skip") == TEXTS
    assert report.records == 3
    assert report.skipped == {
        "not valid JSON": 2,
        "none of its fields is known": 1,
        "text has no text": 1,
        "text contains half a surrogate pair, which is not valid Unicode": 1,
    }
    assert report.examples["not valid JSON"] == f"{broken}:2"


@pytest.mark.parametrize("lines", [[], ["{", '{"text": ""}']])
def test_a_source_with_no_usable_record_is_an_error(tmp_path, lines):
    assert "no usable record" in refused(Source(jsonl(tmp_path / "none.jsonl", *lines)), "skip")


@pytest.mark.parametrize("path", ["none.jsonl", "./none", "/none/of/it", "data/none.csv"])
def test_a_missing_file_is_an_error(path):
    assert refused(Source(path)).startswith(f"{path}: no such file or folder")


def test_an_unknown_format_and_an_empty_folder_are_errors(tmp_path):
    assert "unknown file format" in refused(Source(jsonl(tmp_path / "a.docx", "x")))
    assert "no file of a known format" in refused(Source(str(tmp_path)))


@pytest.mark.parametrize(
    "fields", [{"body": "text"}, {"assistant": "a"}, {"text": "t", "turns": "m"}, {"context": "c"}]
)
def test_a_wrong_mapping_is_an_error(fields):
    with pytest.raises(UserError, match=r"fields of a\.jsonl"):
        Source("a.jsonl", fields=fields)


def test_the_mapping_is_used(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", '{"text": "no", "body": "yes"}')
    assert texts(Source(path, fields={"text": "body"})) == ["yes"]
    assert "the field Body is missing (its fields: text, body)" in refused(Source(path, fields={"text": "Body"}))


def test_fields_without_an_answer_are_those_of_prompts_alone(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", '{"q": "Why?", "c": "It rains.", "a": "So."}')
    source = Source(path, fields={"user": "q", "context": "c"})
    [record] = read_records(source, "error", ReadReport(), requests=True)
    assert record.turns == (Turn("user", "Why?\n\nIt rains."),)
    assert "no answer. Name the answer's field as `assistant`" in refused(source, "skip")
    with pytest.raises(UserError, match="no answer"):
        require_source(source)


def test_limit(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *(f'{{"text": "{text}"}}' for text in TEXTS), "broken")
    assert texts(Source(path, limit=2)) == TEXTS[:2]
    assert texts(Source(path, limit=3)) == TEXTS
    with pytest.raises(UserError, match="limit"):
        Source(path, limit=0)


def test_a_part_of_a_pass_is_evenly_spaced(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *(f'{{"text": "{number}"}}' for number in range(10)))
    seen = [int(row["text"]) for _, row in weighted_rows(Source(path, weight=1.3))]
    assert seen == [*range(10), 0, 3, 6]
    for weight in (0, -1, math.inf, math.nan):
        with pytest.raises(UserError, match=r"weight of .*a\.jsonl"):
            Source(path, weight=weight)


def test_records_are_streamed(tmp_path):
    stream = read_records(Source(jsonl(tmp_path / "a.jsonl", '{"text": "x"}', "broken")), "error", ReadReport())
    assert next(stream).turns[0].text == "x"
    with pytest.raises(UserError, match=r"a\.jsonl:2: not valid JSON"):
        next(stream)


def test_fingerprint_follows_the_contents_and_not_the_clock(folder):
    fingerprint = source_fingerprint(Source(str(folder)))
    for path in folder.rglob("*.*"):
        os.utime(path, (0, 0))
    moved = folder.rename(folder.with_name("moved"))
    assert source_fingerprint(Source(str(moved))) == fingerprint
    jsonl(moved / "a/z.txt", "臺灣!")
    assert source_fingerprint(Source(str(moved))) != fingerprint


def test_fingerprint_follows_everything_that_decides_what_is_read(tmp_path):
    line = '{"text": "a\tb", "body": "c"}'
    path = jsonl(tmp_path / "a.txt", line, line)
    sources = [
        Source(path),
        Source(path, fields={"text": "body"}),
        Source(path, limit=1),
        Source(path, limit=2),
        Source(path, text_unit="line"),
        *(Source(jsonl(tmp_path / name, line, line)) for name in ("a.csv", "a.tsv", "a.jsonl")),
        Source(jsonl(tmp_path / "more.txt", line, line, line)),
        Source(str(tmp_path)),
    ]
    assert len({source_fingerprint(source) for source in sources}) == len(sources)


def test_fingerprint_of_a_saved_data_set_follows_its_contents(tmp_path):
    for name, saved in {"a": TEXTS, "b": TEXTS, "c": TEXTS[:2]}.items():
        datasets.Dataset.from_dict({"text": saved}).save_to_disk(tmp_path / name)
    a, b, c = (source_fingerprint(Source(str(tmp_path / name))) for name in "abc")
    assert a == b != c


def test_images_of_a_data_set_are_never_decoded_nor_passed_on(tmp_path):
    none = {"bytes": b"none that could be decoded", "path": None}
    columns = {
        "text": (TEXTS, datasets.Value("string")),
        "messages": ([[{"role": "user", "a": 1}]] * 3, datasets.List(datasets.Json())),
        "shown": ([none] * 3, datasets.Image()),
        "more": ([[{"by": none}]] * 3, datasets.List({"by": datasets.Image()})),
        "said": ([{"text": "a", "by": None}] * 3, {"text": datasets.Value("string"), "by": datasets.Image()}),
    }
    features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
    saved = datasets.Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features=features)
    saved.save_to_disk(tmp_path / "saved")
    source = Source(str(tmp_path / "saved"), fields={"text": "text"})
    fingerprint = source_fingerprint(source)
    rows = [row for _, row in source_rows(source)]
    said = {"text": "a", "by": None}
    assert rows == [{"text": text, "messages": [{"role": "user", "a": 1}], "said": said} for text in TEXTS]
    assert source_fingerprint(source) == fingerprint


def test_hidden_folders_and_descriptions_of_the_data_are_no_data_and_an_empty_path_is_no_folder(folder):
    before = texts(Source(str(folder)))
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "copy.jsonl").write_text('{"text": "again"}')
    (folder / "README.md").write_text("# What this is")
    (folder / "LICENSE.txt").write_text("Take it.")
    assert texts(Source(str(folder))) == before
    with pytest.raises(UserError, match="it is empty"):
        Source("")


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A data set as the Hub lays it out, with cards in two languages."""
    for split in ("train", "test"):
        (tmp_path / "cut" / "data").mkdir(parents=True, exist_ok=True)
        jsonl(tmp_path / "cut" / "data" / f"{split}-00000-of-00001.jsonl", f'{{"text": "{split}"}}')
    for card in ("README.md", "README_zh.md", "LICENSE.txt"):
        jsonl(tmp_path / "cut" / card, "about it")
    return tmp_path / "cut"


def test_of_a_folder_of_splits_the_one_that_is_named_is_read(cut):
    assert [texts(Source(str(cut), split=split)) for split in ("train", "test")] == [["train"], ["test"]]
    assert source_fingerprint(Source(str(cut), split="train")) != source_fingerprint(Source(str(cut), split="test"))
    assert Source(str(cut), split="test").name == f"{cut} (test)"
    assert "the folder contains the splits test and train. Name one: [{path:" in refused(Source(str(cut)))
    assert "no file or folder in it has a name beginning with dev. Use one of: test, train." in refused(
        Source(str(cut), split="dev")
    )
    (cut / "data").rename(cut / "test")  # of a split is also what lies in a folder of that name
    (cut / "test" / "train-00000-of-00001.jsonl").unlink()
    assert texts(Source(str(cut))) == ["test"]


def test_what_only_some_sources_have_is_not_passed_over_with_the_others(cut):
    file = cut / "data" / "test-00000-of-00001.jsonl"
    assert "a file has no splits" in refused(Source(str(file), split="test"))
    assert "only a data set on the Hub has one" in refused(Source(str(cut), split="test", subset="en"))
    assert "only a data set on the Hub has one" in refused(Source(str(file), revision="main"))
    datasets.Dataset.from_dict({"text": ["one"]}).save_to_disk(cut / "saved")
    assert "validation" in refused(Source(str(cut / "saved"), split="validation"))


def test_what_is_made_must_not_lie_among_the_data(cut):
    with pytest.raises(UserError, match=r"it is inside .*cut, which is read as data"):
        require_outside(cut / "data" / "scores", [Source(str(cut))])
    require_outside(cut.parent / "scores", [Source(str(cut))])
    require_outside(cut / "data" / "scores", [Source(str(cut / "data" / "test-00000-of-00001.jsonl"))])
