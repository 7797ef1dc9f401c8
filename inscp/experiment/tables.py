"""Measurements as tables: the paper's five, additional ones, and how each arm differs from the reference."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from inscp.evaluation.items import Item, items_folder, read_values
from inscp.evaluation.labels import TITLES, heading
from inscp.evaluation.results import Metric, Results, TaskResult, require_same_measure
from inscp.evaluation.statistics import is_loss, loss_of, means, perplexity
from inscp.experiment.conditions import conditions, differing
from inscp.experiment.estimates import (
    Difference,
    Sample,
    difference,
    is_cut_alike,
    mean,
    perplexity_difference,
    samples,
)

if TYPE_CHECKING:  # it imports torch, which `compare` does without
    from inscp.model.origin import Origin


@dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Attributes:
        row: the arm (and budget) that it belongs to; several seeds share a row.
        seed: None if there is only one.
        results: what was measured.
        items: task -> its items.
        origin: how the model was made; None if it was not made here.
    """

    row: str
    seed: int | None
    results: Results
    items: Mapping[str, Sequence[Item]]
    origin: "Origin | None" = None

    @classmethod
    def read(cls, file: Path, row: str, seed: int | None = None, origin: "Origin | None" = None) -> "Evaluated":
        """Read a results file and its items; the means are recomputed from the items, as the file may be older."""
        results = Results.read(file)
        items = {name: read_values(items_folder(file), name) for name in results.tasks}
        tasks = {name: replace(task, metrics=_anew(task.metrics, items[name])) for name, task in results.tasks.items()}
        return cls(row, seed, replace(results, tasks=tasks), items, origin)

    @cached_property
    def conditions(self) -> Mapping[str, str]:
        """The conditions that may affect the figures and do not depend on the seed."""
        return conditions(self.results, self.origin)

    def half(self, number: int) -> "Evaluated":
        """The evaluation on half of the items, the same ones for every model: the metrics that are means over items.

        Args:
            number: which half, 0 or 1.
        """
        # By a digest, as kinds of items may alternate in the order of a file.
        items = {task: [item for item in of if _digest(item.id) % 2 == number] for task, of in self.items.items()}
        tasks = {
            name: replace(task, metrics=means(items[name]), n=len(items[name]))
            for name, task in self.results.tasks.items()
        }
        return replace(self, results=replace(self.results, tasks=tasks), items=items)


@dataclass(frozen=True)
class Column:
    """One metric of one task."""

    task: str
    metric: str
    label: str


@dataclass(frozen=True)
class Cell:
    """A metric of a row, over seeds and items.

    Attributes:
        metric: its value.
        seeds: number of seeds; 0 for a model without random seeds.
        is_share: whether it is a fraction of items.
    """

    metric: Metric
    seeds: int
    is_share: bool


