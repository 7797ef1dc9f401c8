"""`merge`: combine several models by arithmetic with their weights."""

from pathlib import Path
from shlex import quote
from typing import Literal

import torch

from inscp.commands.parser import call
from inscp.model.export import export_model
from inscp.model.merging import Merging, merged
from inscp.model.origin import Origin, read_origin
from inscp.paths import require_new
from inscp.pretrained import load_tokenizer, with_its_code


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp merge --model DIR --method Average --out DIR`"""
    call(command, merge, arguments)


def merge(model: str, method: Merging, out: str, dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16") -> None:
    """Merge a model that learned a language with its original model, or with others.

    Args:
        model: folder of the model.
        method: merging method: Average, ChatVector or ElChat.
        out: folder to create.
        dtype: dtype of the saved weights.
    """
    require_new(Path(out))
    result = merged(model, method, getattr(torch, dtype))
    before, models = read_origin(model), method.models(model)
    settings = {"method": repr(method), "models": ", ".join(models)}
    origin = Origin(model, method.arm, before.language if before else "und", settings, before=before)
    export_model(result, load_tokenizer(models[0]), Path(out), origin, getattr(torch, dtype))
    print(f"model      {out}\n\nnext:\n  python -m inscp chat --model {quote(with_its_code(models[0], out))}")
