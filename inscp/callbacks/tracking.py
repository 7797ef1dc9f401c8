"""MLflow tracking that a training can lean on: what fails there is told once and never stops the training."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

F = TypeVar("F", bound=Callable[..., Any])


def _never_fatal(method: F) -> F:
    @wraps(method)
    def guarded(self: "MLflowTracker", *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever the store, the network or the server raises
            if not self.failed:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                rank_zero_warn(f"MLflow tracking failed, the training goes on without it: {reason}")
            self.failed = True
            return None

    return guarded  # type: ignore[return-value]


class MLflowTracker(MLFlowLogger):
    """One MLflow run a training.

    Args:
        tracking_uri: `sqlite:///FILE` or the address of a tracking server.
        experiment: name of the experiment.
        run_id: continue this run instead of starting one.
        enabled: false logs nothing.
    """

    def __init__(
        self,
        tracking_uri: str = "sqlite:///mlflow.db",
        experiment: str = "inscp",
        run_id: str | None = None,
        enabled: bool = True,
    ) -> None:
        # MLflow would put artifacts into ./mlruns wherever it is started; beside the store they are found again.
        store = tracking_uri.removeprefix("sqlite:///")
        beside = None if store == tracking_uri else str(Path(store).resolve().parent / "mlartifacts")
        super().__init__(experiment_name=experiment, tracking_uri=tracking_uri, run_id=run_id, artifact_location=beside)
        self.enabled, self.failed = enabled, False

    def name_run(self, name: str, tags: Mapping[str, str]) -> None:
        """Name and tag the run that is about to start."""
        self._run_name = name
        self.tags = {**(self.tags or {}), **tags}

    @property
    def address(self) -> str:
        """Store and run for a person to find, or why there is none."""
        if not self.enabled or self.failed or not self._initialized:
            return "off" if not self.enabled else "not reached"
        return f"{self._tracking_uri} (experiment {self._experiment_name}, run {self._run_id})"

    @rank_zero_only
    @_never_fatal
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Lightning adds its epoch to every call; here the data decides the length, and an epoch tells nothing.
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    @_never_fatal
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams(params)

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
    def log_folder(self, folder: Path, artifact: str) -> None:
        """Keep the files of a folder as artifacts."""
        self.experiment.log_artifacts(self.run_id, str(folder), artifact)

    @rank_zero_only
    @_never_fatal
    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Name the training data as the run's input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="local", source=source, profile=profile)
        tagged = DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", "training")])
        self.experiment.log_inputs(self.run_id, datasets=[tagged])
