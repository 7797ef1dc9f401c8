"""Export of a trained model as a Hugging Face folder that any serving stack loads, with a model card."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inscp.data.rendering import may_reason, unrendered_opening
from inscp.errors import UserError
from inscp.model.adapters import LoRA, with_adapters
from inscp.model.card import model_card
from inscp.model.end_tokens import end_token_ids
from inscp.model.origin import ORIGIN, Origin, warn_of_other_weights
from inscp.paths import atomic_folder, require_new, write_json
from inscp.pretrained import load_model, processor_files


def assemble(
    origin: Origin, weights: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16
) -> PreTrainedModel:
    """The trained model: the original with its trained weights replaced or its adapters merged.

    Args:
        origin: which model was trained, and how.
        weights: the trained weights by name.
        dtype: dtype of the export, in which untrained weights are loaded.
    """
    if origin.adapter:
        warn_of_other_weights(origin, origin.pretrained)
        return with_adapters(load_model(origin.pretrained, torch.float32), LoRA(**origin.adapter), weights)
    model = load_model(origin.pretrained, dtype)
    found = model.load_state_dict(dict(weights), strict=False, assign=True)
    if found.unexpected_keys:
        fix = "Use the original model of the checkpoint."
        raise UserError(origin.pretrained, f"it has no {found.unexpected_keys[0]}, which was trained", fix)
    model.tie_weights()
    return model


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    origin: Origin,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write weights (safetensors), tokenizer, chat template, generation settings and model card into a new folder.

    The end tokens of the generation settings include the end-of-turn token, so that every server stops at it.

    Args:
        model: the model to export.
        tokenizer: its tokenizer.
        folder: folder of the export; must not exist yet.
        origin: contents of the model card.
        dtype: dtype of the written weights.
    """
    require_new(folder)
    with atomic_folder(folder) as partial:
        cast: dict[int, torch.Tensor] = {}  # tied tensors are cast once, so that they are written once
        state = {}
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() not in cast:
                cast[tensor.data_ptr()] = tensor.detach().to("cpu", stored_as(model, name, tensor, dtype))
            state[name] = cast[tensor.data_ptr()]
        model.save_pretrained(partial, state_dict=state)
        tokenizer.save_pretrained(partial)
        _update_json(partial / "config.json", dtype=str(dtype).removeprefix("torch."))
        # Otherwise transformers may derive these settings from the model's config again, without our end tokens.
        own = {"_from_model_config": False, "eos_token_id": end_token_ids(model, tokenizer)}
        _update_json(partial / "generation_config.json", **own)
        if model.config.get_text_config() is not model.config:  # a server of the whole multimodal model needs them
            for file in processor_files(origin.pretrained):
                shutil.copy(file, partial / file.name)
        write_json(partial / ORIGIN, asdict(origin))
        card = model_card(origin, may_reason(tokenizer), unrendered_opening(tokenizer))
        (partial / "README.md").write_text(card, "utf-8")
        for file in filter(Path.is_file, partial.rglob("*")):
            file.chmod(0o644)  # transformers lets only the owner read the weights, and a server runs as another user


def stored_as(
    model: PreTrainedModel, name: str, tensor: torch.Tensor, dtype: torch.dtype = torch.bfloat16
) -> torch.dtype:
    """The dtype in which a tensor of the model is written.

    It is `dtype`, except that integers keep their dtype, and so do tensors that the model keeps in fp32 (such as those
    by which a router chooses experts), as when the model is loaded in `dtype`.
    """
    exact = model._keep_in_fp32_modules_strict or ()
    is_exact = any(re.search(rf"(^|\.){re.escape(part)}($|\.)", name) for part in exact)
    return tensor.dtype if is_exact or not tensor.is_floating_point() else dtype


def _update_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values, indent=2) + "\n", "utf-8")
