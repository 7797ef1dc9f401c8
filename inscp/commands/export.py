"""`export`: any checkpoint of a training becomes a Hugging Face folder."""

from pathlib import Path
from typing import Literal

import torch
import torch.distributed.checkpoint as dcp
from transformers import PreTrainedModel

from inscp.commands.fit import quiet
from inscp.commands.parser import call
from inscp.model.checkpoint import MODEL_PREFIX, ORIGIN_KEY, read_checkpoint
from inscp.model.export import Origin, export_model
from inscp.pretrained import load_model, load_tokenizer


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp export --checkpoint CKPT --out DIR`"""
    quiet()
    call(command, export, arguments)


def export(checkpoint: str, out: str, dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16") -> None:
    """Turn a checkpoint into a Hugging Face folder.

    Args:
        checkpoint: what `fit` wrote: a file, or a folder of shards from any number of ranks.
        out: the new folder.
        dtype: of the weights.
    """
    path = Path(checkpoint)
    kept = read_checkpoint(path)
    origin = Origin(**kept[ORIGIN_KEY])
    model = load_model(origin.pretrained, torch.float32)
    if path.is_dir():
        _load_shards(path, model)
    else:
        weights = kept["state_dict"]
        model.load_state_dict(
            {name.removeprefix(MODEL_PREFIX): weights[name] for name in weights if name.startswith(MODEL_PREFIX)}
        )
    export_model(model, load_tokenizer(origin.pretrained), Path(out), origin, getattr(torch, dtype))
    print(out)


def _load_shards(folder: Path, model: PreTrainedModel) -> None:
    """Read the shards straight into the model's tensors."""
    dcp.load(
        {"state_dict": {f"{MODEL_PREFIX}{name}": t for name, t in model.state_dict().items()}}, checkpoint_id=folder
    )
