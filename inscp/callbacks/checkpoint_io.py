"""Checkpoints that are either whole or not there, written without a second copy in memory."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames; Lightning's own writes the whole checkpoint into memory first."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        partial = target.with_name(f"{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(checkpoint, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
