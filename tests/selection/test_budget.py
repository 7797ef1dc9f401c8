"""A budget takes the best tokens there are, source by source where that is asked for."""

import numpy as np
import pytest

from inscp.errors import UserError
from inscp.records import Candidate, Record, Turn
from inscp.selection.budget import Budget, take
from inscp.selection.filters import Drop


def candidates(*rows: tuple[str, int, float, str]) -> list[Candidate]:
    return [
        Candidate(Record(f"{path}:{i}", (Turn("document", text),)), path, n_tokens, perplexity_log * n_tokens)
        for i, (path, n_tokens, perplexity_log, text) in enumerate(rows)
    ]


def kept(budget: Budget, given: list[Candidate]) -> list[int]:
    budget.prepare(given)
    return [i for i, candidate in enumerate(given) if not isinstance(budget.judge(candidate), Drop)]


ROWS = candidates(
    ("a", 10, 3.0, "x"), ("a", 10, 1.0, "x"), ("b", 10, 2.0, "x"), ("b", 10, 4.0, "x"), ("a", 10, 5.0, "x")
)


def test_the_lowest_perplexity_comes_first_and_the_order_of_the_records_stays() -> None:
    assert kept(Budget(30), ROWS) == [0, 1, 2]


def test_weights_give_each_source_its_share() -> None:
    assert kept(Budget(30, weights={"a": 2, "b": 1}), ROWS) == [0, 1, 2]
    assert kept(Budget(40, weights={"a": 1, "b": 1}), ROWS) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="both"):
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
    with pytest.raises(UserError, match="60 tokens are asked for and 50 are left"):
        kept(Budget(60), ROWS)
    assert kept(Budget(60, on_shortage="all"), ROWS) == [0, 1, 2, 3, 4]


def test_what_is_too_large_is_passed_over_for_what_fits() -> None:
    sizes = np.array([40, 70, 30, 1000, 25, 5])
    taken = take(sizes, 100)
    assert sizes[taken].sum() == 100
    assert not taken[[1, 3]].any()


@pytest.mark.parametrize(
    "options", [{"tokens": 0}, {"tokens": 9, "replay_share": 0.1}, {"tokens": 9, "weights": {"a": -1.0}}]
)
def test_a_budget_that_means_nothing_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="budget"):
        Budget(**options)  # type: ignore[arg-type]
