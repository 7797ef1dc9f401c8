"""Under which conditions models were made and asked: what all share, and in what some or their seeds differ."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inscp.evaluation.results import Results

if TYPE_CHECKING:  # it imports torch, which `compare` does without
    from inscp.model.origin import Origin

PRECISION, OF_ANSWERS, MADE_WITH, VERSIONS = "precision", "precision of answers", "made with", "versions"
_DRAWN = ("seed", "steps", "passes", "models")
"""What is said of a training or a merge that another seed may change."""
_LONGEST = 60  # letters of a value, where several stand in a line


def conditions(results: Results, origin: "Origin | None") -> dict[str, str]:
    """What may decide the figures, and no seed does: name -> value, of several stages all of them.

    Args:
        results: of the evaluation.
        origin: how the model was made; None of one that was not made here.
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
    """In what the conditions of seeds differ, with the values; what was not told of all of them does not count."""
    found = {name: dict.fromkeys(of.get(name, "") for of in seeds) for name in seeds[0]}
    return "; ".join(
        f"{name} ({', '.join(map(_cut, values))})"
        for name, values in found.items()
        if len(values) > 1 and "" not in values
    )


def by_rows(values: Iterable[tuple[str, str]]) -> str:
    """The value that most rows have, then each other one with the rows that have it; empty ones do not count."""
    rows: dict[str, dict[str, None]] = {}
    for value, row in values:
        if value:
            rows.setdefault(value, {})[row] = None
    first, *others = sorted(rows, key=lambda value: -len(rows[value])) or [""]
    return "; ".join([first, *(f"{value}: {' | '.join(rows[value])}" for value in others)])


def other_settings(before: Results, after: Results, task: str) -> Iterator[str]:
    """What of a task's configuration differs: its numbers may differ for that reason alone."""
    one, other = (results.environment.get("settings", {}).get(task, {}) for results in (before, after))
    for name in {**one, **other}:
        values = one.get(name), other.get(name)
        if values[0] != values[1]:
            yield f"{name} {values[0]!r:.60}, after {values[1]!r:.60}"


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
