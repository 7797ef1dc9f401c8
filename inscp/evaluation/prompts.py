"""Prompts from files in any format of training data, one prompt per row."""

from collections.abc import Sequence
from typing import Any, TypeVar

from inscp.data.rows import BadRow, Row, read_rows
from inscp.errors import UserError, require_some
from inscp.paths import local_path
from inscp.text.language import LanguageIdentifier

T = TypeVar("T")


def read_table(spec: str) -> list[tuple[str, Row]]:
    """Every row of a file with its position.

    Args:
        spec: the file; `samples:…` for one that ships with the package.

        Raises:
            UserError: no such file, an empty one, or an invalid row.
    """
    path = local_path(spec)
    if not path.is_file():
        raise UserError(spec, "no such file", "Check the path (it is relative to the current folder).")
    rows: list[tuple[str, Row]] = []
    for position, row in read_rows(path):
        if isinstance(row, BadRow):
            raise UserError(position, row.why, "Fix the line.")
        rows.append((position, row))
    if not rows:
        raise UserError(spec, "it is empty", "Give a file with one prompt per line.")
    return rows


def evenly_spaced(rows: Sequence[T], limit: int | None) -> list[T]:
    """`limit` evenly spaced rows, so that every group of rows is represented; all rows without a limit."""
    require_some(limit, "limit", "prompts")
    return [rows[k * len(rows) // limit] for k in range(limit)] if limit and limit < len(rows) else list(rows)


def find_field(row: Row, names: Sequence[str]) -> Any:
    """The value of the first of these fields that is not empty; None if all are.

    Names are compared without regard to case, and _ equals -.
    """
    keys = {key.replace("_", "-").lower(): key for key in row}
    found = (row.get(keys.get(name.replace("_", "-").lower(), name)) for name in names)
    return next((value for value in found if value not in (None, "", []) and str(value).strip()), None)


def read_aligned_prompts(
    spec: str, languages: Sequence[str], identifier: LanguageIdentifier, limit: int | None = None
) -> dict[str, list[str]]:
    """Language -> prompts, from a file with one field per language (`en`, `zh-TW` or `zh_tw`).

    Args:
        spec: the file.
        languages: which fields to take.
        identifier: will identify the languages of the answers.
        limit: number of rows, spread evenly over the file.

        Raises:
            UserError: no such file, an invalid line, no languages, or one that the file or the identifier lacks.
    """
    if not languages:
        raise UserError("languages", f"no language is given for {spec}", "Name fields of the file, such as [fi, en].")
    rows = evenly_spaced(read_table(spec), limit)
    for language in languages:
        identifier.require_known(language)
        if find_field(rows[0][1], [language]) is None:
            known = ", ".join(map(str, rows[0][1]))
            what = f"it has no prompts in {language} (its fields: {known})"
            raise UserError(spec, what, f"Give a file with a field {language}, or other languages.")
    return {language: [text_of(position, row, [language]) for position, row in rows] for language in languages}


def field_of(position: str, row: Row, names: Sequence[str]) -> Any:
    """As `find_field`.

    Raises:
        UserError: the row has none of them, or all are empty.
    """
    if (value := find_field(row, names)) is not None:
        return value
    known = ", ".join(map(str, row))
    raise UserError(
        position, f"no {' or '.join(names)} in it (its fields: {known})", "Name one of them, or fix the line."
    )


def text_of(position: str, row: Row, names: Sequence[str]) -> str:
    """As `field_of`, for a field that must be text."""
    value = field_of(position, row, names)
    if not isinstance(value, str):
        raise UserError(position, f"{names[0]} is not text but {type(value).__name__}", "Fix the line.")
    return value
