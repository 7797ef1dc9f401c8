"""Which replies of a judge count."""

import json
from typing import Any

import pytest

from inscp.evaluation.judge import Exchange, compare, grade, parse


def graded(rating: Any = 7, language: str = "zh-TW") -> str:
    return json.dumps({"reason": "It is so.", "language": language, "rating": rating})


def compared(better: str) -> str:
    return json.dumps({"reason": "It is so.", "better": better})


GRADE, COMPARISON = grade([Exchange("q", ["a"])], "fi"), compare([Exchange("q", ["a", "b"])], "fi")


@pytest.mark.parametrize("reply", [
    "", "7", "null", "[]", "I would say 7.", graded(0), graded(11), graded(7.5), graded("7"), graded(True),
    graded(None), graded(7, ""), graded(7, "Chinese (Traditional)"), f"{graded()} {graded()}", f"Sure! {graded()}",
    f"{graded()}.", f"Sure!\n```json\n{graded()}\n```", compared("A"),
    '{"rating": 7}', '{"reason": "", "language": "fi", "rating": NaN}', "[" * 100_000,
    '{"reason": 3, "language": "fi", "rating": 7}', '{"reason": "", "language": "fi", "rating": 7, "more": 1}',
])  # fmt: skip
def test_a_reply_that_is_no_grade_is_not_taken_for_one(reply: str) -> None:
    assert parse(reply, GRADE) is None


@pytest.mark.parametrize("reply", ["A", compared("a"), compared("C"), compared("both"), graded(), '{"better": "A"}',
                                   '{"reason": "", "better": ["A"]}'])  # fmt: skip
def test_a_reply_that_is_no_comparison_is_not_taken_for_one(reply: str) -> None:
    assert parse(reply, COMPARISON) is None


@pytest.mark.parametrize("around", ["{}", "\n {} \n", "```json\n{}\n```", "```\n{}```"])
def test_a_reply_may_stand_in_a_code_fence(around: str) -> None:
    assert parse(around.replace("{}", graded(10)), GRADE) == json.loads(graded(10))
    assert parse(around.replace("{}", compared("tie")), COMPARISON) == json.loads(compared("tie"))
