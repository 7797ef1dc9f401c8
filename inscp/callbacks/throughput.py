"""How fast the training is: tokens a second, model FLOPs utilisation, peak memory."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from inscp.cost.devices import matrix_rate
from inscp.cost.flops import ModelSize, Work, training_flops
from inscp.cost.ledger import peak_memory_gib
from inscp.model.module import InsCPModule
from inscp.records import PackedBatch
from inscp.tracking.tracker import tracker_of


def tokens_seen(trainer: Trainer) -> int:
    """Tokens of all optimizer steps so far, as the trainer's `Throughput` counts them."""
    return next(callback.tokens for callback in trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]


class Throughput(Callback):
    """Logs `train/tokens`, `train/tokens_per_second`, `train/mfu` and `memory/peak_gib` at every optimizer step.

    And the peak memory of each rank (`memory/rank_0/…`), when the weights are loaded and at the end.

    Tokens are those that are not padding, of all ranks. Time is that of training steps; validation and saving are
    left out. Utilisation is the FLOPs of `inscp.cost.flops` (forward and backward; attention, which is little in short,
    isolated documents, and what is computed again are left out) over the rate that a 2048-cubed product of the
    training's precision reaches on this device, measured at the start.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._seconds = 0.0
        self._started = 0.0
        self._flops_per_token = 0.0
        self._peak = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InsCPModule)
        self._flops_per_token = training_flops(ModelSize.of(pl_module.model), Work(tokens=1))
        dtype = torch.bfloat16 if str(trainer.precision).startswith("bf16") else torch.float32
        self._peak = matrix_rate(pl_module.device, dtype) * trainer.world_size
        _log_memory(trainer, "loaded_gib")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _log_memory(trainer, "peak_gib")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        self._seconds += time.perf_counter() - self._started
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.tokens += batch.step_tokens
        rate = batch.step_tokens / self._seconds
        self._seconds = 0.0
        pl_module.log("train/tokens_per_second", rate)
        pl_module.log("train/tokens", float(self.tokens))
        pl_module.log("train/mfu", rate * self._flops_per_token / self._peak)
        pl_module.log("memory/peak_gib", peak_memory_gib(pl_module.device))

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens = state_dict["tokens"]


def _log_memory(trainer: Trainer, name: str) -> None:
    device = trainer.strategy.root_device
    peaks = trainer.strategy.all_gather(torch.tensor(peak_memory_gib(device), device=device)).reshape(-1)
    if tracker := tracker_of(trainer):
        values = {f"memory/rank_{rank}/{name}": float(peak) for rank, peak in enumerate(peaks)}
        tracker.log_at(values, trainer.global_step)
