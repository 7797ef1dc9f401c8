"""The cost of a training run, summed over all attempts if it was interrupted."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from inscp.callbacks.throughput import Throughput
from inscp.cost.flops import ModelSize, Work, forward_flops, recomputed_share, training_flops
from inscp.cost.ledger import Cost, CostMeter, Ledger
from inscp.data.datamodule import data_of
from inscp.model.module import InsCPModule
from inscp.records import PackedBatch
from inscp.tracking.tracker import tracker_of


def training_cost(trainer: Trainer) -> Cost | None:
    """The cost of the training run so far; None if it is not counted."""
    return next((callback.cost for callback in trainer.callbacks if isinstance(callback, TrainingCost)), None)  # type: ignore[attr-defined]


class TrainingCost(Callback):
    """Logs `cost/training/…` (tokens, flops, wall_seconds, device_hours, energy_kwh, money, …) when the training ends.

    It covers the first step to the last, including the time and energy of validation, checkpoints and prompting in
    between, but not loading, the before/after table or the export. The first rank measures its machine, and every
    machine is assumed to cost the same. Tokens are those of `train/tokens`; FLOPs are those of training rows, including
    padding, and of held-out rows, but not those of `stop_when_aligned`.

    Args:
        ledger: prices.
        throughput: counts the tokens.
    """

    def __init__(self, ledger: Ledger, throughput: Throughput) -> None:
        self._ledger, self._throughput = ledger, throughput
        self._earlier: Cost | None = None
        self._running: CostMeter | None = None
        self._size = ModelSize(0, 0, 0)
        self._teacher: ModelSize | None = None
        self._recomputed = self._flops = 0.0
        self._tokens_before = 0

    @property
    def cost(self) -> Cost | None:
        """The cost so far, on the first rank."""
        return self._running.cost(*self._counts) if self._running else self._earlier

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InsCPModule)
        if not (self._ledger.enabled and trainer.is_global_zero):
            return
        self._size, self._flops = ModelSize.of(pl_module.model), 0.0
        if pl_module.teacher:
            self._teacher = ModelSize.of(pl_module.teacher.root.model)
        self._recomputed = recomputed_share(pl_module.activation_checkpointing)
        self._tokens_before = self._throughput.tokens
        devices = trainer.strategy.parallel_devices  # type: ignore[attr-defined]
        self._running = self._ledger.start(devices, trainer.num_nodes, self._earlier)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        flops = training_flops(self._size, Work.of(batch.lengths), self._recomputed)
        if self._teacher:
            flops += forward_flops(self._teacher, Work.of(batch.replayed.lengths))
        self._flops += _ranks(trainer) * flops

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PackedBatch, *_: Any
    ) -> None:
        if self._running:  # not before the first step
            self._flops += _ranks(trainer) * forward_flops(self._size, Work.of(batch.lengths))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        if self._earlier and (tracker := tracker_of(trainer)):
            tracker.log_at(self._earlier.metrics("training"), trainer.global_step)
            tracker.log_hyperparams(self._earlier.params("training"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        cost = self.cost
        return {"cost": cost.plain() if cost else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = Cost(**state_dict["cost"]) if state_dict["cost"] else None

    @property
    def _counts(self) -> tuple[int, float]:
        return self._throughput.tokens - self._tokens_before, self._flops

    def _stop(self) -> None:
        if self._running:
            self._earlier, self._running = self._running.stop(*self._counts), None


def _ranks(trainer: Trainer) -> int:
    """The number of ranks with different rows. The first one's FLOPs count for each: rows are about equally full."""
    return int(data_of(trainer).ranks[0])
