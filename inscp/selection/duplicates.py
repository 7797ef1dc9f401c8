"""Exact and near duplicates (MinHash and locality-sensitive hashing).

Signatures are computed by rensa; near duplicates are found band by band in files, by sorting (Broder 1997; Leskovec et
al., Mining of Massive Datasets, chapter 3): this takes a few dozen bytes of memory per record, and no index of all.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex

from inscp.data.batching import batches
from inscp.errors import UserError
from inscp.optional import library
from inscp.records import Candidate
from inscp.selection.filters import Drop, Selector, Verdict
from inscp.text.words import UNIT, words

_UNIT_OR_SIGN = regex.compile(rf"{UNIT.pattern}|[\p{{S}}#%*/&@]|-(?=\s?\d)")
_SIZE = 128
"""Hashes per signature: the estimate of a similarity of 0.8 then has a standard error of 0.035."""
_PAIRS = 4096
_NEWEST = 1 << 20


@dataclass
class ExactDuplicates(Selector):
    """Drops exact duplicates, ignoring case, spaces and punctuation (8 to 16 bytes of memory per record).

    Signs that carry meaning count: arithmetic, money, programming languages (`2 + 2`, `5 €`, `C#`).
    """

    def verdicts(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        seen = _Digests()
        for candidate in candidates:
            normal = " ".join(words(candidate.text, _UNIT_OR_SIGN)) or candidate.text
            digest = int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest(), "little")
            yield candidate, candidate if seen.add(digest) else Drop("exact duplicate")


class _Digests:
    """A set of 64-bit numbers: the newest million in a Python set, at 70 bytes each, all others in a sorted array."""

    def __init__(self) -> None:
        self._sorted, self._newest = np.empty(0, dtype=np.uint64), set[int]()

    def add(self, digest: int) -> bool:
        """Add a number; returns whether it is new."""
        place = np.searchsorted(self._sorted, np.uint64(digest))
        if digest in self._newest or (place < len(self._sorted) and self._sorted[place] == digest):
            return False
        self._newest.add(digest)
        if len(self._newest) == _NEWEST:
            self._sorted = np.append(self._sorted, np.sort(np.fromiter(self._newest, np.uint64)))
            self._sorted.sort(kind="stable")  # merges two sorted parts
            self._newest.clear()
        return True


@dataclass
class NearDuplicates(Selector):
    """Drops near duplicates: of texts that share most of their word n-grams, one is kept.

    That is the one with the lowest perplexity if there are scores, else the first.

    Args:
        similarity: minimum Jaccard similarity of the n-gram sets of near duplicates, estimated with a standard error of
            about 0.04.
        n: words per n-gram (characters in scripts without spaces, such as Chinese, Japanese, Thai and Khmer).
    """

    similarity: float = 0.8
    n: int = 5
    reads_twice = True

    def __post_init__(self) -> None:
        if not 0.3 <= self.similarity < 1:
            raise UserError("NearDuplicates.similarity", f"{self.similarity} is out of range", "Give 0.3 to below 1.")
        self._n_groups = 0

    def verdicts(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        twins = self._twins(candidates)
        self._n_groups = len(np.unique(twins[twins != np.arange(len(twins))]))
        for number, (candidate, twin) in enumerate(zip(candidates, twins, strict=True)):
            detail = f"of record {twin + 1} at this step"
            yield candidate, candidate if twin == number else Drop("near duplicate", detail)

    def _twins(self, candidates: Iterable[Candidate]) -> np.ndarray:
        """For each candidate, the index of the one of its group that is kept (perhaps itself): int64 [N]."""
        with tempfile.TemporaryDirectory(prefix="inscp-") as temporary:
            path, perplexities = Path(temporary) / "signatures", []
            with path.open("wb") as file:
                for batch in batches(candidates):
                    file.write(self._signatures(batch).tobytes())
                    perplexities.append(np.array([c.perplexity or 0.0 for c in batch], dtype=np.float32))
            ranks = np.concatenate(perplexities) if perplexities else np.empty(0, dtype=np.float32)
            return _kept_of_groups(path, ranks, self.similarity)

    def _signatures(self, batch: list[Candidate]) -> np.ndarray:
        """MinHash signatures: uint32 [N, _SIZE]."""
        runs = [self._runs(candidate.text) for candidate in batch]
        return np.array(
            library("rensa", "select").RMinHash.digest_matrix_from_token_sets(runs, _SIZE, 42).to_rows(),
            dtype=np.uint32,
        )

    def _runs(self, text: str) -> list[str]:
        units = words(text) or [text]
        return [" ".join(units[i : i + self.n]) for i in range(max(1, len(units) - self.n + 1))]

    def found(self) -> dict[str, Any]:
        return {"kept of groups": self._n_groups}


def _kept_of_groups(path: Path, ranks: np.ndarray, similarity: float) -> np.ndarray:
    """For each signature, the index of the one of its group that is kept.

    Args:
        path: the signatures, uint32 [N, _SIZE].
        ranks: float [N]; the lowest of a group is kept, the first among equals.
        similarity: minimum fraction of equal hashes of duplicates.

    Returns:
        int64 [N].
    """
    n = len(ranks)
    groups = np.arange(n)
    if n < 2:
        return groups
    sparse = library("scipy.sparse", "select")
    signatures = np.memmap(path, dtype=np.uint32, mode="r", shape=(n, _SIZE))
    width = _band_width(similarity)
    for begin in range(0, _SIZE, width):
        keys = np.concatenate([_mixed(part[:, begin : begin + width]) for part in _slices(signatures)])
        order = np.argsort(keys, kind="stable")
        is_first = np.r_[True, keys[order][1:] != keys[order][:-1]]
        firsts = order[np.maximum.accumulate(np.where(is_first, np.arange(n), 0))]
        others, firsts = order[~is_first], firsts[~is_first]
        is_apart = groups[others] != groups[firsts]
        firsts, others = firsts[is_apart], others[is_apart]
        alike = _are_alike(signatures, firsts, others, similarity)
        edges = groups[firsts[alike]], groups[others[alike]]
        graph = sparse.coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(n, n))
        groups = sparse.csgraph.connected_components(graph, directed=False)[1][groups]
    _, groups = np.unique(groups, return_inverse=True)
    best = np.lexsort((np.arange(n), ranks, groups))
    _, starts = np.unique(groups[best], return_index=True)
    return best[starts][groups]


def _band_width(similarity: float) -> int:
    """Hashes per band: the most with which two texts of this similarity share a band nine times out of ten."""
    chances = {width: 1 - (1 - similarity**width) ** (_SIZE // width) for width in (1, 2, 4, 8, 16)}
    return max(width for width, chance in chances.items() if chance >= 0.9 or width == 1)


def _slices(signatures: np.ndarray) -> Iterator[np.ndarray]:
    step = 1 << 18
    return (signatures[begin : begin + step] for begin in range(0, len(signatures), step))


def _mixed(columns: np.ndarray) -> np.ndarray:
    """One uint64 key per row (FNV-1a over its words)."""
    key = np.full(len(columns), 0xCBF29CE484222325, dtype=np.uint64)
    for column in columns.T:
        key = (key ^ column.astype(np.uint64)) * np.uint64(0x100000001B3)
    return key


def _are_alike(signatures: np.ndarray, firsts: np.ndarray, others: np.ndarray, similarity: float) -> np.ndarray:
    """Which of the pairs (firsts[i], others[i]) have signatures at least this similar: bool [N]."""
    alike = np.empty(len(firsts), dtype=bool)
    for begin in range(0, len(firsts), _PAIRS):
        some = slice(begin, begin + _PAIRS)
        alike[some] = (signatures[firsts[some]] == signatures[others[some]]).mean(axis=1) >= similarity
    return alike