@dataclass(frozen=True)
class Table:
    """Rows of arms, columns of metrics.

    Attributes:
        title: title of the table.
        columns: in order.
        rows: arm -> a cell for each column, None if it was not measured.
        changes: arm -> how each column differs from the reference; empty if there is nothing to compare.
        remarks: notes on rows whose figures are not directly comparable.
    """

    title: str
    columns: Sequence[Column]
    rows: Mapping[str, Sequence[Cell | None]]
    changes: Mapping[str, Sequence[Difference | None]] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """Evaluations of one language (or of no study at all), side by side.

    Attributes:
        evaluated: all of them.
        reference: the row that the others are compared with.
    """

    evaluated: Sequence[Evaluated]
    reference: str

    @cached_property
    def by_row(self) -> dict[str, list[Evaluated]]:
        """Row -> its seeds."""
        found: dict[str, list[Evaluated]] = {}
        for one in sorted(self.evaluated, key=lambda one: one.seed or 0):
            found.setdefault(one.row, []).append(one)
        return {row: found[row] for row in dict.fromkeys(one.row for one in self.evaluated)}

    def half(self, number: int) -> "Comparison":
        """The comparison on half of the items; the halves are 0 and 1."""
        return Comparison([one.half(number) for one in self.evaluated], self.reference)

    def column(self, name: str) -> Column:
        """The column of a metric, by TASK/METRIC; if it was not measured every cell is None."""
        task, _, metric = name.partition("/")
        kinds = [kind for known, kind, of in self._metrics() if (known, of) == (task, metric)]
        return Column(task, metric, heading(task, kinds[0], metric)[1] if kinds else f"{name} (not measured)")

    def check(self) -> None:
        """
        Raises:
            UserError: a task was measured in two ways.
        """
        first: dict[str, tuple[str, TaskResult]] = {}
        for one in self.evaluated:
            for task, result in one.results.tasks.items():
                require_same_measure(task, one.row, result, *first.setdefault(task, (one.row, result)))

    def tables(self) -> list[Table]:
        """Every metric, in the paper's tables where it belongs to one."""
        self.check()
        columns: dict[str, list[Column]] = {title: [] for title in TITLES}
        for task, kind, metric in self._metrics():
            title, label = heading(task, kind, metric)
            columns[title].append(Column(task, metric, label))
        return [self._table(title, _with_unique_labels(found)) for title, found in columns.items() if found]

    def _metrics(self) -> Iterable[tuple[str, str, str]]:
        """(task, its kind, metric) of all evaluations, each once."""
        return dict.fromkeys(
            (task, result.kind, metric)
            for one in self.evaluated
            for task, result in one.results.tasks.items()
            for metric in result.metrics
        )

    def _table(self, title: str, columns: Sequence[Column]) -> Table:
        rows = {row: [self.cell(row, column) for column in columns] for row in self.by_row}
        others = [row for row in self.by_row if row != self.reference and self.reference in self.by_row]
        changes = {row: [self.change(row, column) for column in columns] for row in others}
        return Table(title, columns, rows, changes, [*self._mixed_seeds(), *self._cut_otherwise(others, columns)])

    def _mixed_seeds(self) -> Iterable[str]:
        for row, seeds in self.by_row.items():
            if what := differing([one.conditions for one in seeds]):
                yield f"{row}: seeds differ in {what}."

    def _cut_otherwise(self, others: Sequence[str], columns: Sequence[Column]) -> Iterable[str]:
        for column in (column for column in columns if is_loss(column.metric)):
            if rows := [row for row in others if not self.is_comparable(row, column)]:
                what = f"and perplexity of {' | '.join(rows)} are over other tokens than for {self.reference}"
                yield f"{column.label} {what}; compare bits per byte."

    def is_cut_alike(self, rows: Iterable[str], loss: str) -> bool:
        """Whether a loss of these rows is over the same tokens, that is, their tokenizers split the texts alike."""
        return is_cut_alike((of for row in rows for one in self.by_row[row] for of in one.items.values()), loss)

    def is_comparable(self, row: str, column: Column) -> bool:
        """Whether a metric of a row and of the reference is over the same tokens, if it is over tokens at all."""
        loss = loss_of(column.metric) or column.metric
        return not is_loss(loss) or self.is_cut_alike({self.reference, row} & self.by_row.keys(), loss)

    def cell(self, row: str, column: Column) -> Cell | None:
        """A metric over the seeds of a row; None if it was not measured."""
        having = self._having(row, column)
        found = [metric for one in having if (metric := _metric(one, column)) is not None]
        if not found:
            return None
        seeds = len({one.seed for one in having} - {None})
        of_items = self._samples([having], column)
        is_share = bool(of_items) and of_items[0].is_share
        if len(found) == 1:  # over items alone, as `evaluate` reports it
            return Cell(found[0], seeds, is_share)
        if of_items:
            return Cell(mean(of_items[0]), seeds, is_share)
        if (name := loss_of(column.metric)) and (loss := self.cell(row, replace(column, metric=name))):
            return replace(loss, metric=perplexity(loss.metric))
        # A metric that is not a mean over items has no interval over seeds.
        return Cell(Metric(fmean(metric.value for metric in found), (math.nan, math.nan), found[0].n), seeds, False)

    def change(self, row: str, column: Column) -> Difference | None:
        """How a row differs from the reference; None if the metric is not a mean over items that both have.

        Losses over different tokens are not compared either. A perplexity changes as its loss does.
        """
        if name := loss_of(column.metric):
            loss = self.change(row, replace(column, metric=name))
            return loss and perplexity_difference(loss)
        if not self.is_comparable(row, column):
            return None
        before, after = (self._having(of, column) for of in (self.reference, row))
        common = {one.seed for one in before} & {one.seed for one in after}
        if common:  # a seed that one of them lacks says nothing about how they differ
            before, after = ([one for one in of if one.seed in common] for of in (before, after))
        found = self._samples([before, after], column)
        return difference(found[0], found[1], bool(common)) if found else None

    def _having(self, row: str, column: Column) -> list[Evaluated]:
        """The seeds of a row in which some item has the metric."""
        return [one for one in self.by_row[row] if _metric(one, column) is not None]

    def _samples(self, rows: Sequence[Sequence[Evaluated]], column: Column) -> list[Sample]:
        """The sample of each row; empty if the metric of one is not a mean over items, or a seed lacks the task."""
        items = [[one.items.get(column.task, ()) for one in row] for row in rows]
        is_asked = all(all(row) for row in items)
        if not is_asked or not all(any(column.metric in item.values for of in row for item in of) for row in items):
            return []
        return samples(items, column.metric)


def _anew(metrics: Mapping[str, Metric], items: Sequence[Item]) -> dict[str, Metric]:
    """The metrics recomputed from the items, except those that are not means over items."""
    found = means(items)
    return {name: found.get(name, metric) for name, metric in metrics.items()}


def _digest(id: str) -> int:
    return hashlib.blake2b(id.encode(), digest_size=1).digest()[0]


def _metric(one: Evaluated, column: Column) -> Metric | None:
    task = one.results.tasks.get(column.task)
    return task.metrics.get(column.metric) if task else None


def _with_unique_labels(columns: Sequence[Column]) -> list[Column]:
    """The columns, with the task's name where tasks of one kind have the same metrics."""
    labels = Counter(column.label for column in columns)
    return [
        replace(column, label=f"{column.task}, {column.label}") if labels[column.label] > 1 else column
        for column in columns
    ]
