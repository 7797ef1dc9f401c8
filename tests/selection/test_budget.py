"""A budget takes the best tokens there are, source by source where that is asked for."""

import math

import numpy as np
import pytest

from inscp.errors import UserError
from inscp.records import Candidate, Record, Turn
from inscp.selection import budget
from inscp.selection.budget import Budget
from inscp.selection.filters import Drop


def candidates(*rows: tuple[str, int, float, str]) -> list[Candidate]:
    return [
        Candidate(Record(f"{source}:{i}", (Turn("document", text),)), source, n_tokens, math.exp(perplexity_log))
        for i, (source, n_tokens, perplexity_log, text) in enumerate(rows)
    ]


def kept(one: Budget, given: list[Candidate]) -> list[int]:
    return [i for i, (_, verdict) in enumerate(one.verdicts(given)) if not isinstance(verdict, Drop)]


ROWS = candidates(
    ("a", 10, 3.0, "x"), ("a", 10, 1.0, "x"), ("b", 10, 2.0, "x"), ("b", 10, 4.0, "x"), ("a", 10, 5.0, "x")
)


def test_the_lowest_perplexity_comes_first_and_the_order_of_the_records_stays() -> None:
    assert kept(Budget(30), ROWS) == [0, 1, 2]


def test_weights_give_each_source_its_share() -> None:
    assert kept(Budget(30, weights={"a": 2, "b": 1}), ROWS) == [0, 1, 2]
    assert kept(Budget(40, weights={"a": 1, "b": 1}), ROWS) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="no records left"):
        kept(Budget(10, weights={"a": 1}), ROWS)


def test_diversity_prefers_what_was_not_said_before() -> None:
    rows = candidates(*[("a", 10, 1.0, "the same old words again and again") for _ in range(3)],
                      ("a", 10, 1.0, "something entirely different happens here"))  # fmt: skip
    assert kept(Budget(20, "diversity"), rows) == [0, 3]
    assert kept(Budget(20, "mix"), rows) == [0, 3]


def test_a_random_choice_is_that_of_its_seed() -> None:
    rows = candidates(*[("a", 1, 1.0, "x")] * 50)
    first, again, other = (kept(Budget(10, "random", seed=seed), rows) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 10


def test_a_budget_beyond_the_data_is_an_error_or_all_of_it_as_the_config_says() -> None:
    with pytest.raises(UserError, match="60 tokens are requested, but only 50 are left"):
        kept(Budget(60), ROWS)
    assert kept(Budget(60, on_shortage="all"), ROWS) == [0, 1, 2, 3, 4]


def test_what_is_too_large_is_passed_over_for_what_fits() -> None:
    sizes = np.array([40, 70, 30, 1000, 25, 5])
    taken = budget._taken(sizes, 100)
    assert sizes[taken].sum() == 100
    assert not taken[[1, 3]].any()
    assert budget._taken(np.array([995, 5, 4]), 1000).tolist() == [True, True, False]
    assert budget._taken(np.array([995, 6, 4]), 1000).tolist() == [True, False, False], "a hundredth is no gap"


def test_of_equals_the_first_are_taken() -> None:
    rows = candidates(*[("a", 1, 1.0, "x"), ("a", 1, 2.0, "x")] * 50)
    assert kept(Budget(10), rows) == list(range(0, 20, 2))


def test_the_tokens_of_the_replay_are_part_of_the_budget() -> None:
    assert kept(Budget(50, replay="en.jsonl", replay_share=0.4), ROWS) == [0, 1, 2]


def test_what_a_text_says_twice_was_met_twice() -> None:
    counts = np.zeros(budget._BUCKETS, dtype=np.uint32)
    assert budget._novelty("a b a b", counts) == 1.0
    assert budget._novelty("a b", counts) == 1 / 3


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"tokens": 0}, "tokens"),
        ({"tokens": 9, "replay_share": 0.1}, "replay_share"),
        ({"tokens": 9, "replay": "en.jsonl", "replay_share": 0.05}, "replay_share"),  # none of nine tokens
        ({"tokens": 9, "replay": "en.jsonl", "replay_share": 0.95}, "replay_share"),  # all nine
        ({"tokens": 9, "weights": {"a": -1.0}}, "weights"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(options: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=rf"budget\.{key}: "):
        Budget(**options)  # type: ignore[arg-type]


def test_the_replay_is_chosen_by_the_seed_of_its_budget_and_by_nothing_else_of_it() -> None:
    rows = candidates(*[("en", 1 + i % 3, 1.0, "x") for i in range(50)])
    first, again, other = (
        kept(Budget(100, ranking, {"a": 1}, "en.jsonl", 0.2, seed=seed).replay_budget(), rows)
        for ranking, seed in (("perplexity", 1), ("mix", 1), ("mix", 2))
    )
    assert first == again != other
    assert sum(rows[i].n_tokens for i in first) == 20


def test_a_shortage_of_replay_is_an_error_that_names_its_key_or_all_of_it() -> None:
    short = Budget(100, replay="en.jsonl", replay_share=0.6)
    with pytest.raises(UserError, match=r"budget\.replay_share: 60 tokens are requested, but only 50 are left"):
        kept(short.replay_budget(), ROWS)
    short.on_shortage = "all"
    assert kept(short.replay_budget(), ROWS) == [0, 1, 2, 3, 4]


def test_a_ranking_by_perplexity_needs_scores() -> None:
    unscored = [Candidate(Record("a:1", (Turn("document", "x"),)), "a", 10)]
    with pytest.raises(UserError, match=r"budget\.ranking: the data has no scores"):
        kept(Budget(10), unscored)
    assert kept(Budget(10, "diversity"), unscored) == [0]
