"""The part of a report above its tables: what all rows have in common, what each arm changes, and terms."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from inscp.evaluation.results import Results
from inscp.experiment.conditions import MADE_WITH, OF_ANSWERS, PRECISION, VERSIONS, by_rows, other_settings
from inscp.experiment.page import Section
from inscp.experiment.study import Study
from inscp.experiment.tables import Comparison, Evaluated
from inscp.pretrained import model_name

_MADE = {
    **{name: name for name in ("token budget", "learning rate", "row length")},
    PRECISION: "precision of training",
    MADE_WITH: "versions of training",
}
"""Conditions of a training run -> their names in the report."""
_NO_SETTINGS = ("source", "licence")
_WORDS = {
    "well-formed": "not empty, without loops, and not a copy of the prompt",
    "orgCP": "continual pre-training on plain text (the paper's name for it)",
    "asked": "InsCP with a generic prompt as the user turn, which is empty in the paper",
}


def setting(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """What the rows have in common: name -> value, followed by the values of rows that differ.

    Args:
        comparisons: one per language; rows of the same name are treated as one.
    """
    evaluated = [one for of in comparisons for one in of.evaluated]
    environments = [one.results.environment for one in evaluated]
    dates = sorted({str(of["date"])[:10] for of in environments if "date" in of})
    models = [(one.origin.base_model if one.origin else model_name(one.results.model), one.row) for one in evaluated]
    made = {label: by_rows((one.conditions.get(name, ""), one.row) for one in evaluated)
            for name, label in _MADE.items()}  # fmt: skip
    found = {
        "model": by_rows(models),
        "reference": f"{comparisons[0].reference}, with which the others are compared",
        **made,
        OF_ANSWERS: by_rows((one.conditions[OF_ANSWERS], one.row) for one in evaluated),
        **_tasks(of.evaluated for of in comparisons),
        "hardware": by_rows((str(one.results.environment.get("hardware", "")), one.row) for one in evaluated),
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
        VERSIONS: by_rows((one.conditions[VERSIONS], one.row) for one in evaluated),
    }
    return {name: fact for name, fact in found.items() if fact}


def asked_otherwise(comparison: Comparison) -> dict[str, str]:
    """Row -> how its tasks' configurations differ from those of the first row that has the task."""
    first: dict[str, Results] = {}
    found: dict[str, str] = {}
    for one in comparison.evaluated:
        before = {task: first.setdefault(task, one.results) for task in one.results.tasks}
        differing = [f"{task}: {what}" for task in before for what in other_settings(before[task], one.results, task)]
        if differing:
            found[f"different settings: {one.row}"] = "; ".join(differing)
    return found


def _tasks(comparisons: Iterable[Sequence[Evaluated]]) -> dict[str, str]:
    """Task -> its number of items and its settings, once for each distinct variant among the comparisons."""
    found: dict[str, dict[str, None]] = {}
    for evaluated in comparisons:
        first = {name: one.results for one in reversed(evaluated) for name in one.results.tasks}
        for name, results in first.items():
            found.setdefault(name, {})[_asked(name, results)] = None
    return {name: "; ".join(texts) for name, texts in found.items()}


def _asked(name: str, results: Results) -> str:
    task, settings = results.tasks[name], results.environment.get("settings", {}).get(name, {})
    given = {key: value for key, value in settings.items() if key not in _NO_SETTINGS}
    return ", ".join(filter(None, [f"{task.kind}, {task.n:,} items", _inline(_given(given))]))


def _given(value: Any) -> Any:
    """A value without the keys that are not set."""
    if isinstance(value, Mapping):
        return {key: _given(inner) for key, inner in value.items() if inner is not None}
    return value


def arms(study: Study, measured: Iterable[str]) -> dict[str, str]:
    """Arm -> what it does and what it changes, for the arms that were measured."""
    known = set(measured)
    return {name: _arm(study, name) for name in study.arms if name in known}


def _arm(study: Study, name: str) -> str:
    arm = study.arms[name]
    if not arm.sections:
        return "the original model, unchanged"
    if arm.after:
        return _inline({"after": arm.after, **arm.sections})
    return _inline(arm.sections) if any(arm.sections.values()) else f"as {', '.join(study.fit)}"


def words(sections: Sequence[Section]) -> dict[str, dict[str, str]]:
    """The terms that the tables use without explaining them, under a title; empty if there are none."""
    said = "\n".join(cell for section in sections for grid in section.grids for line in (grid.head, *grid.rows)
                     for cell in (line if line is grid.head else line[:1]))  # fmt: skip
    found = {word: what for word, what in _WORDS.items() if re.search(rf"(?<![\w-]){word}(?![\w-])", said)}
    return {"Terms": found} if found else {}


def _inline(values: Mapping[str, Any]) -> str:
    """A mapping as short YAML."""
    text = yaml.safe_dump(dict(values), default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return text.strip()[1:-1]
