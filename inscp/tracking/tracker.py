"""A training's run in MLflow, as Lightning logs."""

from collections.abc import Mapping

from lightning import Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from inscp.tracking.tracked_run import TrackedRun


def tracker_of(trainer: Trainer) -> "MLflowTracker | None":
    """The trainer's tracker, where the training is tracked."""
    return trainer.logger if isinstance(trainer.logger, MLflowTracker) else None


class MLflowTracker(TrackedRun, Logger):
    """The run of a training, which the first process opens and logs to; the others do nothing."""

    _connect = rank_zero_only(TrackedRun._connect)
    _put = rank_zero_only(TrackedRun._put)

    @property
    def version(self) -> str | None:
        """The run's id."""
        return self.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # What Lightning calls. Its steps count from 0; here step n is behind the n-th update, and 0 is the original
        # model. It adds its epoch to every call; here the data decides the length, and an epoch tells nothing.
        self.log_at({name: value for name, value in metrics.items() if name != "epoch"}, (step or 0) + 1)
