"""The last step of a training run: writing the Hugging Face folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.provenance import Provenance
from inscp.data.datamodule import data_of
from inscp.errors import RunError, on_every_rank
from inscp.model.checkpoint import step_folder
from inscp.model.export import assemble, export_model, stored_as
from inscp.model.module import InsCPModule
from inscp.model.sharded import barrier_after, full_tensor


class ExportAtEnd(Callback):
    """Exports the trained model when the training has ended.

    Args:
        folder: folder of the export.
        provenance: provides the contents of the model card.
        checkpoints: keep the trained weights if the export fails.
    """

    def __init__(self, folder: Path, provenance: Provenance, checkpoints: Checkpoints) -> None:
        self.folder, self._provenance, self._checkpoints = folder, provenance, checkpoints

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InsCPModule)
        weights: dict[str, torch.Tensor] = {}
        problem = ""
        for name, tensor in pl_module.exported_weights().items():
            all_of_it = full_tensor(tensor)
            if trainer.is_global_zero:  # to CPU memory; adapters stay fp32 until they are merged
                is_there = all_of_it is tensor and tensor.is_cpu
                written = torch.float32 if pl_module.adapter else stored_as(pl_module.model, name, all_of_it)
                weights[name] = all_of_it.to("cpu", tensor.dtype if is_there else written)
        with barrier_after():
            if trainer.is_global_zero:
                problem = self._export(trainer, weights)
        if problem := trainer.strategy.broadcast(problem):
            lost = self._checkpoints.save(trainer, wait=True)
            kept = step_folder(self._checkpoints.folder, trainer.global_step)
            fix = f"its weights are kept; retry with: python -m inscp export --checkpoint {kept} --out FOLDER"
            raise on_every_rank(RunError(f"{problem}; {lost or fix}"))

    def _export(self, trainer: Trainer, weights: Mapping[str, torch.Tensor]) -> str:
        """Returns the error message; empty if there was no error."""
        try:
            origin = self._provenance.origin(trainer)
            shutil.rmtree(self.folder, ignore_errors=True)  # of an attempt that was killed after its export
            export_model(assemble(origin, weights), data_of(trainer).tokenizer, self.folder, origin)
        except Exception as error:  # a full disk, too little memory, …
            return f"the model could not be exported ({str(error).rstrip('.') or type(error).__name__})"
        return ""
