"""Command lines and configuration files: jsonargparse, with errors that fit one line and name the nearest key."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, auto_cli

from inscp.commands.quiet import quiet
from inscp.errors import UserError

_UNKNOWN = re.compile(
    r"unrecognized arguments?: *(?:--)?(?P<a>[\w.+]+)|key ['\"]?(?P<b>[\w.]+)['\"]? is not expected"
    r"|does not accept (?:option|key|nested key) ['\"](?P<c>[\w.]+)"
    r"|(?:option|key) ['\"](?P<d>[\w.]+)['\"] is not accepted",
    re.IGNORECASE,
)
_CLASS = re.compile(r"import path string: (\w+)")
_TOLD = re.compile(r"^ *- (?!Expected|Not a valid|Does not)([^:\n]+): (.+?)\. (.+)$", re.MULTILINE)
_PLACED = re.compile(r"unrecognized arguments?: *(?!-)(\S+)", re.IGNORECASE)
_COMMAND_OF = {"tasks": "evaluate", "filters": "select", "arms": "experiment", "trainer": "fit", "before_after": "fit"}
"""Sections by which a configuration of another command is known."""
_KEY = re.compile(r"(?:parser )?(?:argument|key|option) [\"'`]?-*([\w.]+)[\"'`:]*", re.IGNORECASE)

Components = Callable[..., Any] | dict[str, Callable[..., Any]]
"""A function, or one for each subcommand."""


class OneLineErrors:
    """Mixin of a jsonargparse parser: `error` raises a `UserError` instead of printing usage and leaving."""

    prog: str
    told_as: str = ""
    """How messages call the command, where it is not as the parser calls itself."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _require_yaml(sys.argv)
        see_help = f"See {self.told_as or self.prog.replace('[options] ', '')} --help."
        unknown, named = _UNKNOWN.search(message), _CLASS.search(message)
        if unknown is None:
            key = _KEY.search(message)
            if key and message.rstrip().endswith("Got value: None"):
                raise UserError(key[1], "it has no value", f"Give one, as --{key[1]} …. {see_help}") from ex
            near = get_close_matches(named[1], _classes(), n=1) if named else []
            mend = f"Did you mean {near[0]}?" if near else see_help
            raise UserError(key[1] if key else "configuration", _plain(message), mend) from ex
        name = next(group for group in unknown.groups() if group)
        if (place := _PLACED.search(message)) and Path(place[1]).is_file():
            raise UserError(place[1], "it is given without a key", f"Did you mean --config {place[1]}?") from ex
        if command := _COMMAND_OF.get(name.partition(".")[0]):
            mend = f"It is a key of {command}: see python -m inscp {command} --help."
            raise UserError(name, "no such key", mend) from ex
        known = {part: key for key in _keys(self) for part in (key.rpartition(".")[2], key)}  # type: ignore[arg-type]
        if name in known.values():
            raise UserError(name, "it is given by its place, without its name", see_help) from ex
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        raise UserError(name, "no such key", f"Did you mean {known[near[0]]}?" if near else see_help) from ex

    def validate(self, *args: Any, **options: Any) -> Any:
        """As jsonargparse does, which takes `null` for any key by itself."""
        return super().validate(*args, **{**options, "skip_unset": False})  # type: ignore[misc]

    def instantiate_classes(self, *args: Any, **options: Any) -> Any:
        """As jsonargparse does, which hides a class's own `UserError` among what other types of the key complain."""
        try:
            return super().instantiate_classes(*args, **options)  # type: ignore[misc]
        except ValueError as error:
            if told := _TOLD.search(str(error)):
                raise UserError(*told.groups()) from error
            raise


def _require_yaml(arguments: list[str]) -> None:
    """Tell a configuration that is no YAML by its file and line, which jsonargparse does not name.

    Raises:
        UserError: there is one.
    """
    for flag, value in pairwise([*arguments, ""]):
        path = value if flag == "--config" else flag.partition("=")[2] if flag.startswith("--config=") else ""
        try:
            if path and Path(path).is_file():
                yaml.safe_load(Path(path).read_text("utf-8"))
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UserError(f"{path}{line}", f"no YAML ({error.problem})", "Mend the file.") from error


def _classes() -> list[str]:
    """Names of the classes that a configuration may name, of all rooms that are open."""
    rooms = [module for name, module in sys.modules.items() if name.startswith("inscp.")]
    return [name for room in rooms for name, of in vars(room).items() if isinstance(of, type) and name[0] != "_"]


def _plain(message: str) -> str:
    """What jsonargparse says, without its inner words; of a union, what each member complains."""
    lines = [line.strip() for line in message.splitlines()]
    complaints = [line[2:] for line in lines if line.startswith("- ") and "NoneType" not in line]
    text = "; ".join(complaints) if complaints else " ".join(lines)
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", _KEY.sub("", text))
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text).replace("Expected a ", "expected ")
    return text.partition(" See ")[0].strip(" :.")[:300]


class NoSubConfigs:
    """Mixin of a jsonargparse parser: the path that a key has as its value is not read as a configuration.

    jsonargparse would try to, of every key whose type has a dataclass in it: gigabytes of data too.
    """

    def add_function_arguments(self, *args: Any, sub_configs: bool = False, **options: Any) -> list[str]:
        return super().add_function_arguments(*args, sub_configs=False, **options)  # type: ignore[misc]

    def add_class_arguments(self, *args: Any, sub_configs: bool = False, **options: Any) -> list[str]:
        return super().add_class_arguments(*args, sub_configs=False, **options)  # type: ignore[misc]


class Parser(NoSubConfigs, OneLineErrors, ArgumentParser):
    """Parser of the commands that take no training configuration."""


def call(command: str, function: Components, arguments: list[str], as_positional: bool = False) -> None:
    """Call a function, or that of a subcommand, with what the command line says; its docstring is the `--help`."""
    quiet()
    prog = f"python -m inscp {command}"
    auto_cli(function, args=arguments, parser_class=Parser, as_positional=as_positional, prog=prog)  # type: ignore[arg-type]


def require_known_variables(prefix: str, parser: ArgumentParser) -> None:
    """See that environment variables that look like keys are some.

    Args:
        prefix: of their names.
        parser: whose keys they should be.

    Raises:
        UserError: one is none, which would be passed over in silence.
    """
    known = {prefix + key.upper().replace(".", "__") for key in (*_keys(parser), "config")}
    if unknown := next((name for name in os.environ if name.startswith(prefix) and name not in known), None):
        near = get_close_matches(unknown, known, n=1)
        raise UserError(unknown, "no such key", f"Did you mean {near[0]}?" if near else "Unset the variable.")


def _keys(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.dest not in ("help", "config"):
            yield action.dest
