"""The memory and disk space that a training run needs, and what this machine has."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from inscp.commands.checks import require_supported
from inscp.commands.fit import InsCPCLI
from inscp.commands.machine import cpu_memory, free_disk, gib
from inscp.cost.devices import PROJECTED_ON, UTILISATION, find_device
from inscp.cost.flops import ModelSize, Work, forward_flops, recomputed_share, training_flops
from inscp.errors import UserError
from inscp.model.allocator import keeps_freed_memory
from inscp.model.isolation import require_isolated_length
from inscp.model.memory import Layout, MemoryEstimate, Shape, meta_model, step_memory
from inscp.model.module import InsCPModule
from inscp.model.origin import title
from inscp.model.precision import best_precision, compute_dtype, inference_dtype
from inscp.model.strategies import FSDP2, strategy_for
from inscp.pretrained import empty_model

_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "average": "weight average",
    "activations": "activations, logits, gathered and cast weights",
    "kept": "freed memory kept for the next step",
}
_GPU_SIZES, _USABLE = (16, 24, 32, 40, 48, 80, 96, 141, 192), 0.92
"""GB of the GPUs on the market, and the fraction that CUDA itself and fragmentation leave of them."""
_TOKENS = 100_000_000
"""Assumed for the estimate of a run that trains on all data."""


class DoctorCLI(InsCPCLI):
    """A training configuration of which everything but the trainer is instantiated; no weights are read."""

    command_name = "doctor"

    def instantiate_classes(self) -> None:
        self.parts = self.parser.instantiate_classes(self.config)


@dataclass(frozen=True)
class MemoryNeed:
    """Memory that one rank needs on a device.

    Attributes:
        device: its display name.
        step: peak bytes of a training step.
        asking: bytes while `before_after` prompts a second model, without what it gathers and its cache; 0 if there is
            none.
        available: bytes; None if this machine has no such device.
    """

    device: str
    step: int
    asking: int
    available: int | None

    @property
    def needed(self) -> int:
        return max(self.step, self.asking)

    @property
    def asks_most(self) -> bool:
        return self.asking > self.step


class Training:
    """The parts of a configuration that determine memory and disk space."""

    def __init__(self, cli: DoctorCLI) -> None:
        trainer, self.data = cli.parts["trainer"], cli.parts["data"]
        self.module: InsCPModule = cli.parts["model"]
        require_supported(trainer, self.module, self.data, cli.parts["checkpoint"])
        self.on_gpu = _is_gpu(trainer["accelerator"])
        self.is_here = not self.on_gpu or torch.cuda.is_available()
        self.local_ranks = _devices(trainer["devices"], self.on_gpu)
        nodes = trainer["num_nodes"]
        precision = trainer["precision"] or (best_precision() if self.is_here else "bf16-mixed")
        self.layout = Layout(
            strategy_for(trainer["strategy"], "cpu", self.local_ranks, nodes),
            ranks=self.local_ranks * nodes,
            num_nodes=nodes,
            dtype=compute_dtype(precision),
        )
        self.shape = Shape(self.data.batch_size, self.data.row_length, trainer["accumulate_grad_batches"])
        self.asks = bool(cli.parts["before_after"].questions)
        self.keep_last: int = cli.config["checkpoint"]["keep_last"]
        self.outputs = Path(cli.config["checkpoint"]["dirpath"] or trainer["default_root_dir"])

    def memory_needs(self, estimate: MemoryEstimate, parameters: int, process: int) -> list[MemoryNeed]:
        """What a rank needs on each device, with `parameters` in the model and a process of `process` bytes."""
        offloads = isinstance(self.layout.strategy, FSDP2) and self.layout.strategy.cpu_offload
        cpu = (
            (cpu_memory()[1] + process) // self.local_ranks if self.is_here else None
        )  # without this process, which ends before
        asking = 0
        if self.asks:  # in addition to all that the run keeps
            dtype = inference_dtype() if self.is_here else torch.bfloat16
            asked = parameters * dtype.itemsize // self.layout.shards
            asking = estimate.weights + estimate.optimizer + estimate.average + asked
        if not self.on_gpu:
            return [MemoryNeed("CPU", estimate.total + process, asking and asking + process, cpu)]
        gpu = torch.cuda.get_device_properties(0).total_memory if self.is_here else None
        if offloads:
            sharded = estimate.total - estimate.activations + process
            on_cpu = MemoryNeed("CPU", sharded, asking and asking + process, cpu)
            return [MemoryNeed("GPU", estimate.activations, 0, gpu), on_cpu]
        return [MemoryNeed("GPU", estimate.total, asking, gpu)]

    def recommendation(self, need: MemoryNeed) -> str:
        """What to rent, if this machine has no such device."""
        if need.device == "CPU":
            return f"needs a host with {gib(self.local_ranks * need.needed)} of memory"
        card = next((size for size in _GPU_SIZES if need.needed <= _USABLE * size * 2**30), None)
        less = ", or ".join(self.remedies(need, has_room_for_shards=True).values())
        return f"needs a GPU with {card} GB; for a smaller one: {less}" if card else f"no GPU is that large: {less}"

    def remedies(self, need: MemoryNeed, has_room_for_shards: bool) -> dict[str, str]:
        """Configuration key -> what to do with it, the most helpful first."""
        found = {}
        if need.asks_most:
            found["before_after.prompts"] = "set before_after.prompts to null, so that no second model is loaded"
        # If a step alone would fit, lowering its memory does not help.
        counts_step = not need.asks_most or (need.available is not None and need.step > need.available)
        has_room_for_shards = has_room_for_shards and counts_step
        if has_room_for_shards and self.shape.rows > 1:
            found["data.batch_size"] = f"lower data.batch_size ({self.shape.rows})"
        if has_room_for_shards and self.module.activation_checkpointing == "none":
            found["model.activation_checkpointing"] = "set model.activation_checkpointing to block"
        if has_room_for_shards:
            found["data.row_length"] = f"lower data.row_length ({self.shape.row_length})"
        if self.on_gpu:
            found["trainer.devices"] = f"shard it over more trainer.devices ({self.local_ranks}) with FSDP2"
        if self.module.adapter is None and counts_step:
            found["model.adapter"] = "train a model.adapter (LoRA)"
        return found | {"model.pretrained": "use a smaller model.pretrained"}


def report_training(training: Training) -> None:
    """Print the memory that a rank needs for a training step, by part, and what is available.

    Raises:
        UserError: it needs more than is available, or the model does not support rows of this length.
    """
    model = meta_model(training.module)
    require_isolated_length(model.config, training.module.pretrained, training.shape.row_length)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with suppress(UserError):  # a model folder without one suffices for an estimate
        _ = training.data.tokenizer  # which is in a training run's memory, as are its imports
    process = psutil.Process().memory_info().rss
    layout, shape = training.layout, training.shape
    keeps_freed = not training.on_gpu and keeps_freed_memory()
    estimate = step_memory(model, training.module, layout, shape, keeps_freed)
    needs = training.memory_needs(estimate, parameters, process)
    ranks = f"rank 1 of {layout.ranks}" if layout.ranks > 1 else "the only rank"
    rows = f"{shape.micro_batches} x {shape.rows} x {shape.row_length} tokens per step"
    head = (
        title(training.module.pretrained),
        ranks,
        type(layout.strategy).__name__,
        "bf16-mixed" if layout.is_mixed else "fp32",
        rows,
    )
    print(", ".join(head))
    for part, label in _PARTS.items():
        print(_row(label, getattr(estimate, part)))
    if any(need.device == "CPU" for need in needs):
        print(_row("the process itself", process))
    for need in needs:
        if need.asks_most:
            print(_row("while before_after runs a second model", need.asking))
        print(_row(f"needed on the {need.device}", need.needed))
        if need.available is not None:
            print(_row("available there", need.available))
    _report_disk(training, 4 * trained * (4 if training.module.ema_decay else 3))
    if training.on_gpu:
        print(_cost_estimate(training, model))
    for need in needs:
        if need.available is None:
            print(training.recommendation(need))
        elif need.needed > need.available:
            remedies = training.remedies(need, need.step - estimate.activations < need.available)
            there = f"only {gib(need.available)} are available"
            what = f"a rank needs {gib(need.needed)} of memory on the {need.device}, but {there}"
            fix = ", or ".join(remedies.values())
            raise UserError(next(iter(remedies)), what, f"{fix[0].upper()}{fix[1:]}.")
    if all(need.available for need in needs):
        print("it fits")


def _cost_estimate(training: Training, model: PreTrainedModel) -> str:
    """The GPU hours of a run, by formula, for documents as long as a row, which cost the most."""
    module, data = training.module, training.data
    tokens, row = data.token_budget or _TOKENS, Work.of((data.row_length,))
    flops = training_flops(ModelSize.of(model), row, recomputed_share(module.activation_checkpointing))
    if module.distillation and data.replay:
        teacher = module.distillation.teacher_of(module.pretrained)
        taught_by = model if teacher == module.pretrained else empty_model(teacher, training.layout.dtype)
        flops += data.replay.share * forward_flops(ModelSize.of(taught_by), row)
    flops *= tokens / data.row_length
    device = (training.is_here and find_device(torch.cuda.get_device_name())) or find_device(PROJECTED_ON)
    assert device
    of = f"{device.hours(flops):.3g} {device.name} hours at {UTILISATION:.0%} of its peak rate"
    return f"{tokens:,} tokens: {flops:.2g} FLOPs, {of} (by formula)"


def _report_disk(training: Training, size: int) -> None:
    count, free = (
        training.keep_last + 1,
        free_disk(training.outputs),
    )  # the oldest is deleted once the newest is complete
    print(_row(f"{count} checkpoints on disk", count * size))
    if count * size > free:
        what = f"{count} x {gib(size)} do not fit into the {gib(free)} of free disk space at {training.outputs}"
        print(f"warning: checkpoint.keep_last: {what}", file=sys.stderr)


def _row(label: str, n_bytes: int) -> str:
    return f"  {label:<48}{gib(n_bytes):>14}"


def _is_gpu(accelerator: str) -> bool:
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


def _devices(given: Any, on_gpu: bool) -> int:
    """The number of devices per node: as requested, even if those are GPUs and there are none here."""
    if isinstance(given, list):
        return len(given)
    if str(given) in ("auto", "-1"):
        return max(1, torch.cuda.device_count()) if on_gpu else 1
    return len(given.strip(",").split(",")) if isinstance(given, str) and "," in given else int(given)
