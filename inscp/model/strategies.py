"""The strategies of a training run: one device, copies on several (DDP), or shards on several (FSDP2).

All three write the same checkpoints, so that a run can resume under another strategy or on another number of ranks.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry, CUDAAccelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch.distributed.device_mesh import init_device_mesh

from inscp.errors import UserError
from inscp.model.checkpoint import CheckpointWriter, read_metadata
from inscp.model.device import sharded_model, whole_model
from inscp.model.loss import NextTokenLoss
from inscp.model.parallel import shard, split_tensors, sum_gradients
from inscp.model.precision import cast_frozen
from inscp.model.sharded import backend


class _Checkpoints(Strategy):
    """Mixin: checkpoints of `inscp.model.checkpoint`; the module (an `InsCPModule`) provides their tensors."""

    restore_checkpoint_after_setup = True  # type: ignore[assignment]  # into existing weights and optimizers
    lightning_restore_optimizer = False  # type: ignore[assignment]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """`storage_options`, if given, is the `CheckpointWriter` and more values for the manifest."""
        about = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        writer, extra = storage_options or (CheckpointWriter(), None)
        writer.write(Path(self.broadcast(filepath)), self.lightning_module.tensors(), about, extra)  # type: ignore
        if storage_options is None:
            writer.wait()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        about = read_metadata(path)
        self.lightning_module.read(path)  # type: ignore[union-attr, operator]
        return about | {"state_dict": {}, "optimizer_states": []}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        pass  # `load_checkpoint` has filled the weights

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        pass

    def _get_process_group_backend(self) -> str:  # called if there are several ranks
        return backend(self.root_device.type)


class _OwnPrecision(Strategy):
    """Mixin: `bf16-mixed` means fp32 weights whose bf16 copies are used to compute, without autocast.

    Attributes:
        compute_dtype: dtype of the copies; None if the weights themselves are used.
    """

    compute_dtype: torch.dtype | None = None

    @property
    def precision_plugin(self) -> Precision:
        return self._precision_plugin or Precision()

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if plugin is not None and plugin.precision == "bf16-mixed":
            self.compute_dtype, plugin = torch.bfloat16, _NamedPrecision(plugin.precision)
        self._precision_plugin = plugin


class _NamedPrecision(Precision):
    """Provides only the name of a precision, which the trainer reads: the strategy does the work."""

    def __init__(self, precision: Any) -> None:
        self.precision = precision


class OneDevice(_Checkpoints, _OwnPrecision, SingleDeviceStrategy):
    """The whole model on one device."""

    def __init__(self) -> None:
        super().__init__()
        self.parallel_devices: list[torch.device] = []  # filled by the trainer

    @property
    def root_device(self) -> torch.device:
        return self.parallel_devices[0] if self.parallel_devices else torch.device("cpu")


class DDP(_Checkpoints, DDPStrategy):
    """The whole model on every device; gradients are averaged."""


class FSDP2(_Checkpoints, _OwnPrecision, ModelParallelStrategy):
    """Weights, gradients and optimizer states sharded over the devices (fully sharded data parallel).

    Shards of what is trained are fp32; with `precision: bf16-mixed` the weights are gathered and multiplied in bf16 and
    the gradients reduced in fp32.

    Args:
        replicate: number of copies of the sharded model (hybrid sharding, HSDP), or `nodes` for one per node; weights
            are gathered within a copy, only gradients are exchanged between copies.
        tensor_parallel: number of ranks that share each matrix of a block, by the model's tensor-parallel plan.
        reshard_after_forward: free gathered weights between a block's forward and backward pass: less memory, but a
            second gather. A number keeps them sharded over that many ranks.
        cpu_offload: keep shards and optimizer states in CPU memory.
    """

    def __init__(
        self,
        replicate: int | Literal["nodes"] = 1,
        tensor_parallel: int = 1,
        reshard_after_forward: bool | int = True,
        cpu_offload: bool = False,
    ) -> None:
        super().__init__()
        self.replicate, self.tensor_parallel = replicate, tensor_parallel
        self.reshard_after_forward, self.cpu_offload = reshard_after_forward, cpu_offload
        self._summed: list[str] = []

    def setup_environment(self) -> None:
        self._setup_distributed()
        self.make_mesh(self.root_device.type, self.world_size, self.num_nodes)
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    def copies(self, num_nodes: int) -> int:
        """The number of copies of the model, each of them sharded."""
        return num_nodes if self.replicate == "nodes" else self.replicate

    def make_mesh(self, device: str, ranks: int, num_nodes: int) -> None:
        """Lay out the ranks of the process group as copies x shards x heads.

        Raises:
            UserError: the number of ranks is not a multiple of copies x heads.
        """
        copies = self.copies(num_nodes)
        shards, rest = divmod(ranks, copies * self.tensor_parallel)
        if rest or not shards:
            what = f"{copies} copies x {self.tensor_parallel} ranks per matrix do not divide {ranks} ranks"
            raise UserError("trainer.strategy", what, "Change replicate or tensor_parallel.")
        self._device_mesh = init_device_mesh(
            device, (copies, shards, self.tensor_parallel), mesh_dim_names=("copies", "shards", "heads")
        )

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The ranks that share a matrix see the same rows."""
        return {
            "num_replicas": self.world_size // self.tensor_parallel,
            "rank": self.global_rank // self.tensor_parallel,
        }

    @property
    def weights_device(self) -> torch.device:
        """The device of the shards."""
        return torch.device("cpu") if self.cpu_offload else self.root_device

    def shard(self, root: NextTokenLoss) -> None:
        """Shard `root` over the ranks; its weights may be on the meta device."""
        is_trained = any(weight.requires_grad for weight in root.parameters())
        if self.compute_dtype:
            cast_frozen(root, self.compute_dtype)
        if self.tensor_parallel > 1:
            names = split_tensors(root.model, self.device_mesh["heads"])
            self._summed += names if is_trained else []
        has_copies = self.device_mesh["copies"].size() > 1
        mesh = self.device_mesh["copies", "shards"] if has_copies else self.device_mesh["shards"]
        reshard = self.reshard_after_forward if is_trained else True  # without a backward pass it would stay gathered
        shard(root, mesh, self.compute_dtype, reshard, self.cpu_offload)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """For all micro-batches of a step except the last: do not reduce gradients over the copies."""
        root = self.lightning_module.loss  # type: ignore[union-attr]
        root.set_requires_all_reduce(False)  # type: ignore[operator, union-attr]
        try:
            yield
        finally:
            root.set_requires_all_reduce(True)  # type: ignore[operator, union-attr]

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Sum gradients that cover only one rank's heads, if the model's tensor-parallel plan has any."""
        if self._summed:
            sum_gradients((model.get_parameter(name) for name in self._summed), self.device_mesh["heads"])

    def model_to_device(self) -> None:
        pass  # `InsCPModule.configure_model` puts every shard where it belongs


def auxiliary_model(strategy: Strategy, spec: str, dtype: torch.dtype, attention: str | None = None) -> NextTokenLoss:
    """A frozen model, placed on the devices like the trained one.

    Args:
        strategy: strategy of the training run.
        spec, dtype, attention: as for `load_model`.
    """
    if isinstance(strategy, FSDP2):
        return sharded_model(spec, dtype, attention, strategy.weights_device, strategy.shard)
    return whole_model(spec, dtype, attention, strategy.root_device)


def require_strategy(given: Any) -> None:
    """
    Args:
        given: `trainer.strategy`.

    Raises:
        UserError: the strategy is not one of this module, so its checkpoints would differ.
    """
    if given != "auto" and given not in _NAMED and not isinstance(given, _Checkpoints):
        name = given if isinstance(given, str) else type(given).__name__
        fix = "Use auto, ddp, fsdp2, or class_path: inscp.model.strategies.FSDP2 with its init_args."
        raise UserError("trainer.strategy", f"{name} is not supported", fix)


def strategy_for(given: Any, accelerator: str, devices: Any, num_nodes: int) -> Strategy:
    """The strategy that `trainer.strategy` names.

    Args:
        given: `auto` (one device, else FSDP2), `ddp`, `fsdp2`, or one of the classes here.
        accelerator, devices, num_nodes: of the trainer.

    Raises:
        UserError: more or fewer processes were started than the trainer has devices.
    """
    ranks = num_nodes * _count(accelerator, devices)
    started = int(os.environ.get("WORLD_SIZE", ranks)) if "LOCAL_RANK" in os.environ else ranks
    if started != ranks:
        what = f"{started} processes were started for {ranks} devices"
        raise UserError(
            "trainer.devices", what, f"Give {started} devices in all (devices x num_nodes), or start {ranks}."
        )
    if isinstance(given, _Checkpoints):
        return given
    if given != "auto":
        return _NAMED[given]()
    return FSDP2() if ranks > 1 else OneDevice()


_NAMED: dict[Any, type[Strategy]] = {"ddp": DDP, "fsdp2": FSDP2}


def _count(accelerator: str, devices: Any) -> int:
    if accelerator == "auto":
        accelerator = "cuda" if CUDAAccelerator.is_available() else "cpu"
    kind = AcceleratorRegistry.get("cuda" if accelerator == "gpu" else accelerator)
    if devices == "auto":
        return int(kind.auto_device_count())
    parsed = kind.parse_devices(devices)
    return len(parsed) if isinstance(parsed, list) else int(parsed or 1)
