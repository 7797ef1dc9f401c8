"""MT-Bench (arXiv 2306.05685): two-turn questions in any language, with answers judged by another model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from inscp.data.rows import Row
from inscp.errors import UserError
from inscp.evaluation.caching_model import CachingModel
from inscp.evaluation.items import Item, items_folder, read_items
from inscp.evaluation.judge import Case, Exchange, Judge, Verdict, compare, grade
from inscp.evaluation.prompts import evenly_spaced, field_of, read_table, text_of
from inscp.evaluation.server import Chat, Server
from inscp.evaluation.task import Task
from inscp.records import Prompt, Turn, require_language_tag
from inscp.text.language import primary

_TURNS = 2


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: id in the file.
        category: topic.
        turns: the two user turns.
        references: the correct answers to them, or None.
    """

    id: str
    category: str
    turns: Sequence[str]
    references: Sequence[str | None]

    def exchanges(self, *answers: Sequence[str]) -> list[Exchange]:
        """Its turns with each assistant's answers, one assistant per argument."""
        return [Exchange(*turn) for turn in zip(self.turns, zip(*answers, strict=True), self.references, strict=True)]


@dataclass(kw_only=True)
class MTBench(Task):
    """Has a judge grade answers to two-turn questions from 1 to 10, and optionally compare them with another model's.

    `score` is the mean of both turns; `score/turn_1`, `score/turn_2` and `score/CATEGORY` are its parts. The language
    of an answer does not affect it: `in_language` is the fraction of questions answered in their own language in both
    turns, and `score_in_language` rates an answer in another language 1. In the paper (arXiv 2405.20175, Tables 4 and
    5) the judge includes the language in the rating, with an unpublished prompt, so its numbers are between the two,
    and only the ranking of models is comparable. Questions with an unreadable judgement count as `unparsed` and have no
    scores from it. With an opponent: `pairwise/win`, `pairwise/tie`, `pairwise/loss` and `pairwise/consistent`; a win
    or a loss requires the same verdict in both orders, all else is a tie. Answers are greedy, in every category.

    Args:
        questions: file with question_id, category and turns (two texts), in FastChat's format.
        language: language of the questions, a BCP 47 tag.
        judge: server of the judge.
        references: file of reference answers with question_id and choices[0].turns, in FastChat's format.
        reference_categories: in which the judge sees them; each of their questions needs some.
        limit: maximum number of questions, spread evenly over the file.
        max_new_tokens: maximum tokens per answer; longer ones are cut off.
        opponent: results file of another evaluation, next to which its answers to the same questions are stored.
        opponent_task: name of this task in that file.
    """

    version = 3  # score_in_language; tags that no answer can close
    source = "arXiv 2306.05685"
    licence = "Apache-2.0"

    questions: str
    language: str
    judge: Server
    references: str | None = None
    reference_categories: list[str] = field(default_factory=lambda: ["math", "reasoning", "coding"])
    limit: int | None = None
    max_new_tokens: int = 1024
    opponent: str | None = None
    opponent_task: str = "mt_bench"

    @property
    def chats(self) -> bool:
        return True

    @property
    def by(self) -> str:
        return self.judge.model

    @property
    def item_metrics(self) -> list[str]:
        compared = [f"pairwise/{name}" for name in ("win", "tie", "loss", "consistent")] if self.opponent else []
        return ["score", "score/*", "in_language", "score_in_language", "unparsed", *compared]

    def check(self) -> None:
        require_language_tag("language", self.language)
        self._opponents_answers(self._asked())
        Chat(self.judge).connect()

    def items(self, model: CachingModel) -> list[Item]:
        asked = self._asked()
        others = self._opponents_answers(asked)
        answers = _answers(model, asked, self.max_new_tokens)
        cases = [self._cases(question, answers[question.id], others.get(question.id)) for question in asked]
        judge = Judge(self.judge, model.folder, model.start_progress)
        verdicts = iter(judge.verdicts(list(chain.from_iterable(cases))))
        return [
            _item(question, answers[question.id], [next(verdicts) for _ in put], self.language)
            for question, put in zip(asked, cases, strict=True)
        ]

    def _cases(self, question: Question, answers: Sequence[str], others: Sequence[str] | None) -> list[Case]:
        """A grade for each turn and, against an opponent, a comparison in each order."""
        said = question.exchanges(answers)
        grades = [grade(said[:turn], self.language) for turn in range(1, _TURNS + 1)]
        orders = [(answers, others), (others, answers)] if others is not None else []
        return grades + [compare(question.exchanges(*order), self.language) for order in orders]

    def _asked(self) -> list[Question]:
        """The questions.

        Raises:
            UserError: there are none, or one is invalid.
        """
        references = _references(self.references) if self.references else {}
        found: dict[str, Question] = {}
        for position, row in evenly_spaced(read_table(self.questions), self.limit):
            key, category = str(field_of(position, row, ["question_id"])), text_of(position, row, ["category"])
            if key in found:
                raise UserError(position, f"there is another question {key}", "Give each its own question_id.")
            wants = bool(self.references) and category in self.reference_categories
            if wants and key not in references:
                fix = "Add one, or remove its category from reference_categories."
                raise UserError(position, f"{self.references} has no reference answers to question {key}", fix)
            turns = _texts(position, field_of(position, row, ["turns"]))
            found[key] = Question(key, category, turns, references[key] if wants else [None] * _TURNS)
        return list(found.values())

    def _opponents_answers(self, asked: Sequence[Question]) -> dict[str, Sequence[str]]:
        """Question id -> the opponent's answers; empty without an opponent.

        Raises:
            UserError: it did not answer the same questions.
        """
        if self.opponent is None:
            return {}
        items = {item.id: item.shown for item in read_items(items_folder(Path(self.opponent)), self.opponent_task)}
        for question in asked:
            if items.get(question.id, {}).get("questions") != list(question.turns):
                what = f"the opponent did not answer question {question.id} as it is in {self.questions}"
                raise UserError(self.opponent, what, "Evaluate both models on the same questions.")
        return {question.id: items[question.id]["answers"] for question in asked}


