"""The memory that a rank needs for a training step, estimated without data, weights or devices.

The step is that of the training run: its model, adapter, loss, sharding, optimizer and average, in the order of the
training loop. It runs on tensors with a shape but no storage (torch's FakeTensorMode), under FSDP2 in a process group
without other processes (torch's backend `fake`), and counts the live tensors at every operation:

    peak = max over the step of (weights + gradients + optimizer states + average + everything else)

On N shards the first four are 1/N of the model's. Everything else is activations, logits and the low-precision copies
of weights: of all trained weights, or under FSDP2 of the gathered block, the next block, which is gathered meanwhile,
the gathered root (embeddings, output layer) and their gradients that are not yet reduced. Temporary memory inside an
operation and memory held by an allocator are not counted. Every position is a target, and every row is one document.
Attention is torch's own, instead of a kernel from the Hub. Blocks are not compiled, though compiled ones keep less.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import Strategy
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from inscp.errors import UserError, first_line
from inscp.model.device import inference_loss
from inscp.model.distillation import Teacher, require_teacher
from inscp.model.loss import NextTokenLoss
from inscp.model.module import InsCPModule
from inscp.model.moving_average import MovingAverage
from inscp.model.optim import initialise_states
from inscp.model.precision import ComputeCopies, trained_weights
from inscp.model.sharded import local_tensor
from inscp.model.strategies import DDP, FSDP2, OneDevice
from inscp.model.weights import materialise
from inscp.pretrained import empty_model
from inscp.records import PackedBatch


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank at the peak of a training step, by part.

    Attributes:
        weights: the rank's part of them, including buffers and a teacher's weights.
        gradients: those that exist at the peak.
        optimizer: Adam's two moments.
        average: the moving average of `model.ema_decay`.
        activations: everything else, including gathered weights.
        kept: on a CPU whose C library keeps freed memory, that of the gradients, which cannot reuse the memory of
            activations.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    kept: int = 0

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class Shape:
    """A rank's input in a step: `micro_batches` times `rows` of `row_length` tokens."""

    rows: int
    row_length: int
    micro_batches: int = 1


@dataclass(frozen=True)
class Layout:
    """The devices of a training run.

    Attributes:
        strategy: one of `inscp.model.strategies`.
        ranks: number of ranks on all nodes.
        num_nodes: number of nodes.
        dtype: dtype of matmuls.
    """

    strategy: Strategy
    ranks: int = 1
    num_nodes: int = 1
    dtype: torch.dtype = torch.float32

    @property
    def shards(self) -> int:
        """The number of ranks over which a model's weights are sharded."""
        return self.ranks // self.strategy.copies(self.num_nodes) if isinstance(self.strategy, FSDP2) else 1

    @property
    def is_mixed(self) -> bool:
        """Whether matmuls use another dtype than the fp32 weights."""
        return self.dtype != torch.float32


def meta_model(module: InsCPModule) -> PreTrainedModel:
    """The model that `module` trains, not yet sharded, on the meta device: only its config.json is read."""
    return module.bare_model(_empty).train()


