"""Command lines and configuration files: jsonargparse, with errors that fit one line."""

import json
import os
import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable
from difflib import get_close_matches
from inspect import isabstract
from pydoc import locate
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, _typehints, auto_cli
from jsonargparse._actions import _ActionConfigLoad  # no public name tells a section from a value

from inscp.commands.parser_errors import NESTED_ERROR, class_names, known_keys, user_error, whole_key
from inscp.commands.quiet import quiet
from inscp.errors import UserError
from inscp.signals import stopping_well

_PROGRAM = "python -m inscp"

Components = Callable[..., Any] | dict[str, Callable[..., Any]]
"""A function, or one for each subcommand."""


def _another_class_begins_anew(_: Any, before: Any, now: Any) -> None:
    """Where a key's class changes, none of the old one's arguments stay.

    jsonargparse keeps those whose names the new one has too, defaults among them: `ConversationTagger` would take its
    loss on `all` tokens, as `InsCPTagger` does.
    """
    if before and "init_args" in before and before["class_path"] != now["class_path"]:
        before["init_args"] = Namespace()


assert hasattr(_typehints, "discard_init_args_on_class_path_change"), "this jsonargparse has no such function"
_typehints.discard_init_args_on_class_path_change = _another_class_begins_anew


class OneLineErrors:
    """Mixin of a jsonargparse parser: `error` raises a `UserError` instead of printing usage and leaving."""

    prog: str
    usage: str | None
    description: str | None
    epilog: str | None
    command_name: str = ""
    """How messages call the command, where it is not as the parser calls itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["allow_abbrev"] = False  # a key that is cut short is a misspelled one
        super().__init__(*args, **options)

    @property
    def _command(self) -> str:
        """As people call it, `python -m inscp fit`; empty where this is the parser of a class in a key."""
        prog = self.prog.replace("[options] ", "")
        return self.command_name or (prog if prog.startswith(_PROGRAM) else "")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise user_error(self, message, self._command, sys.argv[1:]) from ex  # type: ignore[arg-type]

    def format_help(self) -> str:
        """As jsonargparse does. That of a class in a key has no usage; an abstract one tells which ones to take."""
        if not self._command:
            self.usage = SUPPRESS
            named = (self.description or "").rpartition("=")[2]
            of = locate(named) if named.startswith("inscp.") else None
            if isinstance(of, type) and isabstract(of):
                self.epilog = f"Choose from: {', '.join(class_names([of]))}."
        return super().format_help()  # type: ignore[misc,no-any-return]

    def _check_value_key(self, action: Action, value: Any, *args: Any, **options: Any) -> Any:
        """As jsonargparse does, which takes any value that a file gives for a section."""
        if isinstance(action, _ActionConfigLoad) and not isinstance(value, dict | Namespace | str):
            value = json.dumps(value)  # as the command line has it, where it is looked at
        try:
            return super()._check_value_key(action, value, *args, **options)  # type: ignore[misc]
        except UserError as error:  # of a class inside the value, which knows the end of the key alone
            where = whole_key(error.where, {action.dest: value}) or error.where
            raise UserError(where, error.what, error.fix) from error

    def validate(self, *args: Any, **options: Any) -> Any:
        """As jsonargparse does, which takes `null` for any key by itself."""
        return super().validate(*args, **{**options, "skip_unset": False})  # type: ignore[misc]

    def instantiate(self, *args: Any, **options: Any) -> Any:
        """As jsonargparse does, which hides a class's own `UserError` among what other types of the key complain."""
        try:
            return super().instantiate(*args, **options)  # type: ignore[misc]
        except ValueError as error:
            if told := NESTED_ERROR.search(str(error)):
                raise UserError(*told.groups()) from error
            raise


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

    def format_help(self) -> str:  # type: ignore[override]
        """With the spelling of `experiment run --dry-run` that people use."""
        return super().format_help().replace("--dry_run {true,false}", "--dry-run")


def call(command: str, function: Components, arguments: list[str], as_positional: bool = False) -> None:
    """Call a function, or that of a subcommand, with what the command line says; its docstring is the `--help`."""
    quiet()
    prog = f"{_PROGRAM} {command}"
    with stopping_well():
        auto_cli(function, args=arguments, parser_class=Parser, as_positional=as_positional, prog=prog)  # type: ignore[arg-type]


def require_known_variables(prefix: str, parser: ArgumentParser) -> None:
    """See that environment variables that look like keys are some.

    Args:
        prefix: of their names.
        parser: whose keys they should be.

    Raises:
        UserError: one is none, which would be passed over in silence.
    """
    known = {prefix + key.upper().replace(".", "__") for key in known_keys(parser)}
    if unknown := next((name for name in os.environ if name.startswith(prefix) and name not in known), None):
        near = get_close_matches(unknown, known, n=1)
        raise UserError(unknown, "no such key", f"Did you mean {near[0]}?" if near else "Unset the variable.")
