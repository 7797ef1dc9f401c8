"""What the C library does with freed memory while a CPU trains."""

import ctypes
import os

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h, which has these as their defaults:
_TRIM_THRESHOLD, _MMAP_MAX = 128 << 10, 1 << 16


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` has an effect: under glibc, without a GPU, and without MALLOC_… settings."""
    is_set = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    return not is_set and not torch.cuda.is_available() and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def keep_freed_memory() -> None:
    """Use freed memory again in place of returning it to the system.

    By default glibc returns large blocks at once, and every step asks for them anew, page by page: a fifth of a
    training step's time on a CPU.
    """
    if keeps_freed_memory():
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Return what is free to the system, and from now on what is freed.

    Work whose tensors grow from call to call (generation) would otherwise keep every size that it ever had.
    """
    if keeps_freed_memory():
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        library.malloc_trim(0)
