"""Devices: their compute rate, power and projected time."""

import time
from dataclasses import dataclass

import torch

_LONG = 0.1  # seconds
_WATTS_PER_CORE = 5.0
"""Rated power of server CPUs: EPYC 7763 280 W for 64 cores, Xeon Platinum 8480+ 350 W for 56."""


@dataclass(frozen=True)
class Device:
    """An accelerator and its manufacturer's ratings.

    Attributes:
        name: part of the name that the driver reports.
        flops: FLOP/s of dense bf16 matmuls.
        watts: maximum power (TDP).
        source: source of the numbers.
    """

    name: str
    flops: float
    watts: float
    source: str

    def hours(self, flops: float) -> float:
        """Device hours for `flops` operations, at `UTILISATION` of the rate."""
        return flops / (self.flops * UTILISATION) / 3600


DEVICES = (
    Device("H100 PCIe", 756e12, 350, "NVIDIA H100 datasheet; half of its rate with sparsity"),
    Device("H100 NVL", 835e12, 400, "NVIDIA H100 datasheet; half of its rate with sparsity"),
    Device("H100", 989e12, 700, "NVIDIA H100 datasheet, SXM; half of its rate with sparsity"),
    Device("H200 NVL", 835e12, 600, "NVIDIA H200 datasheet; half of its rate with sparsity"),
    Device("H200", 989e12, 700, "NVIDIA H200 datasheet, SXM; half of its rate with sparsity"),
    Device("A100-PCIE", 312e12, 250, "NVIDIA A100 40GB datasheet, PCIe"),
    Device("A100 80GB PCIe", 312e12, 300, "NVIDIA A100 80GB datasheet, PCIe"),
    Device("A100", 312e12, 400, "NVIDIA A100 80GB datasheet, SXM"),
)
"""More specific names come first."""
PROJECTED_ON, UTILISATION = "H100", 0.4
"""For projections: a device, and the fraction of its rate that is reached (model FLOPs utilisation)."""


def find_device(name: str) -> Device | None:
    """The device of this name (`NVIDIA H100 80GB HBM3`, `H100`); None if it is not in the table."""
    return next((device for device in DEVICES if device.name.lower() in name.lower()), None)


def device_name(device: torch.device) -> str:
    """The name that the driver reports; `CPU` for any CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def rated_watts(name: str, processes: int) -> float | None:
    """The rated power of one device in watts; None if it is not known.

    Args:
        name: name that the driver reports.
        processes: number of processes that share a CPU, whose power is that of the cores in use: every process uses as
            many as this one.
    """
    if name == "CPU":
        return _WATTS_PER_CORE * torch.get_num_threads() * processes
    found = find_device(name)
    return found.watts if found else None


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a 2048-cubed matmul, the best of several; of fewer rows if these take long.

    A CPU without support for a dtype takes a minute for all rows.
    """
    size = 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    rows = size if device.type == "cuda" else size // 64
    while True:
        seconds = min(_seconds_of_a_product(a[:rows], a) for _ in range(5 if device.type == "cuda" else 2))
        if rows == size or seconds > _LONG:
            return 2 * rows * size**2 / seconds
        rows *= 8


def _seconds_of_a_product(a: torch.Tensor, b: torch.Tensor) -> float:
    synchronize(a.device)
    start = time.perf_counter()
    torch.mm(a, b)
    synchronize(a.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
