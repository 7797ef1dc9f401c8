"""The order of rows: seeded, the same on any number of ranks, resumable at any optimizer step.

The rows form one endless stream: a fresh seeded permutation of the data for each pass. A step takes the next
`batch_size x accumulate x ranks` rows of the stream, so what a step sees does not depend on how it is divided, and a
training that is resumed, on whatever number of ranks, goes on at the first row that has not been seen. Where the
training ends inside a step, the missing rows are empty ones, which have no targets and so no weight: nothing is
dropped or repeated.
This short sampler over pre-packed rows was chosen over `grain`, `streaming` and `litdata`, which solve the same for
data that has no length; packed rows have one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

EMPTY_ROW = -1


@dataclass(frozen=True)
class MicroBatch:
    """Which rows one rank takes in one forward pass.

    Attributes:
        rows: indices; `EMPTY_ROW` for a row of padding.
        step_targets: training targets of the whole optimizer step.
    """

    rows: tuple[int, ...]
    step_targets: int


class PackedRowSampler(Sampler[MicroBatch]):
    """Micro-batches of one rank.

    Args:
        n_targets: int64 [rows]; targets of each row.
        total_rows: how many rows of the endless stream the training takes.
        batch_size: rows a micro-batch.
        accumulate: micro-batches a step.
        ranks, rank: of the data-parallel group.
        seed: of the permutations; None keeps the rows in their order.
        start, steps_before: rows of the stream that were taken before, and in how many steps.
    """

    def __init__(
        self,
        n_targets: np.ndarray,
        total_rows: int,
        batch_size: int,
        accumulate: int = 1,
        ranks: int = 1,
        rank: int = 0,
        seed: int | None = 0,
        start: int = 0,
        steps_before: int = 0,
    ) -> None:
        self._n_targets = np.append(n_targets, 0)  # so that EMPTY_ROW has none
        self._total_rows = total_rows
        self._batch_size, self._accumulate, self._ranks, self._rank = batch_size, accumulate, ranks, rank
        self._seed, self._start, self._steps_before = seed, start, steps_before
        self._permutation = lru_cache(maxsize=1)(self._permuted)  # of millions of rows, needed at every step

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step over all micro-batches and ranks."""
        return self._batch_size * self._accumulate * self._ranks

    def __len__(self) -> int:
        """Micro-batches of the whole training, those before `start` included (as Lightning counts)."""
        steps = max(0, -(-(self._total_rows - self._start) // self.rows_per_step))
        return (self._steps_before + steps) * self._accumulate

    def __iter__(self) -> Iterator[MicroBatch]:
        for begin in range(self._start, self._total_rows, self.rows_per_step):
            rows = self._stream(begin, min(begin + self.rows_per_step, self._total_rows))
            rows = np.pad(rows, (0, self.rows_per_step - len(rows)), constant_values=EMPTY_ROW)
            step_targets = int(self._n_targets[rows].sum())
            for micro in rows.reshape(self._accumulate, self._ranks, self._batch_size)[:, self._rank]:
                yield MicroBatch(tuple(micro.tolist()), step_targets)

    def _stream(self, begin: int, end: int) -> np.ndarray:
        n_rows = len(self._n_targets) - 1
        passes = range(begin // n_rows, (end - 1) // n_rows + 1)
        order = np.concatenate([self._permutation(number) for number in passes])
        return order[begin - passes[0] * n_rows : end - passes[0] * n_rows]

    def _permuted(self, number: int) -> np.ndarray:
        n_rows = len(self._n_targets) - 1
        if self._seed is None:
            return np.arange(n_rows)
        return np.random.default_rng((self._seed, number)).permutation(n_rows)
