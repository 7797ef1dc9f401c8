"""From files to rows: every supported file format, read as a stream of (position, row).

A position can be opened in an editor: `file.jsonl:17` (line) or `file.parquet#17` (row, from 1). A row that cannot be
read is replaced by a `BadRow`, and the stream continues after it, so that the caller may skip and count.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa

from inscp.errors import UserError

TextUnit = Literal["file", "paragraph", "line"]
Row = dict[str, Any]
PlacedRow = tuple[str, "Row | BadRow"]
"""A row with its position."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair, which is not valid Unicode. Invalid UTF-8 decodes to such halves with `surrogateescape`."""

_BOM, _UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_CONVERT = "Convert the file: iconv -f ITS_ENCODING -t utf-8."
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        why: the reason, by which skipped rows are counted.
        detail: particulars of the row.
        line: the invalid line, counted from the row's first line as 0.
        fix: what to do about it, unless it is to fix the row.
    """

    why: str
    detail: str = ""
    line: int = 0
    fix: str = ""


def open_bytes(path: Path) -> BinaryIO:
    """The (decompressed) bytes of a file after its BOM; `.gz` and `.zst` are recognised by name.

    Arrow decompresses, because it raises `OSError` for any invalid file, including a truncated one, which `zstandard`
    reads as if it ended there.

    Raises:
        UserError: it is UTF-16, as written by Windows.
    """
    raw = pa.input_stream(str(path), compression=_COMPRESSIONS.get(path.suffix.lower()))
    file = io.BufferedReader(cast(io.RawIOBase, raw), buffer_size=1 << 20)
    if file.peek(len(_BOM)).startswith(_BOM):
        file.read(len(_BOM))
    if file.peek(2).startswith(_UTF16_BOMS):
        raise UserError(str(path), "it is UTF-16", "Convert it: iconv -f utf-16 -t utf-8.")
    return cast(BinaryIO, file)


def file_format(path: Path) -> str:
    """The suffix that determines the format: in lower case, without `.gz` or `.zst`."""
    path = Path(path.name.lower())
    return (path.with_suffix("") if path.suffix in _COMPRESSIONS else path).suffix


def read_rows(path: Path, text_unit: TextUnit = "file") -> Iterator[tuple[str, Row | BadRow]]:
    """Every row of one file with its position.

    Args:
        path: the file.
        text_unit: unit of a plain-text file that makes one document.

    Raises:
        UserError: the format is unknown, or the file cannot be read at all.
    """
    reader = _READERS.get(file_format(path))
    if reader is None:
        known = " ".join(sorted(_READERS))
        raise UserError(str(path), "unknown file format", f"Use one of: {known} (text formats also .gz, .zst).")
    try:
        yield from reader(path, text_unit)
    except (OSError, pa.ArrowException) as error:
        raise UserError(str(path), f"it cannot be read ({error})", "Check the file, or remove it.") from error


def is_supported(path: Path) -> bool:
    """Whether `read_rows` knows the format."""
    return file_format(path) in _READERS


def _decoded(raw: bytes) -> str | BadRow:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.start - raw.rfind(b"\n", 0, error.start)
        return BadRow("not valid UTF-8", f"byte {byte} of the line", raw.count(b"\n", 0, error.start), _CONVERT)


def _as_row(value: object) -> Row | BadRow:
    if isinstance(value, dict | BadRow):
        return value
    return BadRow(f"expected an object, found {type(value).__name__}")


def _parsed(raw: bytes) -> Any:
    text = _decoded(raw)
    if isinstance(text, BadRow):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return BadRow("not valid JSON", f"{error.msg} at column {error.colno}", error.lineno - 1)
    except (ValueError, RecursionError) as error:  # thousands of digits, or of nested brackets
        return BadRow("JSON that exceeds Python's limits", str(error))


def _json_lines(path: Path, _: TextUnit) -> Iterator[tuple[str, Row | BadRow]]:
    with open_bytes(path) as file:
        for number, raw in enumerate(file, 1):
            if line := raw.strip():
                yield f"{path}:{number}", _as_row(_parsed(line))


def _json(path: Path, unit: TextUnit) -> Iterator[tuple[str, Row | BadRow]]:
    """An array of objects or, as is common, JSON Lines under the wrong name."""
    with open_bytes(path) as file:
        start = file.read(4096).lstrip()
    if not start.startswith(b"["):
        first_line = start.split(b"\n", 1)[0]
        if isinstance(_parsed(first_line.strip()), dict) or len(first_line) > 4000:
            yield from _json_lines(path, unit)
            return
    with open_bytes(path) as file:
        value = _parsed(file.read())
    if isinstance(value, BadRow):
        yield f"{path}:{value.line + 1}", value
        return
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        yield f"{path}#{number}", _as_row(item)


_UNREADABLE = (OverflowError, ValueError)
"""Raised for values that Python cannot represent: a date after the year 9999, text that is not UTF-8."""


def _parquet(path: Path, _: TextUnit) -> Iterator[tuple[str, Row | BadRow]]:
    import pyarrow.parquet as parquet

    number = 0
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
        try:
            rows: list[Row | BadRow] = batch.to_pylist()
        except _UNREADABLE:  # row by row, to find the bad ones
            rows = [_plain(batch.slice(place, 1)) for place in range(batch.num_rows)]
        for row in rows:
            number += 1
            yield f"{path}#{number}", row


def _plain(row: pa.RecordBatch) -> Row | BadRow:
    """The row of a batch of one."""
    try:
        return dict(row.to_pylist()[0])
    except _UNREADABLE as error:
        return BadRow("a value cannot be read", str(error))


def _table(path: Path, _: TextUnit, delimiter: str) -> Iterator[tuple[str, Row | BadRow]]:
    header: list[str] = []
    _require_delimiter(path, delimiter)
    is_plain = delimiter == "\t" and _has_one_row_per_line(path)
    for line, fields in _plain_lines(path) if is_plain else _table_lines(path, delimiter):
        if isinstance(fields, BadRow):
            yield f"{path}:{line}", fields
            continue
        header = header or fields
        if any(map(SURROGATE.search, fields)):
            yield f"{path}:{line}", BadRow("not valid UTF-8", fix=_CONVERT)
        elif len(fields) != len(header):
            yield f"{path}:{line}", BadRow(f"expected {len(header)} fields as in the header", f"found {len(fields)}")
        elif fields is not header:
            yield f"{path}:{line}", dict(zip(header, fields, strict=True))


def _require_delimiter(path: Path, delimiter: str) -> None:
    """
    Raises:
        UserError: the header has another delimiter, as spreadsheets write in some countries.
    """
    with open_bytes(path) as file:
        header = file.readline().decode("utf-8", "replace")
    if delimiter not in header and (other := next((mark for mark in ";\t" if mark in header), None)):
        names = {";": "semicolons", "\t": "tabs"}
        fix = "Name it .tsv." if other == "\t" else "Save it with commas."
        raise UserError(f"{path}:1", f"its fields are separated by {names[other]}", fix)


def _has_one_row_per_line(path: Path) -> bool:
    """Whether all lines have the same number of tabs, at least one: then a quote is an ordinary character."""
    with open_bytes(path) as file:
        tabs = {line.count(b"\t") for line in file if line.strip(b"\r\n")}
    return len(tabs) == 1 and tabs != {0}


def _plain_lines(path: Path) -> Iterator[tuple[int, list[str] | BadRow]]:
    """The fields of each line, without the quotes that spreadsheets put around a whole field."""
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if fields := line.rstrip("\r\n"):
                yield number, list(map(_unquoted, fields.split("\t")))


def _unquoted(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    is_enclosed = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if is_enclosed else field


def _table_lines(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    """The fields of each row with its first line. Strict: an unclosed quote would swallow the rest of the file."""
    csv.field_size_limit(2**31 - 1)  # a C long has 32 bits on Windows
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield line, BadRow("not valid CSV", str(error))
                continue
            if fields is None:
                return
            if fields:
                yield line, fields


def _text(path: Path, unit: TextUnit) -> Iterator[tuple[str, Row | BadRow]]:
    def row(start: int, lines: list[bytes]) -> tuple[str, Row | BadRow]:
        text = _decoded(b"".join(lines))
        if isinstance(text, BadRow):
            return f"{path}:{start + text.line}", text
        return f"{path}:{start}", {"text": text.replace("\r\n", "\n").strip("\n")}

    gathered: list[bytes] = []
    start = 1
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if not gathered:
                start = number
            ends = unit == "line" or (unit == "paragraph" and not line.strip())
            if line.strip() or unit == "file":
                gathered.append(line)
            if ends and gathered:
                yield row(start, gathered)
                gathered = []
    if gathered or unit == "file":
        yield row(start, gathered)


_READERS: dict[str, Callable[[Path, TextUnit], Iterator[tuple[str, Row | BadRow]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": partial(_table, delimiter=","),
    ".tsv": partial(_table, delimiter="\t"),
    ".txt": _text,
    ".text": _text,
    ".md": _text,
}
