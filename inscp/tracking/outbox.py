"""Pieces of tracking data on their way to MLflow: a queue, and the only thread that talks to the store."""

import threading
import warnings
from collections import deque
from contextlib import suppress

from inscp.errors import RunError
from inscp.tracking.mlflow_run import MLflowRun, reason
from inscp.tracking.pieces import Piece, batches

_GATHERING = 1.0  # seconds, like all of these; a call at every step would slow down fast steps (Python's GIL)
_PAUSE = 2.0  # doubles while the store is unreachable
_LONGEST_PAUSE = 30.0


class Outbox:
    """Sends pieces to a run in order, from its own thread, however long the store is unreachable.

    A piece stays in the queue until the run is known to have it. It may be sent again after it has arrived, which
    changes nothing.
    """

    def __init__(self, run: MLflowRun) -> None:
        self._run = run
        self._pieces: deque[Piece] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_open = self._is_closing = self._is_refused = False

    @property
    def unsent(self) -> list[Piece]:
        """The pieces that are still in the queue."""
        with self._changed:
            return list(self._pieces)

    @property
    def is_open(self) -> bool:
        """Whether a piece was put since the outbox was last closed."""
        return self._is_open

    def put(self, piece: Piece) -> None:
        """Queue a piece; returns at once. A closed outbox opens again, and also sends the pieces that remained."""
        with self._changed:
            self._pieces.append(piece)
            self._is_open = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, patience: float) -> list[Piece]:
        """Give the thread up to `patience` seconds for the rest.

        Returns:
            the pieces that remain; of these, only pieces already on their way are still sent.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            with suppress(KeyboardInterrupt):  # users who do not want to wait get the file
                self._changed.wait_for(lambda: not self._pieces or self._is_refused, patience)
            self._is_open = self._is_closing = False
            self._changed.notify_all()
            return list(self._pieces)

    def _work(self) -> None:
        uri, pause, is_down = self._run.start.tracking_uri, _PAUSE, False
        while not self._is_refused:
            batch = self._next()
            try:
                self._run.send(batch)
            except RunError as error:  # without the run nothing can be sent
                warnings.warn(f"{error}; training continues, and the tracking data is kept in a file.", stacklevel=2)
                with self._changed:
                    self._is_refused = True
                    self._changed.notify_all()
            except Exception as error:  # whatever the store, the network or the server raises
                if not is_down:
                    what = f"MLflow at {uri} does not accept the tracking data ({reason(error)})"
                    warnings.warn(f"{what}; training continues, and sending is retried.", stacklevel=2)
                self._pause(pause)
                pause, is_down = min(2 * pause, _LONGEST_PAUSE), True
            else:
                with self._changed:
                    for _ in batch:
                        self._pieces.popleft()
                    self._changed.notify_all()
                if is_down and self._is_open:
                    what = f"MLflow at {uri} is back; the tracking data is being sent."
                    warnings.warn(what, stacklevel=2)
                pause, is_down = _PAUSE, False

    def _next(self) -> list[Piece]:
        with self._changed:
            if not self._pieces:
                self._changed.wait_for(lambda: self._is_closing, _GATHERING)
            self._changed.wait_for(lambda: self._pieces and self._is_open)
            return next(batches(self._pieces))

    def _pause(self, seconds: float) -> None:
        with self._changed:
            if not self._is_closing:
                self._changed.wait_for(lambda: self._is_closing, seconds)
            else:  # training waits for this
                self._changed.wait_for(lambda: not self._is_open, _PAUSE)
