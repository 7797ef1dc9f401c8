"""Libraries that only some commands need."""

from importlib import import_module
from typing import Any

from inscp.errors import UserError


def library(name: str, extra: str) -> Any:
    """A module that `pip install "inscp[EXTRA]"` brings.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        mend = f'Run pip install "inscp[{extra}]".'
        raise UserError(name.partition(".")[0], "it is not installed", mend) from error
