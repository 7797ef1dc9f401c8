"""Means over seeds and items, and paired differences: what they are and how sure they are."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from inscp.evaluation.items import Item
from inscp.evaluation.statistics import means, wilson, zero_share_upper_bound
from inscp.experiment.estimates import Sample, difference, differences, mean, samples


def items(values: list[float | bool | None], weights: list[float] | None = None) -> list[Item]:
    found = []
    for number, value in enumerate(values):
        has = {} if value is None else {"m": value}
        found.append(Item(str(number), has, {"m": weights[number]} if weights else {}))
    return found


def noisy(seed: int, shift: float, n: int = 200) -> list[Item]:
    """Items of very different values, which all arms share, and a little noise of the seed's own."""
    own = random.Random(seed)
    shared = random.Random(99)
    return items([shared.gauss(0, 5) + shift + own.gauss(0, 0.1) for _ in range(n)])


def test_one_seed_is_the_mean_of_its_items() -> None:
    weighed = items([1.0, 2.0, 4.0], [1.0, 1.0, 2.0])
    [sample] = samples([[weighed]], "m")
    assert mean(sample).value == means(weighed)["m"].value == pytest.approx(11 / 4)


def test_seeds_weigh_the_same_and_a_share_is_known() -> None:
    [sample] = samples([[items([True, True, False, None]), items([False, False, False, False])]], "m")
    assert sample.is_share
    assert mean(sample).value == pytest.approx((2 / 3 + 0) / 2)
    assert mean(sample).n == 4


def test_seeds_that_disagree_widen_the_interval() -> None:
    def width(*shifts: float) -> float:
        [sample] = samples([[noisy(seed, shift) for seed, shift in enumerate(shifts)]], "m")
        low, high = mean(sample).interval
        return high - low

    assert width(0.0, 4.0) > 1.5 * width(2.0, 2.0)
    [share] = samples([[items([True] * 40), items([False] * 40)]], "m")
    low, high = mean(share).interval
    assert low < wilson(0.5, 40)[0] < wilson(0.5, 40)[1] < high


def test_a_difference_of_shares_is_never_certain_and_never_above_all() -> None:
    same = difference(*samples([[items([True] * 40)], [items([True] * 40)]], "m"), same_seeds=True)
    assert same.change.interval == pytest.approx((-0.088, 0.088), abs=0.001)  # Clopper and Pearson's for 0 of 40
    few = difference(*samples([[items([True, False])], [items([False, True])]], "m"), same_seeds=True)
    assert few.change.interval == (-1.0, 1.0)


def test_what_is_a_share_in_one_arm_alone_may_change_by_more_than_all() -> None:
    found = differences(items([True, False, True, False]), items([3.0, 5.0, 4.0, 4.0]))["m"]
    assert 1 < found.change.value == 3.5 < found.change.interval[1]


def test_where_all_items_agree_those_that_weigh_much_are_as_few_as_they_are() -> None:
    weighed = items([True] * 40, [10.0] * 2 + [1.0] * 38)
    one, other = samples([[weighed], [weighed]], "m")
    assert mean(one) == means(weighed)["m"]
    same = difference(one, other, same_seeds=True)
    assert same.change.interval[1] == pytest.approx(zero_share_upper_bound(58**2 / 238))


def test_where_all_items_agree_the_arm_with_fewer_says_how_little() -> None:
    many, few = items([True] * 40), items([True] * 4 + [None] * 36)
    for arms in ([[many], [few]], [[few], [many]]):
        found = difference(*samples(arms, "m"), same_seeds=True)
        assert (found.n, found.change.interval[1]) == (4, pytest.approx(zero_share_upper_bound(4)))


def test_an_item_says_as_much_however_many_seeds_have_it() -> None:
    [sample] = samples([[items([True] * 8), items([True] * 4 + [None] * 4)]], "m")
    assert mean(sample).interval == wilson(1.0, 8)


def test_a_difference_is_paired_by_item() -> None:
    arms = [[noisy(0, 0.0), noisy(1, 0.0)], [noisy(2, 0.3), noisy(3, 0.3)]]
    found = difference(*samples(arms, "m"), same_seeds=True)
    low, high = found.change.interval
    assert found.change.value == pytest.approx(0.3, abs=0.05)
    assert 0 < low < 0.3 < high < 0.6  # of unpaired items, whose spread is 5, it would be wider than 1
    assert found.p < 0.05
    assert found.n == 200


def test_arms_without_and_with_seeds_are_compared_and_the_same_arm_does_not_differ() -> None:
    alone, several = [noisy(0, 0.0)], [noisy(1, 1.0), noisy(2, 1.2)]
    found = difference(*samples([alone, several], "m"), same_seeds=False)
    assert (found.change.value, found.seeds) == (pytest.approx(1.1, abs=0.05), 2)
    same = difference(*samples([several, several], "m"), same_seeds=True)
    assert same.change.interval == (0.0, 0.0)
    assert same.p == 1.0


