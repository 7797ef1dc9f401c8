"""A recipe is chosen by one half of the items and judged by the other."""

import math
from dataclasses import replace
from itertools import product

import pytest

from inscp.errors import UserError
from inscp.evaluation.items import Item
from inscp.evaluation.results import Metric, Results, TaskResult
from inscp.evaluation.statistics import means
from inscp.experiment import tables
from inscp.experiment.goals import Goal, goal_grids
from inscp.experiment.tables import Comparison, Evaluated

GOALS = [
    Goal("language/{language}/ended", at_least=2, times_reference=True),
    Goal("retention/held_out/en/perplexity", at_most=1.03, times_reference=True),
]


# Names of items that choose, and of those that judge, in turns.
IN_TURNS = [name for pair in zip(*([f"item {n}" for n in range(99) if tables._digest(f"item {n}") % 2 == half]
                                   for half in (0, 1)), strict=False) for name in pair]  # fmt: skip


def evaluated(row: str, ended: list[int], loss: float) -> Evaluated:
    answers = [Item(name, {"fi/ended": bool(one)}) for name, one in zip(IN_TURNS, ended, strict=False)]
    texts = [Item(name, {"held_out/en/loss": loss}) for name in IN_TURNS[:4]]
    tasks = {
        "language": TaskResult("LanguageAlignment", means(answers), len(answers), 1, 0.0),
        "retention": TaskResult("Retention", means(texts), len(texts), 1, 0.0),
    }
    return Evaluated(row, None, Results(row, tasks, {}), {"language": answers, "retention": texts})


# What is even chooses: "lucky" ends every turn there and none elsewhere.
ORIGINAL = evaluated("instruct", [1, 0, 0, 1, 0, 0, 0, 0], 3.0)
LUCKY = evaluated("lucky", [1, 0, 1, 0, 1, 0, 1, 0], 3.0)
STEADY = evaluated("steady", [1, 1, 1, 1, 0, 1, 0, 1], 3.0)
FORGETFUL = evaluated("forgetful", [1, 1, 1, 1, 1, 1, 1, 1], 3.1)
TRAINED = {"lucky": 1000, "steady": 1000, "forgetful": None}


def test_what_was_lucky_where_it_was_chosen_is_judged_elsewhere() -> None:
    choosing, judging = goal_grids(Comparison([ORIGINAL, LUCKY, FORGETFUL], "instruct"), GOALS, "fi", TRAINED)
    reached = {row[0]: row[-1] for row in choosing.rows}
    assert reached == {"instruct": "1 of 2", "lucky": "2 of 2", "forgetful": "1 of 2"}
    assert [row[1] for row in choosing.rows] == ["–", "1,000", "–"]  # all that there are, of the last
    assert judging.title == "Goals: lucky on the test half"
    ended, perplexity = judging.rows
    assert ended[0] == "fi: end their turn"
    assert ended[1] == "≥ 2 x instruct"
    assert ended[2].startswith("25 %")  # of the original, by the odd items
    assert ended[3].startswith("0 %")
    assert (ended[4], perplexity[4]) == ("no", "yes")


def test_an_arm_of_fewer_seeds_says_so_where_it_is_chosen_by_them() -> None:
    arms = [ORIGINAL, replace(STEADY, seed=0), replace(STEADY, seed=1), replace(LUCKY, seed=0)]
    choosing, _ = goal_grids(Comparison(arms, "instruct"), GOALS, "fi", TRAINED)
    assert [row[0] for row in choosing.rows] == ["instruct", "steady", "lucky, 1 seed"]


def test_of_equally_many_goals_the_one_that_misses_least_is_chosen() -> None:
    goals = [Goal("language/{language}/ended", at_least=0.9)]
    found = goal_grids(Comparison([ORIGINAL, STEADY, LUCKY], "instruct"), goals, "fi", TRAINED)
    assert found[1].title == "Goals: lucky on the test half"
    assert [row[-1] for row in found[0].rows] == ["0 of 1", "0 of 1", "1 of 1"]


