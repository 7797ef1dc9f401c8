"""Pieces of tracking data for MLflow as plain values, the same in the queue and in a file."""

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
    """The run itself: `run_id` is continued; without it a run is started, one per `key`.

    An addition belongs to a run that may have ended, whose status and times do not change.
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
    """Metrics of the model after `step` updates. Those that the run already has of a step stay unless `anew` is set."""

    values: dict[str, float]
    step: int
    time: int
    anew: bool = False


@dataclass(frozen=True)
class Param:
    """A parameter; one that the run already has is not changed, as MLflow requires."""

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
    """The run's last status: `FINISHED`, `FAILED`, `KILLED`, or `SCHEDULED` if others continue it."""

    status: str
    time: int


def now() -> int:
    """The current time in milliseconds since 1970."""
    return round(time.time() * 1000)


Piece = Metrics | Param | Text | Table | TrainingData | End

_KINDS = {kind.__name__: kind for kind in (Start, *get_args(Piece))}


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Batches of pieces that go into one call, in order."""
    for kind, alike in groupby(pieces, type):
        while batch := list(islice(alike, 100 if kind in (Metrics, Param) else 1)):
            yield batch


def dumped(start: Start, pieces: Iterable[Piece] = ()) -> list[str]:
    """A run and its pieces as JSON objects."""
    return [json.dumps({"kind": type(piece).__name__} | asdict(piece), default=str) for piece in (start, *pieces)]


def loaded(lines: Iterable[str]) -> tuple[Start, list[Piece]]:
    """The run and its pieces from the output of `dumped`."""
    objects = [json.loads(line) for line in lines]
    start, *pieces = [_KINDS[values.pop("kind")](**values) for values in objects]
    if not isinstance(start, Start):
        raise TypeError(f"it begins with {type(start).__name__}")
    return start, pieces


def write_run(path: Path, start: Start, pieces: Iterable[Piece] = ()) -> None:
    """Write a run and its pieces to a file, one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in dumped(start, pieces)), "utf-8")


def read_run(path: Path) -> tuple[Start, list[Piece]]:
    """Read a file of `write_run`.

    Raises:
        UserError: the file does not exist, or is of another kind.
    """
    fix = "Give the mlflow_unsent.jsonl of a run, or remove a broken mlflow_run.jsonl."
    if not path.is_file():
        raise UserError(str(path), "no such file", fix)
    try:
        return loaded(path.read_text("utf-8").splitlines())
    except Exception as error:  # other files can be wrong in any way
        raise UserError(str(path), "it contains no MLflow run", fix) from error
