"""Sources of text: files and folders in any known format, data sets on the Hugging Face Hub or saved to disk."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from inscp.data.fields import ASSISTANT, CANONICAL, CONTEXT, HISTORY, SYSTEM, TEXT, TURNS, USER, to_turns
from inscp.data.rows import BadRow, PlacedRow, TextUnit, file_format, is_supported, read_rows
from inscp.digests import file_digest
from inscp.errors import UserError, first_line, require_some
from inscp.paths import SAMPLES_SCHEME, local_path
from inscp.records import Record

OnBadRecord = Literal["error", "skip"]
_ABOUT = re.compile(r"(readme|licen[sc]e)([._-].*)?|dataset_infos?", re.IGNORECASE)
"""Names of files that describe the data of a folder."""
_SPLITS = ("train", "validation", "valid", "val", "dev", "test")
"""Prefixes of the names of the files and folders of a split, as on the Hub."""
_SAVED_TO_DISK = ("state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Source:
    """One source of text.

    Args:
        path: file, folder, `samples:...` (included in the package), data set saved to disk, or Hub id.
        fields: mapping of names to the fields of the data, if these are not common ones: `text`, or `user`, `context`
            and `assistant` (and `history`, the earlier pairs), or `turns`; `system` with the last two. Prompts for
            `generate` need no `assistant`.
        text_unit: unit of a plain-text file that makes one document.
        limit: maximum number of records, from the beginning.
        weight: how often training uses each record: 2 is twice, 0.5 every second one. Other commands (`inspect`,
            `score`, `select`, …) read each record once.
        subset: subset (configuration) of a Hub data set.
        split: split of a Hub data set or of one saved to disk, by default `train`; for a folder with several splits,
            the prefix of the names of its files and folders.
        revision: commit, tag or branch of a Hub data set.
        licence: licence of the texts, for the model card (`CC-BY-SA-4.0`, say).
    """

    path: str
    fields: dict[str, str] | None = None
    text_unit: TextUnit = "file"
    limit: int | None = None
    weight: float = 1.0
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("path of a source", "it is empty", "Name a file, a folder or a Hub id.")
        if self.licence is None and self.path.startswith(SAMPLES_SCHEME):
            object.__setattr__(self, "licence", "CC0-1.0")
        names = set(self.fields or ())
        unknown = names - set(CANONICAL)
        if unknown:
            raise UserError(f"fields of {self.path}", f"unknown name {unknown.pop()}", f"Use {', '.join(CANONICAL)}.")
        core = names - {SYSTEM} - ({CONTEXT, HISTORY} if USER in names else set())
        if names and names != {TEXT} and core not in ({TURNS}, {USER}, {USER, ASSISTANT}):
            fix = "Give `text` alone, `turns` (and `system`), or `user` and `assistant` (and `context`, `history`)."
            raise UserError(f"fields of {self.path}", f"{', '.join(sorted(names))} do not make up a record", fix)
        require_some(self.limit, f"limit of {self.path}", "records")
        if not 0 < self.weight < math.inf:
            what = f"it must be a positive number, but is {self.weight}"
            raise UserError(f"weight of {self.path}", what, "Give 2 or 0.5, say, or remove it.")

    @property
    def name(self) -> str:
        """The source's name in reports."""
        parts = [part for part in (self.subset, None if self.split == "train" else self.split) if part]
        return f"{self.path} ({', '.join(parts)})" if parts else self.path


@dataclass
class ReadReport:
    """What was read, filled while records are read.

    Attributes:
        seen: number of rows, good and bad.
        usable: number of them that are records.
        skipped: reason -> number of records skipped for it, by the reader or a later stage.
        examples: reason -> first position.
    """

    seen: int = 0
    usable: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """Number of records that were read and not skipped later."""
        return self.seen - self.skipped.total()

    def skip(self, position: str, why: str) -> None:
        """Count a record that is skipped."""
        self.skipped[why] += 1
        self.examples.setdefault(why, position)

    def add(self, later: "ReadReport") -> None:
        """Add the counts of a later part of the source."""
        self.seen += later.seen
        self.usable += later.usable
        self.skipped += later.skipped
        self.examples = later.examples | self.examples


_FIX = "Fix or remove the record, or set on_bad_record to skip."


