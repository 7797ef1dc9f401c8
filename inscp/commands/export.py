"""`export`: any checkpoint of a training becomes a Hugging Face folder."""

from pathlib import Path
from typing import Literal

import torch

from inscp.commands.fit import quiet
from inscp.commands.parser import call
from inscp.errors import UserError
from inscp.model.export import CHECKPOINT_KEY, Origin, export_model
from inscp.pretrained import load_model, load_tokenizer


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp export --checkpoint CKPT --out DIR`"""
    quiet()
    call(command, export, arguments)


def export(checkpoint: str, out: str, dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16") -> None:
    """Turn a checkpoint into a Hugging Face folder.

    Args:
        checkpoint: a file that `fit` wrote.
        out: the new folder.
        dtype: of the weights.
    """
    if not Path(checkpoint).is_file():
        raise UserError(checkpoint, "no such checkpoint", "Give a .ckpt file that fit wrote.")
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        origin = Origin(**state[CHECKPOINT_KEY])
    except Exception as error:  # torch raises a dozen types for files that are not checkpoints
        raise UserError(checkpoint, "not a checkpoint of this program", "Give a .ckpt file that fit wrote.") from error
    model = load_model(origin.pretrained, torch.float32)
    weights = {
        name.removeprefix("loss.model."): tensor
        for name, tensor in state["state_dict"].items()
        if name.startswith("loss.model.")
    }
    model.load_state_dict(weights)
    export_model(model, load_tokenizer(origin.pretrained), Path(out), origin, getattr(torch, dtype))
    print(out)
