"""Tensors that are whole or sharded over ranks, and communication between the ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

_BACKENDS = {"cuda": "cpu:gloo,cuda:nccl"}


def backend(device_type: str) -> str:
    """The backend of a process group, which also supports CPU tensors: asynchronous checkpoints, offloaded weights."""
    return _BACKENDS.get(device_type, "gloo")


@contextmanager
def barrier_after() -> Iterator[None]:
    """A barrier at the end, without a timeout: one rank may work inside for as long as it takes.

    In any other collective the other ranks would time out after half an hour, torch's default.
    """
    if not dist.is_initialized():
        yield
        return
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    yield
    dist.barrier(patient)
    dist.destroy_process_group(patient)


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, whole or sharded, with the same storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, whole or sharded; every rank must take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, which every rank has whole, sharded as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return tensor
    placed = tensor.to(parameter.device)
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None)
