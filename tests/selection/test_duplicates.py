"""Duplicates are found as a comparison of all pairs finds them, and the best of each group stays."""

import random
from itertools import combinations

import numpy as np
import pytest

from inscp.errors import UserError
from inscp.records import Candidate, Record, Turn
from inscp.selection import duplicates
from inscp.selection.duplicates import ExactDuplicates, NearDuplicates
from inscp.selection.filters import Drop

WORDS = [f"sana{i}" for i in range(2000)]


def candidates(texts: list[str], nlls: list[float] | None = None) -> list[Candidate]:
    values = nlls or [None] * len(texts)  # type: ignore[list-item]
    return [
        Candidate(Record(f"a:{i}", (Turn("document", text),)), "a", 10, nll)
        for i, (text, nll) in enumerate(zip(texts, values, strict=True))
    ]


def kept(one: ExactDuplicates | NearDuplicates, given: list[Candidate]) -> list[int]:
    return [i for i, (_, verdict) in enumerate(one.verdicts(given)) if not isinstance(verdict, Drop)]


def test_the_same_text_is_the_same_whatever_its_case_spaces_and_punctuation() -> None:
    texts = ["Hello, world!", "hello   WORLD", "Hello worlds", "😀", "😀", "你好。", "你好"]
    one = ExactDuplicates()
    assert kept(one, candidates(texts)) == [0, 2, 3, 5]
    assert kept(one, candidates(texts)) == [0, 2, 3, 5]  # of other data, which it has not seen yet


def edited(rng: random.Random, words: list[str], n: int) -> list[str]:
    words = list(words)
    for _ in range(n):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return words


def test_signs_that_mean_something_are_no_punctuation() -> None:
    texts = ["1 + 2 = ?", "1 - 2 = ?", "1 / 2 = ?", "x > 5", "x < 5", "C++", "C#", "C", "5 %", "5 €", "-5"]
    assert len(kept(ExactDuplicates(), candidates(texts))) == len(texts)


def test_digests_are_a_set_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_NEWEST", 7)
    rng, seen = random.Random(0), duplicates._Digests()
    numbers = [0, 2**64 - 1, *(rng.randrange(40) << 58 for _ in range(300))]
    assert len(set(numbers)) > 5 * 7
    assert [number for number in numbers if seen.add(number)] == list(dict.fromkeys(numbers))


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs() -> None:
    rng = random.Random(0)
    texts: list[list[str]] = []
    for _ in range(60):
        original = rng.choices(WORDS, k=rng.randint(60, 120))
        texts += [original, edited(rng, original, rng.choice((0, 1, 12)))]
    runs = [{tuple(t[i : i + 5]) for i in range(len(t) - 4)} for t in texts]
    similar = {(a, b): len(runs[a] & runs[b]) / len(runs[a] | runs[b]) for a, b in combinations(range(len(texts)), 2)}
    surely = {pair for pair, value in similar.items() if value > 0.9}
    never = {b for a, b in similar} - {b for (a, b), value in similar.items() if value > 0.7}
    left = set(kept(NearDuplicates(0.8), candidates([" ".join(t) for t in texts])))
    assert len(surely) >= 20
    assert not [pair for pair in surely if set(pair) <= left]
    assert never <= left


def test_a_band_is_as_wide_as_finds_nine_of_ten() -> None:
    chances = {(0.5, 2): 1 - (1 - 0.5**2) ** 64, (0.5, 4): 1 - (1 - 0.5**4) ** 32,
               (0.8, 8): 1 - (1 - 0.8**8) ** 16, (0.8, 16): 1 - (1 - 0.8**16) ** 8}  # fmt: skip
    assert {pair: chance > 0.9 for pair, chance in chances.items()} == {
        (similarity, width): width <= duplicates._band_width(similarity) for similarity, width in chances
    }


def test_all_pairs_are_compared_also_where_they_are_more_than_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 128 hashes, 96 are just enough for 0.75, and 95 are not."""
    monkeypatch.setattr(duplicates, "_PAIRS", 7)
    signatures = np.zeros((41, 128), dtype=np.uint32)
    signatures[1::2, :32] = signatures[2::2, :33] = 1
    pairs = np.zeros(40, dtype=np.int64), np.arange(1, 41)
    assert duplicates._are_alike(signatures, *pairs, 0.75).tolist() == [True, False] * 20


def test_two_texts_are_enough_for_a_group() -> None:
    base = " ".join(WORDS[:100])
    assert kept(NearDuplicates(), candidates([base, f"{base} loppu"])) == [0]


def test_of_a_group_the_least_surprising_stays_and_without_scores_the_first() -> None:
    base = " ".join(WORDS[:100])
    texts = [base, f"{base} loppu", " ".join(WORDS[200:300]), f"alku {base}"]
    one = NearDuplicates()
    verdicts = [verdict for _, verdict in one.verdicts(candidates(texts))]
    assert [isinstance(verdict, Drop) for verdict in verdicts] == [False, True, False, True]
    assert {verdict.detail for verdict in verdicts if isinstance(verdict, Drop)} == {"of record 1 at this step"}
    assert one.found() == {"kept of groups": 1}
    assert kept(NearDuplicates(), candidates(texts, [30.0, 10.0, 50.0, 20.0])) == [1, 2]


@pytest.mark.parametrize("texts", [[], ["one text"], ["", "x"]])
def test_few_and_empty_texts_are_no_trouble(texts: list[str]) -> None:
    assert kept(NearDuplicates(), candidates(texts)) == list(range(len(texts)))


def test_a_similarity_that_finds_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="similarity"):
        NearDuplicates(1.0)
