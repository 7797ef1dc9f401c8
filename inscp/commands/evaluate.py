"""`evaluate`: a model's metrics with intervals, on the tasks of a configuration."""

import math
import platform
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from inscp import __version__
from inscp.commands.backends import open_model
from inscp.commands.parser import call
from inscp.commands.tracked_evaluation import TrackedEvaluation, tracker_for
from inscp.cost.ledger import Ledger
from inscp.data.rendering import require_chat_template
from inscp.errors import Stopped, UserError
from inscp.evaluation import suite
from inscp.evaluation.caching_model import Backend
from inscp.evaluation.items import Item, items_folder
from inscp.evaluation.labels import label
from inscp.evaluation.results import Results, TaskResult
from inscp.evaluation.server import Server
from inscp.evaluation.task import Task
from inscp.evaluation.tasks import import_all
from inscp.model.origin import read_origin
from inscp.model.precision import InferencePrecision
from inscp.pretrained import load_tokenizer
from inscp.tracking.environment import hardware
from inscp.tracking.tracked_run import Tracking

_TASK_NAME = re.compile(r"(?!answers$)[\w-]+")  # the name of the answer cache


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp evaluate --model DIR --config FILE --out results.json`"""
    import_all()
    call(command, evaluate, arguments)


def evaluate(
    model: str,
    tasks: dict[str, Task],
    out: str = "results.json",
    only: list[str] | None = None,
    precision: InferencePrecision | None = None,
    batch_size: int = 64,
    server: Server | None = None,
    mlflow: Tracking = Tracking(),  # noqa: B008  # frozen
    cost: Ledger = Ledger(),  # noqa: B008  # frozen
) -> None:
    """Evaluate a model on some tasks; rerun the same command to resume after an interruption.

    Args:
        model: folder, Hub id, GGUF file or PyPI wheel of a model.
        tasks: mapping from a name to the class_path and init_args of a task.
        out: results file (JSON). Per-item scores and answers are written next to it, into a folder with the same name,
            but `.items` instead of `.json`.
        only: names of the tasks to run; by default all. Other results of this model in OUT are kept.
        precision: number format of the computation; by default bf16 if the hardware is faster in it, else fp32.
        batch_size: prompts per batch.
        server: OpenAI-compatible endpoint (vLLM, say) that answers instead of this process; tasks that need likelihoods
            are then an error. `model` still names the served model: its MLflow run is found by it, and it is the name
            sent to the server unless `server.model` is given.
        mlflow: MLflow tracking, in the run that made the model, else in a new one.
        cost: cost accounting and prices; nothing is counted if a server answers.
    """
    if Path(out).is_dir():
        raise UserError("--out", f"{out} is a folder", "Name a file, such as results.json.")
    tasks = _chosen(tasks, only)
    _earlier(out, only)  # an invalid results file is reported now
    require_runnable(tasks, server)
    if server is None and (chats := [name for name, task in tasks.items() if task.chats]):
        require_chat_template(load_tokenizer(model), model, f", or leave out {', '.join(chats)}")
    folder = items_folder(Path(out))
    asked, cost_record = open_model(model, server, folder, precision, batch_size, cost)
    # A server's name of a model may mean nothing here.
    origin = read_origin(model) if server is None or Path(model).is_dir() else None
    tracked = TrackedEvaluation(tracker_for(model, origin, mlflow, folder), origin, folder) if mlflow.enabled else None

    def on_task(name: str, result: TaskResult, items: list[Item]) -> None:
        print("\n".join(_lines(name, result)), flush=True)
        if cost_record:
            cost_record.save()
        if tracked:
            tracked.task(name, result, items)

    try:
        results = suite.run(tasks, asked, _environment(tasks, asked.backend), on_task)
    except BaseException as error:
        if cost_record:
            cost_record.save()
        if tracked:
            tracked.end("interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed")
        raise
    if earlier := _earlier(out, only):  # read again, as another process may have finished meanwhile
        results = _beside(earlier, results)
    total = cost_record.stop() if cost_record else None
    if total:
        results = replace(results, environment={**results.environment, "cost": total.plain()})
    results.write(Path(out))
    ends = [f"\nresults    {out}", f"items      {folder}"]
    if tracked:
        ends.append(f"MLflow run {tracked.finish(Path(out), total)}")
    print("\n".join(ends + ([f"cost       {total}"] if total else [])))


def _earlier(out: str, only: list[str] | None) -> Results | None:
    return Results.read(Path(out)) if only and Path(out).exists() else None


def _environment(tasks: dict[str, Task], backend: Backend) -> dict[str, Any]:
    """The versions, hardware and settings of the evaluation, for the results."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "inscp": __version__, "torch": torch.__version__,
                     "transformers": transformers.__version__},
        "settings": {name: task.settings for name, task in tasks.items()},
        **backend.made_by,
    }  # fmt: skip


def _beside(earlier: Results, now: Results) -> Results:
    """The new results, and the earlier ones of other tasks if model and precision are the same."""
    one, other = earlier.environment, now.environment
    if any(one.get(name) != other.get(name) for name in ("model", "weights", "precision")):
        return now
    settings = one.get("settings", {}) | other["settings"]
    return replace(now, tasks={**earlier.tasks, **now.tasks}, environment={**other, "settings": settings})


def _chosen(tasks: dict[str, Task], only: list[str] | None) -> dict[str, Task]:
    if not tasks:
        raise UserError("tasks", "no task is given", "Use a configuration from configs/evaluate.")
    if unknown := set(only or ()) - tasks.keys():
        raise UserError("only", f"there is no task {min(unknown)}", f"Choose from: {', '.join(tasks)}.")
    return {name: task for name, task in tasks.items() if only is None or name in only}


def require_runnable(tasks: dict[str, Task], server: Server | None) -> None:
    """Check that all tasks can be run, before the first one is.

    Raises:
        UserError: one cannot.
    """
    for name, task in tasks.items():
        if not _TASK_NAME.fullmatch(name):
            raise UserError(f"tasks.{name}", "the name is used as a file name", "Use only letters, digits, - and _.")
        if server and task.needs_likelihoods:
            fix = "Remove it from `only`, or remove the server."
            raise UserError(f"tasks.{name}", "it needs likelihoods, which a server does not provide", fix)
        task.check()


def _lines(name: str, result: TaskResult) -> list[str]:
    """A task's metrics as aligned text, with their labels; the results file has their names."""
    lines = [f"\n{name:<44}{'value':>10}{'95 % interval':>22}{'n':>8}"]
    for key, metric in result.metrics.items():
        low, high = metric.interval
        interval = f"{low:,.3f} to {high:,.3f}" if math.isfinite(low) else "–"
        lines.append(f"  {label(result.kind, key):<42}{metric.value:>10,.3f}{interval:>22}{metric.n:>8,}")
    return lines