def bad_record(
    position: str, why: str, on_bad_record: OnBadRecord, report: ReadReport, detail: str = "", fix: str = _FIX
) -> None:
    """Handle a bad record, for all callers: raise an error with its position, or count it.

    Raises:
        UserError: if `on_bad_record` is `error`.
    """
    if on_bad_record == "error":
        what = f"{why} ({detail})" if detail else why
        raise UserError(position, what, fix)
    report.skip(position, why)


def read_records(
    source: Source, on_bad_record: OnBadRecord, report: ReadReport, requests: bool = False
) -> Iterator[Record]:
    """Stream the records of a source.

    Args:
        source: the source.
        on_bad_record: stop, or skip and count.
        report: filled while the records are read.
        requests: whether a prompt without an answer is a record.

    Raises:
        UserError: the source does not exist, is empty, or (with `error`) has an invalid record.
    """
    yield from as_records(source_rows(source), source, on_bad_record, report, requests)
    require_records(source, report)


def as_records(
    rows: Iterable[PlacedRow], source: Source, on_bad_record: OnBadRecord, report: ReadReport, requests: bool = False
) -> Iterator[Record]:
    """As `read_records`, for some rows of the source."""
    if not requests:
        _require_answers(source)
    for position, row in rows:
        report.seen += 1
        turns = to_turns(row, source.fields, requests)
        if isinstance(turns, BadRow):
            bad_record(position, turns.why, on_bad_record, report, turns.detail, turns.fix or _FIX)
        else:
            report.usable += 1
            yield Record(position, turns)


def require_records(source: Source, report: ReadReport) -> None:
    """
    Args:
        source: a source that was read to its end.
        report: of this source alone.

    Raises:
        UserError: none of its rows is a record.
    """
    if not report.usable:
        [(why, _)] = report.skipped.most_common(1) or [("it is empty", 0)]
        what = f"it contains no usable record ({why})"
        raise UserError(source.path, what, "Check the path, the format and the fields.")


def require_source(source: Source) -> None:
    """
    Raises:
        UserError: its path does not exist, or its fields make only prompts.
    """
    _require_answers(source)
    _files(source)


def _require_answers(source: Source) -> None:
    if source.fields and USER in source.fields and ASSISTANT not in source.fields:
        fix = "Name the answer's field as `assistant`, or plain text as `text`."
        raise UserError(f"fields of {source.path}", "they name the user's text, but no answer", fix)


def require_outside(out: Path, sources: Sequence[Source]) -> None:
    """Check that an output is not inside a folder that is read as data.

    Raises:
        UserError: it is.
    """
    for source in sources:
        folder = local_path(source.path)
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise UserError(str(out), f"it is inside {source.path}, which is read as data", "Give another path.")


_READING = 2
"""Version of how rows become records, for fingerprints: 2 trims texts and removes reasoning."""


def source_fingerprint(source: Source) -> str:
    """A digest of the source's contents and of how it is read."""
    files = _files(source)
    if files is None:
        contents = str(_saved_or_hub(source)._fingerprint)
    else:
        digest = hashlib.blake2b(digest_size=16)
        for path in files:
            digest.update(f"{file_digest(path)} {file_format(path)}".encode())
        contents = digest.hexdigest()
    reading = (_READING, sorted((source.fields or {}).items()), source.text_unit, source.limit)
    return hashlib.blake2b(repr((contents, reading)).encode(), digest_size=16).hexdigest()


def file_names(source: Source) -> list[str]:
    """The names with which positions in a source begin, in reading order."""
    files = _files(source)
    return [source.path] if files is None else list(map(str, files))


def renamed(position: str, names: Mapping[str, str]) -> str:
    """A position (`a.jsonl:17`, `a.parquet#17`) with its file renamed."""
    file, sign, number = re.split(r"([:#])(?=\d+$)", position)
    return names[file] + sign + number


