"""The interfaces of selectors and filters, and the ones that need only numbers: perplexity and length."""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inscp.errors import UserError
from inscp.records import Candidate


@dataclass(frozen=True, slots=True)
class Drop:
    """A candidate is dropped.

    Attributes:
        why: the reason, by which drops are counted.
        detail: particulars of the candidate.
    """

    why: str
    detail: str = ""


Verdict = Candidate | Drop
"""The candidate if it is kept, perhaps changed, or why it is dropped."""


class Selector(ABC):
    """Keeps some of a stream of candidates. A subclass is a dataclass whose fields are configuration keys."""

    @abstractmethod
    def verdicts(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        """Every candidate, in order, with its verdict.

        Args:
            candidates: too many to be held in memory; they can be read twice if `reads_twice`, otherwise once.
        """

    @property
    def reads_twice(self) -> bool:
        """Whether `verdicts` reads the candidates twice, for which they must be on disk."""
        return False

    def found(self) -> dict[str, Any]:
        """Findings for the report."""
        return {}

    def contents(self) -> str:
        """A digest of the files that it uses, in addition to its settings."""
        return ""


class Filter(Selector):
    """A selector that judges each candidate by itself; a subclass needs only `judge`."""

    @abstractmethod
    def judge(self, candidate: Candidate) -> Verdict:
        """The verdict on one candidate, independent of the others."""

    def verdicts(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        for candidate in candidates:
            yield candidate, self.judge(candidate)


def required_perplexity(candidate: Candidate, where: str) -> float:
    """The candidate's perplexity.

    Args:
        candidate: from data that should have been scored.
        where: the filter or configuration key that requires it.

    Raises:
        UserError: the candidate has no score.
    """
    if candidate.perplexity is None:
        fix = "Run `score` on it and give its folder as `scores`, or remove the filter (budget.ranking: random)."
        raise UserError(where, "the data has no scores", fix)
    return candidate.perplexity


@dataclass
class Perplexity(Selector):
    """Keeps records in a band of perplexity under the scoring model.

    Args:
        minimum: lowest perplexity to keep.
        maximum: highest perplexity to keep. In the paper, data with a perplexity of at most 15 always worked.
        lower: quantile, from 0 to 1, at which the band begins. Quantiles are computed per source, over the records that
            reach this filter.
        upper: quantile at which the band ends.
    """

    minimum: float | None = None
    maximum: float | None = None
    lower: float = 0.0
    upper: float = 1.0
    _bounds: dict[str, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.lower < self.upper <= 1:
            raise UserError("Perplexity", f"quantiles {self.lower} to {self.upper}", "Give 0 <= lower < upper <= 1.")
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise UserError("Perplexity", f"a band from {self.minimum} to {self.maximum}", "Give minimum < maximum.")

    @property
    def reads_twice(self) -> bool:
        return (self.lower, self.upper) != (0.0, 1.0)

    def verdicts(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        if self.reads_twice:
            self._bounds = self._quantiles(candidates)
        for candidate in candidates:
            yield candidate, self._verdict(candidate, *self._bounds.get(candidate.source, (0.0, float("inf"))))

    def _quantiles(self, candidates: Iterable[Candidate]) -> dict[str, tuple[float, float]]:
        values: dict[str, array[float]] = {}
        for candidate in candidates:
            values.setdefault(candidate.source, array("d")).append(required_perplexity(candidate, "Perplexity"))
        bounds = {source: np.quantile(those, [self.lower, self.upper]) for source, those in values.items()}
        return {source: (float(low), float(high)) for source, (low, high) in bounds.items()}

    def _verdict(self, candidate: Candidate, low: float, high: float) -> Verdict:
        value = required_perplexity(candidate, "Perplexity")
        low = max(low, 0.0 if self.minimum is None else self.minimum)
        high = min(high, float("inf") if self.maximum is None else self.maximum)
        if value < low:
            return Drop("perplexity too low", f"{value:.1f}, less than {low:.1f}")
        return Drop("perplexity too high", f"{value:.1f}, more than {high:.1f}") if value > high else candidate

    def found(self) -> dict[str, Any]:
        absolute = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        return {"bounds": {source: list(bounds) for source, bounds in self._bounds.items()}, "absolute": absolute}


@dataclass
class Length(Filter):
    """Keeps records by their number of tokens.

    Args:
        minimum: minimum tokens of all texts of a record together, counted with the scoring model's tokenizer.
        maximum: maximum tokens.
    """

    minimum: int = 1
    maximum: int | None = None

    def judge(self, candidate: Candidate) -> Verdict:
        if candidate.n_tokens < self.minimum:
            return Drop("too short", f"{candidate.n_tokens} tokens")
        if self.maximum is not None and candidate.n_tokens > self.maximum:
            return Drop("too long", f"{candidate.n_tokens:,} tokens")
        return candidate

    def found(self) -> dict[str, Any]:
        return {"absolute": [bound for bound in (self.minimum, self.maximum) if bound is not None]}
