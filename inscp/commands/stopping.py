"""How a signal ends a command in order."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

from inscp.errors import Stopped

_A_MOMENT = 0.1
"""Seconds."""


@contextmanager
def stopping_well() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 end the command in order, with the status by which schedulers start it again.

    Raises:
        Stopped: a signal asked for it.
    """

    def stop(number: int, _: Any) -> None:
        raise Stopped(f"{signal.Signals(number).name}: stopped; the same command takes it up again", Stopped.RESTART)

    def once_more(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Stopped):  # it came while an object was deleted
            Timer(_A_MOMENT, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            drop(dropped)

    drop, sys.unraisablehook = sys.unraisablehook, once_more
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        sys.unraisablehook = drop
        for number, handler in before.items():
            signal.signal(number, handler)
