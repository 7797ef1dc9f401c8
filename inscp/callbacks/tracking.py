"""MLflow tracking that a training can lean on: what fails there is told once and never stops the training."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from lightning import Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from inscp.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


def tracker_of(trainer: Trainer) -> "MLflowTracker | None":
    """The trainer's tracker, where the training is tracked."""
    return trainer.logger if isinstance(trainer.logger, MLflowTracker) else None


def _never_fatal(method: F) -> F:
    @wraps(method)
    def guarded(self: "MLflowTracker", *args: Any, **kwargs: Any) -> Any:
        if self.failed:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever the store, the network or the server raises
            self.failed = True
            reason = (str(error) or type(error).__name__).splitlines()[0]
            rank_zero_warn(f"MLflow tracking failed, the training goes on without it: {reason}")
            return None

    return guarded  # type: ignore[return-value]


@dataclass(frozen=True)
class Tracking:
    """Where a training is tracked. Nothing is opened or written before the training starts.

    Args:
        tracking_uri: `sqlite:///FILE` or the address of a tracking server.
        experiment: name of the experiment.
        run_id: continue this run instead of starting one.
        enabled: false tracks nothing.
    """

    tracking_uri: str = "sqlite:///mlflow.db"
    experiment: str = "inscp"
    run_id: str | None = None
    enabled: bool = True


class MLflowTracker(MLFlowLogger):
    """One MLflow run a training.

    Args:
        tracking: which store, experiment and run.
        name: of the run, for people.
        tags: of the run.

    Raises:
        UserError: the store is a file that cannot be opened. A server that cannot be reached is none.
    """

    def __init__(self, tracking: Tracking, name: str, tags: Mapping[str, str]) -> None:
        # By default MLflow tries for minutes to reach a server that is not there.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        # MLflow would put artifacts into ./mlruns wherever it is started; beside the store they are found again.
        store = tracking.tracking_uri.removeprefix("sqlite:///")
        beside = None if store == tracking.tracking_uri else str(Path(store).resolve().parent / "mlartifacts")
        try:  # a file is opened here, a server only when something is logged
            super().__init__(
                experiment_name=tracking.experiment,
                run_name=name,
                tracking_uri=tracking.tracking_uri,
                tags=dict(tags),
                run_id=tracking.run_id,
                artifact_location=beside,
            )
        except Exception as error:
            what = f"the store {tracking.tracking_uri} cannot be opened ({error})"
            raise UserError("mlflow.tracking_uri", what, "Name a file that can be written, or a server.") from error
        self.tracking_uri, self.failed = tracking.tracking_uri, False

    @property
    @rank_zero_experiment
    @_never_fatal
    def experiment(self) -> Any:
        """The MLflow client of the started run; Lightning asks for it before the training begins."""
        return super().experiment

    @property
    def address(self) -> str:
        """Store and run, for a person to find."""
        if self.failed:
            return f"{self.tracking_uri} failed; what was tracked until then may be there"
        return f"{self.tracking_uri} (experiment {self._experiment_name}, run {self._run_id})"

    @property
    def page(self) -> str:
        """Where `mlflow ui` shows the experiment as trainings; by default it opens in another view, which is empty."""
        return f"http://127.0.0.1:5000/#/experiments/{self._experiment_id}/runs?workflowType=machine_learning"

    @rank_zero_only
    @_never_fatal
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # What Lightning calls. Its steps count from 0; here step n is behind the n-th update, and 0 is the original
        # model. It adds its epoch to every call; here the data decides the length, and an epoch tells nothing.
        self.log_at({name: value for name, value in metrics.items() if name != "epoch"}, (step or 0) + 1)

    @rank_zero_only
    @_never_fatal
    def log_at(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep metrics of the model as it is after `step` updates."""
        super().log_metrics(metrics, step)

    @rank_zero_only
    @_never_fatal
    def log_hyperparams(self, params: Any) -> None:
        """Keep parameters; those that the continued run has already stay as they are, as MLflow demands."""
        known = self.experiment.get_run(self.run_id).data.params
        super().log_hyperparams({name: value for name, value in params.items() if name not in known})

    @rank_zero_only
    @_never_fatal
    def finalize(self, status: str = "success") -> None:
        super().finalize(status)

    @rank_zero_only
    @_never_fatal
    def log_text(self, text: str, artifact: str) -> None:
        """Keep `text` as an artifact file."""
        self.experiment.log_text(self.run_id, text, artifact)

    @rank_zero_only
    @_never_fatal
    def log_table(self, rows: Mapping[str, list[Any]], artifact: str) -> None:
        """Keep columns as a table that the MLflow page shows and compares between runs."""
        self.experiment.log_table(self.run_id, dict(rows), artifact)

    @rank_zero_only
    @_never_fatal
    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Name the training data as the run's input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="local", source=source, profile=profile)
        tagged = DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", "training")])
        self.experiment.log_inputs(self.run_id, datasets=[tagged])
