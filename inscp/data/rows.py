"""From files to rows: every supported file format, read as a stream of (position, row).

A position is what an editor can jump to: `file.jsonl:17` (line) or `file.parquet#17` (row, from 1). What cannot be
read comes as a `BadRow` in the row's place; the stream goes on behind it, so that the caller may skip and count.
"""

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import zstandard

from inscp.errors import UserError

TextUnit = Literal["file", "paragraph", "line"]
Row = dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    why: str


def open_bytes(path: Path) -> BinaryIO:
    """The (decompressed) bytes of a file; `.gz` and `.zst` are known by their names."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(cast(io.RawIOBase, reader), buffer_size=1 << 20)
    return path.open("rb")


def file_format(path: Path) -> str:
    """The suffix that decides the format: that of the name without `.gz` or `.zst`, lower case."""
    name = path.name.lower()
    for packed in (".gz", ".zst"):
        name = name.removesuffix(packed)
    return Path(name).suffix


def read_rows(path: Path, text_unit: TextUnit = "file") -> Iterator[tuple[str, Row | BadRow]]:
    """Every row of one file with its position.

    Args:
        path: the file.
        text_unit: what one document is in a plain-text file.

    Raises:
        UserError: a format that is not known, or a file that cannot be read at all.
    """
    reader = _READERS.get(file_format(path))
    if reader is None:
        known = " ".join(sorted(_READERS))
        raise UserError(
            str(path), "this file format is not known", f"Give one of: {known} (text formats also .gz, .zst)."
        )
    try:
        yield from reader(path, text_unit)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise UserError(str(path), f"cannot be read ({error})", "Check the file, or leave it out.") from error


def is_supported(path: Path) -> bool:
    """Whether `read_rows` knows the format."""
    return file_format(path) in _READERS


def _decoded(raw: bytes) -> str | BadRow:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(f"not valid UTF-8 at byte {error.start + 1}")


def _as_row(value: object) -> Row | BadRow:
    return value if isinstance(value, dict) else BadRow(f"expected an object, found {type(value).__name__}")


def _parsed(raw: bytes) -> Row | BadRow:
    text = _decoded(raw)
    if isinstance(text, BadRow):
        return text
    try:
        return _as_row(json.loads(text))
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return BadRow("JSON nested too deeply")


def _json_lines(path: Path, _: TextUnit) -> Iterator[tuple[str, Row | BadRow]]:
    with open_bytes(path) as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
            if line:
                yield f"{path}:{number}", _parsed(line)


def _json(path: Path, unit: TextUnit) -> Iterator[tuple[str, Row | BadRow]]:
    """An array of objects, or objects one a line under the wrong name, as they are often met."""
    with open_bytes(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        first_line = start.split(b"\n", 1)[0]
        if isinstance(_parsed(first_line.strip()), dict) or len(first_line) > 4000:
            yield from _json_lines(path, unit)
            return
    with open_bytes(path) as file:
        text = _decoded(file.read().removeprefix(b"\xef\xbb\xbf"))
    if isinstance(text, BadRow):
        yield str(path), text
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        yield f"{path}:{error.lineno}", BadRow(f"not valid JSON ({error.msg} at column {error.colno})")
        return
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        yield f"{path}#{number}", _as_row(item)


def _parquet(path: Path, _: TextUnit) -> Iterator[tuple[str, Row | BadRow]]:
    import pyarrow.parquet as parquet

    number = 0
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}#{number}", row


def _table(path: Path, _: TextUnit, delimiter: str) -> Iterator[tuple[str, Row | BadRow]]:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        start = 2
        for row in reader:
            position, start = f"{path}:{start}", reader.line_num + 1
            if None in row or None in row.values():
                yield position, BadRow(f"expected {len(reader.fieldnames or ())} fields as in the header line")
            elif any("\udc80" <= char <= "\udcff" for value in row.values() for char in value):
                yield position, BadRow("not valid UTF-8")
            else:
                yield position, row


def _text(path: Path, unit: TextUnit) -> Iterator[tuple[str, Row | BadRow]]:
    def row(lines: list[bytes]) -> Row | BadRow:
        text = _decoded(b"".join(lines).removeprefix(b"\xef\xbb\xbf"))
        return text if isinstance(text, BadRow) else {"text": text.replace("\r\n", "\n").strip("\n")}

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
                yield f"{path}:{start}", row(gathered)
                gathered = []
    if gathered or (unit == "file" and start == 1):
        yield f"{path}:{start}", row(gathered)


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
