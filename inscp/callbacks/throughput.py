"""Training speed: tokens per second, model FLOPs utilisation, peak memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from inscp.callbacks.steps import ends_step
from inscp.cost.devices import device_name, find_device, matrix_rate, synchronize
from inscp.cost.flops import ModelSize, Work, training_flops
from inscp.cost.ledger import peak_memory_gib
from inscp.model.module import InsCPModule
from inscp.model.precision import compute_dtype
from inscp.records import PackedBatch
from inscp.tracking.tracker import tracker_of


def tokens_seen(trainer: Trainer) -> int:
    """Tokens of all optimizer steps so far, as the trainer's `Throughput` counts them."""
    return next(callback.tokens for callback in trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]


@contextmanager
def clock_paused(trainer: Trainer) -> Iterator[None]:
    """Exclude the time spent in the context, between two steps, from the throughput."""
    clocks = [callback for callback in trainer.callbacks if isinstance(callback, Throughput)]  # type: ignore[attr-defined]
    for clock in clocks:
        clock.pause(trainer)
    try:
        yield
    finally:
        for clock in clocks:
            clock.resume(trainer)


class Throughput(Callback):
    """Logs `train/tokens`, `train/tokens_per_second`, `train/mfu` and `memory/peak_gib` at every optimizer step.

    Also logs the peak memory of each rank (`memory/rank_0/…`), once the weights are loaded and at the end.

    Tokens are those of all ranks, without padding. A step's time runs from the end of the previous step (for the first
    step, from when its rows are available) to its own end: waiting for rows, forward and backward passes, the update,
    logging. Validation, checkpoints and the prompts of `stop_when_aligned` are left out.

    Utilisation (MFU) is the FLOPs of `inscp.cost.flops` (forward and backward, without recomputation and without
    attention, which is small for short, isolated documents) over the devices' peak. This is the rated peak of dense
    bf16 matmuls if the run computes in bf16 on a device of `inscp.cost.devices.DEVICES`; else the measured rate of a
    2048-cubed matmul in the run's precision, at the start (`matrix_rate`). The parameter `mfu_peak` of the MLflow run
    gives the peak and its source.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._step_began: float | None = None
        self._paused = 0.0
        self._flops_per_token = 0.0
        self._peak = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InsCPModule)
        self._flops_per_token = training_flops(ModelSize.of(pl_module.model), Work(tokens=1))
        peak, source = peak_rate(pl_module.device, is_bf16=compute_dtype(trainer.precision) == torch.bfloat16)
        self._peak = peak * trainer.world_size
        if tracker := tracker_of(trainer):
            tracker.log_hyperparams({"mfu_peak": source})
        _log_memory(trainer, "loaded_gib")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _log_memory(trainer, "peak_gib")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._step_began is None:
            self._step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        assert self._step_began is not None
        now = time.perf_counter()
        self.tokens += batch.step_tokens
        rate = batch.step_tokens / (now - self._step_began)
        self._step_began = now
        pl_module.log("train/tokens_per_second", rate)
        pl_module.log("train/tokens", float(self.tokens))
        pl_module.log("train/mfu", rate * self._flops_per_token / self._peak)
        pl_module.log("memory/peak_gib", peak_memory_gib(pl_module.device))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pause(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resume(trainer)

    def pause(self, trainer: Trainer) -> None:
        """Stop the clock, once the device is idle."""
        self._paused = _device_time(trainer)

    def resume(self, trainer: Trainer) -> None:
        """Start the clock again, once the device is idle."""
        if self._step_began is not None:
            self._step_began += _device_time(trainer) - self._paused

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens = state_dict["tokens"]


def peak_rate(device: torch.device, is_bf16: bool) -> tuple[float, str]:
    """The peak FLOP/s of one device, to which utilisation is relative, and its source in words.

    Args:
        device: device of the training run.
        is_bf16: whether matmuls are bf16; else fp32, for which no rated peak is known.
    """
    rated = find_device(device_name(device)) if is_bf16 else None
    if rated:
        return rated.flops, f"{rated.flops / 1e12:g} TFLOP/s, rated ({rated.name})"
    rate = matrix_rate(device, torch.bfloat16 if is_bf16 else torch.float32)
    return rate, f"{rate / 1e12:.3g} TFLOP/s, measured"


def _device_time(trainer: Trainer) -> float:
    """The clock in seconds, once the device is idle."""
    synchronize(trainer.strategy.root_device)
    return time.perf_counter()


def _log_memory(trainer: Trainer, name: str) -> None:
    device = trainer.strategy.root_device
    peaks = trainer.strategy.all_gather(torch.tensor(peak_memory_gib(device), device=device)).reshape(-1)
    if tracker := tracker_of(trainer):
        values = {f"memory/rank_{rank}/{name}": float(peak) for rank, peak in enumerate(peaks)}
        tracker.log_at(values, trainer.global_step)
