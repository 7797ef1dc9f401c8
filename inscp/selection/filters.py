"""What a filter is, and the filters that need nothing but numbers: perplexity and length."""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inscp.errors import UserError
from inscp.records import Candidate


@dataclass(frozen=True, slots=True)
class Drop:
    """A candidate is left out.

    Attributes:
        why: the reason, by which drops are counted.
        detail: what differs from one to the next.
    """

    why: str
    detail: str = ""


class Filter(ABC):
    """Judges candidates one by one, in their order. A subclass is a dataclass whose fields are the keys of a config.

    Attributes:
        looks_at_all: whether `prepare` must have seen every candidate before the first is judged.
    """

    looks_at_all: bool = False

    def prepare(self, candidates: Iterable[Candidate]) -> None:  # noqa: B027  # most filters have nothing to prepare
        """See every candidate that will be judged, in the same order."""

    @abstractmethod
    def judge(self, candidate: Candidate) -> Candidate | Drop:
        """The candidate, perhaps changed, or why it is left out."""

    def found(self) -> dict[str, Any]:
        """What the filter saw, for the report."""
        return {}

    def contents(self) -> str:
        """A digest of the files that it judges by, beside its settings."""
        return ""


@dataclass
class Perplexity(Filter):
    """Keeps a band of perplexity under the scoring model.

    Args:
        minimum: the lowest perplexity that is kept.
        maximum: the highest. The paper's finding: data of at most 15 always worked.
        lower: the same as a quantile in [0, 1] of what reaches this filter, source by source.
        upper: of the highest.
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
    def looks_at_all(self) -> bool:  # type: ignore[override]
        return (self.lower, self.upper) != (0.0, 1.0)

    def prepare(self, candidates: Iterable[Candidate]) -> None:
        values: dict[str, array[float]] = {}
        for candidate in candidates:
            values.setdefault(candidate.path, array("d")).append(_perplexity(candidate))
        for path, of in values.items():
            low, high = np.quantile(of, [self.lower, self.upper])
            self._bounds[path] = float(low), float(high)

    def judge(self, candidate: Candidate) -> Candidate | Drop:
        value = _perplexity(candidate)
        low, high = self._bounds.get(candidate.path, (0.0, float("inf")))
        low = max(low, 0.0 if self.minimum is None else self.minimum)
        high = min(high, float("inf") if self.maximum is None else self.maximum)
        if value < low:
            return Drop("perplexity too low", f"{value:.1f}, less than {low:.1f}")
        return Drop("perplexity too high", f"{value:.1f}, more than {high:.1f}") if value > high else candidate

    def found(self) -> dict[str, Any]:
        absolute = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        return {"bounds": {path: [low, high] for path, (low, high) in self._bounds.items()}, "absolute": absolute}


def _perplexity(candidate: Candidate) -> float:
    value = candidate.perplexity
    if value is None:
        raise UserError("Perplexity", "the data has no scores", "Run score on it and give its folder as `scores`.")
    return value


@dataclass
class Length(Filter):
    """Keeps records of so many tokens.

    Args:
        minimum: the fewest tokens of all texts of a record, as counted by the scoring model.
        maximum: the most.
    """

    minimum: int = 1
    maximum: int | None = None

    def judge(self, candidate: Candidate) -> Candidate | Drop:
        if candidate.n_tokens < self.minimum:
            return Drop("too short", f"{candidate.n_tokens} tokens")
        if self.maximum is not None and candidate.n_tokens > self.maximum:
            return Drop("too long", f"{candidate.n_tokens:,} tokens")
        return candidate

    def found(self) -> dict[str, Any]:
        return {"absolute": [bound for bound in (self.minimum, self.maximum) if bound is not None]}
