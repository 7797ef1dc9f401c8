"""An MLflow run to which pieces of tracking data are sent.

Sending a piece again changes nothing, so it may be retried until it is known to have arrived.
"""

import json
import logging
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from inscp.errors import RunError, UserError, first_line
from inscp.tracking.pieces import End, Metrics, Param, Piece, Start, Table, Text, TrainingData
from inscp.tracking.store import file_of

_KEY_TAG = "inscp.run"
_NO_NAME = re.compile(r"[^\w.\-/: ]")
_TABLES_TAG = "mlflow.loggedArtifacts"  # lists the artifacts that the MLflow page shows as tables
# Errors that a retry would get again. Everything else, such as a wrong password, can be fixed from outside.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")
_REFUSED_FILES = (400, 413, 415, 422)
"""HTTP statuses that mean that the artifact itself is at fault."""
_HTTP_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the sender of a piece retries it, and knows what has arrived
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def store_client(tracking_uri: str) -> Any:
    """MLflow's client for a store, which does not wait for a server that is down."""
    for name, value in _HTTP_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs tracebacks of retried errors
    return MlflowClient(tracking_uri)


class MLflowRun:
    """A run in a store. Only one thread may send.

    Args:
        start: the run; `open` or the first piece finds it or starts it.

    Attributes:
        start: the same, with the run's id as soon as it is known.
        experiment_id: None until the run is open.
        is_new: whether the run was not found and therefore had to be started.
    """

    def __init__(self, start: Start) -> None:
        self.start = start
        self.experiment_id: str | None = None
        self.is_new = False
        self._client: Any = None
        self._known: dict[str, set[int]] = {}  # metric -> steps that the run has
        self._refused: set[str] = set()

    def connect(self) -> None:
        """Open the store if it is a file; a server is not contacted yet.

        Raises:
            UserError: the store is a file that cannot be opened.
        """
        uri = self.start.tracking_uri
        file = file_of(uri)
        # One process creates the tables of a new file or upgrades those of an old one, while the others wait.
        alone = FileLock(file.with_name(f".{file.name}.lock")) if file else nullcontext()
        try:
            with alone:
                self._client = store_client(uri)
        except Exception as error:  # whatever the driver raises
            what = f"the store {uri} cannot be opened ({error})"
            raise UserError("mlflow.tracking_uri", what, "Give a writable file, or a server.") from error

    def open(self, resume: bool = True) -> None:
        """Find the run, or start it.

        Args:
            resume: mark it as running again, unless it has ended since `start` or this is an addition.

        Raises:
            RunError: the store rejects it.
            Exception: any other error; the store may accept it later.
        """
        try:
            run = self._client.get_run(self.run_id) if self.run_id else self._find_or_start()
            may_resume = resume and not self.start.is_addition and run.info.status != "RUNNING"
            if may_resume and _end(run) < self.start.time:
                self._client.update_run(run.info.run_id, status="RUNNING")
        except Exception as error:
            if not _is_refusal(error):
                raise
            raise RunError(f"MLflow rejected the run ({reason(error)})") from error
        self.start, self.experiment_id = replace(self.start, run_id=run.info.run_id), run.info.experiment_id

    @property
    def run_id(self) -> str | None:
        """None until it is known."""
        return self.start.run_id

    def send(self, batch: Sequence[Piece]) -> None:
        """Send pieces that go into one call. Pieces that the store rejects for good are reported and skipped.

        Raises:
            RunError: the run itself is rejected.
            Exception: any other error; the store may accept the same pieces later.
        """
        if self.experiment_id is None:
            self.open()
        try:
            self._perform(batch)
            return
        except Exception as error:
            if not _is_refusal(error):
                self._known.clear()  # what has arrived must be read again
                raise
            why = reason(error)
        parts = _parts(batch)  # one rejected name must not lose the others
        if len(parts) > 1:
            for part in parts:
                self.send([part])
        elif (kind := type(batch[0]).__name__) not in self._refused:
            self._refused.add(kind)
            warnings.warn(f"MLflow rejected {kind}, which is left out ({why}); the rest is still sent.", stacklevel=2)

    def keep_files(self, folder: Path, artifact: str) -> None:
        """Store the files of a folder as artifacts of the run, which must be open."""
        self._client.log_artifacts(self.run_id, str(folder), artifact)

    def _perform(self, batch: Sequence[Piece]) -> None:
        match batch[0]:
            case Metrics():
                self._log_metrics([piece for piece in batch if isinstance(piece, Metrics)])
            case Param():
                self._log_params([piece for piece in batch if isinstance(piece, Param)])
            case Text(text, artifact):
                self._client.log_text(self.run_id, text, artifact)
            case Table() as table:
                self._log_table(table)
            case TrainingData() as data:
                self._log_data(data)
            case End(status, time):
                if _end(self._client.get_run(self.run_id)) < time:
                    self._client.set_terminated(self.run_id, status, time)

    def _find_or_start(self) -> Any:
        from mlflow.tracking.context.registry import resolve_tags

        start, experiment_id = self.start, self._experiment()
        # An earlier attempt may have started it without receiving the response.
        if found := find_run(self._client, experiment_id, start.key):
            return found
        self.is_new = True
        tags = resolve_tags(start.tags | {_KEY_TAG: start.key})
        return self._client.create_run(experiment_id, start.time, tags, start.name)

    def _experiment(self) -> str:
        if found := self._client.get_experiment_by_name(self.start.experiment):
            return str(found.experiment_id)
        # MLflow would put artifacts into ./mlruns of the current folder; beside the store they are found again.
        store = file_of(self.start.tracking_uri)
        beside = str(store.parent / "mlartifacts") if store else None
        return str(self._client.create_experiment(self.start.experiment, artifact_location=beside))

    def _log_metrics(self, pieces: Sequence[Metrics]) -> None:
        from mlflow.entities import Metric

        fresh = {}
        for piece in pieces:
            for name, value in piece.values.items():
                key = _NO_NAME.sub("_", name)
                if key not in self._known:
                    self._known[key] = {old.step for old in self._client.get_metric_history(self.run_id, key)}
                # An SQL store itself drops duplicates.
                if piece.anew or piece.step not in self._known[key]:
                    fresh[key, piece.step] = Metric(key, value, piece.time, piece.step)
        self._client.log_batch(self.run_id, metrics=list(fresh.values()), synchronous=True)
        for key, step in fresh:
            self._known[key].add(step)

    def _log_params(self, pieces: Sequence[Param]) -> None:
        from mlflow import entities

        known = self._client.get_run(self.run_id).data.params
        fresh = [entities.Param(piece.name, piece.value) for piece in pieces if piece.name not in known]
        self._client.log_batch(self.run_id, params=fresh, synchronous=True)

    def _log_table(self, table: Table) -> None:
        # MLflow's own log_table appends the rows again on every call.
        rows = [list(row) for row in zip(*table.columns.values(), strict=True)]
        self._client.log_text(self.run_id, json.dumps({"columns": list(table.columns), "data": rows}), table.artifact)
        tables = json.loads(self._client.get_run(self.run_id).data.tags.get(_TABLES_TAG, "[]"))
        entry = {"path": table.artifact, "type": "table"}
        if entry not in tables:
            self._client.set_tag(self.run_id, _TABLES_TAG, json.dumps([*tables, entry]))

    def _log_data(self, data: TrainingData) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(data.name, data.digest, source_type="local", source=data.source, profile=data.profile)
        tagged = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])
        self._client.log_inputs(self.run_id, datasets=[tagged])


def find_run(client: Any, experiment_id: str, key: str) -> Any:
    """The run that was started with this `Start.key`; None if there is none."""
    return next(iter(client.search_runs([experiment_id], f"tags.`{_KEY_TAG}` = '{key}'")), None)


def _end(run: Any) -> int:
    """When the run ended, 0 if it never did: a piece sent late must not undo the status set by a later attempt."""
    return run.info.end_time or 0


def _parts(batch: Sequence[Piece]) -> Sequence[Piece]:
    """The parts to send one by one: the pieces, or the values of a single piece."""
    if len(batch) == 1 and isinstance(piece := batch[0], Metrics):
        return [replace(piece, values={name: value}) for name, value in piece.values.items()]
    return batch


def reason(error: BaseException) -> str:
    """The root cause of an error, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return first_line(error)


def _is_refusal(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    if isinstance(error, RequestException):
        return error.response is not None and error.response.status_code in _REFUSED_FILES
    # Also for artifacts: a folder that is not writable, for example, or a driver that is not installed. Drivers of
    # object stores have their own exceptions for temporary errors.
    return type(error).__module__ == "builtins" and not isinstance(error, ConnectionError | TimeoutError)