def test_of_those_that_reach_all_the_one_that_gains_most_is_chosen() -> None:
    """And not the one whose nearest goal is furthest: twice next to nothing is a goal for nobody."""
    cautious = evaluated("cautious", [1, 0, 1, 0, 1, 0, 0, 0], 2.9)
    arms = [ORIGINAL, cautious, evaluated("bold", [1, 1, 1, 1, 1, 1, 1, 1], 3.0)]
    found = goal_grids(Comparison(arms, "instruct"), GOALS, "fi", {"cautious": 1, "bold": 1})
    assert [row[-1] for row in found[0].rows] == ["1 of 2", "2 of 2", "2 of 2"]
    assert found[1].title == "Goals: bold on the test half"


def test_what_was_trained_is_chosen_also_where_it_is_the_reference() -> None:
    goals = [Goal(GOALS[0].metric, at_least=0.4)]
    found = goal_grids(Comparison([STEADY, ORIGINAL], "steady"), goals, "fi", TRAINED)
    assert found[1].title == "Goals: steady on the test half"


def test_a_multiple_of_nothing_is_reached_by_something_alone() -> None:
    twice, no_more, nan = GOALS[0], GOALS[1], float("nan")
    assert [twice.is_reached(value, 0.0) for value in (0.0, 0.1)] == [False, True]
    assert [no_more.is_reached(value, 0.0) for value in (0.0, 0.1)] == [True, False]
    assert not twice.is_reached(0.5, nan)
    assert not twice.is_reached(nan, 0.5)
    assert [no_more.is_reached(value, 100.0) for value in (103.0, 103.1)] == [True, False]


def test_what_misses_less_is_nearer_and_what_has_no_ratio_is_reached_or_not() -> None:
    kept = Goal("x", at_least=0.9, times_reference=True)
    assert kept.margin(0.8, 1.0) > kept.margin(0.5, 1.0)
    assert kept.margin(-0.5, -0.2) < 0.001 < kept.margin(-0.1, -0.2) == 1.0  # of what may be negative
    assert kept.margin(0.1, -0.2) == 1.0
    loops = Goal("x", at_most=0.05)
    assert loops.margin(0.0, 1.0) > loops.margin(0.01, 1.0) > loops.margin(0.05, 1.0) == 1.0
    assert max(kept.margin(math.nan, 1.0), kept.margin(0.5, math.nan)) < 0.001
    for value, reference in product((0.0, 0.5, math.nan), repeat=2):
        assert 0 < kept.margin(value, reference) < math.inf


def test_none_of_a_share_is_no_more_than_half_an_item_less_than_one() -> None:
    loops, twice = Goal("x", at_most=0.2), Goal("x", at_least=2, times_reference=True)
    assert loops.margin(0.0, 1.0, (0.005, 0.005)) == pytest.approx(2 * loops.margin(0.01, 1.0, (0.005, 0.005)))
    assert twice.margin(0.04, 0.0, (0.005, 0.005)) == pytest.approx(4.0)
    assert twice.margin(0.04, 0.0, (0.005, 0.01)) == pytest.approx(2.0), "of the reference's own items"
    assert twice.margin(0.0, 0.0, (0.005, 0.005)) == 0.5


@pytest.mark.parametrize("is_reversed", [False, True])
def test_one_goal_in_which_nothing_is_left_does_not_outweigh_all_others(is_reversed: bool) -> None:
    def arm(row: str, looped: int, ended: int) -> Evaluated:
        half = [[{"fi/looped": n < looped, "fi/ended": n < ended} for n in range(12)] for _ in (0, 1)]
        values = [one for pair in zip(*half, strict=True) for one in pair]
        items = [Item(name, of) for name, of in zip(IN_TURNS, values, strict=False)]
        task = TaskResult("LanguageAlignment", means(items), len(items), 1, 0.0)
        return Evaluated(row, None, Results(row, {"language": task}, {}), {"language": items})

    goals = [Goal("language/fi/looped", at_most=0.3), Goal("language/fi/ended", at_least=2, times_reference=True)]
    arms = [arm("barely", 0, 1), arm("much", 1, 12), arm("more", 0, 12)][:: -1 if is_reversed else 1]
    for rows, best in ((arms, "more"), ([one for one in arms if one.row != "more"], "much")):
        found = goal_grids(Comparison([arm("ref", 6, 0), *rows], "ref"), goals, "fi", {one.row: 1 for one in rows})
        assert found[1].title == f"Goals: {best} on the test half"