def _files(source: Source) -> list[Path] | None:
    """The source's files in a fixed order; None if `datasets` has to read it."""
    path = local_path(source.path)
    for name in ("subset", "revision") if path.exists() else ():
        if getattr(source, name):
            raise UserError(f"{name} of {source.path}", "only a data set on the Hub has one", "Remove it.")
    if path.is_dir():
        if any((path / name).exists() for name in _SAVED_TO_DISK):
            return None
        # As for readers of Parquet folders, names that begin with _ or . are metadata.
        found = (p for p in path.rglob("*") if p.is_file() and is_supported(p) and not _ABOUT.fullmatch(p.stem))
        files = sorted(p for p in found if not any(part[0] in "_." for part in p.relative_to(path).parts))
        if not files:
            raise UserError(source.path, "the folder contains no file of a known format", "Check the path.")
        return _of_split(source, path, files)
    if path.exists():
        if source.split:
            raise UserError(f"split of {source.path}", "a file has no splits", "Remove it.")
        return [path]
    is_hub_id = source.path.count("/") == 1 and source.path[0] not in "./~" and not is_supported(path)
    if not is_hub_id:
        raise UserError(source.path, "no such file or folder", "Check the path (it is relative to the current folder).")
    return None


def _of_split(source: Source, folder: Path, files: list[Path]) -> list[Path]:
    """The files of the source's split, or all files of a folder without splits."""
    splits = {file: _split(file.relative_to(folder), source.split) for file in files}
    there = sorted({split for split in splits.values() if split})
    if source.split and source.split not in there:
        what = f"no file or folder in it has a name beginning with {source.split}"
        fix = f"Use one of: {', '.join(there)}." if there else "Remove it."
        raise UserError(f"split of {source.path}", what, fix)
    if not source.split and "train" in there and len(there) > 1:
        fix = f"Name one: [{{path: {source.path}, split: train}}]."
        raise UserError(source.path, f"the folder contains the splits {' and '.join(there)}", fix)
    return [file for file in files if source.split in (None, splits[file])]


def _split(file: Path, asked: str | None) -> str | None:
    """The split that a file belongs to, by its name or that of a folder around it."""
    names = (*_SPLITS, asked) if asked else _SPLITS
    return next(
        (split for part in file.parts for split in names if re.match(rf"{re.escape(split)}(\W|_|$)", part)), None
    )


def source_rows(source: Source) -> Iterator[PlacedRow]:
    """Every row of a source with its position, unchanged, up to the source's limit.

    Raises:
        UserError: the source does not exist.
    """
    files = _files(source)
    rows: Iterable[PlacedRow]
    if files is None:
        rows = ((f"{source.path}#{number}", row) for number, row in enumerate(_without_media(_saved_or_hub(source)), 1))
    else:
        rows = chain.from_iterable(read_rows(path, source.text_unit) for path in files)
    return islice(rows, source.limit)


def weighted_rows(source: Source) -> Iterator[PlacedRow]:
    """As `source_rows`, with each row as often as the source's weight says; for part of a pass, evenly spaced rows."""
    whole, part = divmod(Fraction(str(source.weight)), 1)  # in floats 0.07 x 100 is more than 7
    for _ in range(whole):
        yield from source_rows(source)
    if part:
        rows = enumerate(source_rows(source), 1)
        yield from (row for number, row in rows if math.ceil(number * part) > math.ceil((number - 1) * part))


def _without_media(data):  # type: ignore[no-untyped-def]
    """A data set without columns of images, recordings, …: decoding is slow, and some values cannot be pickled."""
    return data.remove_columns([name for name, feature in data.features.items() if _is_media(feature)])


def _is_media(feature: Any) -> bool:
    """Whether everything in a column of a `datasets.Dataset` is decoded, and not text."""
    if isinstance(feature, Mapping):
        return bool(feature) and all(map(_is_media, feature.values()))
    if hasattr(feature, "feature"):  # a list's
        return _is_media(feature.feature)
    return hasattr(feature, "decode_example") and type(feature).__name__ != "Json"


def _saved_or_hub(source: Source):  # type: ignore[no-untyped-def]  # a datasets.Dataset, imported only when needed
    import datasets

    path, split = local_path(source.path), source.split or "train"
    try:
        if path.is_dir():
            saved = datasets.load_from_disk(path)
            if isinstance(saved, datasets.Dataset):
                return {None: saved, str(saved.split): saved}[source.split]
            return saved[split]
        return datasets.load_dataset(source.path, source.subset, split=split, revision=source.revision)
    except Exception as error:  # the Hub client raises a dozen unrelated types; each means that there is no data
        reason = first_line(error)
        fix = "Check the path or Hub id, subset, split and network; a private data set needs HF_TOKEN."
        raise UserError(
            source.path, f"neither a local path nor a data set that can be loaded ({reason})", fix
        ) from error
