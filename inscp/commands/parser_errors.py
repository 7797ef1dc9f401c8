"""Errors of jsonargparse in one line: the key and its file, what is wrong, and what was probably meant."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from inspect import isabstract, signature
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser

from inscp.errors import UserError
from inscp.yaml_file import read_yaml

_UNKNOWN = re.compile(r"(?:unrecognized arguments: (?:--)?|accept option '|^Option ')([^\s'=-][^\s'=]*)")
_KEY = re.compile(r"(?:parser )?(?:argument|key|option) [\"'`]?(?:-\w/)?-*([\w.]+)[\"'`:]*", re.IGNORECASE)
_CLASS = re.compile(r"(?:import path string: |given class_path ')([\w./-]+)")
_NO_ENTRY = re.compile(r"Not a valid subclass of (\w+)\. Got value: (.+)$", re.MULTILINE)
_SHAPE = re.compile(r"Expected a <class '(list|dict)'>.*(?:Given|Got) value: (\S+)$", re.DOTALL)
_GIVEN = re.compile(r"(?:Given|Got) value: (.+)$", re.MULTILINE)
_NO_SECTION = re.compile(r"Unable to load config ['\"](.*)['\"]$", re.MULTILINE)
_AROUND = re.compile(r".*\nUnable to load config .*\n *- (?=Parser key )")
"""The part of a message about a section's file that precedes the key in it."""
_SWITCHES_OFF = {"enabled": "false", "prompts": "null", "every_n_steps": "null"}
"""Keys that switch their section off, and the value that does."""
NESTED_ERROR = re.compile(r"^ *- (?!Expected|Not a valid|Does not)([^:\n]+): (.+?)\. (.+)$", re.MULTILINE)
"""A `UserError` among the errors of a union's members."""
_ENTRY = re.compile(r"(?:\n *- .*)*\n *Given value type: .*\n *Given value: (\{.*\})(?=\n(?:.*\n)*? *Given value: )")
"""After a match of `NESTED_ERROR`, the entry of a list or mapping that the error is about."""
_UNDER = "Give it under init_args: {class_path: …, init_args: {…}}."
_FIRST = {"model": "pretrained", "data": "train"}
"""Sections that are a single value in other commands (`--model X`), and the key that takes that value here."""
_ALSO_CALLED = {"limit": "max_prompts", "max_prompts": "limit"}
"""The maximum number of prompts, as tasks and as callbacks call it."""
_COMMAND_OF = {"tasks": "evaluate", "filters": "select", "arms": "experiment", "trainer": "fit", "before_after": "fit"}
"""Sections that identify a configuration of another command."""


def user_error(parser: ArgumentParser, message: str, command: str, arguments: Sequence[str]) -> UserError:
    """
    Args:
        parser: the parser that failed.
        message: its error message.
        command: as users type it, `python -m inscp fit`; empty for the parser of a class inside a key.
        arguments: arguments of the command.
    """
    files = _files.get()
    if files is None:
        files = config_files(arguments)
    see_help = f"See {command} --help." if command else _UNDER
    if unknown := _UNKNOWN.search(message):
        if unknown[1] in arguments and Path(unknown[1]).is_file():
            return UserError(unknown[1], "it is given without a key", f"Did you mean --config {unknown[1]}?")
        name, file = _located(unknown[1], files, arguments)
        what, fix = _suggestion(parser, name, bool(command))
        return UserError(f"{name}{file}", what, fix or see_help)
    message = _AROUND.sub("", message)
    key = _KEY.search(message)
    if key is None:
        return UserError("configuration", _readable(message), see_help)
    given_value = _GIVEN.search(message)
    name, file = _located(key[1], files, arguments, given_value and given_value[1])
    if message.rstrip().endswith(("Got value: None", "Given value: None", "expected one argument")):
        fix = f"Give one, as --{name} …. {see_help}" if command else see_help
        return UserError(f"{name}{file}", "it has no value", fix)
    if given := _NO_SECTION.search(message):
        keys = {f"{name}.{last}": value for last, value in _SWITCHES_OFF.items() if given[1] in _SWITCHES_OFF.values()}
        off = next((f"--{key} {value}" for key, value in keys.items() if key in known_keys(parser)), None)
        fix = f"To switch it off, set {off}." if off else f"Set its keys. {see_help}"
        if name in _FIRST and given[1] != "null":
            fix = f"Did you mean --{name}.{_FIRST[name]} {given[1]}?"
        return UserError(f"{name}{file}", f"it is a section of keys, but {given[1]} sets none of them", fix)
    if nested := NESTED_ERROR.search(message):
        entry = _ENTRY.match(message, nested.end())
        fix = see_help if nested[3] == _UNDER else nested[3]
        if nested[1].startswith((f"{name}.", f"{name}[")):
            return UserError(nested[1], nested[2], fix)
        return UserError(f"{name}{file}", f"{nested[1]}: {nested[2]}{f', in {entry[1]}' if entry else ''}", fix)
    if (given := _NO_ENTRY.search(message)) and (wrong := _wrong_entry(name, given[2], files)):
        return UserError(f"{wrong[0]}{file}", *wrong[1:])
    what, fix = _wrong_value(_types(parser, key[1]), message)
    return UserError(f"{name}{file}", what or _readable(message), fix or (see_help if command else "Fix the value."))


