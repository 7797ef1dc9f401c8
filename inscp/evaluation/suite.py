"""Runs tasks on a model, one behind the other."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from inscp.evaluation.results import Item, Results, TaskResult, write_items
from inscp.evaluation.subject import Subject
from inscp.evaluation.task import Task

OnTask = Callable[[str, TaskResult, list[Item]], None]


def run(tasks: Mapping[str, Task], subject: Subject, environment: Mapping[str, Any], on_task: OnTask) -> Results:
    """What the tasks measure; the items of each are written into the subject's folder as soon as it is done.

    Args:
        tasks: by name; what they will ask has been checked.
        subject: the model.
        environment: in which it runs.
        on_task: told of each task that is done.
    """
    results = {}
    for name, task in tasks.items():
        started = time.monotonic()
        items = list(task.items(subject))
        results[name] = TaskResult(task.metrics(items), len(items), task.version, time.monotonic() - started)
        write_items(subject.folder, name, items)
        on_task(name, results[name], items)
    return Results(subject.spec, results, environment)
