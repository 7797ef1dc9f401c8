"""Which arm comes nearest to what a study wants: chosen by one half of the items, reported by the other.

An arm that is chosen by a measurement looks better in it than it is; what had no part in choosing
says how good it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inscp.evaluation.results import Metric
from inscp.experiment.page import Grid, shown
from inscp.experiment.study import Goal
from inscp.experiment.tables import Cell, Column, Comparison


@dataclass(frozen=True)
class _Scored:
    """One row against all goals.

    Attributes:
        cells: of each goal.
        margins: of each goal.
    """

    cells: Sequence[Cell]
    margins: Sequence[float]

    @property
    def n_reached(self) -> int:
        return sum(margin >= 1 for margin in self.margins)

    @property
    def rank(self) -> tuple[int, float]:
        """More goals, then the nearer of those that are missed by most."""
        return self.n_reached, min(self.margins)


def goal_grids(
    comparison: Comparison, goals: Sequence[Goal], language: str, tokens: Mapping[str, int | None]
) -> list[Grid]:
    """The rows by the half of the items that chooses, and the chosen one by the other half.

    Args:
        comparison: of one language.
        goals: what is wanted; none gives no grids.
        language: of the comparison.
        tokens: that each row was trained on; None where there are none, or not so many.

    Raises:
        UserError: a goal's metric was not measured, or is no mean over items.
    """
    if not goals or comparison.reference not in comparison.by_row or len(comparison.by_row) < 2:
        return []
    halves = [comparison.half(number) for number in (0, 1)]
    columns = [halves[0].column(goal.metric_in(language)) for goal in goals]
    choosing, other = (_scored(half, goals, columns) for half in halves)
    chosen = max((row for row in choosing if row != comparison.reference), key=lambda row: choosing[row].rank)
    labels = [column.label for column in columns]
    wanted = [_wanted(goal, cell, comparison.reference) for goal, cell in
              zip(goals, choosing[chosen].cells, strict=True)]  # fmt: skip
    heads = [f"{label} {bound}" for label, bound in zip(labels, wanted, strict=True)]
    rows = [
        [
            row,
            f"{tokens[row]:,}" if tokens.get(row) else "–",
            *map(_marked, of.cells, of.margins),
            f"{of.n_reached} of {len(goals)}",
        ]
        for row, of in choosing.items()
    ]
    found = other[chosen]
    reported = [
        [label, bound, shown(before), shown(cell), "yes" if margin >= 1 else "no"]
        for label, bound, before, cell, margin in
        zip(labels, wanted, other[comparison.reference].cells, found.cells, found.margins, strict=True)
    ]  # fmt: skip
    first = f"Every second item; ✓ where it is reached. The most goals, then the least missed, choose {chosen}."
    second = f"The items that had no part in choosing: {found.n_reached} of {len(goals)} goals are reached."
    return [
        Grid("Goals: the half that chooses", first, ["", "tokens", *heads, "reached"], rows),
        Grid(f"Goals: {chosen} by the other half", second,
             ["", "wanted", comparison.reference, chosen, "reached"], reported),
    ]  # fmt: skip


def _scored(comparison: Comparison, goals: Sequence[Goal], columns: Sequence[Column]) -> dict[str, _Scored]:
    cells = {row: [_cell(comparison, row, column) for column in columns] for row in comparison.by_row}
    values = {row: [cell.metric.value for cell in of] for row, of in cells.items()}
    reference = values[comparison.reference]
    margins = {
        row: [goal.margin(value, before) for goal, value, before in zip(goals, of, reference, strict=True)]
        for row, of in values.items()
    }
    return {row: _Scored(cells[row], margins[row]) for row in cells}


def _cell(comparison: Comparison, row: str, column: Column) -> Cell:
    return comparison.cell(row, column) or Cell(Metric(math.nan, (math.nan, math.nan), 0), (), True)


def _wanted(goal: Goal, cell: Cell, reference: str) -> str:
    sign, bound = ("≤", goal.at_most) if goal.at_least is None else ("≥", goal.at_least)
    if goal.times_reference:
        return f"{sign} {bound:g} x {reference}"
    return f"{sign} {bound:.0%}" if cell.is_share else f"{sign} {bound:g}"


def _marked(cell: Cell, margin: float) -> str:
    return shown(cell) + (" ✓" if margin >= 1 else "")
