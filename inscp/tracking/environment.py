"""The environment of a run: libraries, commit, hardware."""

import platform
import shutil
import subprocess
from importlib.metadata import version

import torch

from inscp import __version__

_LIBRARIES = ("torch", "lightning", "transformers", "datasets", "mlflow")


def versions() -> dict[str, str]:
    """The versions of this program and its libraries."""
    return {"inscp": __version__} | {name: version(name) for name in _LIBRARIES}


def provenance_tags() -> dict[str, str]:
    """Tags of an MLflow run: versions of the libraries and the commit of the folder in which it was started."""
    tags = {f"version.{name}": of for name, of in versions().items()}
    if shutil.which("git"):
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        if done.returncode == 0:
            tags["mlflow.source.git.commit"] = done.stdout.strip()
    return tags


def hardware() -> str:
    """The GPUs, else the CPU, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
