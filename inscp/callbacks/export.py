"""The last thing a training does: write the Hugging Face folder."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from inscp.callbacks.provenance import Provenance
from inscp.model.export import assemble, export_model
from inscp.model.module import InsCPModule


class ExportAtEnd(Callback):
    """Exports the trained model when the training has ended.

    Args:
        folder: where to; it must not be there yet.
        provenance: knows what the model card tells.
    """

    def __init__(self, folder: Path, provenance: Provenance) -> None:
        self.folder, self._provenance = folder, provenance

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InsCPModule)
        weights = {}
        for name, tensor in pl_module.result().items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # every rank takes part
            if trainer.is_global_zero:
                weights[name] = whole.to("cpu", torch.float32)
        if trainer.is_global_zero:
            origin = self._provenance.origin(trainer)
            export_model(assemble(origin, weights), trainer.datamodule.tokenizer, self.folder, origin)  # type: ignore
