"""Floating-point operations (FLOPs) by formula, a multiplication and an addition counted as two.

    forward    2 N per token, and 4 L W per position that a token attends to (itself and those before it)
    backward   as much again for the gradients of the activations, and for those of the trained weights
    recompute  what activation checkpointing computes a second time: its fraction of a forward pass

N: the parameters that a token of text is multiplied with: all except image towers and the input embedding, which is
looked up (if it is tied to the output layer, it counts once, as that), and of the experts only the chosen ones. L:
layers. W: heads times their width, the mean of queries' and values'. Padding counts, since it is computed. The output
layer counts at every position, as is usual, though the loss computes it at targets only: for a prompt without targets
this overestimates (by a fifth at 135 M parameters, a sixteenth at 8 B). Norms, softmax, the loss and the optimizer are
left out. After Kaplan et al. (arXiv 2001.08361, section 2.1) and Hoffmann et al. (arXiv 2203.15556, appendix F).
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from inscp.model.attention import CACHE, head_widths, layer_configs
from inscp.model.blocks import ActivationCheckpointing, decoder
from inscp.model.precision import text_parts


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model in the formula.

    Attributes:
        multiplied: N of the formula.
        trained: the trained part of N.
        attention_width: L x W of the formula, summed over the layers.
    """

    multiplied: float
    trained: float
    attention_width: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "ModelSize":
        """The sizes of a model, sharded or not, with adapters or without."""
        layers = layer_configs(model)
        last = layers[-1]  # where only some layers have experts, the first ones have none
        chosen = getattr(last, "num_experts_per_tok", None)
        experts = getattr(last, "num_local_experts", None) or getattr(last, "num_experts", None)
        looked_up, output = model.get_input_embeddings(), model.get_output_embeddings()
        left_out = {weight for weight in looked_up.parameters() if output is None or weight is not output.weight}
        reached = {weight: name for part in text_parts(model) for name, weight in part.named_parameters()}
        multiplied = trained = 0.0
        for weight, name in reached.items():
            if weight in left_out:
                continue
            share = chosen / experts if chosen and experts and ".experts." in name else 1.0
            multiplied += share * weight.numel()
            trained += share * weight.numel() * weight.requires_grad
        with_heads = (layer for layer in layers if getattr(layer, "num_attention_heads", None))  # not Mamba's layers
        width = sum(layer.num_attention_heads * sum(head_widths(layer)) // 2 for layer in with_heads)
        return cls(multiplied, trained, width)


@dataclass(frozen=True)
class Work:
    """The input of a model's forward passes.

    Attributes:
        tokens: number of tokens, including padding.
        attended: number of positions that each attends to, summed.
    """

    tokens: int = 0
    attended: int = 0

    @classmethod
    def of(cls, lengths: tuple[int, ...]) -> "Work":
        """Documents of these lengths, with causal attention within each."""
        return cls(sum(lengths), sum(length * (length + 1) // 2 for length in lengths))


def forward_flops(size: ModelSize, work: Work) -> float:
    """The FLOPs of a forward pass."""
    return 2 * size.multiplied * work.tokens + 4 * size.attention_width * work.attended


def training_flops(size: ModelSize, work: Work, recomputed: float = 0.0) -> float:
    """The FLOPs of a forward and a backward pass.

    Args:
        size: the model.
        work: what passes through it.
        recomputed: fraction of a forward pass that is recomputed (see `recomputed_share`).
    """
    weights = 2 * size.trained * work.tokens + 4 * size.attention_width * work.attended
    return (2 + recomputed) * forward_flops(size, work) + weights


def recomputed_share(how: ActivationCheckpointing) -> float:
    """The fraction of a forward pass that activation checkpointing recomputes; about half for `selective`."""
    if isinstance(how, int):
        return 1 / how
    return {"none": 0.0, "selective": 0.5, "block": 1.0}[how]


class WorkCounter:
    """Counts what passes through models in inference.

    Attributes:
        flops: FLOPs of all forward passes so far.
        tokens: number of tokens so far, including padding.
    """

    def __init__(self) -> None:
        self._counted: list[tuple[ModelSize, list[Any]]] = []

    def watch(self, model: PreTrainedModel) -> None:
        """Count what passes through this model, too, from now on."""
        counts: list[Any] = [0, 0]  # tokens, and attended positions, which are on the model's device
        size = ModelSize.of(model)
        self._counted.append((size, counts))

        def count(module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
            given = {**named, **signature(module.forward).bind_partial(*arguments, **named).arguments}
            # Multimodal models embed the tokens themselves, before the decoder.
            read = next(given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None)
            (rows, length), positions, past = read.shape[:2], given.get("position_ids"), given.get(CACHE)
            counts[0] += rows * length
            if not size.attention_width:  # such as Mamba, whose caches have no length
                return
            if positions is None:
                begin = past.get_seq_length() if past is not None else 0
                positions = (begin + torch.arange(length, device=read.device)).expand(rows, length)
            counts[1] = counts[1] + (positions + 1).sum() * (rows // positions.shape[0])

        decoder(model).register_forward_pre_hook(count, with_kwargs=True)

    @property
    def tokens(self) -> int:
        return sum(int(counts[0]) for _, counts in self._counted)

    @property
    def flops(self) -> float:
        return sum(forward_flops(size, Work(int(counts[0]), int(counts[1]))) for size, counts in self._counted)
