"""Candidates pass through filters one after the other, each counted; the rest is written, with a report."""

import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inscp.records import Candidate
from inscp.selection.filters import Drop, Selector
from inscp.selection.spool import Spool

_SHOWN = 400  # characters shown of an example


class Histogram:
    """Counts of values on a logarithmic scale, sixteen bins per decade from 1 on, in constant memory."""

    PER_DECADE, DECADES = 16, 8

    def __init__(self) -> None:
        self.counts = np.zeros(self.PER_DECADE * self.DECADES, dtype=np.int64)

    def add(self, value: float) -> None:
        place = int(np.log10(max(value, 1.0)) * self.PER_DECADE)
        self.counts[min(place, len(self.counts) - 1)] += 1

    @classmethod
    def edges(cls) -> np.ndarray:
        return np.asarray(10 ** (np.arange(cls.PER_DECADE * cls.DECADES + 1) / cls.PER_DECADE))


@dataclass
class Census:
    """What passes a point of the funnel, per source: records, tokens, and histograms of perplexity and length."""

    records: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    perplexity: dict[str, Histogram] = field(default_factory=dict)
    length: dict[str, Histogram] = field(default_factory=dict)

    def counting(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        for candidate in candidates:
            self.add(candidate)
            yield candidate

    def add(self, candidate: Candidate) -> None:
        source = candidate.source
        self.records[source] += 1
        self.tokens[source] += candidate.n_tokens
        self.length.setdefault(source, Histogram()).add(candidate.n_tokens)
        if (value := candidate.perplexity) is not None:
            self.perplexity.setdefault(source, Histogram()).add(value)

    def as_dict(self) -> dict[str, Any]:
        return {
            "records": dict(self.records),
            "tokens": dict(self.tokens),
            "perplexity": {source: h.counts.tolist() for source, h in self.perplexity.items()},
            "length": {source: h.counts.tolist() for source, h in self.length.items()},
        }


@dataclass
class Step:
    """What one filter of the funnel did.

    Attributes:
        name, settings: the filter's class name and `repr`.
        records, tokens: numbers that it kept.
        dropped: reason -> number of records dropped for it.
        examples: a random sample of the dropped records.
        found: its other findings.
    """

    name: str
    settings: str
    records: int = 0
    tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)


class Funnel:
    """Runs filters over candidates, once.

    Args:
        filters: in order of application.
        n_examples: number of examples of the records that each filter drops, and of those that are left.
        seed: random seed of the choice of examples.
    """

    def __init__(self, filters: list[Selector], n_examples: int, seed: int) -> None:
        self._filters, self._n_examples = filters, n_examples
        self._random = random.Random(seed)
        self.steps = [Step(type(f).__name__, repr(f)) for f in filters]
        self.before, self.after = Census(), Census()
        self.kept_examples: list[dict[str, str]] = []

    def run(self, candidates: Iterable[Candidate], file: Path) -> int:
        """Write the remaining records to a Parquet file; returns their number."""
        with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
            stream: Iterable[Candidate] = self.before.counting(candidates)
            for number, (one, step) in enumerate(zip(self._filters, self.steps, strict=True)):
                if one.reads_twice:
                    spool = Spool(Path(temporary) / f"{number}.parquet")
                    spool.write(stream)
                    stream = spool
                stream = self._through(one, step, stream)
            written = Spool(file).write(self._kept(stream))
        for one, step in zip(self._filters, self.steps, strict=True):
            step.found = one.found()
        return written

    def _through(self, one: Selector, step: Step, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        for candidate, verdict in one.verdicts(candidates):
            if isinstance(verdict, Drop):
                step.dropped[verdict.why] += 1
                self._sample(step.examples, step.dropped.total(), candidate, f"{verdict.why} {verdict.detail}")
            else:
                step.records += 1
                step.tokens += verdict.n_tokens
                yield verdict

    def _kept(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        for number, candidate in enumerate(self.after.counting(candidates), 1):
            self._sample(self.kept_examples, number, candidate, "")
            yield candidate

    def _sample(self, examples: list[dict[str, str]], seen: int, candidate: Candidate, why: str) -> None:
        """Perhaps keep a candidate, the `seen`-th so far, as an example, so that the examples are a uniform sample
        (Vitter's algorithm R)."""
        place = len(examples) if len(examples) < self._n_examples else self._random.randrange(seen)
        if place >= self._n_examples:
            return
        value = candidate.perplexity
        example = {
            "id": candidate.record.source,
            "why": why.strip(),
            "perplexity": "" if value is None else f"{value:.1f}",
            "text": candidate.text[:_SHOWN],
        }
        examples[place : place + 1] = [example]
