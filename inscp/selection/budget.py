"""The choice of the remaining candidates that make up the token budget."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal
from zlib import crc32

import numpy as np

from inscp.data.sources import Source
from inscp.errors import UserError, require_some
from inscp.records import Candidate
from inscp.selection.filters import Drop, Selector, Verdict, required_perplexity
from inscp.text.words import words

Ranking = Literal["perplexity", "diversity", "mix", "random"]
_BUCKETS = 1 << 22


@dataclass
class Budget(Selector):
    """Keeps the best candidates, up to a number of tokens.

    Args:
        tokens: number of tokens to keep, replay included.
        ranking: ranking of the candidates: lowest `perplexity` first; `diversity`, texts whose words occur least in the
            texts before them; `mix`, the mean of both ranks; or `random` order.
        weights: mapping from a source's name, as in the report, to its weight; the tokens are divided in proportion. By
            default all sources are ranked together.
        replay: source of English (or any other) text that is mixed in without filtering.
        replay_share: fraction of the tokens, between 0 and 1, taken at random from `replay`.
        on_shortage: if there are too few tokens: stop with an `error`, or take `all` there are.
        seed: random seed of the random ranking and of the choice of the replay.
    """

    tokens: int
    ranking: Ranking = "perplexity"
    weights: dict[str, float] | None = None
    replay: str | Source | None = None
    replay_share: float = 0.0
    on_shortage: Literal["error", "all"] = "error"
    seed: int = 0
    reads_twice = True
    _key: str = field(default="budget.tokens", init=False, repr=False)
    """The configuration key of the number of tokens."""

    def __post_init__(self) -> None:
        require_some(self.tokens, "budget.tokens", "tokens")
        if not 0 <= self.replay_share < 1 or (self.replay_share > 0) != (self.replay is not None):
            what = f"a share of {self.replay_share} {'without' if self.replay is None else 'of'} replay"
            raise UserError("budget.replay_share", what, "Give `replay` and a share in (0, 1), or neither.")
        if self.replay is not None and not 0 < self.replay_tokens < self.tokens:
            what = f"{self.replay_share} of {self.tokens:,} tokens is {self.replay_tokens:,}"
            raise UserError("budget.replay_share", what, "Give a share that leaves tokens to both, or no `replay`.")
        if self.weights is not None and (not self.weights or min(self.weights.values()) <= 0):
            raise UserError("budget.weights", f"{self.weights}", "Give every source a positive weight.")

    @property
    def replay_tokens(self) -> int:
        return round(self.tokens * self.replay_share)

    def replay_budget(self) -> "Budget":
        """The budget for choosing the replay, at random."""
        budget = Budget(self.replay_tokens, "random", on_shortage=self.on_shortage, seed=self.seed)
        budget._key = "budget.replay_share"
        return budget

    def verdicts(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        for candidate, keeps in zip(candidates, self._kept(candidates), strict=True):
            yield candidate, candidate if keeps else Drop("beyond the budget", f"{candidate.n_tokens} tokens")

    def _kept(self, candidates: Iterable[Candidate]) -> np.ndarray:
        """Which of the candidates the budget keeps: bool [N]."""
        numbers: dict[str, int] = {}  # name of a source -> its number, in the order of appearance
        sizes, sources, surprises, novelties = array("q"), array("q"), array("d"), array("d")
        counts = np.zeros(_BUCKETS, dtype=np.uint32)
        for candidate in candidates:
            sources.append(numbers.setdefault(candidate.source, len(numbers)))
            sizes.append(candidate.n_tokens)
            if self.ranking in ("perplexity", "mix"):
                surprises.append(required_perplexity(candidate, "budget.ranking"))
            if self.ranking in ("diversity", "mix"):
                novelties.append(_novelty(candidate.text, counts))
        order = self._order(len(sizes), np.asarray(surprises), np.asarray(novelties))
        keeps = np.zeros(len(sizes), dtype=bool)
        tokens = np.asarray(sizes, dtype=np.int64)
        for members, wanted in self._shares(list(numbers), np.asarray(sources, dtype=np.int64), order):
            there = int(tokens[members].sum())
            if there < wanted and self.on_shortage == "error":
                what = f"{wanted:,} tokens are requested, but only {there:,} are left"
                fix = "Request fewer, give more text or looser filters, or set budget.on_shortage to all."
                raise UserError(self._key, what, fix)
            keeps[members[_taken(tokens[members], wanted)]] = True
        return keeps

    def _order(self, n: int, surprises: np.ndarray, novelties: np.ndarray) -> np.ndarray:
        """The indices of the n candidates, best first: int64 [N]. Only the measures that the ranking uses are given."""
        if self.ranking == "random":
            return np.random.default_rng(self.seed).permutation(n)
        measures = {"perplexity": [surprises], "diversity": [-novelties], "mix": [surprises, -novelties]}[self.ranking]
        ranks = sum(np.searchsorted(np.sort(values), values) for values in measures)
        return np.argsort(ranks, kind="stable")

    def _shares(self, names: list[str], sources: np.ndarray, order: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Groups of candidates, best first, each with its number of tokens.

        Args:
            names: names of the sources.
            sources: index in `names` of each candidate's source: int64 [N].
            order: indices of the candidates, best first: int64 [N].
        """
        wanted = self.tokens - self.replay_tokens
        if self.weights is None:
            return [(order, wanted)]
        unknown = set(self.weights) ^ set(names)
        if unknown:
            what = f"{sorted(unknown)[0]} has a weight but no records left, or records but no weight"
            raise UserError("budget.weights", what, f"Give a weight to each of: {', '.join(names) or 'no source'}.")
        whole = sum(self.weights.values())
        return [
            (order[sources[order] == number], round(wanted * self.weights[name] / whole))
            for number, name in enumerate(names)
        ]

    def found(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "ranking": self.ranking, "replay tokens": self.replay_tokens}


def _taken(sizes: np.ndarray, wanted: int) -> np.ndarray:
    """Which of the sizes, in order, to take for a sum of at most `wanted`: bool [N]. A size that is too large is passed
    over for the next that fits, while at least a hundredth of `wanted` is free."""
    taken = np.cumsum(sizes) <= wanted
    room = wanted - int(sizes[taken].sum())
    for place in np.flatnonzero(~taken):
        if room < wanted / 100:
            break
        if sizes[place] <= room:
            taken[place] = True
            room -= int(sizes[place])
    return taken


def _novelty(text: str, counts: np.ndarray) -> float:
    """Mean of 1 / (1 + earlier occurrences) over the text's pairs of adjacent words, which are then counted too."""
    units = words(text)
    pairs = list(pairwise(units)) or [(unit, "") for unit in units] or [(text, "")]
    places = np.fromiter((crc32(" ".join(pair).encode()) % _BUCKETS for pair in pairs), dtype=np.int64)
    value = float((1.0 / (1.0 + counts[places])).mean())
    np.add.at(counts, places, 1)
    return value
