"""Packing of token sequences into rows of one length, with documents kept apart.

Best-fit decreasing over a window of sequences: each goes, longest first, into the open row with the least room that
can still hold it. No sequence is divided here (`tokenization` has split long documents). Rows that are nearly full
leave the window; rows that are open at the end are padded, and the fraction of padding is reported.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from inscp.records import IGNORED, TokenSequence

_WINDOW = 4096
_NEARLY_FULL = 1 / 64
_MAX_OPEN_ROWS = 1024


@dataclass
class PackReport:
    """What packing did, filled while it runs.

    Attributes:
        rows: rows of `row_length` tokens.
        tokens: tokens that are not padding.
        targets: training targets.
        sequences: packed sequences.
        split_documents: documents that became several sequences.
    """

    row_length: int
    rows: int = 0
    tokens: int = 0
    targets: int = 0
    sequences: int = 0
    split_documents: int = 0

    @property
    def padding(self) -> float:
        """Fraction of the row positions that hold no token."""
        return 1 - self.tokens / (self.rows * self.row_length) if self.rows else 0.0


Row = list[TokenSequence]
"""The documents of one row, in order; padding follows the last."""


def collate(rows: Sequence[Row], row_length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """`input_ids` int32 [R, L], `targets` int32 [R, L], and the document lengths of each row, with padding last.

    Targets are shifted within each document: position t has token t + 1 of the same document, and the last position
    of a document has none, so that no document is trained to predict the next.
    """
    input_ids = np.full((len(rows), row_length), pad_id, np.int32)
    targets = np.full_like(input_ids, IGNORED)
    lengths = []
    for row, ids, wanted in zip(rows, input_ids, targets, strict=True):
        end = 0
        for sequence in row:
            start, end = end, end + len(sequence.input_ids)
            ids[start:end] = sequence.input_ids
            wanted[start : max(start, end - 1)] = sequence.labels[1:]
        padding = [row_length - end] if end < row_length else []
        lengths.append([len(sequence.input_ids) for sequence in row] + padding)
    return input_ids, targets, lengths


def pack(sequences: Iterable[TokenSequence], report: PackReport) -> Iterator[Row]:
    """Rows of at most `report.row_length` tokens; memory is bounded by the window, not by the input."""
    stream = iter(sequences)
    open_rows: list[tuple[int, int]] = []  # (room, key), ascending
    rows: dict[int, Row] = {}
    next_key = 0
    while window := list(islice(stream, _WINDOW)):
        for sequence in sorted(window, key=lambda s: -len(s.input_ids)):
            length = len(sequence.input_ids)
            at = bisect_left(open_rows, (length, -1))
            if at < len(open_rows):
                room, key = open_rows.pop(at)
            else:
                room, key = report.row_length, next_key
                rows[key] = []
                next_key += 1
            rows[key].append(sequence)
            insort(open_rows, (room - length, key))
        full = bisect_left(open_rows, (int(report.row_length * _NEARLY_FULL) + 1, -1))
        leaving = max(full, len(open_rows) - _MAX_OPEN_ROWS)
        for _, key in open_rows[:leaving]:
            yield _counted(rows.pop(key), report)
        del open_rows[:leaving]
    for _, key in open_rows:
        yield _counted(rows.pop(key), report)


def _counted(row: Row, report: PackReport) -> Row:
    report.rows += 1
    report.tokens += sum(len(sequence.input_ids) for sequence in row)
    report.targets += sum(sequence.n_targets for sequence in row)
    report.sequences += len(row)
    report.split_documents += sum(sequence.part == 1 and sequence.parts > 1 for sequence in row)
    return row
