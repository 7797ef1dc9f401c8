"""Signals that ask a process to stop, their handlers, and how the process then ends."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

from inscp.errors import Stopped

FROM_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM warns with SIGUSR1
ASKING_TO_STOP = (*FROM_SCHEDULERS, signal.SIGINT)
_RETRY_AFTER = 0.1  # seconds


def exit_status(number: int) -> int:
    """The exit status after an orderly stop on a signal."""
    return 130 if number == signal.SIGINT else Stopped.RESTART


@contextmanager
def received_by(handler: Callable[[int, Any], None], numbers: tuple[int, ...] = ASKING_TO_STOP) -> Iterator[None]:
    """Route these signals to `handler` inside the block."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stopping_well() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGUSR1 end the command in order; Ctrl-C raises KeyboardInterrupt as usual.

    Raises:
        Stopped: on one of these signals.
    """

    def stop(number: int, _: Any) -> None:
        what = f"{signal.Signals(number).name}: stopped; rerun the same command to resume"
        raise Stopped(what, exit_status(number))

    def send_again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Stopped):  # it came during the deletion of an object
            Timer(_RETRY_AFTER, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            drop(dropped)

    drop, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        with received_by(stop, FROM_SCHEDULERS):
            yield
    finally:
        sys.unraisablehook = drop
