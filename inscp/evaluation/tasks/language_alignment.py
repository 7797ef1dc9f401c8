"""Language alignment (the paper's Table 1): does a model answer in the prompt's language, and is it an answer at all?

Counting the languages of the responses flatters a small model: one that echoes the prompt, or repeats one phrase for
ever, counts as aligned. So beside the language stand the shares of responses that end their turn, loop, copy the prompt
and are empty, and the alignment of the sound ones alone.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import regex

from inscp.errors import UserError
from inscp.evaluation.items import Item
from inscp.evaluation.prompts import read_table, spread, text_of
from inscp.evaluation.statistics import means
from inscp.evaluation.subject import Subject
from inscp.evaluation.task import Task
from inscp.optional import library
from inscp.records import Generation, Turn
from inscp.text.chinese import expected_form, form_of
from inscp.text.language import copies, identify, likely_languages, loops, primary, require_known, words

_LINE_WORDS, _LINE_CONFIDENCE, _ENGLISH_LETTERS = 5, 0.3, 4  # the Language Confusion Benchmark's
_PUNCTUATION = str.maketrans("—", " ", f"{string.punctuation}،")  # which it takes out before it looks at a line
_LETTER, _LATIN = regex.compile(r"\p{L}"), regex.compile(r"\p{Script=Latin}")
_LATIN_WORD = re.compile(r"[A-Za-z]+")


@dataclass(kw_only=True)
class LanguageAlignment(Task):
    """Asks the same prompts in several languages and tells in which languages the answers are.

    Of each language L, over its prompts: `L/answered_in/X` (by fastText, but Chinese without kana is not taken for
    Japanese; where X names a form of Chinese, as zh-TW does, by the characters too: the paper takes either form),
    `L/in_language` (X is L), `L/in_script` (Traditional or Simplified, of Chinese answers), `L/ended`, `L/looped`,
    `L/copied`, `L/empty`, `L/sound` (none of these three), `L/sound_in_language` (both, of all answers),
    `L/in_language_if_sound` (of the sound answers alone, however few), `L/words` (how many an answer has, on average: a
    sound one may be a single number), and as the Language Confusion Benchmark (arXiv 2406.20052) has them
    `L/line_pass` (every line of five words and more is in the language) and `L/word_pass` (of those, no English word in
    other scripts); a character counts as a word where no spaces are.

    Args:
        prompts: a file with one field a language, the same prompt in each.
        languages: which of its fields to ask, as BCP 47 tags (`en`, `zh-TW`).
        limit: ask so many, spread evenly over the file.
        max_new_tokens: responses are cut there.
    """

    version = 6  # characters that were cut; no language where fastText knows no part of a text
    source = "arXiv 2405.20175 (Table 1), arXiv 2406.20052"
    licence = "CC0-1.0"

    languages: list[str]
    prompts: str = "samples:zh_tw/aligned_prompts.jsonl"
    limit: int | None = None
    max_new_tokens: int = 256

    def check(self) -> None:
        if not self.languages:
            raise UserError("languages", "none is given", "Name fields of the prompts' file, as [en, zh-TW].")
        read_aligned_prompts(self.prompts, self.languages, self.limit)

    def items(self, subject: Subject) -> list[Item]:
        items = []
        for language, prompts in read_aligned_prompts(self.prompts, self.languages, self.limit).items():
            turns = [(Turn("user", prompt),) for prompt in prompts]
            answers = subject.generate(f"asking in {language}", turns, self.max_new_tokens)
            items += [item(answer, language, self.languages) for answer in answers]
        return items


def item(answer: Generation, language: str, asked: Sequence[str]) -> Item:
    """One answer to a prompt in `language`, where prompts in all the `asked` languages were given."""
    found = _identified(answer.response, language, asked)
    answered_in = next((tag for tag in (language, *asked) if _fits(answer.response, found, tag)), "other")
    worth = judged(answer, answered_in == language) | confusion(answer.response, language, answer.prompt)
    worth |= {f"answered_in/{tag}": tag == answered_in for tag in (*asked, "other")}
    worth["words"] = float(len(words(answer.response)))
    if found == "zh" and (form := expected_form(language)):
        worth["in_script"] = form_of(answer.response) in (form, None)
    shown = {"language": language, "prompt": answer.prompt, "response": answer.response, "found": found}
    return Item(
        f"{language}: {answer.prompt}", {f"{language}/{name}": value for name, value in worth.items()}, shown=shown
    )


def _identified(response: str, language: str, asked: Sequence[str] = ()) -> str:
    """The code of a response's language, which may be Chinese or Japanese where either was asked for."""
    among = [language] if primary(language) == "zh" else [language, *asked]
    return identify(response, list(map(primary, among)))


