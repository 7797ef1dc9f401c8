"""Every file format gives the same rows; what cannot be read is named by file and line, and the rest is kept."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from inscp.data.rows import BadRow, read_rows
from inscp.errors import UserError

ROWS = [{"text": text} for text in ("臺灣的夏天，又熱又濕。", 'She said "yes",\nthen\tleft.', "  spaces around  ")]
COMPRESS = {".gz": gzip.compress, ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}


def table(rows: list[dict[str, str]], delimiter: str) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def json_lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def paragraphs(rows: list[dict[str, str]]) -> str:
    return "\n\n".join(row["text"] for row in rows) + "\n"


TEXT_FORMATS = {
    "a.jsonl": json_lines,
    "a.ndjson": json_lines,
    "lines.json": json_lines,
    "array.json": json.dumps,
    "indented.json": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False),
    "a.csv": lambda rows: table(rows, ","),
    "a.tsv": lambda rows: table(rows, "\t"),
    "a.txt": paragraphs,
    "a.md": paragraphs,
}


def write(path: Path, data: str | bytes) -> Path:
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(COMPRESS.get(path.suffix.lower(), bytes)(data))
    return path


def read(path: Path, text_unit: str = "paragraph") -> list:
    """Position (without the folder) and row."""
    return [(position.removeprefix(f"{path.parent}/"), row) for position, row in read_rows(path, text_unit)]


def rows_of(path: Path, text_unit: str = "paragraph") -> list:
    return [row for _, row in read(path, text_unit)]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".GZ"])
@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_every_text_format_gives_the_same_rows(tmp_path, name, packed):
    assert rows_of(write(tmp_path / f"{name}{packed}", TEXT_FORMATS[name](ROWS))) == ROWS


def test_a_quote_in_a_tab_separated_corpus_is_a_quote(tmp_path):
    lines = [
        "id\ttext",
        '1\t"I came home.',
        "2\tThen I slept.",
        '3\tIt rained."',
        '4\t"Hello" she said',
        '5\t"a ""b"""',
    ]
    texts = ['"I came home.', "Then I slept.", 'It rained."', '"Hello" she said', 'a "b"']
    assert [row["text"] for row in rows_of(write(tmp_path / "a.tsv", "\n".join(lines)))] == texts
    spread = 'id\ttext\n1\t"two\nlines"\n2\t"a\ttab"\n'
    assert [row["text"] for row in rows_of(write(tmp_path / "b.tsv", spread))] == ["two\nlines", "a\ttab"]
    one_column = 'text\n"two\nlines"\n'
    assert rows_of(write(tmp_path / "c.tsv", one_column)) == [{"text": "two\nlines"}]


def test_parquet_gives_the_same_rows(tmp_path):
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet") == [(f"a.parquet#{n}", row) for n, row in enumerate(ROWS, 1)]


def test_a_value_of_parquet_that_python_cannot_hold_is_a_bad_row_and_the_others_are_rows(tmp_path):
    years = pa.array([0, 10**15], pa.timestamp("s"))  # the second one after the year 9999
    parquet.write_table(pa.table({"text": ["early", "late"], "date": years}), tmp_path / "dates.parquet")
    broken = pa.array([b"whole", b"\xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": broken}), tmp_path / "bytes.parquet")
    for name, text in (("dates", "early"), ("bytes", "whole")):
        (_, first), (position, second) = read(tmp_path / f"{name}.parquet")
        assert first["text"] == text
        assert position == f"{name}.parquet#2"
        assert second.why == "a value cannot be read"


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_object_is_one_row(tmp_path, indent):
    path = write(tmp_path / "a.json", json.dumps(ROWS[0], indent=indent, ensure_ascii=False))
    assert rows_of(path) == ROWS[:1]


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_bom_windows_line_ends_and_blank_lines_change_nothing(tmp_path, name):
    rows = [{"text": "甲"}, {"text": "乙"}]
    spaced = TEXT_FORMATS[name](rows).replace("\n", "\r\n\r\n")
    assert rows_of(write(tmp_path / name, "\ufeff\r\n" + spaced)) == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_blank_lines_count_in_positions(tmp_path, name):
    data = "x\n\n\ny\n\nz\n" if name in ("a.csv", "a.txt") else '{"x": 1}\n\n\n{"x": 2}\n\n{"x": 3}\n'
    lines = [4, 6] if name == "a.csv" else [1, 4, 6]
    assert [position for position, _ in read(write(tmp_path / name, data))] == [f"{name}:{n}" for n in lines]