def test_only_items_that_all_were_asked_count() -> None:
    found = difference(*samples([[items([1.0, 2.0, 9.0])], [items([2.0, 3.0])]], "m"), same_seeds=True)
    assert (found.before, found.after, found.n) == (1.5, 2.5, 2)


def test_the_p_of_shares_is_mcnemars() -> None:
    before = [Item(str(i), {"ok": i == 0}) for i in range(30)]
    after = [Item(str(i), {"ok": 1 <= i <= 9}) for i in range(30)]
    found = differences(before, after)["ok"]
    assert (found.before, found.after, found.n) == (1 / 30, 9 / 30, 30)
    assert found.p == pytest.approx(22 / 1024)
    others = [Item(f"en {i}", {"en/ok": True}) for i in range(40)]  # of the same task, in another language
    assert differences(before + others, after + others)["ok"].p == found.p
    assert found.change.value == pytest.approx(8 / 30)


def test_shares_whose_items_weigh_more_or_less_have_a_p_of_the_weighted_change() -> None:
    """By numbers alone 4 items are lost and 4 won, but those that are won weigh ten times as much."""
    before, after = [i < 4 for i in range(40)], [4 <= i < 8 for i in range(40)]
    weights = [10.0 if 4 <= i < 8 else 1.0 for i in range(40)]
    found = difference(*samples([[items(before, weights)], [items(after, weights)]], "m"), same_seeds=True)
    assert found.change.value == pytest.approx(36 / 76)
    assert found.p < 0.5 < differences(items(before), items(after))["m"].p == 1.0


def test_the_same_items_are_compared_wherever_they_stand() -> None:
    noise = np.random.default_rng(0).normal(size=200)
    before = [Item(str(i), {"x": float(x)}) for i, x in enumerate(noise)]
    after = [Item(str(i), {"x": float(x) + 0.1 + 0.01 * (i % 3)}) for i, x in enumerate(noise)][50:]
    found = differences(before, after[::-1])["x"]
    # Unpaired, a change of 0.11 would drown in noise of 1.
    assert found.n == 150
    assert found.change.value == pytest.approx(0.11, abs=1e-3)
    assert found.change.interval[0] > 0.1
    assert found.p < 0.01
    assert differences(before, before)["x"].p == 1.0


def test_what_only_some_answers_have_is_each_arms_own_share() -> None:
    before, after = items([True, False, None, None]), items([None, True, True, True])
    found = differences(before, after)["m"]
    assert (found.before, found.after, found.n) == (0.5, 1.0, 2)
    assert found.change.value == 0.5


def test_one_item_has_no_interval() -> None:
    [sample] = samples([[items([1.0])]], "m")
    assert math.isnan(mean(sample).interval[0])


def test_seeds_that_all_say_none_are_not_certain() -> None:
    [sample] = samples([[items([False] * 12), items([False] * 12)]], "m")
    assert mean(sample).interval == pytest.approx((0.0, 0.242), abs=1e-3)


