"""A recipe is chosen by one half of the items and judged by the other."""

import pytest

from inscp.errors import UserError
from inscp.evaluation.results import Item, Results, TaskResult
from inscp.evaluation.statistics import means, with_perplexities
from inscp.experiment.goals import goal_grids
from inscp.experiment.study import Goal
from inscp.experiment.tables import Comparison, Evaluated

GOALS = [
    Goal("language/{language}/ended", at_least=2, times_reference=True),
    Goal("retention/held_out/en/perplexity", at_most=1.03, times_reference=True),
]


def evaluated(row: str, ended: list[int], loss: float) -> Evaluated:
    answers = [Item(f"fi: {number}", {"fi/ended": bool(one)}) for number, one in enumerate(ended)]
    texts = [Item(f"en: {number}", {"held_out/en/loss": loss}) for number in range(4)]
    tasks = {
        "language": TaskResult("LanguageAlignment", means(answers), len(answers), 1, 0.0),
        "retention": TaskResult("Retention", with_perplexities(means(texts)), len(texts), 1, 0.0),
    }
    return Evaluated(row, "fi", None, Results(row, tasks, {}), {"language": answers, "retention": texts})


# What is even chooses: "lucky" ends every turn there and none elsewhere.
ORIGINAL = evaluated("instruct", [1, 0, 0, 1, 0, 0, 0, 0], 3.0)
LUCKY = evaluated("lucky", [1, 0, 1, 0, 1, 0, 1, 0], 3.0)
STEADY = evaluated("steady", [1, 1, 1, 1, 0, 1, 0, 1], 3.0)
FORGETFUL = evaluated("forgetful", [1, 1, 1, 1, 1, 1, 1, 1], 3.1)


def test_what_was_lucky_where_it_was_chosen_is_judged_elsewhere() -> None:
    choosing, judging = goal_grids(Comparison([ORIGINAL, LUCKY, FORGETFUL], "instruct"), GOALS, "fi", {"lucky": 1000})
    reached = {row[0]: row[-1] for row in choosing.rows}
    assert reached == {"instruct": "1 of 2", "lucky": "2 of 2", "forgetful": "1 of 2"}
    assert [row[1] for row in choosing.rows] == ["–", "1,000", "–"]
    assert judging.title == "Goals: lucky by the other half"
    ended, perplexity = judging.rows
    assert ended[0] == "fi: ended"
    assert ended[1] == "≥ 2 x instruct"
    assert ended[2].startswith("25 %")  # of the original, by the odd items
    assert ended[3].startswith("0 %")
    assert (ended[4], perplexity[4]) == ("no", "yes")


def test_of_equally_many_goals_the_one_that_misses_least_is_chosen() -> None:
    goals = [Goal("language/{language}/ended", at_least=0.9)]
    found = goal_grids(Comparison([ORIGINAL, STEADY, LUCKY], "instruct"), goals, "fi", {})
    assert found[1].title == "Goals: lucky by the other half"
    assert [row[-1] for row in found[0].rows] == ["0 of 1", "0 of 1", "1 of 1"]
    found = goal_grids(
        Comparison([STEADY, ORIGINAL, FORGETFUL], "steady"), [Goal(GOALS[0].metric, at_least=1.1)], "fi", {}
    )
    assert found[1].title == "Goals: forgetful by the other half"


def test_a_multiple_of_nothing_is_reached_by_something_alone() -> None:
    twice, nan = GOALS[0], float("nan")
    assert [twice.margin(value, 0.0) >= 1 for value in (0.0, 0.1)] == [False, True]
    assert twice.margin(0.5, nan) == twice.margin(nan, 0.5) == 0.0
    assert GOALS[1].margin(103.0, 100.0) >= 1 > GOALS[1].margin(103.1, 100.0)


def test_without_goals_or_anything_to_compare_there_is_no_table() -> None:
    assert goal_grids(Comparison([ORIGINAL, LUCKY], "instruct"), [], "fi", {}) == []
    assert goal_grids(Comparison([ORIGINAL], "instruct"), GOALS, "fi", {}) == []


def test_a_metric_that_was_not_measured_is_told_with_those_that_were() -> None:
    with pytest.raises(UserError, match="language/fi/ended, retention/held_out/en/loss"):
        goal_grids(Comparison([ORIGINAL, LUCKY], "instruct"), [Goal("language/en/ended", at_least=1)], "fi", {})


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1.0, "at_most": 1.0}, {"at_most": 0.0}])
def test_a_goal_has_one_bound(bounds: dict[str, float]) -> None:
    with pytest.raises(UserError, match="one bound"):
        Goal("x", **bounds)  # type: ignore[arg-type]
