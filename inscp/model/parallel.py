"""Distribution of a model over devices: FSDP2 (`fully_shard`), sharded copies (HSDP), and tensor parallelism."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from inscp.errors import UserError
from inscp.model.blocks import blocks
from inscp.model.loss import NextTokenLoss
from inscp.model.sharded import local_tensor

_STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
_SUMMED = "replicated_with_grad_allreduce"


def shard(
    root: NextTokenLoss,
    mesh: DeviceMesh,
    compute_dtype: torch.dtype | None,
    reshard_after_forward: bool | int,
    cpu_offload: bool,
) -> None:
    """Shard `root` in place, each transformer block by itself and the rest as one group.

    Args:
        root: the module that is called in a training step.
        mesh: one dimension, or two: copies x shards.
        compute_dtype: dtype of the gathered weights; None keeps that of the shards. Gradients are reduced in fp32.
        reshard_after_forward: free a block's weights between its forward and its backward pass; a number keeps them
            sharded over that many ranks (those of a node).
        cpu_offload: keep shards, gradients and optimizer states in CPU memory.
    """
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()
    for block in blocks(root.model):
        fully_shard(
            block, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=reshard_after_forward
        )
    # The loss needs the root's weights at the end of the forward pass and at the start of the backward pass.
    fully_shard(root, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=False)


@contextmanager
def gathered_root(root: nn.Module) -> Iterator[None]:
    """Keep the own weights of a sharded `root` gathered, so that the modules inside it can be called directly."""
    if not isinstance(root, FSDPModule):
        yield
        return
    # Otherwise FSDP2 would make each block a root when it is first called, with its own streams, and memory freed by
    # one stream is not reused by another.
    root._get_fsdp_state()._lazy_init()
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def reshard(root: nn.Module) -> None:
    """Free weights that were gathered without a backward pass, so that the next pass gathers the current shards."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def split_tensors(model: PreTrainedModel, mesh: DeviceMesh) -> list[str]:
    """Apply tensor parallelism to the blocks by the model's own plan; embeddings and output layer stay whole.

    Args:
        model: a transformers model.
        mesh: one dimension, the ranks that share each matrix.

    Returns:
        Names of the parameters whose gradients `sum_gradients` must sum.

    Raises:
        UserError: the model has no plan, its plan has an unsupported style, or its heads cannot be split evenly.
    """
    key = "trainer.strategy.tensor_parallel"
    plan = {name: style for name, style in (model.tp_plan or {}).items() if re.search(r"\.\*\.", name)}
    unknown = {style for style in plan.values() if style not in _STYLES and style != _SUMMED}
    if not plan or unknown:
        what = f"the plan of {type(model).__name__} " + (f"has {', '.join(sorted(unknown))}" if plan else "is empty")
        raise UserError(key, what, "Leave it at 1 for this model.")
    config = model.config.get_text_config()
    for heads in ("num_attention_heads", "num_key_value_heads"):
        if (number := getattr(config, heads, mesh.size())) % mesh.size():
            raise UserError(key, f"{number} {heads} cannot be split over {mesh.size()} ranks", "Give a divisor of it.")
    summed = []
    for name, module in model.named_modules():
        style = next((style for pattern, style in plan.items() if fnmatchcase(name, pattern)), None)
        if style in _STYLES:
            parallelize_module(module, mesh, _STYLES[style]())
        elif style == _SUMMED:
            summed += [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
    return summed


def sum_gradients(parameters: Iterable[torch.Tensor], mesh: DeviceMesh) -> None:
    """Sum over `mesh` the gradients of weights that every rank has whole but applies to its own heads only."""
    for parameter in parameters:
        if parameter.grad is not None:
            torch.distributed.all_reduce(local_tensor(parameter.grad), group=mesh.get_group())
