"""Models that are another one with something changed."""

import json
import shutil
from pathlib import Path

import torch

from inscp.model.export import export_model
from inscp.model.origin import Origin
from inscp.pretrained import load_model, load_tokenizer


def moved(original: str, folder: Path, seed: int = 1, by: float = 0.1, tied: bool = False) -> str:
    """The model with its weights moved a little, exported as a training leaves it."""
    model = load_model(original, torch.float32)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight += by * torch.randn_like(weight)
    export_model(model, load_tokenizer(original), folder, Origin(original, "InsCP", "fi"), torch.float32)
    return str(folder)


def quantized(original: str, folder: Path) -> str:
    """The model with a configuration that says that its weights are fp8."""
    shutil.copytree(original, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}), "utf-8")
    return str(folder)
