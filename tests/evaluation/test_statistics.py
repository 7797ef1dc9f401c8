"""Metrics, intervals and tests, on cases computed by hand or by theory."""

import math

import numpy as np
import pytest

from inscp.evaluation.results import Item
from inscp.evaluation.statistics import differences, mcnemar, means, over_groups
from inscp.evaluation.suite import told_apart


def test_bools_make_a_share_with_wilsons_interval_and_numbers_a_weighted_mean() -> None:
    items = [Item(str(i), {"share": i < 8, "mean": float(i)}, {"mean": float(i == 3) + 1}) for i in range(10)]
    found = means([*items, Item("more", {"share": True})])
    assert (found["share"].value, found["share"].n) == (9 / 11, 11)
    assert found["mean"].value == pytest.approx((sum(range(10)) + 3) / 11)
    assert found["mean"].n == 10
    assert found["mean"].interval[0] < found["mean"].value < found["mean"].interval[1]


def test_the_bootstrap_s_interval_is_that_of_theory_for_many_items() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 4000)
    low, high = means(Item(str(i), {"x": float(x)}) for i, x in enumerate(values))["x"].interval
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_one_item_has_no_interval() -> None:
    assert all(map(math.isnan, means([Item("a", {"x": 0.5})])["x"].interval))


def test_mcnemar_counts_only_the_items_that_differ() -> None:
    # 1 lost, 9 won: 2 * (C(10,0) + C(10,1)) / 2^10
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(0, 0) == 1.0
    before = [Item(str(i), {"ok": i == 0}) for i in range(30)]
    after = [Item(str(i), {"ok": 1 <= i <= 9}) for i in range(30)]
    found = differences(before, after)["ok"]
    assert (found.before, found.after, found.n) == (1 / 30, 9 / 30, 30)
    assert found.p == pytest.approx(22 / 1024)
    assert found.change.value == pytest.approx(8 / 30)


def test_the_same_items_are_compared_wherever_they_stand() -> None:
    noise = np.random.default_rng(0).normal(size=200)
    before = [Item(str(i), {"x": float(x)}) for i, x in enumerate(noise)]
    after = [Item(str(i), {"x": float(x) + 0.1 + 0.01 * (i % 3)}) for i, x in enumerate(noise)][50:]
    found = differences(before, reversed(after))["x"]
    # Unpaired, a change of 0.11 would drown in noise of 1.
    assert found.n == 150
    assert found.change.value == pytest.approx(0.11, abs=1e-3)
    assert found.change.interval[0] > 0.1
    assert found.p < 0.01
    assert differences(before, before)["x"].p == 1.0


def test_items_of_one_id_are_told_apart_before_they_are_compared() -> None:
    items = told_apart([Item("a", {"x": 1.0}), Item("b", {"x": 2.0}), Item("a", {"x": 3.0}), Item("a", {"x": 4.0})])
    assert [item.id for item in items] == ["a", "b", "a (2)", "a (3)"]
    found = differences(items, items)["x"]
    assert (found.before, found.after, found.change.interval) == (2.5, 2.5, (0.0, 0.0))


def test_a_small_group_counts_as_much_as_a_large_one_in_every_resample() -> None:
    found = over_groups(np.mean, [[1.0], [0.0] * 50, [0.5, 0.5]])
    assert (found.value, found.n) == (0.5, 53)
    assert found.interval == (0.5, 0.5)
    low, high = over_groups(np.std, [[0.0, 1.0] * 20, [2.0, 3.0] * 20]).interval
    assert low < 1.0 < high  # the groups' means are 0.5 and 2.5
