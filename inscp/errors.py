"""How a wrong input reaches the user: one line that says where, what and how to fix it, and exit status 2."""

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
    """Whether every process of a training raises this same error, so that one of them prints it for all."""

    def __str__(self) -> str:
        line = f"{self.where}: {self.what.rstrip('.!?')}. {self.fix}"
        return " ".join(line.split())


@contextmanager
def within(where: str) -> Iterator[None]:
    """Errors raised inside also name what they were found in: the key that named a file, say."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error.where}", error.what, error.fix) from error


def require_some(count: int | None, where: str, of: str = "") -> None:
    """
    Args:
        count: of things; None is as many as there are.

    Raises:
        UserError: there would be none.
    """
    if count is not None and count < 1:
        raise UserError(where, f"must be at least 1, not {count} {of}".rstrip(), "Give 1 or more.")


def first_line(error: BaseException) -> str:
    """Of what an error says; its name where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


class RunError(Exception):
    """The input was right and the run still cannot go on (a diverged loss, say): exit status 1, no traceback."""

    is_on_every_rank = False
    """As of a `UserError`."""


E = TypeVar("E", UserError, RunError)


def on_every_rank(error: E) -> E:
    """Mark an error that every process of a training raises: all end together, and one a node prints it."""
    error.is_on_every_rank = True
    return error


class Stopped(BaseException):
    """The program ends before its end, and all is well: a signal asked it to, or there is nothing left to do.

    No `Exception`, as KeyboardInterrupt is none: a signal comes anywhere, and nobody may take it for their error.

    Args:
        message: what happened and how to go on.
        status: the exit status: `RESTART` where the same command can go on, 130 behind Ctrl-C, 0.
    """

    RESTART = 75
    """EX_TEMPFAIL of sysexits.h: start the same command again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
