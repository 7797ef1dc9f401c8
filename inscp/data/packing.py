"""Token sequences become rows of one length, documents kept apart.

Best-fit decreasing over a window of sequences: each goes, longest first, into the open row with the least room that
still holds it. No sequence is divided here (`tokenization` has split what is too long). Rows that are nearly full
leave the window; what is open at the end is padded, and the share of padding is reported.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
        """Share of the row positions that hold no token."""
        return 1 - self.tokens / (self.rows * self.row_length) if self.rows else 0.0


@dataclass
class PackedRow:
    """One row: its documents in order, padding after the last.

    Attributes:
        sequences: the documents.
    """

    sequences: list[TokenSequence] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(len(sequence.input_ids) for sequence in self.sequences)

    @property
    def n_targets(self) -> int:
        """Training targets."""
        labels = np.concatenate([sequence.labels[1:] for sequence in self.sequences])
        return int(np.count_nonzero(labels != IGNORED))

    def arrays(self, row_length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """`input_ids` int32 [L], `targets` int32 [L] and the documents' lengths (padding counts as the last one).

        Targets are shifted inside each document: position t has the token t + 1 of the same document, the last
        position of each has none, so that no document is asked to predict the next.
        """
        lengths = [len(sequence.input_ids) for sequence in self.sequences]
        padding = row_length - sum(lengths)
        ids = [*(sequence.input_ids for sequence in self.sequences), np.full(padding, pad_id)]
        labels = [*(sequence.labels for sequence in self.sequences), np.full(padding + 1, IGNORED)]
        targets = np.concatenate(labels, dtype=np.int32)[1:]
        targets[np.cumsum(lengths) - 1] = IGNORED
        return np.concatenate(ids, dtype=np.int32), targets, lengths + ([padding] if padding else [])


def pack(sequences: Iterable[TokenSequence], report: PackReport) -> Iterator[PackedRow]:
    """Rows of at most `report.row_length` tokens; memory is bounded by the window, not by the input."""
    stream = iter(sequences)
    open_rows: list[tuple[int, int]] = []  # (room, key), ascending
    rows: dict[int, PackedRow] = {}
    next_key = 0
    while window := list(islice(stream, _WINDOW)):
        for sequence in sorted(window, key=lambda s: -len(s.input_ids)):
            length = len(sequence.input_ids)
            at = bisect_left(open_rows, (length, -1))
            if at < len(open_rows):
                room, key = open_rows.pop(at)
            else:
                room, key = report.row_length, next_key
                rows[key] = PackedRow()
                next_key += 1
            rows[key].sequences.append(sequence)
            insort(open_rows, (room - length, key))
        full = bisect_left(open_rows, (int(report.row_length * _NEARLY_FULL) + 1, -1))
        leaving = max(full, len(open_rows) - _MAX_OPEN_ROWS)
        for _, key in open_rows[:leaving]:
            yield _counted(rows.pop(key), report)
        del open_rows[:leaving]
    for _, key in open_rows:
        yield _counted(rows.pop(key), report)


def _counted(row: PackedRow, report: PackReport) -> PackedRow:
    report.rows += 1
    report.tokens += row.n_tokens
    report.targets += row.n_targets
    report.sequences += len(row.sequences)
    report.split_documents += sum(sequence.part == 1 and sequence.parts > 1 for sequence in row.sequences)
    return row