def _empty(spec: str, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    return empty_model(spec, dtype, "eager" if attention == "eager" else None)


def meta_teacher(module: InsCPModule, layout: Layout, learner: NextTokenLoss, row_length: int) -> Teacher | None:
    """The teacher of `module`, if it has one, made like the model of `meta_model`.

    Raises:
        UserError: the teacher does not fit the model.
    """
    how = module.distillation
    if how is None:
        return None
    if how.is_adapter_base(module.pretrained, module.adapter):
        return Teacher(learner, is_adapter_base=True)
    spec = how.teacher_of(module.pretrained)
    require_teacher(spec, module.pretrained, row_length)
    return Teacher(inference_loss(_empty(spec, layout.dtype, module.attn_implementation)))


def step_memory(
    model: PreTrainedModel, module: InsCPModule, layout: Layout, shape: Shape, keeps_freed: bool = False
) -> MemoryEstimate:
    """Run a training step on fake tensors.

    Args:
        model: the module's `meta_model`; must not be used afterwards.
        module: the module whose step is run.
        layout: the devices.
        shape: the input; with more than one micro-batch, gradients coexist with the activations of the next one.
        keeps_freed: whether the C library keeps freed memory.

    Raises:
        UserError: the model's operations depend on the values of tensors (some mixtures of experts).
    """
    root = NextTokenLoss(model)
    teacher = meta_teacher(module, layout, root, shape.row_length)
    roots = {root, teacher.root} if teacher else {root}
    with _sharded(roots, layout), FakeTensorMode(allow_non_fake_inputs=True):
        for one in roots:
            materialise(one, torch.device("cpu"))
            one.model.tie_weights()
        with LiveTensors() as live:
            try:
                return _step(root, teacher, module, layout, shape, keeps_freed, live)
            except RuntimeError as error:
                what = f"its memory cannot be estimated ({first_line(error)})"
                fix = "Try a few steps: fit --trainer.max_steps 3."
                if not layout.is_mixed:  # only in mixed precision can some operations be estimated
                    fix = f"Estimate it with --trainer.precision bf16-mixed. {fix}"
                raise UserError(module.pretrained, what, fix) from error


def _step(
    root: NextTokenLoss,
    teacher: Teacher | None,
    module: InsCPModule,
    layout: Layout,
    shape: Shape,
    keeps_freed: bool,
    live: "LiveTensors",
) -> MemoryEstimate:
    model = root.model
    trained = trained_weights(model)
    optimizer = module.optimizer.build(trained.values())  # its step works in place, so it is not run
    initialise_states(optimizer)
    average = MovingAverage(trained, module.ema_decay) if module.ema_decay else None
    if layout.is_mixed and isinstance(layout.strategy, OneDevice):
        ComputeCopies(model, layout.dtype)
    untrained = (weight for weight in model.parameters() if not weight.requires_grad)
    weights = live.add([*trained.values(), *untrained, *model.buffers()])
    if teacher and not teacher.is_adapter_base:
        weights += live.add([*teacher.root.parameters(), *teacher.root.buffers()])
    states = live.add(value for state in optimizer.state.values() for value in state.values())
    averages = live.add(average.tensors.values()) if average else 0
    lengths = (shape.row_length,) * shape.rows
    ids = torch.zeros(shape.rows, shape.row_length, dtype=torch.long)
    places = torch.arange(ids.numel())  # fake tensors do not show which positions are targets
    # In the second pass gradients exist, and DTensor no longer runs operations on whole tensors to infer layouts.
    for is_last in [False, True] if shape.micro_batches > 1 or isinstance(layout.strategy, FSDP2) else [True]:
        if shape.micro_batches == 1:
            optimizer.zero_grad()
        elif isinstance(layout.strategy, FSDP2):  # before the last, copies accumulate their gradients locally
            root.set_requires_all_reduce(is_last)  # type: ignore[operator]
        live.restart()
        with torch.autocast("cpu", layout.dtype, enabled=layout.is_mixed and isinstance(layout.strategy, DDP)):
            replayed = (len(ids), len(places)) if teacher else (0, 0)
            batch = PackedBatch(ids, ids, ids, lengths, 1, 1, *replayed, places)
            total = root(batch, teacher=teacher and teacher.predictions(batch)).total
        total.backward()
        del total
    gradients = live.at_peak(p.grad for p in trained.values() if p.grad is not None)
    rest = live.peak - weights - states - averages - gradients
    kept = sum(storage.nbytes() for storage in _storages(trained.values())) - gradients if keeps_freed else 0
    if isinstance(layout.strategy, DDP):
        gradients += sum(p.nbytes for p in trained.values())  # the buckets in which they are reduced
    return MemoryEstimate(weights, gradients, states, averages, rest, kept)


@contextmanager
def _sharded(roots: Iterable[NextTokenLoss], layout: Layout) -> Iterator[None]:
    """Under FSDP2, make this process the first of `layout.ranks`, without the others, and shard `roots`."""
    if not isinstance(layout.strategy, FSDP2):
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=layout.ranks)
    try:
        layout.strategy.make_mesh("cpu", layout.ranks, layout.num_nodes)
        layout.strategy.precision_plugin = MixedPrecision("bf16-mixed", "cpu") if layout.is_mixed else Precision()
        for root in roots:
            layout.strategy.shard(root)
        yield
    finally:
        dist.destroy_process_group()


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of live fake tensors, storage by storage.

    Attributes:
        peak: the highest count so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bytes: dict[int, int] = {}
        self._born: dict[int, int] = {}
        self._now = self._time = self._peak_time = self.peak = 0

    def add(self, tensors: Iterable[Any]) -> int:
        """Count tensors that exist already; returns their bytes."""
        return sum({storage._cdata: self._see(storage) for storage in _storages(tensors)}.values())

    def at_peak(self, tensors: Iterable[torch.Tensor]) -> int:
        """Bytes of those of `tensors`, all alive, that existed at the peak."""
        keys = {storage._cdata for storage in _storages(tensors)}
        return sum(self._bytes[key] for key in keys if self._born[key] <= self._peak_time)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self._peak_time = self._now, self._time

    def _see(self, storage: torch.UntypedStorage) -> int:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._bytes:
            weakref.finalize(storage, self._forget, key)
            self._born[key] = self._time
        self._now += size - self._bytes.get(key, 0)
        self._bytes[key] = size
        if self._now > self.peak:
            self.peak, self._peak_time = self._now, self._time
        return size

    def _forget(self, key: int) -> None:
        self._now -= self._bytes.pop(key)
        del self._born[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # dispatched again with the local tensor
        output = func(*args, **(kwargs or {}))
        self._time += 1
        for tensor in tree_leaves(output):
            if isinstance(tensor, FakeTensor):
                self._see(tensor.untyped_storage())
        return output

    def __enter__(self) -> "LiveTensors":
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            self._resize(storage, size)
            self._see(storage)
            return storage

        torch.UntypedStorage.resize_ = resize  # type: ignore  # FSDP2 frees and allocates with it, without a dispatch
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)


def _storages(tensors: Iterable[Any]) -> list[torch.UntypedStorage]:
    return [local_tensor(tensor).untyped_storage() for tensor in tensors]
