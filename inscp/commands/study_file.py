"""Reads a study's file, and names it in errors."""

from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from inscp.commands.parser import Parser
from inscp.errors import UserError, within
from inscp.experiment.configuration import read_configs
from inscp.experiment.study import FILE, Arm, Language, Study

T = TypeVar("T")


def read_study(folder: Path) -> Study:
    """Read a study's file.

    Raises:
        UserError: no such file, or the study is invalid.
    """
    if folder.is_file():
        raise UserError(str(folder), "it is a file", f"Give its folder: {folder.parent}.")
    file = folder / FILE
    if not file.is_file():
        raise UserError(str(file), "no such file", "Name a folder that contains an experiment.yaml.")
    parser = Parser(prog="python -m inscp experiment run")
    parser.add_class_arguments(Study, skip={"name"})
    given = read_configs([str(file)], "Write the keys of a study: question, fit, arms, languages.")
    with said_in(folder):
        filled = {field.name for field in fields(Study) if field.default is not None}
        if empty := next((key for key, value in given.items() if value is None and key in filled), None):
            raise UserError(empty, "it has no value", "Give a value, or remove the key.")  # the parser would name flags
        arms = {name: _section(Arm, f"arms.{name}", arm) for name, arm in _mapping("arms", given.get("arms")).items()}
        languages = {
            tag: _section(Language, f"languages.{tag}", _language(tag, of))
            for tag, of in _mapping("languages", given.get("languages")).items()
        }
        # The parser would instantiate the classes that arms name, so it sees only the rest.
        rest = parser.instantiate_classes(parser.parse_object(given | {"arms": {}, "languages": {}}))
        study = Study(folder.resolve().name, **vars(rest) | {"arms": arms, "languages": languages})
        study.check()
    return study


def _language(tag: str, given: Any) -> Any:
    """The content of a language's section, in the file itself or in one that it names."""
    if not isinstance(given, str):
        return given
    with within(f"languages.{tag}"):
        return read_configs([given], "Write what the language changes: fit, evaluate.")


def _section(kind: type[T], where: str, given: Any) -> T:
    """An object from the content of a section.

    Raises:
        UserError: it is not a section, or has an unknown key.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key, value in _mapping(where, given).items():
        if key not in known:
            raise UserError(f"{where}.{key}", "no such key", f"Choose from: {', '.join(known)}.")
        if value is None:  # an arm without `fit` would be the original
            raise UserError(f"{where}.{key}", "it has no value", "Write {} if nothing differs, or remove it.")
    return kind(**given)


def _mapping(where: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UserError(where, "it is not a section of keys", "Write {KEY: VALUE, …}.")
    return given


def said_in(folder: str | Path) -> AbstractContextManager[None]:
    """Errors inside this context also name the study's file."""
    return within(str(Path(folder) / FILE))
