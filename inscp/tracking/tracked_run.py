"""A run that loses nothing: everything is logged to MLflow, and nothing waits for it."""

import warnings
from argparse import Namespace
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
    as_run,
    dumped,
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
    """Where a training is tracked. Nothing is opened or written before the training starts.

    Args:
        tracking_uri: `sqlite:///FILE` or the address of a tracking server; by default what MLFLOW_TRACKING_URI says,
            else `sqlite:///mlflow.db`.
        experiment: name of the experiment.
        name: of the run; by default method, model and language.
        tags: more tags of the run.
        run_id: continue this run instead of starting one.
        enabled: false tracks nothing.
        patience: how many seconds the end of a training waits for a server that is slow or down.
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
        self._is_addition = is_addition
        self._tracking, self.unsent_folder, self._is_final = tracking, Path(), False
        before, unsent = as_run(earlier) if earlier else (None, [])
        uri = absolute(tracking.uri)
        if tracking.run_id is not None or (before and before.tracking_uri != uri):  # another run, another store
            before, unsent = None, []
        run_id = before.run_id if before else tracking.run_id
        self._run = MLflowRun(tracking.uri, run_id)
        start = Start(
            uri,
            tracking.experiment,
            tracking.name or name,
            {**tags, **tracking.tags},
            before.key if before else uuid4().hex,
            0 if is_addition else now(),
            run_id,
        )
        self._start = start
        self._outbox = Outbox(self._run, start)
        self.begin(unsent)

    def begin(self, unsent: Sequence[Piece]) -> None:
        """Open the store, and send it what an earlier process has not.

        Raises:
            UserError: it is a file that cannot be opened.
        """
        self._run.connect()
        for piece in unsent:
            self._outbox.put(piece)

    def state(self, metrics: Mapping[str, float], step: int) -> list[str]:
        """The run and what it has not got yet, for a checkpoint: a process that is killed sends no more.

        Args:
            metrics, step: of the step of the checkpoint, which Lightning logs only behind it.
        """
        return dumped([*self._outbox.pieces, Metrics(dict(metrics), step, now())])

    def note_run(self, folder: Path) -> None:
        """Leave in the training's folder which run it is."""
        write_run(folder / RUN_FILE, [self._start])

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._tracking.experiment

    @property
    def run_id(self) -> str | None:
        """The run's id; None until the store has it."""
        return self._run.run_id

    @property
    def experiment_id(self) -> str | None:
        """The experiment's id; None until the store has the run."""
        return self._run.experiment_id

    @property
    def is_sent(self) -> bool:
        """Whether the store has everything."""
        return self._outbox.is_empty

    @property
    def address(self) -> str:
        """Store and run, for a person to find."""
        return f"{self._tracking.uri} (experiment {self.name}, run {self.run_id})"

    @property
    def page(self) -> str:
        """Where the experiment is shown as trainings; by default MLflow opens it in another view, which is empty."""
        uri = self._tracking.uri
        server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"

    @property
    def viewing(self) -> str:
        """The command that shows the store, or only its page where a server shows it already."""
        uri = self._tracking.uri
        return self.page if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}   # then open {self.page}"

    def log_at(self, metrics: Mapping[str, float], step: int, anew: bool = False) -> None:
        """Keep metrics of the model as it is after `step` updates.

        Args:
            metrics: by name.
            step: one that the run has already is left out.
            anew: it is measured again, and the run shows this value.
        """
        self._outbox.put(Metrics({name: float(value) for name, value in metrics.items()}, step, now(), anew))

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Keep parameters; those that the continued run has already stay as they are."""
        for name, value in (vars(params) if isinstance(params, Namespace) else params).items():
            self._outbox.put(Param(name, str(value)[:_LONGEST_PARAM]))

    def log_text(self, text: str, artifact: str) -> None:
        """Keep `text` as an artifact file."""
        self._outbox.put(Text(text, artifact))

    def log_table(self, rows: Mapping[str, list[Any]], artifact: str) -> None:
        """Keep columns as a table that the MLflow page shows and compares between runs."""
        self._outbox.put(Table(dict(rows), artifact))

    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Name the training data as the run's input."""
        self._outbox.put(TrainingData(name, digest, source, profile))

    def finalize(self, status: str) -> None:
        """End the run, the first time; what cannot be sent within `Tracking.patience` is written to a file."""
        if self._outbox.is_unused or self._is_final:
            return
        self._is_final = True
        if not self._is_addition:
            self._outbox.put(End(_STATUSES.get(status, "KILLED"), now()))
        unsent = self._outbox.close(self._tracking.patience)
        if not unsent:
            return
        file = self.unsent_folder / "mlflow_unsent.jsonl"
        try:
            write_run(file, unsent)
            warnings.warn(
                f"MLflow has not got everything. Send it the rest with: python -m inscp track {file}", stacklevel=2
            )
        except OSError as error:
            warnings.warn(
                f"MLflow has not got everything, and the rest cannot be kept in {file}: {error}", stacklevel=2
            )
