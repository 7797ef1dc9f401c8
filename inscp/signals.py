"""The signals that ask a process to stop: which they are, who hears them, and how the process then ends."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

from inscp.errors import Stopped

FROM_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM warns by the second
ASKING_TO_STOP = (*FROM_SCHEDULERS, signal.SIGINT)
_A_MOMENT = 0.1  # seconds


def status_behind(number: int) -> int:
    """The exit status of what a signal has stopped in order."""
    return 130 if number == signal.SIGINT else Stopped.RESTART


@contextmanager
def received_by(handler: Callable[[int, Any], None], numbers: tuple[int, ...] = ASKING_TO_STOP) -> Iterator[None]:
    """Inside, these signals go to `handler`."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stopping_well() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 end the command in order; at Ctrl-C Python raises an error of its own.

    Raises:
        Stopped: a signal asked for it.
    """

    def stop(number: int, _: Any) -> None:
        what = f"{signal.Signals(number).name}: stopped; rerun the same command to resume"
        raise Stopped(what, status_behind(number))

    def once_more(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Stopped):  # it came while an object was deleted
            Timer(_A_MOMENT, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            drop(dropped)

    drop, sys.unraisablehook = sys.unraisablehook, once_more
    try:
        with received_by(stop, FROM_SCHEDULERS):
            yield
    finally:
        sys.unraisablehook = drop
