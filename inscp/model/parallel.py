"""How a model is spread over devices: FSDP2 (`fully_shard`), a group for each block and one for the rest."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def shard(root: nn.Module, mesh: DeviceMesh) -> None:
    """Shard `root` in place: fp32 weights and optimizer states, bf16 compute, fp32 reduction of gradients.

    On a device without bf16 (a CPU test) the compute is fp32 as well.
    """
    has_bf16 = mesh.device_type == "cuda" and torch.cuda.is_bf16_supported()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if has_bf16 else None, reduce_dtype=torch.float32)
    for block in blocks(root):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks: the entries of the longest ModuleList, whatever the architecture calls it."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])
