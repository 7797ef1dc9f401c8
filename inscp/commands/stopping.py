"""How a signal ends a command that the same command goes on with."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from inscp.errors import Stopped


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

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    except BaseException as error:
        on_end(error)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
