"""The MLflow run of a training run, as a Lightning logger."""

from collections.abc import Mapping

from lightning import Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from inscp.tracking.tracked_run import TrackedRun


def tracker_of(trainer: Trainer) -> "MLflowTracker | None":
    """The trainer's tracker; None if the run is not tracked."""
    return trainer.logger if isinstance(trainer.logger, MLflowTracker) else None


class MLflowTracker(TrackedRun, Logger):
    """The MLflow run of a training run; the first process opens it and logs to it, the others do nothing."""

    _connect = rank_zero_only(TrackedRun._connect)
    _put = rank_zero_only(TrackedRun._put)

    @property
    def version(self) -> str | None:
        """The run's id."""
        return self.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Called by Lightning, whose steps count from 0; here step n is after the n-th update, and 0 is the original
        # model. Lightning adds its epoch to every call; here the data decides the length, and epochs mean nothing.
        self.log_at({name: value for name, value in metrics.items() if name != "epoch"}, (step or 0) + 1)
