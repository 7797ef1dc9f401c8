"""Reads rows of a user's file as the documents that a benchmark's definition expects."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from inscp.data.rows import Row
from inscp.errors import UserError
from inscp.evaluation.prompts import field_of, read_table

POSITION = "position"
"""The field of a document that holds the position where it was read."""

_BETWEEN_ANSWERS = re.compile("[;；؛]")


@dataclass(frozen=True)
class Fields:
    """The fields of one row, by their names in a benchmark.

    Attributes:
        position: position of the row.
        row: the row as read.
        names: the benchmark's name of a field -> the file's, where they differ.
    """

    position: str
    row: Row
    names: Mapping[str, str]

    def get(self, name: str, *others: str) -> Any:
        """The field that the configuration names, else the first of these names that the row has."""
        return field_of(self.position, self.row, [self.names[name]] if name in self.names else [name, *others])

    def error(self, what: str) -> UserError:
        return UserError(self.position, what, "Fix the line.")


def read_documents(benchmark: str, spec: str, names: Mapping[str, str]) -> list[Row]:
    """The documents of a file.

    Args:
        benchmark: a task of the harness.
        spec: the file.
        names: the benchmark's name of a field -> the file's, where they differ.

    Raises:
        UserError: no such file, an empty one, or a row without a required field.
    """
    shape = next((shape for prefix, shape in _SHAPES.items() if benchmark.startswith(prefix)), _as_it_is)
    rows = [Fields(position, row, names) for position, row in read_table(spec)]
    return [{**shape(fields), POSITION: fields.position} for fields in rows]


def _as_it_is(fields: Fields) -> Row:
    """The fields of the benchmark's own data set."""
    return {**fields.row, **{name: fields.get(name) for name in fields.names}}


def _arc(fields: Fields) -> Row:
    """`question` (or `query`), `choices`, and `answerKey` (or `gold`, `answer`): a label, or an index from 0."""
    choices = fields.get("choices")
    if not isinstance(choices, dict):
        choices = {"text": choices, "label": [chr(ord("A") + place) for place in range(len(choices))]}
    texts, labels = choices.get("text"), choices.get("label")
    if not (isinstance(texts, list) and isinstance(labels, list) and all(isinstance(text, str) for text in texts)):
        raise fields.error("choices is not a list of texts")
    answer = fields.get("answerKey", "gold", "answer")
    if isinstance(answer, int) and 0 <= answer < len(labels):
        answer = labels[answer]
    if answer not in labels:
        raise fields.error(f"its answer {answer!r} is not one of its {len(labels)} choices")
    question = str(fields.get("question", "query")).removeprefix("Question: ")  # the definition adds it
    return {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": answer}


def _truthfulqa(fields: Fields) -> Row:
    """`question`, `best_answer`, `correct_answers` and `incorrect_answers`: lists, or texts separated by semicolons.

    MC1 asks for the best answer among all incorrect ones; the benchmark's own choices leave some of these out.
    """
    question = fields.get("question")
    if "mc1_targets_choices" in fields.row or "mc1_targets" in fields.row:
        return _as_it_is(fields)
    best = str(fields.get("best_answer", "Best Answer")).strip()
    correct = _answers(fields, "correct_answers", "Correct Answers")
    incorrect = _answers(fields, "incorrect_answers", "Incorrect Answers")
    targets = {
        "mc1_targets": {"choices": [best, *incorrect], "labels": [1] + [0] * len(incorrect)},
        "mc2_targets": {"choices": correct + incorrect, "labels": [1] * len(correct) + [0] * len(incorrect)},
    }
    # The definitions of other languages (truthfulqa_zh_mc2, …) expect flat fields.
    flat = {f"{name}_{part}": values for name, target in targets.items() for part, values in target.items()}
    return {"question": question, **targets, **flat}


def _answers(fields: Fields, *names: str) -> list[str]:
    value = fields.get(*names)
    found = value if isinstance(value, list) else _BETWEEN_ANSWERS.split(str(value))
    answers = [str(answer).strip() for answer in found if str(answer).strip()]
    if not answers:
        raise fields.error(f"no answer in {names[0]}")
    return answers


_SHAPES: dict[str, Callable[[Fields], Row]] = {"arc_easy": _arc, "arc_challenge": _arc, "truthfulqa": _truthfulqa}
