"""How a signal ends a command that the same command goes on with."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

from inscp.errors import Stopped

_A_MOMENT = 0.1
"""Seconds."""


@contextmanager
def stopping_well(on_end: Callable[[BaseException], None] = lambda error: None) -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 end the command in order, with the status by which schedulers start it again.

    Args:
        on_end: told of whatever ends the block early, a signal or an error.

    Raises:
        Stopped: a signal asked for it.
    """

    def stop(number: int, _: Any) -> None:
        what = f"{signal.Signals(number).name}: stopped; the same command goes on with what is not done yet"
        raise Stopped(what, Stopped.RESTART)

    def once_more(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Stopped):  # it came while an object was deleted
            Timer(_A_MOMENT, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            drop(dropped)

    drop, sys.unraisablehook = sys.unraisablehook, once_more
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    except BaseException as error:
        on_end(error)
        raise
    finally:
        sys.unraisablehook = drop
        for number, handler in before.items():
            signal.signal(number, handler)
