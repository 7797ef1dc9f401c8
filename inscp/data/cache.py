"""Packed rows on disk: written once under a fingerprint of everything that determines them, and memory-mapped."""

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from inscp.data.packing import PackReport, Row, collate
from inscp.paths import build_once, cache_folder
from inscp.progress import skipped_lines, with_progress
from inscp.records import IGNORED

FORMAT_VERSION = 6
"""Increased whenever the meaning of a cached row, or of its report, changes."""

_ROWS_FILE, _REPORT_FILE = "rows.arrow", "report.json"
_ROWS_AT_ONCE = 1024


@dataclass
class DataReport:
    """What became of the sources: stored with the rows, logged with the run, used by the model card.

    All counts are of one pass, in which a record occurs as often as its source's weight says.
    """

    fingerprint: str
    row_length: int
    rows: int = 0
    tokens: int = 0
    targets: int = 0
    padding: float = 0.0
    sequences: int = 0
    split_documents: int = 0
    records: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    first_skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)

    def add(self, source: str, records: int, skipped: Mapping[str, int], first_skipped: Mapping[str, str]) -> None:
        """Add the counts of a source; sources with the same name are counted as one."""
        self.records[source] = self.records.get(source, 0) + records
        if skipped:
            self.skipped[source] = dict(Counter(self.skipped.get(source)) + Counter(skipped))
            self.first_skipped[source] = dict(first_skipped) | self.first_skipped.get(source, {})

    def __str__(self) -> str:
        """One line of totals, and one per reason for which records of a source were skipped."""
        skipped = sum(sum(reasons.values()) for reasons in self.skipped.values())
        details = [
            f"\n  {line}"
            for name, reasons in self.skipped.items()
            for line in skipped_lines(name, reasons, self.first_skipped[name])
        ]
        return (
            f"{sum(self.records.values()):,} records ({skipped:,} skipped), {self.sequences:,} sequences "
            f"({self.split_documents:,} long documents split), {self.tokens:,} tokens in {self.rows:,} rows of "
            f"{self.row_length:,}, {self.padding:.1%} padding{''.join(details)}"
        )


def fingerprint(*parts: Any) -> str:
    """A digest of values with a stable `repr`."""
    return hashlib.blake2b(repr((FORMAT_VERSION, *parts)).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class CachedRows:
    """Packed rows, memory-mapped.

    Attributes:
        table: columns `input_ids`, `targets` (int32 [L] each) and `lengths` (of the documents, with padding last).
        n_targets, n_tokens: int64 [rows].
        report: how the rows were made.
    """

    table: pa.Table
    n_targets: np.ndarray
    n_tokens: np.ndarray
    report: DataReport


def cached_rows(
    digest: str,
    make: Callable[[], tuple[Iterable[Row], PackReport]],
    finish: Callable[[DataReport], None],
    pad_id: int,
) -> CachedRows:
    """The rows under a fingerprint, made if they are not cached yet.

    Args:
        digest: the fingerprint.
        make: returns the rows as a stream, and a report that is filled while the stream is read.
        finish: completes the data report after the stream has ended (what was read and skipped).
        pad_id: the token id of padding, which does not affect training.
    """

    def write(partial: Path) -> None:
        rows, pack_report = make()
        with _gc_frozen():
            shown = with_progress(rows, "packing", "rows")
            _write_arrow(partial / _ROWS_FILE, shown, pack_report.row_length, pad_id)
        report = DataReport(digest, **asdict(pack_report), padding=pack_report.padding)
        finish(report)
        (partial / _REPORT_FILE).write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False), "utf-8")

    folder = build_once(cache_folder("rows") / digest, write)
    report = DataReport(**json.loads((folder / _REPORT_FILE).read_text("utf-8")))
    table = pa.ipc.open_stream(pa.memory_map(str(folder / _ROWS_FILE))).read_all()
    names = ["n_targets", "n_tokens"]
    n_targets, n_tokens = (to_numpy(table.column(name).combine_chunks()).astype(np.int64) for name in names)
    return CachedRows(table.drop_columns(names), n_targets, n_tokens, report)


@contextmanager
def _gc_frozen() -> Iterator[None]:
    """Keep the garbage collector from repeatedly scanning every object of torch and transformers."""
    if gc.get_freeze_count():  # the command line has frozen them already
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _write_arrow(path: Path, rows: Iterable[Row], row_length: int, pad_id: int) -> None:
    schema = pa.schema(
        [
            ("input_ids", pa.list_(pa.int32(), row_length)),
            ("targets", pa.list_(pa.int32(), row_length)),
            ("lengths", pa.list_(pa.int32())),
            ("n_targets", pa.int32()),
            ("n_tokens", pa.int32()),
        ]
    )
    stream = iter(rows)
    with pa.ipc.new_stream(str(path), schema) as writer:
        while chunk := list(islice(stream, _ROWS_AT_ONCE)):
            input_ids, targets, lengths = collate(chunk, row_length, pad_id)
            columns = [
                pa.FixedSizeListArray.from_arrays(_int32(input_ids), row_length),
                pa.FixedSizeListArray.from_arrays(_int32(targets), row_length),
                pa.ListArray.from_arrays(_int32(np.cumsum([0, *map(len, lengths)])), _int32(list(chain(*lengths)))),
                _int32(np.count_nonzero(targets != IGNORED, axis=1)),
                _int32([sum(len(sequence.input_ids) for sequence in row) for row in chunk]),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def to_numpy(array: pa.Array) -> np.ndarray:
    """As the array's own `to_numpy`, without its import of pandas, which takes longer than 10,000 rows."""
    return np.from_dlpack(array)


def _int32(values: np.ndarray | list[int]) -> pa.Array:
    flat = np.ravel(values).astype(np.int32, copy=False)
    return pa.Array.from_buffers(pa.int32(), len(flat), [None, pa.py_buffer(flat)])
