"""What a checkpoint says beside its weights, without running any code that may be in it."""

from pathlib import Path
from typing import Any

import torch

from inscp.errors import UserError

ORIGIN_KEY = "inscp"
"""Under which key of a checkpoint the run's `Origin` is kept."""

RUN_KEY = "mlflow_run_id"
"""Under which key of a checkpoint the MLflow run is kept."""

MODEL_PREFIX = "loss.model."
"""Where `InsCPModule` holds the language model."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file, memory-mapped, or what stands beside the shards of a checkpoint folder.

    Raises:
        UserError: no such checkpoint, or not one of this program.
    """
    file = path / "meta.pt" if path.is_dir() else path
    if not file.is_file():
        raise UserError(str(path), "no such checkpoint", "Give a checkpoint that fit wrote.")
    try:
        kept: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        kept[ORIGIN_KEY]
    except Exception as error:  # torch raises a dozen types for files that are not checkpoints
        raise UserError(str(path), "not a checkpoint of this program", "Give one that fit wrote.") from error
    return kept