def _references(spec: str) -> dict[str, Sequence[str]]:
    return {
        str(field_of(position, row, ["question_id"])): _texts(position, _first_choice(position, row))
        for position, row in read_table(spec)
    }


def _first_choice(position: str, row: Row) -> Any:
    try:
        return field_of(position, row, ["choices"])[0]["turns"]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(position, "it has no choices[0].turns", "Fix the line.") from error


def _texts(position: str, turns: Any) -> list[str]:
    """The turns, if they are two texts."""
    if isinstance(turns, list) and len(turns) == _TURNS and all(isinstance(turn, str) and turn for turn in turns):
        return turns
    raise UserError(position, f"turns is not a list of {_TURNS} texts", "Fix the line.")


def _answers(model: CachingModel, asked: Sequence[Question], max_new_tokens: int) -> dict[str, list[str]]:
    """Question id -> answers; the second question follows the first answer."""
    prompts: list[Prompt] = [()] * len(asked)
    said: list[list[str]] = [[] for _ in asked]
    for turn in range(_TURNS):
        prompts = [(*p, Turn("user", question.turns[turn])) for p, question in zip(prompts, asked, strict=True)]
        generations = model.generate(f"prompting, turn {turn + 1}", prompts, max_new_tokens)
        prompts = [(*p, Turn("assistant", g.response)) for p, g in zip(prompts, generations, strict=True)]
        for texts, generation in zip(said, generations, strict=True):
            texts.append(generation.response)
    return {question.id: texts for question, texts in zip(asked, said, strict=True)}


def _item(question: Question, answers: Sequence[str], verdicts: Sequence[Verdict], language: str) -> Item:
    grades, comparisons = verdicts[:_TURNS], verdicts[_TURNS:]
    values: dict[str, bool | float] = {"unparsed": any("unparsed" in verdict for verdict in verdicts)}
    values |= _graded(grades, question.category, language) | _compared(comparisons)
    shown = {"category": question.category, "questions": question.turns, "answers": answers, "verdicts": verdicts}
    return Item(question.id, values, shown=shown)


def _graded(grades: Sequence[Verdict], category: str, language: str) -> dict[str, bool | float]:
    values: dict[str, bool | float] = {
        f"score/turn_{turn}": float(verdict["rating"])
        for turn, verdict in enumerate(grades, 1)
        if "unparsed" not in verdict
    }
    if len(values) == len(grades):
        score = sum(values.values()) / len(grades)
        fits = [primary(verdict["language"]) == primary(language) for verdict in grades]
        worth = [verdict["rating"] if is_in else 1 for verdict, is_in in zip(grades, fits, strict=True)]
        values |= {"score": score, f"score/{category}": score}
        values |= {"in_language": all(fits), "score_in_language": sum(worth) / len(worth)}
    return values


def _compared(orders: Sequence[Verdict]) -> dict[str, bool | float]:
    """The outcome of both orders; the model under test is A in the first, and B in the second."""
    if not orders or any("unparsed" in verdict for verdict in orders):
        return {}
    found = tuple(verdict["better"] for verdict in orders)
    outcome = {("A", "B"): "win", ("B", "A"): "loss"}.get(found, "tie")
    values: dict[str, bool | float] = {f"pairwise/{name}": name == outcome for name in ("win", "tie", "loss")}
    return values | {"pairwise/consistent": outcome != "tie" or found == ("tie", "tie")}
