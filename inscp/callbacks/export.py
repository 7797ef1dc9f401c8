"""The last thing a training does: write the Hugging Face folder."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from inscp.callbacks.provenance import Provenance
from inscp.model.export import export_model
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
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(pl_module.model, options=whole)  # every rank takes part, rank 0 has the result
        if trainer.is_global_zero:
            tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
            origin = self._provenance.origin(trainer)
            export_model(pl_module.model, tokenizer, self.folder, origin, weights=weights)  # type: ignore[arg-type]