@pytest.mark.parametrize(
    ("name", "unit", "before", "after"),
    [
        ("a.jsonl", "file", b'{"text": "a"}\n\n{"text": "', b'"}\n{"text": "b"}\n'),
        ("a.json", "file", b'{"text": "a"}\n\n{"text": "', b'"}\n{"text": "b"}\n'),
        ("array.json", "file", b'[{"text": "a"},\n\n{"text": "', b'"}]'),
        ("a.csv", "file", b"text\n\n", b"\nb\n"),
        ("header.csv", "file", b"\n\nte", b"xt\nb\n"),
        ("a.txt", "file", b"first\n\n", b"\nb\n"),
        ("a.txt", "paragraph", b"first\nsecond\n", b"\n\nb\n"),
        ("a.txt", "line", b"first\n\n", b"\nb\n"),
    ],
)
def test_invalid_utf8_is_named_by_line(tmp_path, name, unit, before, after):
    rows = read(write(tmp_path / name, before + b"\xff\xfe" + after), unit)
    (bad,) = [(position, row.why, row.detail) for position, row in rows if isinstance(row, BadRow)]
    byte = len(before) - before.rfind(b"\n")
    assert bad == (f"{name}:3", "not valid UTF-8", "" if ".csv" in name else f"byte {byte} of the line")
    whole = name == "array.json" or (unit == "file" and name == "a.txt")
    assert whole or rows[-1][1] in ({"text": "b"}, {"te\udcff\udcfext": "b"})  # what follows is kept


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.txt.gz", "a.jsonl.zst"])
def test_a_line_of_5_mb_is_one_row(tmp_path, name):
    rows = [{"text": "龍" * 1_700_000}, {"text": "end"}]
    formats = TEXT_FORMATS | {"a.json": json_lines}
    path = write(tmp_path / name, formats[name.removesuffix(".gz").removesuffix(".zst")](rows))
    assert rows_of(path) == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_broken_json_is_named_by_line_and_the_rest_is_kept(tmp_path, name):
    rows = read(write(tmp_path / name, '{"x": 1}\n{"x": 2}\n{"x": 3,, "y": 0}\n{"x": 4}\n'))
    position, bad = rows.pop(2)
    assert [row for _, row in rows] == [{"x": 1}, {"x": 2}, {"x": 4}]
    assert position == f"{name}:3"
    assert bad.why == "not valid JSON"
    assert "column 9" in bad.detail


def test_broken_json_array_is_named_by_line(tmp_path):
    ((position, bad),) = read(write(tmp_path / "a.json", '[\n{"x": 1},\n{"x" 2}\n]'))
    assert (position, bad.why) == ("a.json:3", "not valid JSON")


@pytest.mark.parametrize("line", ["[1]", "null", "7", '{"n": ' + "1" * 5000 + "}", "[" * 100_000])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_that_is_no_row_is_a_bad_row(tmp_path, name, line):
    rows = read(write(tmp_path / name, f'{{"x": 1}}\n{line}\n{{"x": 2}}\n'))
    assert [row for _, row in rows if not isinstance(row, BadRow)] == [{"x": 1}, {"x": 2}]
    assert rows[1][0] == f"{name}:2"


def test_a_json_array_nested_too_deeply_is_a_bad_row(tmp_path):
    (bad,) = rows_of(write(tmp_path / "a.json", "[" * 100_000))
    assert isinstance(bad, BadRow)


