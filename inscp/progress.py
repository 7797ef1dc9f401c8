"""Progress of long work: a bar on a terminal, plain lines in a log file. Needs neither torch nor Lightning."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from threading import Timer
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0

_BURST = 0.3
"""Seconds between the first count of a finished batch and the line printed for it, which so covers the whole batch."""


class ProgressLines:
    """Shows how much of some work is done, at what speed, and how long the rest will take.

    Args:
        what: label of the work.
        total: total work, in any unit that is proportional to time.
        shows: whether this process prints.
        unit: unit of the displayed speed.
    """

    def __init__(self, what: str, total: int, shows: bool = True, unit: str = "tokens") -> None:
        self._what, self._total, self._done, self._passed, self._unit = what, max(1, total), 0.0, 0, unit
        self._started = self._last_line = time.monotonic()
        self._shows, self._waiting = shows, Timer(_BURST, self._print_line)
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        is_bar = shows and sys.stderr.isatty()
        self._bar = tqdm(total=self._total, desc=what, bar_format=layout) if is_bar else None

    def advance(self, units: float, share: float, passed: int) -> None:
        """Record that a fraction `share` of `units` of work is done, in which `passed` tokens were processed."""
        self._done += units * share
        self._passed += passed
        now, is_done = time.monotonic(), self._done > self._total * (1 - 1e-6)
        if self._bar:
            self._bar.set_postfix_str(self._rate(now - self._started))
            self._bar.update(units * share)
            if is_done:
                self._bar.close()
        elif self._shows and is_done:
            self._waiting.cancel()
            self._print_line()
        elif self._shows and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._waiting = Timer(_BURST, self._print_line)
            self._waiting.daemon = True
            self._waiting.start()

    def _print_line(self) -> None:
        passed = time.monotonic() - self._started
        left = passed / self._done * (self._total - self._done)
        line = f"{self._what} {self._done / self._total:.0%}  {self._rate(passed)}  {duration(left)} left"
        print(line, file=sys.stderr, flush=True)

    def _rate(self, seconds: float) -> str:
        per_second = self._passed / max(1e-9, seconds)
        return f"{per_second:,.{0 if per_second >= 10 else 2}f} {self._unit}/s"


def skipped_lines(source: str, skipped: Mapping[str, int], first: Mapping[str, str]) -> list[str]:
    """One line per reason for which records of a source were skipped, with the first position if known."""
    where = {why: f" (the first: {position})" for why, position in first.items()}
    return [f"skipped {count:,} of {source}: {why}{where.get(why, '')}" for why, count in skipped.items()]


def print_skipped(source: str, skipped: Mapping[str, int], first: Mapping[str, str]) -> None:
    """Print `skipped_lines`."""
    for line in skipped_lines(source, skipped, first):
        print(line)


def with_progress(stream: Iterable[T], what: str, unit: str = "records") -> Iterator[T]:
    """Yield a stream of unknown length, and print how many members have passed and how fast."""
    if sys.stderr.isatty():
        yield from tqdm(stream, desc=what, unit=f" {unit}", delay=_BURST)
        return
    started = last_line = time.monotonic()
    for number, one in enumerate(stream, 1):
        yield one
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            print(f"{what} {number:,} {unit}, {number / (now - started):,.0f} per second", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`75.2` -> `1m15s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
