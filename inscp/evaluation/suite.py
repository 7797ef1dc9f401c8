"""Runs tasks on a model, one after the other."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.items import Item, write_items
from inscp.evaluation.results import Results, TaskResult
from inscp.evaluation.task import Task

OnTask = Callable[[str, TaskResult, list[Item]], None]


def run(tasks: Mapping[str, Task], model: CachingModel, environment: Mapping[str, Any], on_task: OnTask) -> Results:
    """Run the tasks; the items of each are written into the model's folder as soon as it is done.

    Args:
        tasks: by name; they have been checked.
        model: the model.
        environment: description of the environment, for the results.
        on_task: called after each task.
    """
    results = {}
    for name, task in tasks.items():
        started = time.monotonic()
        items = with_unique_ids(task.items(model))
        seconds = time.monotonic() - started
        results[name] = TaskResult(type(task).__name__, task.metrics(items), len(items), task.version, seconds, task.by)
        write_items(model.folder, name, items)
        on_task(name, results[name], items)
    return Results(model.spec, results, environment)


def with_unique_ids(items: Iterable[Item]) -> list[Item]:
    """The items with unique ids, by which evaluations are compared: a repeated id gets a number."""
    seen: Counter[str] = Counter()
    result = []
    for item in items:
        seen[item.id] += 1
        result.append(item if seen[item.id] == 1 else replace(item, id=f"{item.id} ({seen[item.id]})"))
    return result
