"""One task per file. All modules are imported before a configuration is read, so that it may name their classes."""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from inscp.evaluation.task import Task


@cache
def import_all() -> None:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


def task_version(class_path: str) -> int | None:
    """The version of the task that a configuration names; None if there is no such class, which the parser reports.

    Args:
        class_path: path of the class; its name alone suffices for one in this package.
    """
    import_all()
    module, _, name = class_path.rpartition(".")
    try:
        known = vars(import_module(module)) if module else {kind.__name__: kind for kind in _kinds(Task)}  # type: ignore[type-abstract]
    except ImportError:
        return None
    return getattr(known.get(name), "version", None)


def _kinds(of: type[Task]) -> Iterator[type[Task]]:
    for kind in of.__subclasses__():
        yield kind
        yield from _kinds(kind)
