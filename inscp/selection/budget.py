"""Which of the candidates that are left make up the token budget."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal
from zlib import crc32

import numpy as np

from inscp.data.sources import Source
from inscp.errors import UserError
from inscp.evaluation.language import words
from inscp.records import Candidate
from inscp.selection.filters import Drop, Filter

Ranking = Literal["perplexity", "diversity", "mix", "random"]
_BUCKETS = 1 << 22


@dataclass
class Budget(Filter):
    """Keeps the best tokens.

    Args:
        tokens: so many, the replay's included.
        ranking: what is best: the lowest `perplexity` (what the model is least surprised by); `diversity`, the texts
            whose words the ones before them had least; the `mix` of both ranks; or `random`.
        weights: path of a source -> its share of the tokens; by default sources are ranked together.
        replay: a source of English (or any other) text that is not filtered but mixed in.
        replay_share: of the tokens, taken at random from `replay`.
        on_shortage: where there are fewer tokens than asked for: stop with an `error`, or take `all` there are.
        seed: of what is random.
    """

    tokens: int
    ranking: Ranking = "perplexity"
    weights: dict[str, float] | None = None
    replay: str | Source | None = None
    replay_share: float = 0.0
    on_shortage: Literal["error", "all"] = "error"
    seed: int = 0
    looks_at_all = True
    _next: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError("budget.tokens", f"{self.tokens}", "Give a number from 1.")
        if not 0 <= self.replay_share < 1 or (self.replay_share > 0) != (self.replay is not None):
            what = f"a share of {self.replay_share} {'without' if self.replay is None else 'of'} replay"
            raise UserError("budget.replay_share", what, "Give `replay` and a share in (0, 1), or neither.")
        if self.weights is not None and (not self.weights or min(self.weights.values()) <= 0):
            raise UserError("budget.weights", f"{self.weights}", "Give every source a positive weight.")
        self._keeps = np.empty(0, dtype=bool)

    @property
    def replay_tokens(self) -> int:
        return round(self.tokens * self.replay_share)

    def prepare(self, candidates: Iterable[Candidate]) -> None:
        paths: list[str] = []
        sizes, sources, surprises, novelties = array("q"), array("q"), array("d"), array("d")
        counts = np.zeros(_BUCKETS, dtype=np.uint32)
        for candidate in candidates:
            if candidate.path not in paths:
                paths.append(candidate.path)
            sources.append(paths.index(candidate.path))
            sizes.append(candidate.n_tokens)
            surprises.append(self._perplexity(candidate) if self.ranking in ("perplexity", "mix") else 0.0)
            novelties.append(_novelty(candidate.text, counts) if self.ranking in ("diversity", "mix") else 0.0)
        places = {"perplexity": np.asarray(surprises), "diversity": -np.asarray(novelties)}
        if self.ranking == "random":
            order = np.random.default_rng(self.seed).permutation(len(sizes))
        elif self.ranking == "mix":
            ranks = sum(np.searchsorted(np.sort(values), values) for values in places.values())
            order = np.argsort(ranks, kind="stable")
        else:
            order = np.argsort(places[self.ranking], kind="stable")
        self._keeps = np.zeros(len(sizes), dtype=bool)
        tokens, source = np.asarray(sizes, dtype=np.int64), np.asarray(sources, dtype=np.int64)
        for members, wanted in self._shares(paths, source, order):
            chosen = take(tokens[members], wanted)
            if tokens[members].sum() < wanted and self.on_shortage == "error":
                what = f"{wanted:,} tokens are asked for and {int(tokens[members].sum()):,} are left"
                raise UserError("budget.tokens", what, "Ask for fewer, loosen a filter, or set budget.on_shortage all.")
            self._keeps[members[chosen]] = True

    def _shares(self, paths: list[str], source: np.ndarray, order: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Which candidates, best first, share how many tokens."""
        wanted = self.tokens - self.replay_tokens
        if self.weights is None:
            return [(order, wanted)]
        unknown = set(self.weights) ^ set(paths)
        if unknown:
            what = f"{sorted(unknown)[0]} has a weight or is left by the filters, and not both"
            raise UserError("budget.weights", what, f"Give one to each of {', '.join(paths) or 'no source'}.")
        whole = sum(self.weights.values())
        return [
            (order[source[order] == number], round(wanted * self.weights[path] / whole))
            for number, path in enumerate(paths)
        ]

    def _perplexity(self, candidate: Candidate) -> float:
        if candidate.perplexity is None:
            raise UserError("budget.ranking", "the data has no scores", "Run score on it, or rank by diversity.")
        return candidate.perplexity

    def judge(self, candidate: Candidate) -> Candidate | Drop:
        place, self._next = self._next, self._next + 1
        return candidate if self._keeps[place] else Drop("beyond the budget", f"{candidate.n_tokens} tokens")

    def found(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "ranking": self.ranking, "replay tokens": self.replay_tokens}


def take(sizes: np.ndarray, wanted: int) -> np.ndarray:
    """Which of the sizes, in their order, to take for a sum of at most `wanted`: bool [N]. What is too large is
    passed over for the next that fits, while there is room for a hundredth of what is wanted."""
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
    """Mean of 1 / (1 + how often it was met) over the text's pairs of words, which count as met from now on."""
    units = words(text)
    pairs = list(pairwise(units)) or [(unit, "") for unit in units] or [(text, "")]
    places = np.fromiter((crc32(" ".join(pair).encode()) % _BUCKETS for pair in pairs), dtype=np.int64)
    value = float((1.0 / (1.0 + counts[places])).mean())
    np.add.at(counts, places, 1)
    return value
