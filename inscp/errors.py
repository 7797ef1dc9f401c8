"""Errors that reach the user as one line (where, what, how to fix it) with an exit status, and orderly stops."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar


class UserError(Exception):
    """The user's input is wrong.

    Args:
        where: file and line, configuration key, or name of the thing at fault.
        what: what is wrong with it.
        fix: what to do about it, an imperative sentence.
    """

    def __init__(self, where: str, what: str, fix: str) -> None:
        super().__init__(where, what, fix)
        self.where, self.what, self.fix = where, what, fix

    is_on_every_rank = False
    """Whether every process of a run raises this same error, so that only one of them prints it."""

    def __str__(self) -> str:
        line = f"{self.where}: {self.what.rstrip('.!?')}. {self.fix}"
        return " ".join(line.split())


@contextmanager
def within(where: str) -> Iterator[None]:
    """Prefix errors raised inside with where they were found: the key that named a file, say."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error.where}", error.what, error.fix) from error


def require_some(count: int | None, where: str, of: str = "") -> None:
    """
    Args:
        count: number of things; None for all there are.

    Raises:
        UserError: it is less than 1.
    """
    if count is not None and count < 1:
        raise UserError(where, f"must be at least 1, not {count} {of}".rstrip(), "Give 1 or more.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


class RunError(Exception):
    """The input was valid but the run cannot continue (a diverged loss, say): exit status 1, no traceback."""

    is_on_every_rank = False
    """As for a `UserError`."""


E = TypeVar("E", UserError, RunError)


def on_every_rank(error: E) -> E:
    """Mark an error that every process of a run raises: all end together, and one per node prints it."""
    error.is_on_every_rank = True
    return error


class Stopped(BaseException):
    """An orderly early end of the program: a signal asked for it, or there is nothing left to do.

    Like KeyboardInterrupt it is not an `Exception`: a signal may arrive anywhere, and must not be taken for an error.

    Args:
        message: what happened and how to resume.
        status: exit status: `RESTART` if the same command can resume, 130 after Ctrl-C, 0.
    """

    RESTART = 75
    """EX_TEMPFAIL of sysexits.h: start the same command again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
