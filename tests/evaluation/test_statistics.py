"""Metrics, intervals and tests, on cases computed by hand or by theory."""

import math

import numpy as np
import pytest

from inscp.evaluation.items import Item
from inscp.evaluation.statistics import loss_of, mcnemar, means, sd_of_means, wilson
from inscp.evaluation.suite import with_unique_ids


def test_bools_make_a_share_with_wilsons_interval_and_numbers_a_weighted_mean() -> None:
    items = [Item(str(i), {"share": i < 8, "mean": float(i)}, {"mean": float(i == 3) + 1}) for i in range(10)]
    found = means([*items, Item("more", {"share": True})])
    assert (found["share"].value, found["share"].n) == (9 / 11, 11)
    assert found["mean"].value == pytest.approx((sum(range(10)) + 3) / 11)
    assert found["mean"].n == 10
    assert found["mean"].interval[0] < found["mean"].value < found["mean"].interval[1]


def test_a_share_of_items_of_other_weights_is_less_sure() -> None:
    values = [Item(str(i), {"share": i < 5}) for i in range(10)]
    alike, other = ([Item(item.id, item.values, {"share": 2.0 + many * (i < 5)}) for i, item in enumerate(values)]
                    for many in (0.0, 4.0))  # fmt: skip
    assert means(alike) == means(values)
    assert means(other)["share"].value == pytest.approx(30 / 40)
    assert means(other)["share"].interval == pytest.approx(wilson(0.75, 40**2 / 200))
    assert means(other)["share"].n == 10


def test_the_interval_of_a_mean_is_that_of_students_t() -> None:
    # Of 1, 2, 3 and 6 the variance is 14 / 3, and 97.5 % of t with 3 degrees of freedom lie below 3.1824.
    found = means(Item(str(i), {"x": x}, {"x": 2.0}) for i, x in enumerate((-1.0, 0.0, 1.0, 4.0)))["x"]
    half = 3.1824 * math.sqrt(14 / 3 / 4)
    assert found.interval == pytest.approx((1 - half, 1 + half), abs=1e-4)


def test_the_error_of_a_weighted_mean_is_that_of_its_items_drawn_again() -> None:
    rng, n = np.random.default_rng(1), 200
    values, weights = rng.normal(5.0, 2.0, n), rng.choice([1.0, 10.0], n)
    low, high = means(Item(str(i), {"x": values[i]}, {"x": weights[i]}) for i in range(n))["x"].interval
    draws = rng.integers(0, n, (4000, n))
    error = np.std((values * weights)[draws].sum(1) / weights[draws].sum(1))
    assert high - low == pytest.approx(2 * 1.972 * error, rel=0.05)


def test_a_perplexity_is_that_of_a_held_out_loss_whatever_its_set_is_called() -> None:
    names = [f"held_out/{name}/loss" for name in ("en", "lossless", "a/loss/b", "perplexity_band")]
    found = means([Item("a", dict.fromkeys([*names, "pairwise/loss"], 1.0)), Item("b", dict.fromkeys(names, 2.0))])
    perplexities = [name.removesuffix("loss") + "perplexity" for name in names]
    assert list(found) == [*names, "pairwise/loss", *perplexities]
    assert [loss_of(name) for name in found] == [None] * 5 + names
    of_loss, found_perplexity = found[names[0]], found[perplexities[0]]
    assert found_perplexity.value == pytest.approx(math.exp(1.5))
    assert found_perplexity.interval == pytest.approx(tuple(map(math.exp, of_loss.interval)))


def test_one_item_has_no_interval() -> None:
    assert all(map(math.isnan, means([Item("a", {"x": 0.5})])["x"].interval))


def test_mcnemar_counts_only_the_items_that_differ() -> None:
    # 1 lost, 9 won: 2 * (C(10,0) + C(10,1)) / 2^10
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(0, 0) == 1.0


def test_items_of_one_id_are_distinguished() -> None:
    items = with_unique_ids(
        [Item("a", {"x": 1.0}), Item("b", {"x": 2.0}), Item("a", {"x": 3.0}), Item("a", {"x": 4.0})]
    )
    assert [item.id for item in items] == ["a", "b", "a (2)", "a (3)"]


@pytest.mark.parametrize("n_groups", [4, 43])
@pytest.mark.parametrize("size", [2, 5, 40])
@pytest.mark.parametrize("sd", [0.05, 0.5])
def test_the_interval_of_the_sd_of_means_holds_the_truth_about_as_often_as_it_says(
    n_groups: int, size: int, sd: float
) -> None:
    rng, held, times = np.random.default_rng(0), 0, 200
    true = rng.normal(0, 1, n_groups)
    true *= sd / true.std()
    for _ in range(times):
        found = sd_of_means([*true[:, None] + rng.normal(0, 0.4, (n_groups, size))])
        held += found.interval[0] <= sd <= found.interval[1]
        assert found.interval[0] <= found.value <= found.interval[1]
    assert held / times >= 0.94 - 0.03


def test_the_sd_of_means_is_that_of_groups_of_the_same_weight() -> None:
    found = sd_of_means([[0.0, 1.0] * 20, [2.0, 3.0] * 2])
    assert (found.value, found.n) == (1.0, 44)  # the groups' means are 0.5 and 2.5
    # Their variances are 0.25 x 40/39 / 40 and 0.25 x 4/3 / 4, and 97.5 % of t with 42 freedoms lie below 2.0181.
    half = 2.0181 * math.sqrt(1 / 156 + 1 / 12)
    by_chance = (1 / 156 + 1 / 12) / 4
    assert found.interval == pytest.approx((math.sqrt(1 - half - by_chance), math.sqrt(1 + half)), abs=1e-4)


@pytest.mark.parametrize("groups", [[[0.0, 1.0], [2.0]], [[0.0, 1.0]]])
def test_the_sd_of_means_has_no_interval_where_how_they_vary_is_not_known(groups: list[list[float]]) -> None:
    assert all(map(math.isnan, sd_of_means(groups).interval))


def test_wilsons_interval_equals_a_hand_computed_case() -> None:
    # 8 of 10: centre (0.8 + 3.8415/20) / (1 + 3.8415/10) = 0.7168, half width 0.2265
    low, high = wilson(0.8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0.0, 5)[0] == 0.0
    assert wilson(1.0, 5)[1] == 1.0
