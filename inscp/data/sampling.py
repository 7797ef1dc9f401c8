"""The order of rows: seeded, the same on any number of ranks, resumable at any optimizer step.

The rows form one endless stream: a new seeded permutation of the data for each pass, or two such streams interleaved.
A step takes the next `batch_size x accumulate x ranks` rows of the stream, so its rows do not depend on how it is
divided, and a resumed run, on any number of ranks, continues at the first unseen row. If the run ends within a step,
the missing rows are empty: without targets they have no weight, and nothing is dropped or repeated.
This short sampler over pre-packed rows was chosen over `grain`, `streaming` and `litdata`, which solve the same
problem for data of unknown length; packed rows have a known one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

EMPTY_ROW = -1


@dataclass(frozen=True)
class MicroBatch:
    """The rows that one rank takes in one forward pass.

    Attributes:
        rows: indices; `EMPTY_ROW` for a row of padding.
        step_targets: training targets of the whole optimizer step, over micro-batches and ranks.
        step_tokens: tokens of that step that are not padding.
    """

    rows: tuple[int, ...]
    step_targets: int
    step_tokens: int


class RowOrder(Protocol):
    """An endless stream of rows."""

    def rows(self, begin: int, end: int) -> np.ndarray:
        """The rows at the positions `begin` to `end` - 1: int64 [end - begin]."""


class Shuffled:
    """Every row once per pass, each pass in a different order.

    Args:
        n_rows: number of rows.
        seed: seed of the permutations; None keeps the rows in order.
        part: distinguishes streams with the same seed.
    """

    def __init__(self, n_rows: int, seed: int | None, part: int = 0) -> None:
        self._n_rows, self._seed, self._part = n_rows, seed, part
        self._permutation = lru_cache(maxsize=1)(self._permuted)  # millions of rows, needed at every step

    def rows(self, begin: int, end: int) -> np.ndarray:
        passes = range(begin // self._n_rows, -(-end // self._n_rows))
        order = np.concatenate([np.empty(0, dtype=np.int64), *map(self._permutation, passes)])
        return order[begin - passes.start * self._n_rows : end - passes.start * self._n_rows]

    def _permuted(self, number: int) -> np.ndarray:
        if self._seed is None:
            return np.arange(self._n_rows)
        return np.random.default_rng((self._seed, number, self._part)).permutation(self._n_rows)


class Interleaved:
    """A stream into which another one is mixed, as evenly as possible.

    Of the first p positions, floor(p x share) belong to the other stream, so the row at a position depends only on the
    position.

    Args:
        own: stream with the remaining positions.
        other: stream that is mixed in.
        share: fraction of the positions, in [0, 1).
        offset: the other stream's row r becomes row `offset` + r.
    """

    def __init__(self, own: RowOrder, other: RowOrder, share: float, offset: int) -> None:
        self._own, self._other, self._share, self._offset = own, other, share, offset

    def rows(self, begin: int, end: int) -> np.ndarray:
        positions = np.arange(begin, end + 1)
        before = np.floor(positions * self._share).astype(np.int64)
        is_other = np.diff(before) > 0
        rows = np.empty(end - begin, dtype=np.int64)
        rows[is_other] = self._other.rows(before[0], before[-1]) + self._offset
        rows[~is_other] = self._own.rows(begin - before[0], end - before[-1])
        return rows


@dataclass(frozen=True)
class Steps:
    """How the rows of a stream are divided into optimizer steps.

    Args:
        batch_size: rows per micro-batch.
        accumulate: micro-batches per step.
        ranks: size of the data-parallel group.
        rows_before, steps_before: rows of the stream that were taken earlier, and the number of steps, of any size.
    """

    batch_size: int
    accumulate: int = 1
    ranks: int = 1
    rows_before: int = 0
    steps_before: int = 0

    @property
    def rows_per_step(self) -> int:
        """Rows of one step over all micro-batches and ranks."""
        return self.batch_size * self.accumulate * self.ranks

    def rows_after(self, steps: int) -> int:
        """Rows taken after `steps` steps, earlier ones included."""
        return self.rows_before + (steps - self.steps_before) * self.rows_per_step

    def count(self, rows: int) -> int:
        """Steps that take `rows` rows, earlier ones included."""
        return self.steps_before + max(0, -(-(rows - self.rows_before) // self.rows_per_step))


class PackedRowSampler(Sampler[MicroBatch]):
    """Micro-batches of one rank.

    Args:
        n_targets: int64 [rows]; targets per row.
        n_tokens: int64 [rows]; tokens per row that are not padding.
        order: the endless stream of rows.
        total_rows: number of rows of the endless stream that the run takes.
        steps: the division of rows into optimizer steps.
        rank: index in the data-parallel group.
    """

    def __init__(
        self,
        n_targets: np.ndarray,
        n_tokens: np.ndarray,
        order: RowOrder,
        total_rows: int,
        steps: Steps,
        rank: int = 0,
    ) -> None:
        self._counts = np.pad(np.stack([n_targets, n_tokens]), ((0, 0), (0, 1)))  # so that EMPTY_ROW has none
        self._order, self._total_rows, self._steps, self._rank = order, total_rows, steps, rank

    def __len__(self) -> int:
        """Micro-batches of the whole run, earlier ones included (as Lightning counts)."""
        return self._steps.count(self._total_rows) * self._steps.accumulate

    def __iter__(self) -> Iterator[MicroBatch]:
        steps = self._steps
        for begin in range(steps.rows_before, self._total_rows, steps.rows_per_step):
            rows = self._order.rows(begin, min(begin + steps.rows_per_step, self._total_rows))
            rows = np.pad(rows, (0, steps.rows_per_step - len(rows)), constant_values=EMPTY_ROW)
            step_targets, step_tokens = map(int, self._counts[:, rows].sum(1))
            for micro in rows.reshape(steps.accumulate, steps.ranks, steps.batch_size)[:, self._rank]:
                yield MicroBatch(tuple(micro.tolist()), step_targets, step_tokens)