_files: ContextVar[dict[str, Mapping[str, Any]] | None] = ContextVar("_files", default=None)


@contextmanager
def known_files(arguments: Sequence[str]) -> Iterator[None]:
    """Read the configuration files of a command once for all messages inside this context.

    While jsonargparse reads a file it works in that file's folder, where other relative paths are not found.

    Raises:
        UserError: as for `config_files`.
    """
    token = _files.set(config_files(arguments))
    try:
        yield
    finally:
        _files.reset(token)


def config_files(arguments: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The given configuration files and their contents, the last one first.

    Raises:
        UserError: there is no such file, or one is not a YAML file of keys.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for flag, value in pairwise([*arguments, ""]):
        path = value if flag in ("--config", "-c") else flag.partition("=")[2] if flag.startswith("--config=") else ""
        if path[:1] in ("", "-", "{", "[") or "\n" in path:  # no value, or a configuration itself
            continue
        file = Path(path).expanduser()
        if not file.is_file() and (file.exists() or ":" in path):  # a pipe, which can be read only once; a URL
            continue
        held = read_yaml(path, "Write KEY: VALUE lines, as configs/quickstart.yaml has them.")
        found = {path: held, **found}
    return found


def _located(
    name: str, files: Mapping[str, Mapping[str, Any]], arguments: Sequence[str], value: str | None = None
) -> tuple[str, str]:
    """A key's whole name, of which jsonargparse may report only the end, and ` in FILE` if it is in one.

    Args:
        name: name of the key, or its end.
        files: the given files.
        arguments: arguments of the command.
        value: the wrong value; None if the error is that the class has no such key.
    """
    ends = re.compile(rf"--(?P<key>(?:[\w.]+\.)?{re.escape(name)})(?=[=+]|$)")
    if given := next(filter(None, map(ends.match, arguments)), None):
        return given["key"], ""
    found: dict[bool, tuple[str, str]] = {}
    for file, held in files.items():
        known = dict(_dotted(held))
        for key in filter(_ending_in(name), known):
            is_wrong = str(known[key]) == value if value else not _is_taken(key, known)
            found.setdefault(is_wrong, (key, f" in {file}"))
    return found.get(True) or found.get(False) or (name, "")


def _is_taken(key: str, known: Mapping[str, Any]) -> bool:
    """Whether the class of an entry accepts the key that is given under its init_args."""
    entry, _, last = key.rpartition(".init_args.")
    path = known[entry].get("class_path") if isinstance(known.get(entry), Mapping) else None
    named = (one for one in _imported_classes() if one.__name__ == str(path).rpartition(".")[2])
    return any(last in signature(one).parameters for one in named if one.__module__.startswith("inscp."))


def whole_key(name: str, held: Any) -> str | None:
    """The key of a configuration that ends in `name`, if one does."""
    return next(filter(_ending_in(name), dict(_dotted(held))), None)


def _ending_in(name: str) -> Callable[[str], bool]:
    return lambda key: f".{key}".endswith(f".{name}")


def _dotted(held: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a configuration and their values; those of a list are its indices."""
    inside: list[tuple[str, Any]] = []
    if isinstance(held, Mapping):
        inside = [(f"{before}.{key}" if before else str(key), value) for key, value in held.items()]
    elif isinstance(held, list):
        inside = [(f"{before}[{place}]", value) for place, value in enumerate(held)]
    for key, value in inside:
        yield key, value
        yield from _dotted(value, key)


def _wrong_entry(name: str, given: str, files: Mapping[str, Mapping[str, Any]]) -> tuple[str, str, str] | None:
    """The key of an entry that fits no class, what is wrong with it, and how to fix it."""
    known = (pair for held in files.values() for pair in _dotted(held) if pair[0].startswith(name))
    for key, value in known:
        if repr(value) == given:
            if value is None:
                return key, "it has no value", "Give a class_path, or remove the key."
            if not isinstance(value, Mapping) or "class_path" not in value:
                return key, "it names no class", "Give its class_path: {class_path: …, init_args: {…}}."
            if other := next((one for one in value if one not in ("class_path", "init_args")), None):
                return f"{key}.{other}", "no such key", _UNDER
    return None


def _suggestion(parser: ArgumentParser, name: str, is_command: bool) -> tuple[str, str]:
    """What is wrong with an unknown key, and the one that was probably meant; empty if none is similar."""
    keys = list(known_keys(parser))
    if name in keys:
        return "it is a positional argument, given without its name", ""
    section, last = name.partition(".")[0], name.rpartition(".")[2]
    if not is_command:  # of a class inside a key, which knows only its part of the key
        name = last
    elif (other := _COMMAND_OF.get(section)) and not any(key.partition(".")[0] == section for key in keys):
        return "no such key", f"It is a key of {other}: see python -m inscp {other} --help."
    also = name.removesuffix(last) + _ALSO_CALLED.get(last, last)
    near = [also] if also in keys else get_close_matches(name, keys, n=1, cutoff=0.8)
    if not near:  # of another section, or of none
        by_end = {key.rpartition(".")[2]: key for key in reversed(keys)}
        near = [by_end[part] for part in get_close_matches(last, by_end, n=1, cutoff=0.7)]
    known = "" if is_command else f"Choose from: {', '.join(keys)}."
    return "no such key", f"Did you mean {near[0]}?" if near else known


def known_keys(parser: ArgumentParser) -> Iterator[str]:
    """The keys of a parser and its subcommands that may be given."""
    linked = {action.target[0] for action in parser._actions if hasattr(action, "target")}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from known_keys(one)
        elif action.dest != "help" and action.dest not in linked:
            yield action.dest


def _types(parser: ArgumentParser, key: str) -> list[type]:
    """The classes of the values that a key accepts."""

    def inside(hint: Any) -> Iterator[Any]:
        yield hint
        for one in get_args(hint):
            yield from inside(one)

    hints = [getattr(action, "_typehint", None) for action in parser._actions if action.dest == key]
    return [one for hint in hints for one in inside(hint) if isinstance(one, type) and one.__module__ != "builtins"]


def _wrong_value(types: Sequence[type], message: str) -> tuple[str, str]:
    """What is wrong with a value, and what to write; empty if the parser's own message has to do."""
    if named := _CLASS.search(message):
        fitting = class_names(types)
        by_name = {name.lower(): name for name in fitting}
        given = named[1].rpartition(".")[2].lower()
        near = [*get_close_matches(given, by_name, n=1), *(name for name in by_name if name.startswith(given))]
        if near:
            return f"there is no class {named[1]}", f"Did you mean {by_name[near[0]]}?"
        if len(types) == 1 and is_dataclass(types[0]):
            needed = [field.name for field in fields(types[0])
                      if field.default is MISSING and field.default_factory is MISSING]  # fmt: skip
            keys = ", ".join(f"{name}: …" for name in needed or [fields(types[0])[0].name])
            return f"{named[1]} is not a valid value", f"Write its keys, as {{{keys}}}."
        return f"there is no class {named[1]}", f"Choose from: {', '.join(fitting)}." if fitting else ""
    if entry := _NO_ENTRY.search(message):
        if entry[2] == "None":
            return "it has no value", f"Choose from: {', '.join(class_names(types))}."
        return f"an entry names no {entry[1]} ({entry[2]})", "Give its class_path, or fix the entry's name."
    if shape := _SHAPE.search(message):
        inside = "…" if shape[2] in ("[]", "{}") else shape[2]
        written = f"[{inside}]" if shape[1] == "list" else f"{{NAME: {inside}}}"
        return f"{shape[2]} is not a {'list' if shape[1] == 'list' else 'mapping'}", f"Write '{written}'."
    return "", ""


def class_names(types: Sequence[type]) -> list[str]:
    """Names of all imported classes of this program that are of these types, as for a configuration."""
    found = (one for one in _imported_classes() if issubclass(one, tuple(types)) and not isabstract(one))
    return sorted({one.__name__ for one in found if one.__name__[0] != "_"})


def _imported_classes() -> set[type]:
    """All classes in the imported modules of this program."""
    modules = [module for name, module in sys.modules.items() if name.startswith("inscp.")]
    return {one for module in modules for one in vars(module).values() if isinstance(one, type)}


def _readable(message: str) -> str:
    """The message of jsonargparse without its internal terms; for a union, the error of each member."""
    lines = [line.strip() for line in message.splitlines()]
    complaints = [line[2:] for line in lines if line.startswith("- ") and "NoneType" not in line]
    text = "; ".join(complaints) if complaints else " ".join(lines)
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", _KEY.sub("", text))
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text).replace("Expected a ", "expected ")
    return text.partition(" See ")[0].strip(" :.")[:300]
