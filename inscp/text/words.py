"""The words of a text, and whether it loops or copies."""

import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

import regex

_LOOP_NGRAM = 4
_LOOP_SHARE = 0.5
_COPY_SHARE, _COPY_WORDS = 0.8, 12
UNSPACED = r"\p{Line_Break=Complex_Context}\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
# One CJK, kana, hangul, Thai, Lao, Khmer or Burmese character (or the like); else a run of other letters with their
# marks, and digits: about one word.
UNIT = regex.compile(rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]|\p{{M}})+")
_CHARACTER = regex.compile(rf"[{UNSPACED}]")


def words(text: str, unit: regex.Pattern[str] = UNIT) -> list[str]:
    """The text as units of about one word each, ignoring case and the encoding of accents."""
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
    """Whether the response begins by repeating the prompt: four fifths of its words in one run.

    Of a prompt of fewer than fifteen words, more must be repeated (twelve words, or all of them), because a correct
    answer often restates a short question (法國的首都是哪裡？ 法國的首都是巴黎。).
    """
    asked, said = words(prompt), words(response)
    longest = SequenceMatcher(None, asked, said[: 2 * len(asked)], autojunk=False).find_longest_match().size
    return bool(asked) and longest >= max(_COPY_SHARE * len(asked), min(_COPY_WORDS, len(asked)))
