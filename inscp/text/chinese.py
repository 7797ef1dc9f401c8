"""The two forms of Chinese characters: those that in CC-CEDICT stand in words of one form only (吃 stands in both)."""

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
    """How many characters of the text are of that form and not of the other."""
    return sum(character in _only(form) for character in text)


def form_of(text: str) -> Form | None:
    """The form that more of its characters are of; None where that cannot be told."""
    traditional, simplified = count(text, "traditional"), count(text, "simplified")
    return None if traditional == simplified else "traditional" if traditional > simplified else "simplified"


def expected_form(language: str) -> Form | None:
    """The form of a BCP 47 tag that names one: zh-TW, zh-Hant, zh-CN, …"""
    _, *rest = language.lower().replace("_", "-").split("-")
    return next((_FORMS[part] for part in rest if part in _FORMS), None) if primary(language) == "zh" else None


@cache
def _only(form: Form) -> frozenset[str]:
    cedict = library("zhon.cedict", "eval")
    traditional, simplified = frozenset(cedict.traditional), frozenset(cedict.simplified)
    return traditional - simplified if form == "traditional" else simplified - traditional
