"""Scores an answer to a prompt in a given language: is it in that language, and is it usable at all?"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import regex

from inscp.evaluation.items import Item
from inscp.evaluation.statistics import means
from inscp.optional import library
from inscp.records import Generation
from inscp.text.chinese import expected_form, form_of
from inscp.text.language import LanguageIdentifier, primary
from inscp.text.reasoning import CLOSED, after_reasoning, begins_to_reason
from inscp.text.words import copies, loops, words

_LINE_WORDS, _LINE_CONFIDENCE, _ENGLISH_LETTERS = 5, 0.3, 4  # as in the Language Confusion Benchmark
_PUNCTUATION = str.maketrans("—", " ", f"{string.punctuation}،")  # which it removes before it checks a line
_LETTER, _LATIN = regex.compile(r"\p{L}"), regex.compile(r"\p{Script=Latin}")
_LATIN_WORD = re.compile(r"[A-Za-z]+")

ALIGNMENT_METRICS = (
    "in_language", "in_script", "ended", "looped", "copied", "empty", "sound", "sound_in_language",
    "in_language_if_sound", "words", "line_pass", "word_pass",
)  # fmt: skip
"""Metrics of an `AlignmentScorer`'s items for each prompt language, besides answered_in/X."""


def without_reasoning(answers: Sequence[Generation]) -> list[Generation]:
    """Answers without the reasoning in think tags that precedes them; empty if the reasoning itself was cut off.

    Some chat templates open the tag themselves, so that responses only close it. This is assumed if most of the
    responses that ended do so.

    Args:
        answers: answers of one model.
    """
    ended = [answer.response for answer in answers if answer.ended]
    closes = [CLOSED in response and not begins_to_reason(response) for response in ended]
    is_opened = 2 * sum(closes) > len(closes)

    def without(answer: Generation) -> str:
        return after_reasoning(answer.response, CLOSED in answer.response or (is_opened and not answer.ended))

    return [replace(answer, response=without(answer)) for answer in answers]


def defects(answer: Generation) -> dict[str, bool]:
    """The defects that make an answer useless, whatever its language."""
    return {
        "looped": loops(answer.response),
        "copied": copies(answer.prompt, answer.response),
        "empty": not words(answer.response),
    }


@dataclass(frozen=True)
class AlignmentScorer:
    """Scores answers by their language.

    Args:
        identifier: identifies the language of an answer.
    """

    identifier: LanguageIdentifier

    def item(self, answer: Generation, language: str, asked: Sequence[str]) -> Item:
        """The scored answer to a prompt in `language`; `asked` are the languages of all prompts."""
        found = self._identified(answer.response, language, asked)
        answered_in = next((tag for tag in (language, *asked) if _fits(answer.response, found, tag)), "other")
        worth = _answer_metrics(answer, answered_in == language) | self.confusion(
            answer.response, language, answer.prompt
        )
        worth |= {f"answered_in/{tag}": tag == answered_in for tag in (*asked, "other")}
        worth["words"] = float(len(words(answer.response)))
        if found == "zh" and (form := expected_form(language)):
            worth["in_script"] = form_of(answer.response) in (form, None)
        shown = {"language": language, "prompt": answer.prompt, "response": answer.response, "found": found}
        return Item(
            f"{language}: {answer.prompt}", {f"{language}/{name}": value for name, value in worth.items()}, shown=shown
        )

    def shares(self, answers: Sequence[Generation], language: str) -> dict[str, float]:
        """The mean metrics of answers to prompts in a language: `in_language`, `ended`, `sound`, … -> fraction."""

        def worth(answer: Generation) -> dict[str, bool | float]:
            response = answer.response
            return _answer_metrics(answer, _fits(response, self._identified(response, language), language))

        items = [Item(answer.prompt, worth(answer)) for answer in answers]
        return {name: share.value for name, share in means(items).items()}

    def confusion(self, response: str, language: str, prompt: str) -> dict[str, bool | float]:
        """Line pass and word pass of a response.

        Neither if no line is long enough; no word pass if a line fails, or if the prompt is mostly in Latin script.
        """
        lines = [line for line in response.translate(_PUNCTUATION).splitlines() if len(words(line)) >= _LINE_WORDS]
        if not lines:
            return {}
        passes = all(self._is_in(line, primary(language)) for line in lines)
        if not passes or len(_LATIN.findall(prompt)) * 2 > len(_LETTER.findall(prompt)):
            return {"line_pass": passes}
        units = {word for line in lines for word in _LATIN_WORD.findall(line)}
        return {"line_pass": True, "word_pass": units.isdisjoint(_english_words())}

    def _identified(self, response: str, language: str, asked: Sequence[str] = ()) -> str:
        """The code of a response's language, given the languages of the prompts (for a Chinese prompt only its own)."""
        among = [language] if primary(language) == "zh" else [language, *asked]
        return self.identifier.identify(response, list(map(primary, among)))

    def _is_in(self, line: str, code: str) -> bool:
        language, likelihood = next(iter(self.identifier.likely(line, [code]).items()))
        return language == code and likelihood > _LINE_CONFIDENCE


def _fits(response: str, found: str, tag: str) -> bool:
    """Whether a response in the language `found` matches a tag, including the form of Chinese if the tag names one."""
    form = expected_form(tag)
    return found == primary(tag) and (form is None or form_of(response) in (form, None))


def _answer_metrics(answer: Generation, is_in_language: bool) -> dict[str, bool | float]:
    """The metrics that every answer has."""
    found = defects(answer)
    worth: dict[str, bool | float] = {"in_language": is_in_language, "ended": answer.ended, **found}
    worth["sound"] = not any(found.values())
    worth["sound_in_language"] = worth["sound"] and is_in_language
    return worth | ({"in_language_if_sound": is_in_language} if worth["sound"] else {})


@cache
def _english_words() -> frozenset[str]:
    """Lower-case words of at least four letters: names and abbreviations occur in texts of every language."""
    known = library("english_words", "eval").get_english_words_set(["web2"])
    return frozenset(word for word in known if word.islower() and len(word) >= _ENGLISH_LETTERS)
