"""Plots of a comparison, on a white background even on a dark page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from inscp.evaluation.labels import LABELS
from inscp.evaluation.statistics import is_loss
from inscp.experiment.tables import Cell, Column, Comparison
from inscp.plotting import names_as_written, plain_logarithm

_INK, _PAPER = "#4a5563", "white"
_COLOURS = ("#3b82d6", "#e07b39", "#3aa76d", "#b45ac8", "#c9a227", "#d64b5b", "#4bb5c1", "#8c7a5b")
_MARKERS, _LINES = ("o", "s", "^", "D"), ("-", "--", ":", "-.")  # for rows whose colours repeat
_MARK, _LETTER = 0.5, 0.06  # inches per mark of the legend, and at most per letter
_NAME, _LINE = 34, 0.13  # letters per line of a row's name beside a plot, and inches per line


Plot = Callable[[], Figure | None]
"""Makes a figure; None if there is nothing to show."""


@dataclass(frozen=True)
class Amount:
    """What a row was trained on.

    Attributes:
        arm: arm of the row.
        tokens: 0 for the original, where every arm begins; None if the number is unknown.
        after: for several training runs, the row of the last but one; empty for a single run.
    """

    arm: str
    tokens: int | None
    after: str = ""


def draw(plot: Plot, file: Path) -> bool:
    """Write a plot to a file; False if there is nothing to show."""
    with names_as_written():
        if figure := plot():
            file.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(file, dpi=160, facecolor=_PAPER)
    return figure is not None


def language_columns(comparison: Comparison, language: str, measures: Sequence[str]) -> list[Column]:
    """The columns of one prompt language in the first task that prompts in it."""
    for one in comparison.evaluated:
        for task, result in one.results.tasks.items():
            names = [f"{language}/{measure}" for measure in measures]
            if result.kind == "LanguageAlignment" and all(name in result.metrics for name in names):
                return [Column(task, name, LABELS[measure]) for name, measure in zip(names, measures, strict=True)]
    return []


def bars(comparison: Comparison, language: str) -> Figure | None:
    """Properties of the answers to one language's prompts, arm by arm; None without such prompts."""
    columns = language_columns(comparison, language, ["sound_in_language", "ended", "looped"])
    if not columns:
        return None
    rows = list(comparison.by_row)
    figure = _figure(7.5, 1.2 + _height(rows))
    for axis, column in zip(figure.subplots(1, len(columns), sharey=True), columns, strict=True):
        for place, row in enumerate(rows):
            if cell := comparison.cell(row, column):
                axis.barh(place, cell.metric.value, xerr=_error(cell), color=_colour(place), ecolor=_INK, height=0.7)
        axis.set_xlim(0, 1)
        axis.set_title(fill(column.label, 24), fontsize=8, color=_INK)
        _plain(axis)
    _name_rows(figure, rows)
    return figure


def gained_and_kept(comparison: Comparison, target: str, kept: str) -> Figure | None:
    """The `kept` language preserved against the target language gained; None without prompts in both."""
    gained = language_columns(comparison, target, ["sound_in_language"])
    retained = language_columns(comparison, kept, ["in_language"])
    if target == kept or not gained or not retained:
        return None
    figure = _figure(5, 4)
    axis = figure.subplots()
    for place, row in enumerate(comparison.by_row):
        x, y = comparison.cell(row, gained[0]), comparison.cell(row, retained[0])
        if x and y:
            axis.errorbar(x.metric.value, y.metric.value, xerr=_error(x), yerr=_error(y), fmt=_marker(place), label=row,
                          color=_colour(place), elinewidth=1, capsize=2)  # fmt: skip
    if not axis.containers:  # each row was prompted in only one of the two
        return None
    axis.set_xlabel(f"{target} prompts: well-formed answers in {target}", fontsize=8)
    axis.set_ylabel(f"{kept} prompts answered in {kept}", fontsize=8)
    axis.set_xlim(right=1.02)
    axis.set_ylim(top=1.009)
    _plain(axis)
    _legend(figure)
    return figure


def against_tokens(comparison: Comparison, amounts: Mapping[str, Amount], language: str) -> Figure | None:
    """Properties of the answers against the number of training tokens; None if no arm has two budgets.

    A line joins the budgets of an arm, starting at the original; after several training runs, each budget is joined
    with the row that the last run started from.

    Args:
        comparison: comparison of the rows.
        amounts: row -> what it was trained on.
        language: language of the prompts.
    """
    columns = language_columns(comparison, language, ["sound_in_language", "ended"])
    known = {(of.arm, of.tokens) for of in amounts.values() if of.tokens}
    if not columns or len(known) == len({arm for arm, _ in known}):
        return None
    start = [row for row, of in amounts.items() if of.tokens == 0 and row in comparison.by_row]
    arms = dict.fromkeys(of.arm for of in amounts.values())
    figure = _figure(7.5, 3)
    for axis, column in zip(figure.subplots(1, 2, sharey=True), columns, strict=True):
        cells = {row: cell for row in comparison.by_row if (cell := comparison.cell(row, column))}
        points = {row: (of.tokens, cells[row].metric.value) for row, of in amounts.items()
                  if of.tokens is not None and row in cells}  # fmt: skip
        for place, arm in enumerate(arms):
            own = sorted((row for row in points if amounts[row].arm == arm), key=lambda row: points[row])
            if not own:
                continue
            lines = [[amounts[row].after, row] for row in own if amounts[row].after] or [[*start, *own]]
            for line in lines:
                axis.plot(*zip(*(points[row] for row in line if row in points), strict=True), color=_colour(place))
            axis.errorbar(*zip(*(points[row] for row in own), strict=True), label=arm, linestyle="none",
                          yerr=[[_error(cells[row])[end][0] for row in own] for end in (0, 1)], marker=_marker(place),
                          markersize=4, color=_colour(place), elinewidth=1, capsize=2)  # fmt: skip
        axis.set_title(column.label, fontsize=8, color=_INK)
        _of_tokens(axis)
        axis.set_ylim(-0.02, 1.02)
        _plain(axis)
    _legend(figure)
    return figure


