"""A parallel map over batches in one process per core, with the results in order."""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from multiprocessing import active_children, current_process, get_context
from threading import Thread
from typing import Any, TypeVar

import numpy as np

from inscp.errors import RunError
from inscp.records import TokenSequence
from inscp.signals import ASKING_TO_STOP

T = TypeVar("T")
U = TypeVar("U")

_MAX_PROCESSES = 16
"""With more processes, the one that reads and packs is the bottleneck."""
_POLL_SECONDS = 5.0


def parallel_map(work: Callable[[T], U], batches: Iterable[T], processes: int | None = None) -> Iterator[U]:
    """The result of each batch, in order, computed some batches ahead; errors of `batches` or `work` are raised here.

    The first batch is computed in this process, so that no process is started for little data.

    Args:
        work: must not need anything made after the second batch is requested, as the processes are forked then.
        batches: consumed as needed, two per process ahead.
        processes: by default one per core; with 0, or if they cannot be started, this process computes everything.

    Raises:
        RunError: a process was killed.
    """
    stream = iter(batches)
    for first in stream:
        yield work(first)
        break
    second = next(stream, None)
    if second is None:
        return
    todo = chain([second], stream)
    count = _process_count() if processes is None else processes
    if not count:
        yield from map(work, todo)
        return
    try:
        yield from _map_in_processes(count, work, todo)
    except BrokenProcessPool as error:
        raise RunError("the system ended a process that prepares text, probably for lack of memory") from error


def _map_in_processes(processes: int, work: Callable[[T], U], batches: Iterator[T]) -> Iterator[U]:
    others = set(active_children())
    first = next(batches)
    with ProcessPoolExecutor(processes, get_context("fork"), _initialise, (work, os.getpid())) as pool:
        try:
            with _single_threaded_tokenizers():  # all processes are forked here
                waiting: deque[Future[U]] = deque([pool.submit(_call_work, first)])
        except OSError:  # the process limit is reached; processes that have started would wait forever
            for process in set(active_children()) - others:
                process.kill()
            yield from map(work, chain([first], batches))
            return
        for batch in batches:
            waiting.append(pool.submit(_call_work, batch))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _process_count() -> int:
    """Number of processes to start: 0 where forking is not safe, and in a daemon."""
    is_possible = sys.platform == "linux" and not current_process().daemon
    return min(_MAX_PROCESSES, len(os.sched_getaffinity(0))) if is_possible else 0


_work: Callable[[Any], Any]
"""The work of this process: a global, because closures cannot be pickled, and pickling a tokenizer is slow."""


def _initialise(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    ignore_signals()
    Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    """Exit when the parent has gone: a killed process cannot notify its children."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _call_work(batch: Any) -> Any:
    return _work(batch)


def ignore_signals(_: int = 0) -> None:
    """Let a worker ignore signals that are sent to all processes: the main process decides when to end."""
    for number in ASKING_TO_STOP:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """For processes forked in the block: the tokenizer library's threads do not survive a fork, and it would warn."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Token sequences as a few arrays, to be sent to another process: every pickled object costs microseconds."""

    headers: list[tuple[str, int, int]]
    lengths: np.ndarray
    input_ids: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> "SequenceBatch":
        none = np.empty(0, np.int32)
        return cls(
            [(sequence.source, sequence.part, sequence.parts) for sequence in sequences],
            np.array([len(sequence.input_ids) for sequence in sequences]),
            np.concatenate([none, *(sequence.input_ids for sequence in sequences)]),
            np.concatenate([none, *(sequence.labels for sequence in sequences)]),
        )

    def sequences(self) -> Iterator[TokenSequence]:
        end = 0
        for (source, part, parts), length in zip(self.headers, self.lengths.tolist(), strict=True):
            start, end = end, end + length
            # Copies, so that a sequence that waits for its row does not keep the whole batch alive.
            ids, labels = self.input_ids[start:end].copy(), self.labels[start:end].copy()
            yield TokenSequence(source, ids, labels, part, parts)
