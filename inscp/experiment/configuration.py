"""Configurations as plain values: changes to a base, and digests of everything that determines the outcome."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from inscp.data.fields import texts
from inscp.digests import file_digest
from inscp.paths import local_path
from inscp.pretrained import REMOTE_CODE
from inscp.yaml_file import read_yaml

Config = dict[str, Any]
Contents = Mapping[str, str]
"""Digests of the contents of files and folders, by their names in a configuration."""

LAYOUT = ("model.activation_checkpointing", "model.compile", "model.attn_implementation", "data.num_workers")
"""Training keys that affect how a run is computed, but not what: with another value it is the same run."""


def read_configs(paths: Sequence[str], fix: str = "Give a configuration of fit or evaluate.") -> Config:
    """Read configuration files; later files override earlier ones.

    Args:
        paths: paths of the files.
        fix: advice for a file that holds no keys.

    Raises:
        UserError: a file is missing, is not a YAML mapping, or has a key twice.
    """
    whole: Config = {}
    for path in paths:
        whole = changed(whole, read_yaml(path, fix))
    return whole


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """`base` with other values. Sections are merged key by key; a section of another class replaces the old one.

    Args:
        base: is not modified.
        changes: keys may be dotted (`data.tagger`).
    """
    result = dict(base)
    for dotted, value in changes.items():
        *sections, key = str(dotted).split(".")
        change = {key: value}
        for section in reversed(sections):
            change = {section: change}
        result = _laid_over(result, change)
    return result


def _laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    result = dict(base)
    for key, new in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            kind = old.get("class_path")
            result[key] = _laid_over(old, new) if new.get("class_path", kind) == kind else new
        else:
            result[key] = new
    return result


def without(config: Mapping[str, Any], *dotted: str) -> Config:
    """`config` without some of its keys, and without sections that become empty."""
    result = dict(config)
    for name in dotted:
        section, _, key = name.partition(".")
        if key and isinstance(result.get(section), Mapping):
            result[section] = without(result[section], key)
        if not key or not result.get(section):
            result.pop(section, None)
    return result


def digest(*parts: Any, known: Contents = MappingProxyType({})) -> str:
    """A digest of plain values, and of the contents of every file and folder that a text in them names.

    Args:
        parts: the values.
        known: digests of files that are not on this machine.
    """
    contents = {**known, **contents_of(*parts)}
    found = [json.dumps(parts, sort_keys=True, default=str)]
    found += [contents.get(text, "") for text in sorted(set(texts(parts, _NO_LINES)))]
    return hashlib.blake2b("\n".join(found).encode(), digest_size=16).hexdigest()


def contents_of(*parts: Any) -> dict[str, str]:
    """A digest of the contents of each file and folder that a text in plain values names, by that text."""
    here = Path.cwd()
    found = {text: _contents(text, here) for text in texts(parts, _NO_PATHS, but_whole=["fields"])}
    return {text: contents for text, contents in found.items() if contents}


_NO_LINES = ("class_path", "language", "languages")
"""Keys whose texts have no line in a digest; every other text has one, empty if it names no file."""
_NO_PATHS = (*_NO_LINES, "benchmark", "loss", "method", "on_bad_record", "pairs", "prompt_field", "schedule", "system",
             "tagger")  # fmt: skip
"""Keys whose texts name no file, whatever is in the current folder; those of `fields` are names of fields."""


@cache
def _contents(text: str, folder: Path) -> str:
    """A digest of the contents of a path in a folder, including all files inside; empty for any other text."""
    try:
        path = folder / local_path(text.removeprefix(REMOTE_CODE))
        if not text or not path.exists():
            return ""
    except (OSError, RuntimeError, ValueError):  # too long a name, or the home of an unknown user
        return ""
    whole = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            whole.update(str(file.relative_to(path)).encode() + bytes.fromhex(file_digest(file)))
    return whole.hexdigest()
