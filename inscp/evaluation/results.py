"""Results of an evaluation: one file for people and programs, and beside it one line per item.

`results.json` holds `{"schema", "model", "environment", "tasks": {NAME: {"kind", "metrics": {METRIC: value},
"intervals": {METRIC: [low, high]}, "counts": {METRIC: n}, "n", "version", "seconds"}}}`, and `"by"` if another model
than the task's default judges the answers. `results.items/NAME.jsonl` has the scores of each item, so that two
evaluations can be compared item by item.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inscp.errors import UserError
from inscp.evaluation.items import typed
from inscp.paths import write_json

SCHEMA = 2

RESULTS = "results.json"
"""Name of a results file among the artifacts of an MLflow run."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number over `n` items, with its 95 % interval; NaN if there are too few items for either."""

    value: float
    interval: tuple[float, float]
    n: int


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The results of one task.

    Attributes:
        kind: class name of the task.
        metrics: by name.
        n: number of items.
        version: version of the task; numbers of different versions are not comparable.
        seconds: duration, not counting what earlier attempts had answered.
        by: model that judged the answers, if not the task's default.
    """

    kind: str
    metrics: Mapping[str, Metric]
    n: int
    version: int
    seconds: float
    by: str = ""

    @property
    def measure(self) -> str:
        """What must be equal for two results to be comparable."""
        return f"{self.kind}, version {self.version}{f', by {self.by}' if self.by else ''}"


@dataclass(frozen=True, slots=True)
class Results:
    """The results of one evaluation of one model.

    Attributes:
        model: name of the model, as given.
        tasks: name -> results.
        environment: versions, hardware, precision, date, as plain values.
    """

    model: str
    tasks: Mapping[str, TaskResult]
    environment: Mapping[str, Any]

    def write(self, path: Path) -> None:
        tasks = {
            name: {
                "kind": task.kind,
                "metrics": {key: _number(metric.value) for key, metric in task.metrics.items()},
                "intervals": {key: [_number(end) for end in metric.interval] for key, metric in task.metrics.items()},
                "counts": {key: metric.n for key, metric in task.metrics.items()},
                "n": task.n,
                "version": task.version,
                "seconds": round(task.seconds, 1),
                **({"by": task.by} if task.by else {}),
            }
            for name, task in self.tasks.items()
        }
        whole = {"schema": SCHEMA, "model": self.model, "tasks": tasks, "environment": dict(self.environment)}
        write_json(path, whole)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read what `write` wrote.

        Raises:
            UserError: no such file, not a results file, or one of another schema version.
        """
        fix = "Give the file that `evaluate --out` wrote."
        try:
            whole = json.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(str(path), f"it contains no results ({error})", fix) from error
        if not isinstance(whole, dict) or "schema" not in whole:
            raise UserError(str(path), "it contains no results (no schema)", fix)
        if whole["schema"] != SCHEMA:
            what = f"its results have version {whole['schema']!r}, but this program reads version {SCHEMA}"
            raise UserError(str(path), what, "Run evaluate again.")
        try:
            tasks = {name: _task(**task) for name, task in whole["tasks"].items()}
            return cls(str(whole["model"]), tasks, dict(whole["environment"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(str(path), f"its results are incomplete ({error!r:.100})", fix) from error


def require_same_measure(task: str, where: str, result: TaskResult, before: str, other: TaskResult) -> None:
    """Refuse to compare results that were measured differently.

    Args:
        task: name of the task.
        where, before: names of the two evaluations, for messages.
        result, other: results of the task in them.

    Raises:
        UserError: the kinds, versions or judges of the task differ.
    """
    if result.measure != other.measure:
        what = f"{task} is {result.measure}, but in {before} {other.measure}"
        raise UserError(where, what, "Evaluate both with the same configuration and version of this program.")


def _task(kind: str, metrics: dict[str, Any], intervals: dict[str, Any], counts: dict[str, int], n: int,
          version: int, seconds: float, by: str = "") -> TaskResult:  # fmt: skip
    def metric(name: str) -> Metric:
        low, high = map(_read_number, intervals[name])
        return Metric(_read_number(metrics[name]), (low, high), typed(counts[name], int))

    if not metrics.keys() == intervals.keys() == counts.keys():
        raise ValueError("metrics, intervals and counts are not of the same names")
    return TaskResult(
        typed(kind, str), {name: metric(name) for name in metrics}, typed(n, int), typed(version, int),
        float(typed(seconds, float, int)), typed(by, str),
    )  # fmt: skip


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def _read_number(value: Any) -> float:
    return math.nan if value is None else float(typed(value, float, int))
