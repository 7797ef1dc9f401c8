"""Quality filters: broken text, refusals, personal data, and contamination with benchmarks."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import regex

from inscp.data.fields import texts
from inscp.data.rows import BadRow, is_supported
from inscp.data.sources import Source, source_fingerprint, source_rows
from inscp.errors import UserError
from inscp.optional import library
from inscp.paths import local_path
from inscp.records import Candidate, Turn
from inscp.selection.filters import Drop, Filter, Verdict
from inscp.text.refusal import SAYS_IT_IS_A_MODEL, compiled
from inscp.text.words import UNIT, is_unspaced, loops, words
from inscp.yaml_file import read_yaml

_MARKUP = regex.compile(r"<[/!]?[a-zA-Z][^<>]{0,500}>|&(?:nbsp|lt|gt|amp|quot|#\d+);|\[\[|\]\]|\{\{|\}\}|\{\|")


@dataclass
class BrokenText(Filter):
    """Drops broken text: wrongly decoded, full of mark-up, repetitive, or without words.

    Every turn is judged by itself, because an answer may well repeat its prompt.

    Args:
        markup: maximum fraction of the characters, from 0 to 1, in tags, entities and wiki brackets.
        repeated_lines: maximum fraction of the lines of at least three words that repeat an earlier line (Gopher, arXiv
            2112.11446).
    """

    markup: float = 0.1
    repeated_lines: float = 0.3

    def judge(self, candidate: Candidate) -> Verdict:
        if not UNIT.search(candidate.text):
            return Drop("no words")
        return next(filter(None, (self._broken(turn.text) for turn in candidate.record.turns)), candidate)

    def _broken(self, text: str) -> Drop | None:
        if "\ufffd" in text or _is_mojibake(text):
            return Drop("wrongly decoded")
        share = sum(match.end() - match.start() for match in _MARKUP.finditer(text)) / len(text)
        if share > self.markup:
            return Drop("mark-up", f"{share:.0%}")
        lines = [line.strip() for line in text.splitlines() if len(UNIT.findall(line)) > 2]
        if len(lines) > 3 and 1 - len(set(lines)) / len(lines) > self.repeated_lines:
            return Drop("repeats lines", f"{len(lines) - len(set(lines))} of {len(lines)}")
        return Drop("repeats itself") if loops(text) else None


def _is_mojibake(text: str) -> bool:
    # Text that looks strange (phonetic script) but cannot be decoded better is correct.
    return bool(library("ftfy.badness", "select").is_bad(text)) and library("ftfy", "select").fix_encoding(text) != text


@dataclass
class Refusals(Filter):
    """Drops texts in which a chat model speaks of itself ("as an AI language model"), in en, zh, ja, fi and ar.

    Args:
        phrases: additional phrases, as case-insensitive regular expressions.
    """

    phrases: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pattern = compiled((*SAYS_IT_IS_A_MODEL, *self.phrases), "Refusals")

    def judge(self, candidate: Candidate) -> Verdict:
        match = self._pattern.search(candidate.text.replace("’", "'"))
        return Drop("says it is a model", match[0]) if match else candidate


# ASCII classes, because Chinese and Japanese have no spaces that would end an address or a number.
_EMAIL = regex.compile(
    r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,3}\.[A-Za-z][A-Za-z0-9-]{1,62}"
)
_NUMBER = regex.compile(r"(?<![A-Za-z0-9-])[A-Z0-9]+(?:[ .+-][A-Z0-9]+)*(?![A-Za-z0-9-])")
_GROUP = regex.compile(r"[A-Z0-9]+")
_CARD = regex.compile(r"(?=[3-6]|2[2-7])(?:\d{13,19}|\d{4}(?:[ -]\d{4}){3}(?:[ -]\d{1,3})?|\d{4}[ -]\d{6}[ -]\d{5})")
"""The grouping and first digits of cards: one in ten other runs of digits has a valid check digit by chance."""
_DECIMAL = regex.compile(r"\d[.,]\d+")
_LONGEST_NUMBER, _SHORTEST_NUMBER = 40, 7


@dataclass
class PersonalData(Filter):
    """Masks e-mail addresses, phone numbers, and personal, card and account numbers; drops nothing.

    Args:
        phone_regions: ISO 3166 codes of countries whose phone numbers are recognised without country prefix, such as
            `[FI, TW]`; numbers with a prefix (+358 …) are always recognised.
        numbers: kinds of numbers by their name in python-stdnum, with valid check digits: `luhn` (cards), `iban`,
            `fi.hetu`.
    """

    phone_regions: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=lambda: ["luhn", "iban"])
    _masked: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            self._kinds = {name: import_module(f"stdnum.{name}") for name in self.numbers}
        except ImportError as error:
            fix = 'Give names of python-stdnum (luhn, iban, fi.hetu), installed by pip install "inscp[select]".'
            raise UserError("PersonalData", f"there is no {error.name}", fix) from error
        known = library("phonenumbers", "select").SUPPORTED_REGIONS if self.phone_regions else ()
        if unknown := next((region for region in self.phone_regions if region not in known), None):
            raise UserError("PersonalData", f"{unknown} is not a region", "Give ISO 3166 codes in capitals: FI, TW.")

    def judge(self, candidate: Candidate) -> Verdict:
        turns = tuple(Turn(turn.role, self._mask(turn.text)) for turn in candidate.record.turns)
        return replace(candidate, record=replace(candidate.record, turns=turns))

    def _mask(self, text: str) -> str:
        text = _EMAIL.sub(lambda _: self._as("email"), text)
        text = _NUMBER.sub(self._number, text)
        phones = library("phonenumbers", "select")
        for region in (None, *self.phone_regions):
            for match in reversed(list(phones.PhoneNumberMatcher(text, region))):
                if not _DECIMAL.search(text, max(0, match.start - 2), match.start + 3):
                    text = text[: match.start] + self._as("phone") + text[match.end :]
        return text

    def _number(self, match: Any) -> str:
        """A run of groups of letters and digits with the longest valid number at each place, from the left, masked."""
        run, groups, masked, done, first = match[0], list(_GROUP.finditer(match[0])), [], 0, 0
        while first < len(groups):
            start = groups[first].start()
            near = range(first, min(first + _LONGEST_NUMBER, len(groups)))  # a group has at least one character
            for last in reversed([place for place in near if groups[place].end() - start <= _LONGEST_NUMBER]):
                number = run[start : groups[last].end()]
                if len(number) >= _SHORTEST_NUMBER and (kind := self._kind(number, _beside(groups, first, last))):
                    masked += [run[done:start], self._as(kind)]
                    done, first = groups[last].end(), last
                    break
            first += 1
        return "".join([*masked, run[done:]])

    def _kind(self, number: str, beside: list[str]) -> str | None:
        plain = number.replace(" ", "").replace("-", "")
        is_card = bool(_CARD.fullmatch(number)) and sum(len(group) == 4 and group.isdigit() for group in beside) < 2
        for name, kind in self._kinds.items():
            if (name != "luhn" or is_card) and (kind.is_valid(number) or kind.is_valid(plain)):
                return name
        return None

    def _as(self, kind: str) -> str:
        self._masked[kind] += 1
        return f"[{kind}]"

    def found(self) -> dict[str, Any]:
        return {"masked": dict(self._masked)}


def _beside(groups: list[Any], first: int, last: int) -> list[str]:
    """The groups on either side: digits between other groups of four belong to a table, not to a card."""
    return [groups[place][0] for place in (first - 1, last + 1) if 0 <= place < len(groups)]


@dataclass
class Contamination(Filter):
    """Drops records that share a long run of words with a benchmark, so that evaluations do not measure memorisation.

    Args:
        benchmarks: files, folders or Hub ids, as for `data.train`; all texts in them count, answers too.
        evaluations: configurations of `evaluate`; the files and folders that their tasks name are benchmarks too.
        n: length of the shared run in words (13: GPT-3, arXiv 2005.14165); in scripts without spaces two characters
            count as a word.
        shortest: minimum words of a benchmark text to look for, so that single names are ignored; a text of fewer than
            n words is looked for as a whole.
    """

    benchmarks: list[str] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)
    n: int = 13
    shortest: int = 8

    def __post_init__(self) -> None:
        task_files = (file for spec in self.evaluations for file in _files_of_tasks(spec))
        self._files = list(dict.fromkeys((*self.benchmarks, *task_files)))
        if not self._files:
            raise UserError("Contamination", "no benchmark is given", "Give `benchmarks` or `evaluations`.")
        self._known: dict[int, set[int]] = {}
        for spec in self._files:
            before = sum(map(len, self._known.values()))
            for position, row in source_rows(Source(spec)):
                if isinstance(row, BadRow):
                    raise UserError(position, row.why, "Fix the benchmark; unreadable rows cannot be checked.")
                for units in map(words, texts(row)):
                    size = 2 if is_unspaced(units) else 1
                    if len(units) >= self.shortest * size:
                        n = min(self.n * size, len(units))
                        self._known.setdefault(n, set()).update(_grams(units, n))
            if sum(map(len, self._known.values())) == before:
                what = f"none of its texts has {self.shortest} words that are not in another benchmark"
                raise UserError(spec, what, "Lower `shortest`, or remove the benchmark.")

    def contents(self) -> str:
        return " ".join(source_fingerprint(Source(spec)) for spec in self._files)

    def judge(self, candidate: Candidate) -> Verdict:
        units = words(candidate.text)
        for n, known in self._known.items():
            for place, gram in enumerate(_grams(units, n)):
                if gram in known:
                    return Drop("in a benchmark", " ".join(units[place : place + n]))
        return candidate


_EVALUATION = "Give a file like those in configs/evaluate."
_NO_PROMPTS = ("class_path", "languages", "opponent", "original", "classifier")
"""Keys of tasks whose texts are not prompts, and that name models or results if they name a file."""


def _files_of_tasks(evaluation: str) -> Iterator[str]:
    """The files that are named by the tasks of a configuration of `evaluate`.

    Raises:
        UserError: it is not such a configuration, or one of its tasks names no file.
    """
    try:
        tasks = dict(read_yaml(local_path(evaluation), _EVALUATION)["tasks"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(evaluation, "it has no tasks", _EVALUATION) from error
    for name, task in tasks.items():
        named = texts(task, but=_NO_PROMPTS)
        files = [text for text in named if is_supported(Path(text)) or os.path.isdir(text)]  # noqa: PTH112  # may be any text
        if not files:
            fix = "Give its data as files, or use a configuration without it."
            raise UserError(evaluation, f"the task {name} names no file and no folder, so its prompts are unknown", fix)
        yield from files


def _grams(units: list[str], n: int) -> Iterator[int]:
    return (hash(tuple(units[i : i + n])) for i in range(len(units) - n + 1))
