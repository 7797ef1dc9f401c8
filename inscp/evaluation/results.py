"""What an evaluation has found: a file that people and programs read, and one line for every item behind it.

`results.json` holds `{"schema", "model", "environment", "tasks": {NAME: {"kind", "metrics": {METRIC: value},
"intervals": {METRIC: [low, high]}, "counts": {METRIC: n}, "n", "version", "seconds"}}}`, and `"by"` of a task that
another model than its own judges; `results.items/NAME.jsonl` has what each item was worth, so that two evaluations can
be compared item by item.
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
"""What a results file is called among the artifacts of an MLflow run."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number over `n` items, with its 95 % interval; NaN where there are too few items for either."""

    value: float
    interval: tuple[float, float]
    n: int


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What one task has measured.

    Attributes:
        kind: the task's class.
        metrics: by name.
        n: items.
        version: of the task: numbers of two versions are not comparable.
        seconds: it took, what an earlier attempt had answered already aside.
        by: the model that judged the answers, where it is not the task's own.
    """

    kind: str
    metrics: Mapping[str, Metric]
    n: int
    version: int
    seconds: float
    by: str = ""

    @property
    def measure(self) -> str:
        """What must be the same for two results to be compared."""
        return f"{self.kind}, version {self.version}{f', by {self.by}' if self.by else ''}"


@dataclass(frozen=True, slots=True)
class Results:
    """What one evaluation of one model has measured.

    Attributes:
        model: as it was named.
        tasks: name -> what it has measured.
        environment: versions, hardware, precision, date: plain values.
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
        """What `write` has written.

        Raises:
            UserError: no such file, another file, or one of another version of this program.
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
    """Refuse to compare what was measured in two ways.

    Args:
        task: its name.
        where, before: how people call the two evaluations.
        result, other: what the task has measured in them.

    Raises:
        UserError: by another kind or version of task.
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