@pytest.mark.parametrize("ratio", [0, 1, 4, 10])
@pytest.mark.parametrize(("n_seeds", "least"), [(2, 0.87), (3, 0.91), (5, 0.94)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says_however_few_seeds(
    n_seeds: int, least: float, ratio: float
) -> None:
    """Whatever the ratio of what the seeds and what the items add to the error of a change."""
    rng, held, times, n = np.random.default_rng(0), 0, 200, 40
    of_a_seed = ratio * 0.5 * math.sqrt(n_seeds / 2 / n)
    for _ in range(times):
        of_items, of_seeds = rng.normal(0, 1, n), rng.normal(0, of_a_seed, (2, n_seeds))
        changes, noise = (0, rng.normal(0, 0.5, n)), rng.normal(0, 0.3, (2, n_seeds, n))
        arms = [of_items + changes[arm] + of_seeds[arm][:, None] + noise[arm] for arm in (0, 1)]
        found = difference(*(Sample(of, np.ones((n_seeds, n)), False) for of in arms), same_seeds=True)
        low, high = found.change.interval
        held += low <= 0 <= high
    assert least - 0.03 <= held / times <= 1.0


def test_a_seed_without_a_value_leaves_the_mean_to_the_others() -> None:
    [sample] = samples([[items([True, True, False]), items([None, None, None])]], "m")
    assert mean(sample).value == pytest.approx(2 / 3)
    assert sample.is_share


def test_items_that_a_seed_lacks_do_not_move_its_mean() -> None:
    [sample] = samples([[items([-1.0, 0.0, 2.0, 7.0]), items([-1.0, 0.0, None, None])]], "m")
    # Each item moves the mean by the mean over both seeds of (value - mean of the seed) / items of the seed, or by 0.
    moved = [(-3 / 4 - 0.5 / 2) / 2, (-2 / 4 + 0.5 / 2) / 2, 0.0, 5 / 4 / 2]
    of_items, of_seeds = sum(x**2 for x in moved) * 4 / 3, 2.5**2 / 4
    freedom = (of_items + of_seeds) ** 2 / (of_items**2 / 3 + of_seeds**2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(of_items + of_seeds)
    assert (mean(sample).value, mean(sample).n) == (0.75, 4)
    assert mean(sample).interval == pytest.approx((0.75 - half, 0.75 + half))


def test_the_same_change_of_all_items_is_known_through_rounding() -> None:
    before = [0.1 * n for n in range(6)]
    found = differences(
        items(before, [7.0, 3.0, 1.0, 2.0, 5.0, 9.0]), items([x + 0.3 for x in before], [7.0, 3.0, 1.0, 2.0, 5.0, 9.0])
    )["m"]
    assert found.p == 1 / 32
    assert all(map(math.isnan, found.change.interval))


def test_an_interval_stays_inside_what_a_mean_can_be() -> None:
    for values, bounds in (
        ([1.0] * 7 + [0.2], (0.0, 1.0)),  # agreement
        ([0.0] * 7 + [3.0], (0.0, math.inf)),
        ([-0.1] * 7 + [0.8], (-math.inf, math.inf)),
    ):
        one = means(items(values))["m"].interval
        several = mean(samples([[items(values), items(values)]], "m")[0]).interval
        for low, high in (one, several):
            assert bounds[0] <= low < high <= bounds[1]
        assert min(one) < 0 or bounds[0] == 0
        assert max(one) == 1 or bounds[1] > 1


def test_one_item_that_differs_is_no_surer_than_none() -> None:
    all_of, but_one = [items([True] * 200), items([number != 7 for number in range(200)])]
    found = difference(*samples([[all_of], [but_one]], "m"), same_seeds=True)
    assert found.change.interval == pytest.approx(
        (-0.005 - zero_share_upper_bound(200), -0.005 + zero_share_upper_bound(200))
    )


def test_two_items_that_change_by_the_same_are_no_certainty() -> None:
    found = differences(items([6.0, 7.0]), items([5.0, 6.0]))["m"]
    assert (found.change.value, found.p) == (-1.0, 0.5)
    assert all(map(math.isnan, found.change.interval))


def test_what_rounding_leaves_is_no_change() -> None:
    alike = items([0.7] * 10)
    found = difference(*samples([[alike], [alike] * 5], "m"), same_seeds=False)
    assert abs(found.change.value) < 1e-15
    assert found.p == 1.0


def test_one_item_of_several_seeds_has_the_interval_of_a_share() -> None:
    [sample] = samples([[items([True]), items([True])]], "m")
    assert mean(sample).interval == wilson(1.0, 1)


@pytest.mark.parametrize("tokens", [2.0, 3.0])
def test_losses_and_perplexities_over_other_tokens_do_not_differ_but_in_bits_a_byte(tokens: float) -> None:
    def measured(n: float, shift: float) -> list[Item]:
        loss, bits = "held_out/x/loss", "held_out/x/bits_per_byte"
        return [Item(str(text), {loss: text + shift, bits: text + shift}, {loss: n, bits: 9.0}) for text in range(4)]

    found = differences(measured(2.0, 0.0), measured(tokens, 0.5))
    alike = {"held_out/x/loss", "held_out/x/perplexity"} if tokens == 2.0 else set()
    assert found.keys() == {"held_out/x/bits_per_byte"} | alike


def test_a_perplexity_changes_as_its_loss_does() -> None:
    name = "held_out/x/loss"
    before, after = ([Item(item.id, {name: 3 + item.values["m"] / 50}) for item in noisy(seed, shift)]
                     for seed, shift in ((1, 0.0), (2, 0.4)))  # fmt: skip
    found = differences(before, after)
    loss, perplexity = found[name], found["held_out/x/perplexity"]
    assert [perplexity.before, perplexity.after] == pytest.approx([math.exp(loss.before), math.exp(loss.after)])
    assert perplexity.change.value == pytest.approx(perplexity.after - perplexity.before)
    ends = [(perplexity.before + end) / perplexity.before for end in perplexity.change.interval]
    assert ends == pytest.approx([math.exp(end) for end in loss.change.interval])
    assert (perplexity.p, perplexity.n) == (loss.p, loss.n)
