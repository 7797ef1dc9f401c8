"""Libraries that only some commands need."""

from importlib import import_module
from typing import Any

from inscp.errors import UserError


def library(name: str, extra: str) -> Any:
    """Import a module that `pip install "inscp[EXTRA]"` provides.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == package
        what = "it is not installed" if is_absent else f"it cannot be imported ({error})"
        raise UserError(package, what, f'Run pip install "inscp[{extra}]".') from error
