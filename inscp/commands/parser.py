"""Command lines and configuration files: jsonargparse, with one-line errors."""

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
from jsonargparse._actions import _ActionConfigLoad  # no public name distinguishes a section from a value

from inscp.commands.parser_errors import NESTED_ERROR, class_names, known_keys, user_error, whole_key
from inscp.commands.quiet import quiet
from inscp.errors import UserError
from inscp.signals import stopping_well

_PROGRAM = "python -m inscp"

Components = Callable[..., Any] | dict[str, Callable[..., Any]]
"""A function, or one for each subcommand."""


def _another_class_begins_anew(_: Any, before: Any, now: Any) -> None:
    """When a key's class changes, drop all arguments of the old one.

    jsonargparse keeps those whose names the new class has too, including defaults: `ConversationTagger` would take its
    loss on `all` tokens, as `InsCPTagger` does.
    """
    if before and "init_args" in before and before["class_path"] != now["class_path"]:
        before["init_args"] = Namespace()


assert hasattr(_typehints, "discard_init_args_on_class_path_change"), "this jsonargparse has no such function"
_typehints.discard_init_args_on_class_path_change = _another_class_begins_anew


class OneLineErrors:
    """Mixin of a jsonargparse parser: `error` raises a `UserError` instead of printing usage and exiting."""

    prog: str
    usage: str | None
    description: str | None
    epilog: str | None
    command_name: str = ""
    """Name of the command in messages, if it differs from the parser's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["allow_abbrev"] = False  # an abbreviated key is treated as misspelled
        super().__init__(*args, **options)

    @property
    def _command(self) -> str:
        """The command as users type it, `python -m inscp fit`; empty for the parser of a class inside a key."""
        prog = self.prog.replace("[options] ", "")
        return self.command_name or (prog if prog.startswith(_PROGRAM) else "")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise user_error(self, message, self._command, sys.argv[1:]) from ex  # type: ignore[arg-type]

    def format_help(self) -> str:
        """As in jsonargparse, but for a class inside a key without usage, and for an abstract one with the choices."""
        if not self._command:
            self.usage = SUPPRESS
            named = (self.description or "").rpartition("=")[2]
            of = locate(named) if named.startswith("inscp.") else None
            if isinstance(of, type) and isabstract(of):
                self.epilog = f"Choose from: {', '.join(class_names([of]))}."
        return super().format_help()  # type: ignore[misc,no-any-return]

    def _check_value_key(self, action: Action, value: Any, *args: Any, **options: Any) -> Any:
        """As in jsonargparse, which on its own accepts any value that a file gives for a section."""
        if isinstance(action, _ActionConfigLoad) and not isinstance(value, dict | Namespace | str):
            value = json.dumps(value)  # as on the command line, where it is checked
        try:
            return super()._check_value_key(action, value, *args, **options)  # type: ignore[misc]
        except UserError as error:  # from a class inside the value, which knows only the end of the key
            where = whole_key(error.where, {action.dest: value}) or error.where
            raise UserError(where, error.what, error.fix) from error

    def validate(self, *args: Any, **options: Any) -> Any:
        """As in jsonargparse, which on its own accepts `null` for any key."""
        return super().validate(*args, **{**options, "skip_unset": False})  # type: ignore[misc]

    def instantiate(self, *args: Any, **options: Any) -> Any:
        """As in jsonargparse, which on its own hides a class's `UserError` among the errors of the other types."""
        try:
            return super().instantiate(*args, **options)  # type: ignore[misc]
        except ValueError as error:
            if nested := NESTED_ERROR.search(str(error)):
                raise UserError(*nested.groups()) from error
            raise


class NoSubConfigs:
    """Mixin of a jsonargparse parser: a path that is the value of a key is not read as a configuration.

    jsonargparse would try to for every key whose type contains a dataclass, even with gigabytes of data.
    """

    def add_function_arguments(self, *args: Any, sub_configs: bool = False, **options: Any) -> list[str]:
        return super().add_function_arguments(*args, sub_configs=False, **options)  # type: ignore[misc]

    def add_class_arguments(self, *args: Any, sub_configs: bool = False, **options: Any) -> list[str]:
        return super().add_class_arguments(*args, sub_configs=False, **options)  # type: ignore[misc]


class Parser(NoSubConfigs, OneLineErrors, ArgumentParser):
    """Parser of the commands that take no training configuration."""

    def format_help(self) -> str:  # type: ignore[override]
        """With the usual spelling of `experiment run --dry-run`."""
        return super().format_help().replace("--dry_run {true,false}", "--dry-run")


def call(command: str, function: Components, arguments: list[str], as_positional: bool = False) -> None:
    """Call a function, or that of a subcommand, with the command-line arguments; its docstring is the `--help`."""
    quiet()
    prog = f"{_PROGRAM} {command}"
    with stopping_well():
        auto_cli(function, args=arguments, parser_class=Parser, as_positional=as_positional, prog=prog)  # type: ignore[arg-type]


def require_known_variables(prefix: str, parser: ArgumentParser) -> None:
    """Check that environment variables that look like keys are valid keys.

    Args:
        prefix: prefix of their names.
        parser: parser that has the keys.

    Raises:
        UserError: one is not, and would be ignored silently.
    """
    known = {prefix + key.upper().replace(".", "__") for key in known_keys(parser)}
    if unknown := next((name for name in os.environ if name.startswith(prefix) and name not in known), None):
        near = get_close_matches(unknown, known, n=1)
        raise UserError(unknown, "no such key", f"Did you mean {near[0]}?" if near else "Unset the variable.")