def perplexity_bands(comparison: Comparison) -> Figure | None:
    """The distribution of held-out texts' perplexities, arm by arm: median, middle half, all but the outer tenth.

    Bits per byte if the vocabularies split the texts differently. None if no held-out text was measured. Each text
    counts once; all seeds are pooled.
    """
    sets = sorted({name for one in comparison.evaluated for of in one.items.values() for item in of
                   for name in item.values if is_loss(name)})  # fmt: skip
    if not sets:
        return None
    rows = list(comparison.by_row)
    figure = _figure(3.8 * len(sets), 1.2 + _height(rows))
    for axis, name in zip(figure.subplots(1, len(sets), sharey=True, squeeze=False)[0], sets, strict=True):
        is_cut_alike = comparison.is_cut_alike(rows, name)
        measure = name if is_cut_alike else name.removesuffix("loss") + "bits_per_byte"
        unit = "perplexity" if is_cut_alike else "bits per byte"
        for place, row in enumerate(rows):
            found = [item.values[measure] for one in comparison.by_row[row] for of in one.items.values() for item in of
                     if measure in item.values]  # fmt: skip
            if not found:
                axis.text(0.02, place, f"no {unit}", transform=axis.get_yaxis_transform(), va="center", fontsize=7,
                          color=_INK, backgroundcolor=_PAPER)  # fmt: skip
            else:
                marks = np.quantile(found, [0.05, 0.25, 0.5, 0.75, 0.95])
                low, lower, middle, upper, high = np.exp(marks) if is_cut_alike else marks
                axis.barh(place, high - low, left=low, color=_colour(place), height=0.25, alpha=0.5)
                axis.barh(place, upper - lower, left=lower, color=_colour(place), height=0.7)
                axis.plot([middle, middle], [place - 0.35, place + 0.35], color="white", linewidth=1.5)
        plain_logarithm(axis)
        axis.set_title(f"{name.split('/')[1]}: {unit} of held-out texts", fontsize=8, color=_INK)
        _plain(axis)
    _name_rows(figure, rows)
    return figure


def curves(histories: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], order: Sequence[str]) -> Figure | None:
    """Training curves; None if there are none.

    Args:
        histories: measure (`train/loss`, …) -> row -> (tokens, value) in order.
        order: all rows, in the order that determines their colours.
    """
    shown = {measure: rows for measure, rows in histories.items() if any(len(of) > 1 for of in rows.values())}
    if not shown:
        return None
    figure = _figure(3.8 * min(2, len(shown)), 2.8 * -(-len(shown) // 2))
    panels = figure.subplots(-(-len(shown) // 2), min(2, len(shown)), squeeze=False).ravel()
    for axis, (measure, rows) in zip(panels, shown.items(), strict=False):
        for row, points in rows.items():
            place = order.index(row)
            line = _LINES[place // len(_COLOURS) % len(_LINES)]
            axis.plot(*zip(*points, strict=True), line, label=row, color=_colour(place), linewidth=1.2)
        axis.set_title(measure, fontsize=8, color=_INK)
        _of_tokens(axis)
        _plain(axis)
    for axis in panels[len(shown) :]:
        axis.set_visible(False)
    _legend(figure)
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _marker(place: int) -> str:
    return _MARKERS[place // len(_COLOURS) % len(_MARKERS)]


def _error(cell: Cell) -> list[list[float]]:
    low, high = cell.metric.interval
    value = cell.metric.value
    return [[max(0.0, value - low) if low == low else 0.0], [max(0.0, high - value) if high == high else 0.0]]


def _of_tokens(axis: Any) -> None:
    """Few and short ticks (`100k`), which do not overlap on a phone."""
    axis.set_xlabel("tokens", fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _plain(axis: Any) -> None:
    axis.tick_params(which="both", labelsize=7, colors=_INK)
    axis.xaxis.label.set_color(_INK)
    axis.yaxis.label.set_color(_INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_INK)
    axis.grid(color=_INK, alpha=0.2, linewidth=0.6)
    axis.set_axisbelow(True)


def _height(rows: Sequence[str]) -> float:
    """Inches that rows need for their names beside them."""
    most = max(fill(row, _NAME).count("\n") + 1 for row in rows)
    return len(rows) * max(0.28, _LINE * most + 0.06)


def _name_rows(figure: Figure, rows: Sequence[str]) -> None:
    """Name the rows on the left, from top to bottom."""
    figure.axes[0].set_yticks(range(len(rows)), [fill(row, _NAME) for row in rows])
    figure.axes[0].invert_yaxis()


def _legend(figure: Figure) -> None:
    """A legend below all panels, where it hides nothing; each row is listed once."""
    shown = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = 2 if 2 * (_MARK + _LETTER * max(map(len, shown))) <= figure.get_figwidth() else 1
    names = [fill(name, int((figure.get_figwidth() / columns - _MARK) / _LETTER)) for name in shown]
    lines = sum(name.count("\n") + 1 for name in names)
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-lines // columns))
    figure.legend(shown.values(), names, loc="outside lower left", ncols=columns, fontsize=7, frameon=False,
                  labelcolor=_INK)  # fmt: skip
