"""Pieces of work on their way to MLflow: a queue, and the one thread that talks to the store."""

import threading
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import replace

from inscp.errors import RunError
from inscp.tracking.mlflow_run import MLflowRun, reason
from inscp.tracking.pieces import Piece, Start, batches

_GATHERING = 1.0  # seconds, like all of these; calling at every step would slow fast steps, by Python's lock
_SHORTEST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_LONGEST_PAUSE_AT_THE_END = 2.0


class Outbox:
    """Sends pieces in order from a thread of its own, however long the store is away.

    Args:
        run: where to.
        start: the run as the first piece; nothing is sent before another one is put.
    """

    def __init__(self, run: MLflowRun, start: Start) -> None:
        self._run, self._start = run, start
        self._pieces: deque[Piece] = deque([start])
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closing = self._is_given_up = self._is_down = False

    @property
    def is_empty(self) -> bool:
        """Whether everything has been sent."""
        return not self._pieces

    @property
    def is_unused(self) -> bool:
        """Whether nothing has been put."""
        return self._thread is None

    def put(self, piece: Piece) -> None:
        """Take a piece; returns at once."""
        with self._changed:
            self._pieces.append(piece)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @property
    def pieces(self) -> list[Piece]:
        """The run, and what has not been sent."""
        with self._changed:
            start = replace(self._start, run_id=self._run.run_id)
            return [start, *(piece for piece in self._pieces if piece is not self._start)]

    def close(self, patience: float) -> list[Piece]:
        """Give the thread up to `patience` seconds for the rest; returns what then remains, behind its `Start`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            with suppress(KeyboardInterrupt):  # who does not want to wait gets the file
                self._changed.wait_for(lambda: not self._pieces or self._is_given_up, patience)
            self._is_closing = False
            if not self._pieces:
                return []
            self._give_up()
            return self.pieces

    def _work(self) -> None:
        pause = _SHORTEST_PAUSE
        while batch := self._next():
            try:
                self._run.send(batch)
            except RunError as error:  # without the run nothing can be sent
                warnings.warn(f"{error}; the training goes on, and what it tracks is kept in a file.", stacklevel=2)
                self._give_up()
            except Exception as error:  # whatever the store, the network or the server raises
                self._tell_down(error)
                self._pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                pause = _SHORTEST_PAUSE
                self._remove(batch)

    def _next(self) -> list[Piece]:
        with self._changed:
            if not self._pieces:
                self._changed.wait_for(lambda: self._is_closing or self._is_given_up, _GATHERING)
            self._changed.wait_for(lambda: self._pieces or self._is_given_up)
            return [] if self._is_given_up else next(batches(self._pieces))

    def _remove(self, batch: list[Piece]) -> None:
        with self._changed:
            if self._is_given_up:  # it stands in the file already
                return
            for _ in batch:
                self._pieces.popleft()
            self._changed.notify_all()
        if self._is_down:
            self._is_down = False
            what = f"MLflow at {self._run.tracking_uri} is back; what was tracked meanwhile is being sent."
            warnings.warn(what, stacklevel=2)

    def _give_up(self) -> None:
        with self._changed:
            self._is_given_up = True
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        with self._changed:
            was_closing = self._is_closing
            longest = min(seconds, _LONGEST_PAUSE_AT_THE_END) if was_closing else seconds
            self._changed.wait_for(lambda: self._is_given_up or self._is_closing != was_closing, longest)

    def _tell_down(self, error: Exception) -> None:
        if not self._is_down:
            self._is_down = True
            what = f"MLflow at {self._run.tracking_uri} does not take what is tracked ({reason(error)})"
            warnings.warn(f"{what}; the training goes on, and it is tried again.", stacklevel=2)
