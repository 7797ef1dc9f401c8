"""`export`: turn any checkpoint of a training run into a Hugging Face folder."""

from pathlib import Path
from shlex import quote
from typing import Literal

import torch

from inscp.commands.parser import call
from inscp.model.checkpoint import ORIGIN_KEY, exported_name, read_metadata, read_tensors, stored_tensors
from inscp.model.export import assemble, export_model
from inscp.model.origin import Origin
from inscp.pretrained import load_tokenizer, with_its_code


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp export --checkpoint CKPT --out DIR`"""
    call(command, export, arguments)


def export(checkpoint: str, out: str, dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16") -> None:
    """Turn a checkpoint into a Hugging Face folder.

    Args:
        checkpoint: checkpoint written by `fit` (…/checkpoints/step-…), on any number of ranks, with or without LoRA and
            EMA.
        out: folder to create.
        dtype: dtype of the saved weights.
    """
    path = Path(checkpoint)
    origin = Origin(**read_metadata(path)[ORIGIN_KEY])
    stored = stored_tensors(path)
    kept = {exported_name(name, stored): name for name in stored if name.startswith("model.")}
    weights = {name: torch.zeros(stored[name]) for name in kept}
    read_tensors(path, weights)
    trained = {kept[name].removeprefix("model."): tensor for name, tensor in weights.items()}
    model = assemble(origin, trained, getattr(torch, dtype))
    export_model(model, load_tokenizer(origin.pretrained), Path(out), origin, getattr(torch, dtype))
    print(f"model      {out}\n\nnext:\n  python -m inscp chat --model {quote(with_its_code(origin.pretrained, out))}")
