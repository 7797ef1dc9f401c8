"""What a task says that its items may give."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from inscp.evaluation.task import Task


def are_named(names: Iterable[str], task: Task) -> bool:
    """Whether a task names all that its items have given, and nothing else."""
    found = {name: [known for known in task.item_metrics if fnmatchcase(name, known)] for name in names}
    return all(found.values()) and {known for fits in found.values() for known in fits} == set(task.item_metrics)