def test_table_rows_are_named_by_their_first_line(tmp_path):
    data = 'a,b\n1,"two\nlines\n\n"\n3\n4,5,6\n7,8\n9,"un"quoted\n10,11\n12,"left open\n13,14\n'
    rows = read(write(tmp_path / "a.csv", data))
    good = [row for row in rows if not isinstance(row[1], BadRow)]
    assert good == [
        ("a.csv:2", {"a": "1", "b": "two\nlines\n\n"}),
        ("a.csv:8", {"a": "7", "b": "8"}),
        ("a.csv:10", {"a": "10", "b": "11"}),
    ]
    bad = [(position, row.why) for position, row in rows if isinstance(row, BadRow)]
    fields = "expected 2 fields as in the header"
    assert bad == [
        ("a.csv:6", fields),
        ("a.csv:7", fields),
        ("a.csv:9", "not valid CSV"),
        ("a.csv:11", "not valid CSV"),
    ]


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_row_that_reads_as_the_header_is_a_row(tmp_path, name, mark):
    line = f"a{mark}b\n"
    assert rows_of(write(tmp_path / name, line * 3)) == [{"a": "a", "b": "b"}] * 2


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut in half", "last byte gone", "second part cut", "garbage"])
def test_a_damaged_compressed_file_is_an_error_not_a_short_file(tmp_path, suffix, damage):
    whole = COMPRESS[suffix](json_lines([{"text": str(n)} for n in range(3000)]).encode())
    half = whole[: len(whole) // 2]
    data = {
        "cut in half": half,
        "last byte gone": whole[:-1],
        "second part cut": whole + half,
        "garbage": b"no such thing",
    }
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(data[damage])
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert str(error.value).startswith(f"{path}: it cannot be read (")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_parts_one_after_another_are_all_read(tmp_path, suffix):
    data = COMPRESS[suffix](b'{"x": 1}\n') + COMPRESS[suffix](b'{"x": 2}\n')
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(data)
    assert rows_of(path) == [{"x": 1}, {"x": 2}]


@pytest.mark.parametrize("name", ["a.parquet", "a.docx", "a", "a.jsonl.bz2"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name):
    with pytest.raises(UserError, match=name):
        list(read_rows(write(tmp_path / name, "garbage")))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_what_windows_writes_is_reported_with_how_to_convert_it(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(("" if encoding == "utf-16" else "\ufeff").encode(encoding) + "Hyvää päivää".encode(encoding))
    with pytest.raises(UserError, match=r"a\.txt: it is UTF-16\. Convert it: iconv"):
        list(read_rows(path))


def test_another_encoding_is_reported_with_how_to_convert_it(tmp_path):
    for name in ("a.txt", "a.csv"):
        (tmp_path / name).write_bytes("text,b\nHyvää päivää,x\n".encode("latin-1"))
        bad = [row for _, row in read_rows(tmp_path / name) if isinstance(row, BadRow)]
        assert ["iconv" in row.fix for row in bad] == [True]


@pytest.mark.parametrize(
    ("header", "told"), [('"text";"b"', "semicolons"), ("text;b", "semicolons"), ("text\tb", "tabs")]
)
def test_a_table_with_another_delimiter_is_reported(tmp_path, header, told):
    path = tmp_path / "a.csv"
    path.write_text(f'{header}\n"one, two";"x"\n', "utf-8")
    with pytest.raises(UserError, match=rf"a\.csv:1: its fields are separated by {told}"):
        list(read_rows(path))


def test_text_units(tmp_path):
    path = write(tmp_path / "a.txt", "\n one\ntwo \n \t\n\nthree\n")
    assert read(path, "file") == [("a.txt:1", {"text": " one\ntwo \n \t\n\nthree"})]
    assert read(path, "paragraph") == [("a.txt:2", {"text": " one\ntwo "}), ("a.txt:6", {"text": "three"})]
    assert read(path, "line") == [
        ("a.txt:2", {"text": " one"}),
        ("a.txt:3", {"text": "two "}),
        ("a.txt:6", {"text": "three"}),
    ]


def test_an_empty_file_is_a_text_without_words_which_is_reported(tmp_path):
    path = write(tmp_path / "a.txt", "")
    assert read(path, "file") == [("a.txt:1", {"text": ""})]
    assert read(path, "paragraph") == read(path, "line") == []
