"""A run that loses nothing: everything is logged to MLflow, and nothing waits for it."""

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
"""In a training's folder: the run that it is, by which `evaluate` finds it."""
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
        """Of the store.

        Raises:
            UserError: there is a password in it.
        """
        return store_uri(self.tracking_uri)


class TrackedRun:
    """One MLflow run. Every call only puts a piece of work into a queue, which a thread sends.

    Args:
        tracking: which store, experiment and run.
        name: of the run, for people, where `tracking` has none.
        tags: of the run, beside those of `tracking`.
        earlier: the `state` of the training that goes on; its run is continued where `tracking` names none.
        is_addition: what is logged belongs to a run that may have ended, whose status and times stay as they are.

    Attributes:
        unsent_folder: where `finalize` leaves what could not be sent, for `python -m inscp track`.

    Raises:
        UserError: the store is a file that cannot be opened. A server that cannot be reached is none.
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
        """The run and what it has not got yet, for a checkpoint: a process that is killed sends no more.

        Args:
            metrics, step: of the step of the checkpoint, which Lightning logs only behind it.
        """
        return dumped(self._run.start, [*self._outbox.unsent, Metrics(dict(metrics), step, now())])

    def note_run(self, folder: Path) -> None:
        """Leave in the training's folder which run it is, without its id: a store that is made anew starts it again."""
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
        """Store and run, for a person to find."""
        return f"{self._tracking.uri} (experiment {self.name}, run {self.run_id})"

    @property
    def viewing(self) -> str:
        """The command that shows the store, or only its page where a server shows it already."""
        uri = self._tracking.uri
        if uri.startswith("http"):
            return self.page(uri)
        return f"mlflow ui --backend-store-uri {uri}   # then open {self.page('http://127.0.0.1:5000')}"

    def page(self, server: str) -> str:
        """Where a server shows the experiment, whose run is known: the table of its trainings."""
        # By default MLflow opens an experiment in another view, where trainings do not stand.
        return f"{server.rstrip('/')}/#/experiments/{self._run.experiment_id}/runs?workflowType=machine_learning"

    def log_at(self, metrics: Mapping[str, float], step: int, anew: bool = False) -> None:
        """Keep metrics of the model as it is after `step` updates.

        Args:
            metrics: by name.
            step: one that the run has already is left out.
            anew: it is measured again, and the run shows this value.
        """
        self._put(Metrics({name: float(value) for name, value in metrics.items()}, step, now(), anew))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Keep parameters by name; those that the continued run has already stay as they are."""
        for name, value in params.items():
            self._put(Param(name, str(value)[:_LONGEST_PARAM]))

    def log_text(self, text: str, artifact: str) -> None:
        """Keep `text` as an artifact file."""
        self._put(Text(text, artifact))

    def log_table(self, rows: Mapping[str, list[Any]], artifact: str) -> None:
        """Keep columns as a table that the MLflow page shows and compares between runs."""
        self._put(Table(dict(rows), artifact))

    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Name the training data as the run's input."""
        self._put(TrainingData(name, digest, source, profile))

    def finalize(self, status: str) -> None:
        """End the run; what cannot be sent within `Tracking.patience` is written to a file.

        Where nothing was logged since the run was last ended, it stays as it is.
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
