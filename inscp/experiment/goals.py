"""The goals of a study, and the arm that comes nearest: selected on one half of the items, reported on the other.

An arm that is selected by a measurement looks better in it than it is; only items that had no part in the selection
show how good it is.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from inscp.errors import UserError
from inscp.evaluation.results import Metric
from inscp.experiment.page import Grid, shown, with_seeds
from inscp.experiment.tables import Cell, Column, Comparison

_NONE = Cell(Metric(math.nan, (math.nan, math.nan), 0), 0, True)
"""The cell of a metric that was not measured."""
_LITTLE = 1e-9
"""Replaces zero where ratios are multiplied."""


@dataclass(frozen=True)
class Goal:
    """A goal for the arms: one metric with one bound.

    Args:
        metric: TASK/METRIC, a mean over items; {language} is replaced by the study's language:
            `language/{language}/ended`.
        at_least: lower bound.
        at_most: upper bound.
        times_reference: whether the bound is a multiple of the reference's value.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    times_reference: bool = False

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if len(bounds) != 1 or bounds[0] <= 0:
            raise UserError(f"goals: {self.metric}", "it needs exactly one bound, above 0", "Give at_least or at_most.")

    def metric_in(self, language: str) -> str:
        """Its metric for one of the study's languages."""
        return self.metric.replace("{language}", language)

    def bound(self, reference: float) -> float:
        """The bound as a number."""
        given = self.at_most if self.at_least is None else self.at_least
        assert given is not None
        return given * reference if self.times_reference else given

    def is_reached(self, value: float, reference: float) -> bool:
        """Whether a value reaches the goal; NaN never does, nor does 0 for a lower bound of 0."""
        bound = self.bound(reference)
        if self.at_most is not None:
            return value <= bound
        return value >= bound and not value == bound == 0

    def margin(self, value: float, reference: float, least: tuple[float, float] = (_LITTLE, _LITTLE)) -> float:
        """How far it is reached, as a ratio: 1 if just reached, more beyond, less if missed; finite and above 0.

        Args:
            value, reference: as measured; negative values and NaN have no ratio.
            least: the least that each counts as: for a fraction half an item, as more items might have shown one.
        """
        is_reached = self.is_reached(value, reference)
        if not (value >= 0 and self.bound(reference) >= 0):
            return 1.0 if is_reached else _LITTLE
        value, bound = max(value, least[0]), self.bound(max(reference, least[1]))
        ratio = value / bound if self.at_most is None else bound / value
        return max(1.0, ratio) if is_reached else min(1.0, ratio)


@dataclass(frozen=True)
class _Scored:
    """One row measured against all goals.

    Attributes:
        cells: one per goal.
        reached: whether each goal is reached.
        margins: how far each goal that some row has measured is reached, as a ratio: 1 if just reached.
        before: the reference's cells.
    """

    cells: Sequence[Cell]
    reached: Sequence[bool]
    margins: Sequence[float]
    before: Sequence[Cell]

    @property
    def rank(self) -> tuple[int, float, float]:
        """Goals reached, then the ratio of the worst miss, then the product of all ratios; more is better."""
        return sum(self.reached), min([1.0, *self.margins]), math.prod(self.margins)

    @property
    def seeds(self) -> int:
        return max(cell.seeds for cell in self.cells)

    @property
    def count(self) -> str:
        return f"{sum(self.reached)} of {len(self.reached)}"


