"""Language filters: by language, script, and the written form of Chinese."""

from collections import Counter
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cache
from typing import Any, Literal

import regex

from inscp.errors import UserError
from inscp.optional import library
from inscp.records import Candidate
from inscp.selection.filters import Drop, Filter, Verdict
from inscp.text.chinese import HAN, Form, count
from inscp.text.language import LID_176, LanguageIdentifier, primary


@dataclass
class Language(Filter):
    """Keeps records in certain languages, identified with fastText.

    Args:
        languages: language codes, such as `[zh]`. Varieties have their own: `arz` is Egyptian Arabic, `yue` Cantonese.
        confidence: minimum probability, from 0 to 1, that a record is in one of them. Names, lists and code lower it in
            any language.
        shorter: records with fewer characters are kept without a check, as the language of a few words cannot be
            identified.
        lid_model: language identification model: `lid.176`, or any other that `LanguageIdentifier` accepts.
    """

    languages: list[str]
    confidence: float = 0.1
    shorter: int = 0
    lid_model: str = LID_176
    _found: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def __post_init__(self) -> None:
        self._identifier = LanguageIdentifier(self.lid_model)
        for language in self.languages:
            self._identifier.require_known(language)
        self._codes = frozenset(map(primary, self.languages))

    def judge(self, candidate: Candidate) -> Verdict:
        if len(candidate.text) < self.shorter:
            return candidate
        likely = self._identifier.likely(candidate.text, self._codes)
        best = next(iter(likely))
        self._found[best] += 1
        confidence = sum(likely.get(code, 0.0) for code in self._codes)
        if confidence >= self.confidence:
            return candidate
        return Drop(f"language {best}", f"{confidence:.0%} {', '.join(self.languages)}")

    def found(self) -> dict[str, Any]:
        return {"languages": dict(self._found.most_common())}


@dataclass
class Script(Filter):
    """Keeps records whose letters are mostly in certain scripts.

    Args:
        scripts: Unicode script names, such as `[Han, Bopomofo]` or `[Latin]`.
        share: minimum fraction of the letters, from 0 to 1, in these scripts.
    """

    scripts: list[str]
    share: float = 0.5

    def __post_init__(self) -> None:
        try:
            self._pattern = regex.compile(
                r"(?=\p{L})[" + "".join(rf"\p{{Script={name}}}" for name in self.scripts) + "]"
            )
        except regex.error as error:
            raise UserError("Script", f"{', '.join(self.scripts)}: {error}", "Give names like Han, Latin.") from error

    def judge(self, candidate: Candidate) -> Verdict:
        letters = len(_LETTER.findall(candidate.text))
        if not letters:
            return Drop("no letters")
        share = len(self._pattern.findall(candidate.text)) / letters
        return candidate if share >= self.share else Drop("other scripts", f"{share:.0%} of {', '.join(self.scripts)}")


_LETTER = regex.compile(r"\p{L}")


@dataclass
class Chinese(Filter):
    """Keeps Chinese in Traditional or Simplified characters, and optionally only with the vocabulary of one region.

    Characters are those of `inscp.text.chinese`. Regional words (軟件 on the mainland, 軟體 in Taiwan) are those that
    OpenCC would replace.

    Args:
        characters: form to keep.
        foreign: maximum fraction of the Chinese characters, from 0 to 1, in the other form.
        words: region whose vocabulary is kept, or `any`. A text is dropped if it clearly uses more words of the other
            region.
    """

    characters: Form = "traditional"
    foreign: float = 0.02
    words: Literal["any", "taiwan", "mainland"] = "any"

    def judge(self, candidate: Candidate) -> Verdict:
        text = candidate.text
        other: Form = "simplified" if self.characters == "traditional" else "traditional"
        foreign = count(text, other)
        share = foreign / max(1, len(HAN.findall(text)))
        if share > self.foreign and foreign > 1:  # a single one may be a name, or a gap in the dictionary
            return Drop(f"{other} characters", f"{share:.0%}")
        if self.words != "any":
            plain = _converted(text, "t2s")
            mainland = _changes(_converted(plain, "s2tw"), _converted(plain, "s2twp"))
            traditional = _converted(plain, "s2tw")  # the form in which OpenCC has the words of Taiwan
            taiwan = _changes(_converted(traditional, "tw2s"), _converted(traditional, "tw2sp"))
            mine, others = (taiwan, mainland) if self.words == "taiwan" else (mainland, taiwan)
            if others > mine + _BY_CHANCE:
                return Drop("words of the other region", f"{others} against {mine}")
        return candidate


_SENTENCE, _COMPARED = regex.compile(r"[\n。！？；，]"), 500
_BY_CHANCE = 2
"""Number of words of a text that OpenCC may replace (支持 by 支援) although both regions use them."""


def _converted(text: str, conversion: str) -> str:
    return str(_converter(conversion).convert(text))


@cache
def _converter(name: str) -> Any:
    return library("opencc", "select").OpenCC(name)


def _changes(before: str, after: str) -> int:
    """Number of characters in which two texts differ; if their lengths differ, of runs of characters."""
    if len(before) == len(after):
        return sum(a != b for a, b in zip(before, after, strict=True))
    # Sentence by sentence, because the comparison is quadratic in the length.
    parts = (_SENTENCE.split(text) for text in (before, after))
    changed = 0
    for one, other in zip(*parts, strict=False):
        if one != other:
            blocks = SequenceMatcher(None, one[:_COMPARED], other[:_COMPARED], autojunk=False).get_opcodes()
            changed += sum(kind != "equal" for kind, *_ in blocks)
    return changed
