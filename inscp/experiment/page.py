"""A report: the same tables and plots as Markdown with PNG files, and as one self-contained HTML page."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from inscp.evaluation.results import Metric
from inscp.experiment.estimates import Difference
from inscp.experiment.tables import Cell, Table
from inscp.paths import write_atomically

MARKDOWN, HTML = "report.md", "report.html"
_HELD = {
    2: " Two seeds show little of their variation: at worst the intervals cover the truth in 87 %, not 95 %.",
    3: " Three seeds show little of their variation: at worst the intervals cover the truth in 91 %, not 95 %.",
}
"""The coverage of intervals over few seeds (see `estimates`)."""
_WIDE = 6  # columns; a table with more columns than this and than rows is transposed


@dataclass(frozen=True)
class Grid:
    """A table as text, for both formats."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """The section on one language.

    Attributes:
        title: title of the section.
        grids: its tables.
        plots: caption -> file.
    """

    title: str
    grids: Sequence[Grid]
    plots: Mapping[str, Path]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: title of the page.
        question: the question that it answers.
        about: facts above the sections: title (may be empty) -> name -> value.
        sections: in order.
        facts: facts below the sections: name -> value.
    """

    title: str
    question: str
    about: Mapping[str, Mapping[str, str]]
    sections: Sequence[Section]
    facts: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write both formats into the folder of the plots."""
        write_atomically(folder / MARKDOWN, self._markdown())
        template = files(__package__).joinpath("page.html.jinja").read_text("utf-8")
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.filters["embedded"] = _embedded
        write_atomically(folder / HTML, environment.from_string(template).render(page=self))

    def _markdown(self) -> str:
        lines = [f"# {self.title}", "", self.question, ""]
        for title, facts in self.about.items():
            lines += [f"## {title}", ""] if title else []
            lines += [*map(_line, facts.items()), ""]
        for section in self.sections:
            lines += [f"## {section.title}", ""] if section.title else []
            for grid in section.grids:
                lines += [f"### {grid.title}", ""]
                lines += [_row(grid.head), _row(["---"] * len(grid.head)), *map(_row, grid.rows), ""]
                lines += [grid.note, ""] if grid.note else []
            for caption, file in section.plots.items():
                lines += [f"![{caption}]({file.name})", "", caption, ""]
        lines += map(_line, self.facts.items())
        return "\n".join(lines) + "\n"


def grids(table: Table, reference: str) -> list[Grid]:
    """A table, followed by how its rows differ from the reference."""
    seeds = max((cell.seeds for cells in table.rows.values() for cell in cells if cell), default=0)
    over = f"Means over {seeds} seeds unless another number is given; " if seeds > 1 else ""
    alone = "over items only, without the variation between seeds"
    what = f"over seeds and items; with one seed {alone}" if seeds > 1 else alone
    held = _HELD.get(seeds, "") + "".join(f" {remark}" for remark in table.remarks)
    note = f"{over}95 % intervals in brackets, {what}; n items.{held}"
    labels = [column.label for column in table.columns]
    values = {row: [(shown(cell), cell.seeds if cell else 0) for cell in cells] for row, cells in table.rows.items()}
    most = max(seeds, 1)  # a model without random seeds is compared as one seed
    columns = [[cell for cell in cells if cell] for cells in zip(*table.rows.values(), strict=True)]
    counts = [_range([cell.metric.n for cell in cells]) for cells in columns]
    found = [_grid(table.title, note, labels, _with_seeds(values, most), counts)]
    shares = [any(cell.is_share for cell in cells) for cells in columns]
    kept = [number for number in range(len(labels)) if any(of[number] for of in table.changes.values())]
    if kept:
        changes = {row: [_changed(of[at], shares[at], most) for at in kept] for row, of in table.changes.items()}
        counts = [_range([change.n for of in table.changes.values() if (change := of[at])]) for at in kept]
        what = f"{table.title}: change from {reference}"
        note = (
            "Shares in percentage points, paired by item where both have values; 95 % intervals in brackets, * if "
            "the interval excludes 0 and no seed is missing. One comparison in twenty has a * by chance."
            f"{held}"
        )
        found.append(_grid(what, note, [labels[at] for at in kept], _with_seeds(changes, most), counts))
    return found


def _grid(
    title: str, note: str, labels: Sequence[str], rows: Mapping[str, Sequence[str]], counts: Sequence[str]
) -> Grid:
    whole = [["", *labels], *([row, *cells] for row, cells in rows.items()), ["n", *counts]]
    if len(labels) > max(_WIDE, len(rows)):
        whole = [list(line) for line in zip(*whole, strict=True)]
    return Grid(title, note, whole[0], whole[1:])


def shown(cell: Cell | None) -> str:
    """A cell as text: fractions in per cent."""
    if cell is None or not math.isfinite(cell.metric.value):
        return "–"
    metric, scale, unit = cell.metric, *((100, " %") if cell.is_share else (1, ""))
    digits = _digits(metric, cell.is_share)
    # Adding 0.0 removes the sign of a negative zero.
    value, low, high = (f"{round(scale * one, digits) + 0.0:,.{digits}f}" for one in (metric.value, *metric.interval))
    return f"{value}{unit} ({low}–{high})" if math.isfinite(metric.interval[0]) else f"{value}{unit}"


def _changed(found: Difference | None, is_share: bool, most: int) -> tuple[str, int]:
    if found is None or not math.isfinite(found.change.value):
        return "–", 0
    value, interval = found.shown(_digits(found.change, is_share), 100 if is_share else 1)
    mark = "*" if found.is_sure and found.seeds == most else ""
    return f"{value} ({interval}){mark}" if interval else value + mark, found.seeds


def _with_seeds(rows: Mapping[str, Sequence[tuple[str, int]]], most: int) -> dict[str, list[str]]:
    """Cells as text. Rows with fewer seeds than `most`, and cells with fewer than their row, show their number: an
    interval over one seed lacks the variation between seeds.

    Args:
        rows: row -> its cells, each with its number of seeds.
        most: maximum number of seeds of any cell.
    """
    of_rows = {row: max((seeds for _, seeds in cells), default=0) for row, cells in rows.items()}
    return {
        with_seeds(row, of_rows[row], most): [with_seeds(*cell, of_rows[row]) for cell in cells]
        for row, cells in rows.items()
    }


def with_seeds(text: str, seeds: int, most: int) -> str:
    """A text with its number of seeds, if that is less than `most` and not 0 (no random seeds)."""
    return text if seeds in (0, most) else f"{text}, {seeds} seed{'s' if seeds > 1 else ''}"


def _range(counts: Sequence[int]) -> str:
    """The lowest and the highest count."""
    return "–".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _digits(metric: Metric, is_share: bool) -> int:
    return 0 if is_share else 3 if abs(metric.value) < 1 else 2


def _line(fact: tuple[str, str]) -> str:
    return f"- {': '.join(fact)}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _embedded(file: Path) -> Any:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
