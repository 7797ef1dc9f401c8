"""What was answered is never asked again, and a file of another model's answers is not taken."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inscp.errors import UserError
from inscp.evaluation.journal import Journal

MADE_BY = {"model": "m", "weights": "1"}


class Answering:
    """Answers in reverse order, and counts."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[int] = []
        self._dies_at = dies_at

    def __call__(self, places: list[int]) -> Iterator[tuple[int, str]]:
        for place in reversed(places):
            if place == self._dies_at:
                raise KeyboardInterrupt
            self.asked.append(place)
            yield place, f"answer {place}"


def ask(path: Path, answering: Answering, requests: list[str], kind: str = "k") -> list[str]:
    return Journal(path, MADE_BY).get_or_compute(kind, requests, answering, lambda: None)


def test_an_interrupted_run_continues_with_what_is_left(tmp_path: Path) -> None:
    path, requests = tmp_path / "answers.jsonl", list("abcd")
    first, second, third = Answering(dies_at=1), Answering(), Answering()
    with pytest.raises(KeyboardInterrupt):
        ask(path, first, requests)
    with path.open("a") as file:
        file.write('{"key": "cut o')  # as a kill leaves it
    assert ask(path, second, requests) == [f"answer {i}" for i in range(4)]
    assert (first.asked, second.asked) == ([3, 2], [1, 0])
    assert ask(path, third, requests) == [f"answer {i}" for i in range(4)]
    assert third.asked == []


def test_where_nothing_is_answered_yet_other_settings_may_begin(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Journal(path, MADE_BY | {"weights": "2"})  # and then an error in the prompts, say
    assert ask(path, Answering(), ["a"]) == ["answer 0"]
    assert json.loads(path.read_text("utf-8").splitlines()[0]) == MADE_BY


def test_the_same_request_is_asked_once_and_another_kind_is_another(tmp_path: Path) -> None:
    answering, told = Answering(), []
    journal = Journal(tmp_path / "answers.jsonl", MADE_BY)
    assert journal.get_or_compute("k", ["a", "b", "a"], answering, lambda: told.append(1)) == [
        "answer 0",
        "answer 1",
        "answer 0",
    ]
    assert answering.asked == [1, 0]
    assert len(told) == 3
    journal.get_or_compute("other", ["a"], answering, lambda: None)
    assert answering.asked == [1, 0, 0]


def test_answers_of_another_model_or_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    ask(path, Answering(), ["a"])
    before = path.read_bytes()
    with pytest.raises(UserError, match="another weights"):
        Journal(path, MADE_BY | {"weights": "2"})
    assert path.read_bytes() == before
    path.write_text("hello\n")
    with pytest.raises(UserError, match="not a file of answers"):
        Journal(path, MADE_BY)
