"""Pieces of work for MLflow as plain values: what waits in the queue and what stands in a file are the same."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, get_args

from inscp.errors import UserError


@dataclass(frozen=True)
class Start:
    """The run itself: `run_id` is continued; without it a run is started, one for each `key`.

    An addition belongs to a run that may have ended, whose status and times stay as they are.
    Here and below `time` is in milliseconds since 1970.
    """

    tracking_uri: str
    experiment: str
    name: str
    tags: dict[str, str]
    key: str
    time: int
    run_id: str | None
    is_addition: bool = False


@dataclass(frozen=True)
class Metrics:
    """Measures of the model after `step` updates. What the run has of a step already stays, unless they are `anew`."""

    values: dict[str, float]
    step: int
    time: int
    anew: bool = False


@dataclass(frozen=True)
class Param:
    """A parameter; one that the run has already stays as it is, as MLflow demands."""

    name: str
    value: str


@dataclass(frozen=True)
class Text:
    """An artifact file."""

    text: str
    artifact: str


@dataclass(frozen=True)
class Table:
    """An artifact that the MLflow page shows as a table and compares between runs."""

    columns: dict[str, list[Any]]
    artifact: str


@dataclass(frozen=True)
class TrainingData:
    """The run's input."""

    name: str
    digest: str
    source: str
    profile: str


@dataclass(frozen=True)
class End:
    """The run's last status: `FINISHED`, `FAILED`, `KILLED`, or `SCHEDULED` where others go on with it."""

    status: str
    time: int


def now() -> int:
    """The time of a piece that happens now."""
    return round(time.time() * 1000)


Piece = Metrics | Param | Text | Table | TrainingData | End

_KINDS = {kind.__name__: kind for kind in (Start, *get_args(Piece))}


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces that go into one call, in order."""
    for kind, alike in groupby(pieces, type):
        while batch := list(islice(alike, 100 if kind in (Metrics, Param) else 1)):
            yield batch


def dumped(start: Start, pieces: Iterable[Piece] = ()) -> list[str]:
    """A run and what belongs to it as JSON objects."""
    return [json.dumps({"kind": type(piece).__name__} | asdict(piece), default=str) for piece in (start, *pieces)]


def loaded(lines: Iterable[str]) -> tuple[Start, list[Piece]]:
    """What `dumped` has made of a run and its pieces."""
    objects = [json.loads(line) for line in lines]
    start, *pieces = [_KINDS[values.pop("kind")](**values) for values in objects]
    if not isinstance(start, Start):
        raise TypeError(f"it begins with {type(start).__name__}")
    return start, pieces


def write_run(path: Path, start: Start, pieces: Iterable[Piece] = ()) -> None:
    """Keep a run with what belongs to it, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in dumped(start, pieces)), "utf-8")


def read_run(path: Path) -> tuple[Start, list[Piece]]:
    """What `write_run` has kept.

    Raises:
        UserError: there is no such file, or it is another one.
    """
    fix = "Give the mlflow_unsent.jsonl of a run, or remove a broken mlflow_run.jsonl."
    if not path.is_file():
        raise UserError(str(path), "no such file", fix)
    try:
        return loaded(path.read_text("utf-8").splitlines())
    except Exception as error:  # another file can be wrong in any way
        raise UserError(str(path), "it contains no MLflow run", fix) from error
