"""An MLflow run to which data is sent in the background, without loss."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from inscp.tracking.mlflow_run import MLflowRun
from inscp.tracking.outbox import Outbox
from inscp.tracking.pieces import (
    End,
    Metrics,
    Param,
    Piece,
    Start,
    Table,
    Text,
    TrainingData,
    dumped,
    loaded,
    now,
    write_run,
)
from inscp.tracking.store import absolute, store_uri

RUN_FILE = "mlflow_run.jsonl"
"""The file in a run's folder by which `evaluate` finds its MLflow run."""
_LONGEST_PARAM = 6000  # characters, MLflow's limit
_STATUSES = {"success": "FINISHED", "failed": "FAILED"}


@dataclass(frozen=True)
class Tracking:
    """MLflow tracking of a run. Nothing is opened or written before training starts.

    Args:
        tracking_uri: `sqlite:///FILE` or the URL of a tracking server; by default the value of MLFLOW_TRACKING_URI,
            else `sqlite:///mlflow.db`.
        experiment: name of the experiment.
        name: name of the run; by default method, model and language.
        tags: additional tags of the run.
        run_id: id of a run to continue, instead of starting one.
        enabled: false disables tracking.
        patience: seconds that the end of a run waits for a server that is slow or down.
    """

    tracking_uri: str | None = None
    experiment: str = "inscp"
    name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None
    enabled: bool = True
    patience: float = 60.0

    @property
    def uri(self) -> str:
        """The store's URI.

        Raises:
            UserError: it contains a password.
        """
        return store_uri(self.tracking_uri)


class TrackedRun:
    """One MLflow run. Every call only puts a piece into a queue, from which a thread sends it.

    Args:
        tracking: store, experiment and run.
        name: name of the run, if `tracking` has none.
        tags: tags of the run, in addition to those of `tracking`.
        earlier: the `state` of the training run to resume; its MLflow run is continued unless `tracking` names one.
        is_addition: the data belongs to a run that may have ended, whose status and times do not change.

    Attributes:
        unsent_folder: folder in which `finalize` leaves unsent data, for `python -m inscp track`.

    Raises:
        UserError: the store is a file that cannot be opened. An unreachable server is not an error.
    """

    def __init__(
        self, tracking: Tracking, name: str, tags: Mapping[str, str], earlier: Sequence[str] | None = None,
        is_addition: bool = False,
    ) -> None:  # fmt: skip
        self._tracking, self.unsent_folder = tracking, Path()
        before, unsent = loaded(earlier) if earlier else (None, [])
        uri = absolute(tracking.uri)
        if tracking.run_id is not None or (before and before.tracking_uri != uri):  # another run, another store
            before, unsent = None, []
        start = Start(
            uri,
            tracking.experiment,
            tracking.name or name,
            {**tags, **tracking.tags},
            before.key if before else uuid4().hex,
            now(),
            before.run_id if before else tracking.run_id,
            is_addition,
        )
        self._start, self._run = start, MLflowRun(start)
        self._outbox = Outbox(self._run)
        self._connect()
        for piece in unsent:
            self._put(piece)

    def _connect(self) -> None:
        self._run.connect()

    def _put(self, piece: Piece) -> None:
        self._outbox.put(piece)

    def state(self, metrics: Mapping[str, float], step: int) -> list[str]:
        """The run and its unsent pieces, for a checkpoint: a process that is killed sends no more.

        Args:
            metrics, step: those of the checkpoint's step, which Lightning logs only after the checkpoint.
        """
        return dumped(self._run.start, [*self._outbox.unsent, Metrics(dict(metrics), step, now())])

    def note_run(self, folder: Path) -> None:
        """Record the run in its folder, without its id, so that a newly created store starts it again."""
        write_run(folder / RUN_FILE, self._start)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._tracking.experiment

    @property
    def run_id(self) -> str | None:
        """The run's id; None until the store has it."""
        return self._run.run_id

    @property
    def is_sent(self) -> bool:
        """Whether the store has everything."""
        return not self._outbox.unsent

    @property
    def address(self) -> str:
        """Store and run, in words."""
        return f"{self._tracking.uri} (experiment {self.name}, run {self.run_id})"

    @property
    def viewing(self) -> str:
        """The command that shows the store, or just the URL of its page if it is on a server."""
        uri = self._tracking.uri
        if uri.startswith("http"):
            return self.page(uri)
        return f"mlflow ui --backend-store-uri {uri}   # then open {self.page('http://127.0.0.1:5000')}"

    def page(self, server: str) -> str:
        """The URL at which a server shows the experiment's table of runs; the run must be known."""
        # By default MLflow opens an experiment in another view, which does not list training runs.
        return f"{server.rstrip('/')}/#/experiments/{self._run.experiment_id}/runs?workflowType=machine_learning"

    def log_at(self, metrics: Mapping[str, float], step: int, anew: bool = False) -> None:
        """Log metrics of the model after `step` updates.

        Args:
            metrics: values by name.
            step: number of updates; metrics that the run already has of this step are left out.
            anew: the metrics were measured again, and the run shows the new values.
        """
        self._put(Metrics({name: float(value) for name, value in metrics.items()}, step, now(), anew))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Log parameters by name; those that a continued run already has are not changed."""
        for name, value in params.items():
            self._put(Param(name, str(value)[:_LONGEST_PARAM]))

    def log_text(self, text: str, artifact: str) -> None:
        """Log `text` as an artifact file."""
        self._put(Text(text, artifact))

    def log_table(self, rows: Mapping[str, list[Any]], artifact: str) -> None:
        """Log columns as a table that the MLflow page shows and compares between runs."""
        self._put(Table(dict(rows), artifact))

    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Log the training data as the run's input."""
        self._put(TrainingData(name, digest, source, profile))

    def finalize(self, status: str) -> None:
        """End the run; what cannot be sent within `Tracking.patience` is written to a file.

        If nothing was logged since the run was last ended, it does not change.
        """
        if not self._outbox.is_open:
            return
        if not self._start.is_addition:
            self._put(End(_STATUSES.get(status, "KILLED"), now()))
        if unsent := self._outbox.close(self._tracking.patience):
            file = self.unsent_folder / "mlflow_unsent.jsonl"
            try:
                write_run(file, self._run.start, unsent)
                rest = f". Send the rest with: python -m inscp track {file}"
            except OSError as error:
                rest = f", and the rest cannot be stored in {file}: {error}"
            warnings.warn(f"MLflow has not received everything{rest}", stacklevel=2)