def goal_grids(
    comparison: Comparison, goals: Sequence[Goal], language: str, tokens: Mapping[str, int | None]
) -> list[Grid]:
    """The rows on the selection half of the items, and the selected one on the test half.

    Args:
        comparison: of one language.
        goals: the goals; none gives no grids. Multiples of a reference that was not measured are left out.
        language: language of the comparison.
        tokens: row -> tokens of its training runs, None if one uses all data. One of these rows is selected.
    """
    trained = [row for row in comparison.by_row if row in tokens]
    if comparison.reference not in comparison.by_row:
        goals = [goal for goal in goals if not goal.times_reference]
    if not goals or not trained:
        return []
    halves = [comparison.half(number) for number in (0, 1)]
    both = Comparison([one for half in halves for one in half.evaluated], comparison.reference)
    columns = [
        both.column(goal.metric_in(language)) for goal in goals
    ]  # one half may lack a metric that few items have
    choosing, other = (_scored(half, goals, columns) for half in halves)
    chosen = max(trained, key=lambda row: choosing[row].rank)
    labels = [column.label for column in columns]
    wanted = [_wanted(goal, cell, comparison.reference) for goal, cell in
              zip(goals, choosing[chosen].cells, strict=True)]  # fmt: skip
    heads = [f"{label} {bound}" for label, bound in zip(labels, wanted, strict=True)]
    most = max(of.seeds for of in choosing.values())
    rows = [
        [with_seeds(row, of.seeds, most), f"{tokens[row]:,}" if tokens.get(row) else "–",
         *map(_marked, of.cells, of.reached), of.count]
        for row, of in choosing.items()
    ]  # fmt: skip
    found = other[chosen]
    reported = [
        [label, bound, shown(old), shown(cell), "yes" if is_reached else "no"]
        for label, bound, old, cell, is_reached in
        zip(labels, wanted, found.before, found.cells, found.reached, strict=True)
    ]  # fmt: skip
    how = "Ranked by goals reached, then by the worst miss, then by the product of the ratios to the goals"
    first = f"Selection half of the items; ✓ marks a goal that is reached. {how}: {chosen} is chosen."
    first += "".join(_over_other_tokens(comparison, columns))
    second = f"Test half of the items, not used for the selection: {found.count} goals are reached."
    return [
        Grid("Goals: selection half", first, ["", "tokens", *heads, "reached"], rows),
        Grid(f"Goals: {chosen} on the test half", second,
             ["", "goal", comparison.reference, chosen, "reached"], reported),
    ]  # fmt: skip


def _scored(comparison: Comparison, goals: Sequence[Goal], columns: Sequence[Column]) -> dict[str, _Scored]:
    cells = {
        row: [(comparison.is_comparable(row, column) and comparison.cell(row, column)) or _NONE for column in columns]
        for row in comparison.by_row
    }
    reference, found = cells.get(comparison.reference, [_NONE for _ in columns]), {}
    is_measured = [any(cell is not _NONE for cell in of) for of in zip(*cells.values(), strict=True)]
    for row, of in cells.items():
        pairs = list(zip(goals, of, reference, strict=True))
        reached = [goal.is_reached(cell.metric.value, before.metric.value) for goal, cell, before in pairs]
        margins = [goal.margin(cell.metric.value, before.metric.value, (_least(cell), _least(before)))
                   for goal, cell, before in compress(pairs, is_measured)]  # fmt: skip
        found[row] = _Scored(of, reached, margins, reference)
    return found


def _over_other_tokens(comparison: Comparison, columns: Sequence[Column]) -> Iterator[str]:
    for column in columns:
        if rows := [row for row in comparison.by_row if not comparison.is_comparable(row, column)]:
            what = f"{column.label} of {' | '.join(rows)} is over other tokens than for {comparison.reference}"
            yield f" {what} and reaches no goal; set one in bits per byte."


def _least(cell: Cell) -> float:
    """The least that a cell counts as: none among few items does not mean none at all."""
    return 0.5 / cell.metric.n if cell.is_share and cell.metric.n else _LITTLE


def _wanted(goal: Goal, cell: Cell, reference: str) -> str:
    sign, bound = ("≤", goal.at_most) if goal.at_least is None else ("≥", goal.at_least)
    if goal.times_reference:
        return f"{sign} {bound:g} x {reference}"
    return f"{sign} {bound:.0%}" if cell.is_share else f"{sign} {bound:g}"


def _marked(cell: Cell, is_reached: bool) -> str:
    return shown(cell) + (" ✓" if is_reached else "")
