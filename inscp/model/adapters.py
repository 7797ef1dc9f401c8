"""LoRA: small trainable matrices beside frozen ones (Hu et al. 2021, arXiv 2106.09685), through peft."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from inscp.errors import UserError, first_line
from inscp.model.precision import text_parts
from inscp.model.sharded import sharded_like
from inscp.optional import library

_FROZEN = ".base_layer"
"""What peft inserts into the name of a matrix that has an adapter."""


@dataclass(frozen=True)
class LoRA:
    """Train low-rank adapters and keep the model's own weights frozen; `export` merges the two.

    Args:
        rank: rank of the adapters.
        alpha: scale of the adapters, whose output is multiplied by alpha / rank.
        dropout: dropout of the adapters' input.
        targets: `all-linear` (every `nn.Linear` that text passes through, except the output layer), or names of modules
            (`q_proj`, `v_proj`, …).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError("model.adapter.rank", f"it must be positive, but is {self.rank}", "Give 16, say.")
        if not 0 <= self.dropout < 1:
            raise UserError("model.adapter.dropout", f"{self.dropout:g} is out of range", "Give 0 to below 1.")

    def add_to(self, model: PreTrainedModel) -> None:
        """Freeze `model` and insert adapters, in place."""
        peft = library("peft", "lora")
        is_name = isinstance(self.targets, str) and self.targets != "all-linear"
        reached = {module for part in text_parts(model) for module in part.modules()}
        towers = [name for name, module in model.named_modules() if module not in reached and not [*module.children()]]
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=[self.targets] if is_name else self.targets,  # peft treats a string as a pattern
            exclude_modules=towers or None,  # image and audio towers of multimodal models
            task_type="CAUSAL_LM",
        )
        try:
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            raise UserError("model.adapter.targets", first_line(error), "Name modules of this model.") from error
        # With tied weights, an adapter would be trained on one side and exported on both.
        if any(hasattr(layer, "lora_A") for layer in (model.get_input_embeddings(), model.get_output_embeddings())):
            what = "adapters of embeddings and output layer are not supported"
            raise UserError("model.adapter.targets", what, "Name matrices of the blocks, or use all-linear.")

    @torch.no_grad()
    def initialise(self, model: nn.Module, seed: int) -> None:
        """Initialise from the seed alone, independently of the sharding: B is 0, A is drawn as peft draws it."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()
            elif ".lora_A." in name:
                bound = parameter.shape[1] ** -0.5  # Kaiming's, with a = sqrt(5)
                drawn = torch.rand(parameter.shape, generator=generator, device="cpu") * 2 * bound - bound
                parameter.copy_(sharded_like(parameter, drawn))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within the context, `model` computes as if it had no adapters."""
    from peft.tuners.lora import LoraLayer

    layers = [(layer, name) for layer in model.modules() if isinstance(layer, LoraLayer) for name in layer.scaling]
    try:
        for layer, name in layers:
            layer.set_scale(name, 0.0)  # peft's own switch unfreezes and freezes weights, which may be shards
        yield
    finally:
        for layer, name in layers:
            layer.set_scale(name, 1.0)


def original_name(name: str) -> str:
    """The name that a parameter has in the model without adapters."""
    return name.replace(_FROZEN, "")


def with_adapters(model: PreTrainedModel, adapter: LoRA, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Merge trained adapters into the weights of `model`, and return it.

    Args:
        model: the original model, not sharded; modified in place.
        adapter: the adapters' configuration.
        weights: the adapters' weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapter.add_to(model)
    model.load_state_dict(dict(weights), strict=False)
    for name, module in reversed(list(model.named_modules())):  # peft nests its wrappers around experts
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model
