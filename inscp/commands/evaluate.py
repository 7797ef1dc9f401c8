"""`evaluate`: what a model can do and what it is like, in numbers with intervals, by the tasks of a configuration."""

import json
import math
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from inscp import __version__
from inscp.callbacks.pieces import Start, dumped, read_unsent
from inscp.callbacks.provenance import hardware, provenance_tags
from inscp.callbacks.tracking import RUN_FILE, MLflowTracker, Tracking
from inscp.commands.fit import quiet
from inscp.commands.lines import Lines
from inscp.commands.parser import call
from inscp.errors import UserError
from inscp.evaluation import suite
from inscp.evaluation.local_model import LocalModel
from inscp.evaluation.results import Item, TaskResult, items_folder
from inscp.evaluation.server import ServedModel, Server
from inscp.evaluation.subject import Subject
from inscp.evaluation.task import Task
from inscp.evaluation.tasks import import_all
from inscp.model.export import Origin, read_origin
from inscp.model.precision import InferencePrecision, inference_dtype
from inscp.pretrained import resolve

_TASK_NAME = re.compile(r"(?!answers$)[\w-]+")  # answers are kept under that name


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp evaluate --model DIR --config FILE --out results.json`"""
    quiet()
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
) -> None:
    """Measure a model by some tasks; the same command goes on where it was interrupted.

    Args:
        model: a model's folder, Hub id, GGUF file or PyPI wheel.
        tasks: name -> class_path and init_args of a task.
        out: the results file. What every item was worth goes into OUT.items beside it, as do the answers.
        only: names of those of the tasks that are to be run; all without it.
        precision: bf16 where the hardware multiplies in it, else fp32.
        batch_size: prompts that are answered at once.
        server: an OpenAI-compatible address (vLLM, say) that answers in the place of this process; tasks that measure
            likelihoods, which it does not give, are an error then. `model` is what is served there, by which its run
            is found.
        mlflow: where it is tracked: in the run that made the model, else in a new one.
    """
    tasks = _chosen(tasks, only)
    _check(tasks, server)
    backend = _served(server) if server else LocalModel(model, inference_dtype(precision), batch_size)
    folder = items_folder(Path(out))
    subject = Subject(backend, folder, _watch)
    tracker = _tracker(model, mlflow) if mlflow.enabled else None
    if tracker:
        tracker.unsent_folder = folder
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "inscp": __version__, "torch": torch.__version__,
                     "transformers": transformers.__version__},
        "settings": {name: task.settings for name, task in tasks.items()},
    } | dict(backend.made_by)  # fmt: skip

    def on_task(name: str, result: TaskResult, items: list[Item]) -> None:
        print("\n".join(_lines(name, result)), flush=True)
        if tracker:
            values = {f"eval/{name}/{key}": metric.value for key, metric in result.metrics.items()}
            tracker.log_at({key: value for key, value in values.items() if math.isfinite(value)}, _steps(model))
            if columns := _columns(items):
                tracker.log_table(columns, f"generations/{name}.json")

    with _ended(tracker):
        results = suite.run(tasks, subject, environment, on_task)
    results.write(Path(out))
    if tracker:
        tracker.log_text(Path(out).read_text("utf-8"), "results.json")
        tracker.finalize("success")
    print(f"\nresults    {out}\nitems      {folder}" + (f"\nMLflow run {tracker.address}" if tracker else ""))


def _chosen(tasks: dict[str, Task], only: list[str] | None) -> dict[str, Task]:
    if not tasks:
        raise UserError("tasks", "there is none", "Take a configuration from configs/evaluate.")
    if unknown := set(only or ()) - tasks.keys():
        raise UserError("only", f"there is no task {min(unknown)}", f"Name some of {', '.join(tasks)}.")
    return {name: task for name, task in tasks.items() if only is None or name in only}


def _check(tasks: dict[str, Task], server: Server | None) -> None:
    """See that all can be run, before the first of them is."""
    for name, task in tasks.items():
        if not _TASK_NAME.fullmatch(name):
            raise UserError(f"tasks.{name}", "a file is called after it", "Name it by letters, digits, - and _ alone.")
        if server and task.needs_likelihoods:
            mend = "Leave it out of `only`, or leave out the server."
            raise UserError(f"tasks.{name}", "it needs likelihoods, which a server does not give", mend)
        task.check()


@contextmanager
def _ended(tracker: MLflowTracker | None) -> Iterator[None]:
    """What is tracked is sent, and the run does not stay open, when the evaluation does not come to its end."""
    try:
        yield
    except BaseException as error:
        if tracker:
            tracker.finalize("failed" if isinstance(error, Exception) else "interrupted")
        raise


def _served(server: Server) -> ServedModel:
    served = ServedModel(server)
    served.connect()
    return served


def _watch(what: str, total: int) -> Callable[[], None]:
    lines = Lines(what, total, unit="items")
    return lambda: lines.advance(1, 1, 1)


def _lines(name: str, result: TaskResult) -> list[str]:
    """A task's metrics as aligned text."""
    lines = [f"\n{name:<44}{'value':>10}{'95 % interval':>22}{'n':>8}"]
    for key, metric in result.metrics.items():
        low, high = metric.interval
        interval = f"{low:,.3f} to {high:,.3f}" if math.isfinite(low) else "–"
        lines.append(f"  {key:<42}{metric.value:>10,.3f}{interval:>22}{metric.n:>8,}")
    return lines


def _columns(items: list[Item]) -> dict[str, list[Any]]:
    """What is shown of the items as columns, with what each was worth."""
    names = list(dict.fromkeys(name for item in items for name in item.shown))
    columns = {name: [item.shown.get(name, "") for item in items] for name in names}
    return columns and columns | {"worth": [json.dumps(dict(item.values)) for item in items]}


def _steps(model: str) -> int:
    """How many updates made the model: where its metrics lie on the curves of its run."""
    origin = read_origin(model)
    return int(origin.training["steps"]) if origin else 0


def _tracker(model: str, tracking: Tracking) -> MLflowTracker:
    """The run that made the model, as `fit` noted it beside its folder, else a new one."""
    made = Path(resolve(model)[0]).parent / RUN_FILE
    if tracking.run_id is None and made.is_file() and (start := read_unsent(made)[0]):
        assert isinstance(start, Start)
        of_run = replace(tracking, tracking_uri=start.tracking_uri, experiment=start.experiment)
        return MLflowTracker(of_run, start.name, {}, dumped([start]), is_addition=True)
    origin = read_origin(model) or Origin(model, "instruct", "")
    is_addition = tracking.run_id is not None
    name = f"{origin.arm} {origin.base_model} {origin.language}".strip()
    tracker = MLflowTracker(tracking, name, provenance_tags(), is_addition=is_addition)
    if not is_addition:
        tracker.log_hyperparams({"arm": origin.arm, "model": origin.base_model, "evaluated": model})
    return tracker
