"""Traditional and simplified Chinese characters: those that CC-CEDICT has in words of one form only (吃 is in both)."""

from functools import cache
from typing import Literal

import regex

from inscp.optional import library
from inscp.text.language import primary

Form = Literal["traditional", "simplified"]
HAN = regex.compile(r"\p{Script=Han}")
_FORMS: dict[str, Form] = {"tw": "traditional", "hk": "traditional", "mo": "traditional", "hant": "traditional",
                           "cn": "simplified", "sg": "simplified", "hans": "simplified"}  # fmt: skip


def count(text: str, form: Form) -> int:
    """Number of the text's characters that belong to this form only."""
    return sum(character in _only(form) for character in text)


def form_of(text: str) -> Form | None:
    """The form to which more of the text's characters belong; None for a tie."""
    traditional, simplified = count(text, "traditional"), count(text, "simplified")
    return None if traditional == simplified else "traditional" if traditional > simplified else "simplified"


def expected_form(language: str) -> Form | None:
    """The form that a BCP 47 tag implies (zh-TW, zh-Hant, zh-CN, …); None for other tags."""
    _, *rest = language.lower().replace("_", "-").split("-")
    return next((_FORMS[part] for part in rest if part in _FORMS), None) if primary(language) == "zh" else None


@cache
def _only(form: Form) -> frozenset[str]:
    cedict = library("zhon.cedict", "eval")
    traditional, simplified = frozenset(cedict.traditional), frozenset(cedict.simplified)
    return traditional - simplified if form == "traditional" else simplified - traditional
