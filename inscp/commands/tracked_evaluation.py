"""An evaluation in MLflow: in the run that made the model, or in one of its own."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from inscp.cost.ledger import Cost
from inscp.evaluation.items import ITEMS, Item, items_file
from inscp.evaluation.results import RESULTS, TaskResult
from inscp.model.origin import Origin
from inscp.pretrained import resolve
from inscp.tracking.environment import provenance_tags
from inscp.tracking.pieces import dumped, read_run
from inscp.tracking.tracked_run import RUN_FILE, TrackedRun, Tracking


class TrackedEvaluation:
    """The evaluation in MLflow.

    Args:
        tracker: tracker of its run.
        origin: origin of the model, if it was made here.
        folder: folder of the items.
    """

    def __init__(self, tracker: TrackedRun, origin: Origin | None, folder: Path) -> None:
        self._tracker, self._folder = tracker, folder
        tracker.unsent_folder = folder
        self._step = int(origin.training.get("steps", 0)) if origin else 0  # its place on the curves of the run

    def task(self, name: str, result: TaskResult, items: list[Item]) -> None:
        """Log the results of a task."""
        values = {key: metric.value for key, metric in result.metrics.items() if math.isfinite(metric.value)}
        self._tracker.log_at({f"eval/{name}/{key}": value for key, value in values.items()}, self._step, anew=True)
        if columns := _columns(items):
            self._tracker.log_table(columns, f"generations/{name}.json")
        kept = items_file(self._folder, name)
        self._tracker.log_text(kept.read_text("utf-8"), f"{ITEMS}/{kept.name}")

    def finish(self, results: Path, total: Cost | None) -> str:
        """Log the results and their cost; returns the run's address."""
        if total:
            self._tracker.log_at(total.metrics("evaluation"), self._step, anew=True)
            self._tracker.log_hyperparams(total.params("evaluation"))
        self._tracker.log_text(results.read_text("utf-8"), RESULTS)
        self.end("success")
        return self._tracker.address

    def end(self, status: str) -> None:
        """Send what is unsent, and end the run."""
        self._tracker.finalize(status)


def _columns(items: list[Item]) -> dict[str, list[Any]]:
    """What is shown of the items, as columns, with the scores of each."""
    names = list(dict.fromkeys(name for item in items for name in item.shown))
    columns = {name: [item.shown.get(name, "") for item in items] for name in names}
    return columns and columns | {"worth": [json.dumps(dict(item.values)) for item in items]}


def tracker_for(model: str, origin: Origin | None, tracking: Tracking, folder: Path) -> TrackedRun:
    """The run that made the model, as `fit` recorded it next to its folder, else a new one, recorded in `folder`."""
    is_trained = origin is not None and "steps" in origin.training  # not a merge that is stored next to its model
    if tracking.run_id is None and is_trained and (made := Path(resolve(model)[0]).parent / RUN_FILE).is_file():
        start, _ = read_run(made)
        of_run = replace(tracking, tracking_uri=start.tracking_uri, experiment=start.experiment)
        return TrackedRun(of_run, start.name, {}, dumped(start), is_addition=True)
    origin = origin or Origin(model, "instruct", "")
    is_addition = tracking.run_id is not None
    earlier = dumped(read_run(own)[0]) if (own := folder / RUN_FILE).is_file() else None
    tracker = TrackedRun(tracking, origin.name, provenance_tags(), earlier, is_addition)
    if not is_addition:
        tracker.note_run(folder)
        tracker.log_hyperparams({"arm": origin.arms, "model": origin.base_model, "evaluated": model})
    return tracker
