"""File locations (the user's cache folder, the samples in the package) and atomic writing."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from inscp.errors import UserError

SAMPLES_SCHEME = "samples:"
_SAMPLES = Path(__file__).parent / "samples"
OUTPUTS = "outputs"
"""The default folder of runs."""


def cache_folder(name: str) -> Path:
    """The folder `name` under the cache root: `$INSCP_CACHE`, else `$XDG_CACHE_HOME/inscp`, else `~/.cache/inscp`."""
    root = os.environ.get("INSCP_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inscp"
    folder = base.expanduser() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def local_path(spec: str) -> Path:
    """The path that `spec` names; `samples:zh_tw/x.jsonl` is inside the installed package."""
    if not spec.startswith(SAMPLES_SCHEME):
        return Path(spec).expanduser()
    path = _SAMPLES / spec.removeprefix(SAMPLES_SCHEME)
    if not path.exists():
        samples = (p for p in _SAMPLES.rglob("*") if p.suffix in (".jsonl", ".txt"))
        known = sorted(p.relative_to(_SAMPLES).as_posix() for p in samples)
        raise UserError(spec, "the package contains no such sample", f"Choose from: {', '.join(known)}.")
    return path


def require_new(folder: Path) -> None:
    """Refuse to overwrite anything.

    Raises:
        UserError: `folder` exists.
    """
    if folder.exists():
        raise UserError(str(folder), "it already exists", "Give another path, or remove it.")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.rename(path)


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into; it becomes `folder` if the block succeeds, and is removed otherwise."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def build_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make(partial)` if it does not exist; a second process waits for the first."""
    if not folder.exists():
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with atomic_folder(folder) as partial:
                    make(partial)
    return folder