def test_a_perplexity_over_other_tokens_reaches_no_goal_and_is_reported() -> None:
    def cut(one: Evaluated, tokens: float) -> Evaluated:
        texts = [replace(item, weights={"held_out/en/loss": tokens}) for item in one.items["retention"]]
        return replace(one, items={**one.items, "retention": texts})

    more_tokens = cut(evaluated("more tokens", [1, 1, 1, 1, 0, 0, 0, 0], 1.0), 9.0)
    arms = [cut(ORIGINAL, 5.0), cut(STEADY, 5.0), more_tokens]
    choosing, _ = goal_grids(Comparison(arms, "instruct"), GOALS[1:], "fi", {"steady": 1, "more tokens": 1})
    assert {row[0]: row[2:] for row in choosing.rows}["more tokens"] == ["–", "0 of 1"]
    assert ": steady is chosen." in choosing.note
    told = "en: perplexity of more tokens is over other tokens than for instruct and reaches no goal; set one in"
    assert choosing.note.endswith(f"{told} bits per byte.")
    alike, _ = goal_grids(Comparison(arms[:2], "instruct"), GOALS[1:], "fi", {"steady": 1})
    assert "other tokens" not in alike.note


def test_without_goals_or_anything_trained_there_is_no_table() -> None:
    assert goal_grids(Comparison([ORIGINAL, LUCKY], "instruct"), [], "fi", TRAINED) == []
    assert goal_grids(Comparison([ORIGINAL], "instruct"), GOALS, "fi", TRAINED) == []


def test_a_goal_that_was_not_measured_is_missed_and_reported() -> None:
    goals = [Goal("language/en/ended", at_least=1)]
    choosing, judging = goal_grids(Comparison([ORIGINAL, LUCKY], "instruct"), goals, "fi", TRAINED)
    assert choosing.head[2] == "language/en/ended (not measured) ≥ 100%"
    assert judging.rows[0][-2:] == ["–", "no"]


def test_a_goal_that_was_not_measured_has_no_part_in_choosing() -> None:
    """By the product of the ratios alone the one that misses by much would be chosen, as it gains more elsewhere."""
    goals = [Goal("language/fi/ended", at_least=0.5), Goal(GOALS[1].metric, at_most=1, times_reference=True)]
    by_little, by_much = evaluated("by little", [1, 1, 0, 0] * 2, 3.05), evaluated("by much", [1] * 8, 3.4)
    for unmeasured in ([], [Goal("language/fi/nothing", at_least=0.5)]):
        trained = {"by much": 1, "by little": 1}
        found = goal_grids(Comparison([ORIGINAL, by_much, by_little], "instruct"), goals + unmeasured, "fi", trained)
        assert found[1].title == "Goals: by little on the test half"


def test_a_goal_that_is_no_mean_over_items_is_reported_as_not_measured() -> None:
    def with_sd(one: Evaluated) -> Evaluated:
        task = one.results.tasks["language"]
        task = replace(task, metrics={**task.metrics, "sd": Metric(0.2, (0.1, 0.3), 8)})
        return replace(one, results=replace(one.results, tasks={**one.results.tasks, "language": task}))

    goals = [Goal("language/sd", at_most=1)]
    choosing, _ = goal_grids(Comparison([with_sd(ORIGINAL), with_sd(LUCKY)], "instruct"), goals, "fi", TRAINED)
    assert choosing.head[2].startswith("language/sd (not measured)")


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1.0, "at_most": 1.0}, {"at_most": 0.0}])
def test_a_goal_has_one_bound(bounds: dict[str, float]) -> None:
    with pytest.raises(UserError, match="one bound"):
        Goal("x", **bounds)  # type: ignore[arg-type]


def test_without_the_reference_only_its_multiples_are_left_out() -> None:
    goals = [Goal("language/{language}/ended", at_least=0.5), *GOALS]
    choosing, judging = goal_grids(Comparison([LUCKY, STEADY], "instruct"), goals, "fi", TRAINED)
    assert choosing.head == ["", "tokens", "fi: end their turn ≥ 50%", "reached"]
    assert [row[2] for row in judging.rows] == ["–"]
    assert goal_grids(Comparison([LUCKY, STEADY], "instruct"), GOALS, "fi", TRAINED) == []
