"""The conditions under which models were made and evaluated, and how they differ between rows and seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inscp.evaluation.results import Results

if TYPE_CHECKING:  # it imports torch, which `compare` does without
    from inscp.model.origin import Origin

PRECISION, OF_ANSWERS, MADE_WITH, VERSIONS = "precision", "precision of answers", "made with", "versions"
_DRAWN = ("seed", "steps", "passes", "models")
"""Facts of a training run or a merge that may change with the seed."""
_LONGEST = 60  # characters per value, if several are on a line


def conditions(results: Results, origin: "Origin | None") -> dict[str, str]:
    """The conditions that may affect the figures and do not depend on the seed: name -> value, for all stages.

    Args:
        results: results of the evaluation.
        origin: how the model was made; None if it was not made here.
    """
    stages: dict[str, list[str]] = {}
    for stage in origin.stages if origin else []:
        for name, value in stage.training.items():
            if name not in _DRAWN:
                stages.setdefault(name.replace("_", " "), []).append(_text(value))
    made = {name: " then ".join(dict.fromkeys(values)) for name, values in stages.items()}
    versions = ", ".join(f"{name} {value}" for name, value in results.environment.get("versions", {}).items())
    return made | {OF_ANSWERS: str(results.environment.get("precision", "")), VERSIONS: versions}


def differing(seeds: Sequence[Mapping[str, str]]) -> str:
    """How the conditions of seeds differ, with the values; conditions that are not known for all are ignored."""
    found = {name: dict.fromkeys(of.get(name, "") for of in seeds) for name in seeds[0]}
    return "; ".join(
        f"{name} ({', '.join(map(_cut, values))})"
        for name, values in found.items()
        if len(values) > 1 and "" not in values
    )


def by_rows(values: Iterable[tuple[str, str]]) -> str:
    """The most frequent value, then each other value with its rows; empty values are ignored."""
    rows: dict[str, dict[str, None]] = {}
    for value, row in values:
        if value:
            rows.setdefault(value, {})[row] = None
    first, *others = sorted(rows, key=lambda value: -len(rows[value])) or [""]
    return "; ".join([first, *(f"{value}: {' | '.join(rows[value])}" for value in others)])


def other_settings(before: Results, after: Results, task: str) -> Iterator[str]:
    """The differences in a task's configuration, which may alone explain different numbers."""
    one, other = (results.environment.get("settings", {}).get(task, {}) for results in (before, after))
    for name in {**one, **other}:
        values = one.get(name), other.get(name)
        if values[0] != values[1]:
            yield f"{name} {values[0]!r:.60}, after {values[1]!r:.60}"


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
