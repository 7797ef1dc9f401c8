"""C++ of this package, compiled by the machine's own compiler when it is first used, and kept in the cache."""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from inscp.errors import UserError
from inscp.paths import build_once, cache_folder

_INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
}
"""Compiler options for the vector instructions that torch uses on a CPU; elsewhere, the compiler's own choice."""


@cache
def compiled(source: Path) -> ctypes.CDLL:
    """The library that the compiler `$CXX`, else `c++`, makes of a C++ file.

    Raises:
        UserError: it cannot be compiled or loaded.
    """
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    instructions = _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ())
    command = (*compiler, "-std=gnu++17", "-O3", "-shared", "-fPIC", *_openmp(), *instructions)
    identity = repr((command, platform.machine(), platform.libc_ver()))  # machines may share the cache
    key = hashlib.blake2b(identity.encode() + source.read_bytes(), digest_size=16).hexdigest()

    def compile_into(folder: Path) -> None:
        arguments = (*command, str(source), "-o", str(folder / source.stem))
        subprocess.run(arguments, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    try:
        return ctypes.CDLL(str(build_once(cache_folder("native") / key, compile_into) / source.stem))
    except subprocess.CalledProcessError as error:
        lines = error.stdout.splitlines() or [str(error)]
        why = next((line for line in lines if "error" in line), lines[-1])
    except OSError as error:  # no compiler, or a cache that cannot be written or run from
        why = str(error)
    what = f"it cannot make a library of {source.name} in the cache ({why})"
    raise UserError(shlex.join(compiler), what, "Install a C++ compiler (g++), or name one in CXX.")


def _openmp() -> tuple[str, ...]:
    """Options for OpenMP, whose threads are torch's too if both use the same library, as GCC's code does."""
    if sys.platform != "darwin":
        return ("-fopenmp",)
    folder = Path(torch.__file__).parent / "lib"  # Apple's compiler supports OpenMP but has no library for it
    return ("-Xpreprocessor", "-fopenmp", f"-L{folder}", f"-Wl,-rpath,{folder}", "-lomp")