def _fits(response: str, found: str, tag: str) -> bool:
    """Whether a response in the language `found` is in that of a tag, and of Chinese in the form that the tag names."""
    form = expected_form(tag)
    return found == primary(tag) and (form is None or form_of(response) in (form, None))


def flaws(answer: Generation) -> dict[str, bool]:
    """Why an answer is none, whatever its language."""
    return {
        "looped": loops(answer.response),
        "copied": copies(answer.prompt, answer.response),
        "empty": not words(answer.response),
    }


def judged(answer: Generation, is_in_language: bool) -> dict[str, bool | float]:
    """What every answer is judged by."""
    found = flaws(answer)
    worth: dict[str, bool | float] = {"in_language": is_in_language, "ended": answer.ended, **found}
    worth["sound"] = not any(found.values())
    worth["sound_in_language"] = worth["sound"] and is_in_language
    return worth | ({"in_language_if_sound": is_in_language} if worth["sound"] else {})


def shares(answers: Sequence[Generation], language: str) -> dict[str, float]:
    """What the answers to prompts in a language come to: name of `judged` -> share."""

    def worth(answer: Generation) -> dict[str, bool | float]:
        response = answer.response
        return judged(answer, _fits(response, _identified(response, language), language))

    items = [Item(answer.prompt, worth(answer)) for answer in answers]
    return {name: share.value for name, share in means(items).items()}


def confusion(response: str, language: str, prompt: str) -> dict[str, bool | float]:
    """Line and word pass of a response; nothing where no line is long enough to tell, or no script can give it away."""
    lines = [line for line in response.translate(_PUNCTUATION).splitlines() if len(words(line)) >= _LINE_WORDS]
    if not lines:
        return {}
    passes = all(_is_in(line, primary(language)) for line in lines)
    if not passes or len(_LATIN.findall(prompt)) * 2 > len(_LETTER.findall(prompt)):
        return {"line_pass": passes}
    units = {word for line in lines for word in _LATIN_WORD.findall(line)}
    return {"line_pass": True, "word_pass": units.isdisjoint(_english_words())}


def _is_in(line: str, code: str) -> bool:
    language, likelihood = next(iter(likely_languages(line, [code]).items()))
    return language == code and likelihood > _LINE_CONFIDENCE


@cache
def _english_words() -> frozenset[str]:
    """Lower-case words of four letters and more: names and abbreviations stand in texts of every language."""
    known = library("english_words", "eval").get_english_words_set(["web2"])
    return frozenset(word for word in known if word.islower() and len(word) >= _ENGLISH_LETTERS)


def read_aligned_prompts(spec: str, languages: Sequence[str], limit: int | None = None) -> dict[str, list[str]]:
    """Language -> prompts, from a file with one field a language (`en`, `zh-TW` or `zh_tw`).

    Raises:
        UserError: no file, a broken line, or a language that the file does not have or that nobody could identify.
    """
    for language in languages:
        require_known(language)
    rows = spread(read_table(spec), limit)
    return {language: [text_of(position, row, [language]) for position, row in rows] for language in languages}
