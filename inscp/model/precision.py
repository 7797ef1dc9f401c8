"""Mixed precision on one device: fp32 weights are trained, and low-precision copies of them are used to compute.

FSDP2's mixed-precision policy does the same when it gathers. Unlike autocast, this does not cast every weight in every
forward pass, and it keeps activations in the low precision. The updates are just as exact, because optimizer, clipping,
average and checkpoints use only the fp32 weights and fp32 sums of gradients.
"""

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from inscp.model.blocks import decoder

if TYPE_CHECKING:  # its import takes three seconds, and `doctor` needs only the machine's precision
    from transformers import PreTrainedModel

InferencePrecision = Literal["bf16", "fp32"]


def has_fast_bf16() -> bool:
    """Whether the hardware multiplies matrices faster in bf16 than in fp32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and not _is_intel()


def _is_intel() -> bool:
    """Whether the CPU is Intel's, whose AVX-512 takes twice as long for a matmul in bf16 as for one in fp32.

    AMD's takes half as long; a virtual machine may hide Intel's AMX.
    """
    cpuinfo = Path("/proc/cpuinfo")
    return "GenuineIntel" in (cpuinfo.read_text() if cpuinfo.is_file() else platform.processor())


def best_precision() -> str:
    """Lightning's `precision` for training on this machine: mixed bf16 if it has fast bf16, else fp32."""
    return "bf16-mixed" if has_fast_bf16() else "32-true"


COMPUTE_DTYPES = {
    "bf16-mixed": torch.bfloat16,
    "bf16": torch.bfloat16,
    "32-true": torch.float32,
    "32": torch.float32,
}
"""Lightning's names of the supported training precisions, and the dtype of matmuls in each. fp16 would overflow in the
loss's sums, and weights kept only in bf16 would not learn from small steps."""


def compute_dtype(precision: object) -> torch.dtype:
    """The dtype of matmuls under Lightning's `precision`, which is one of `COMPUTE_DTYPES`."""
    return COMPUTE_DTYPES[str(precision)]


def inference_dtype(precision: InferencePrecision | None = None) -> torch.dtype:
    """The compute dtype for inference: as given, else bf16 if the machine has fast bf16, else fp32."""
    is_bf16 = has_fast_bf16() if precision is None else precision == "bf16"
    return torch.bfloat16 if is_bf16 else torch.float32


def text_parts(model: "PreTrainedModel") -> list[nn.Module]:
    """The modules that text passes through: embeddings, decoder, output layer."""
    parts = (model.get_input_embeddings(), decoder(model), model.get_output_embeddings())
    return [part for part in parts if part is not None]


def freeze_non_text_parts(model: "PreTrainedModel") -> None:
    """Freeze everything that text does not pass through, such as the image and audio towers of multimodal models."""
    reached = {weight for part in text_parts(model) for weight in part.parameters()}
    for weight in model.parameters():
        weight.requires_grad_(weight in reached)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def cast_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast frozen weights to `dtype`, the compute dtype: fp32 is needed only for small updates."""
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(dtype)


class ComputeCopies:
    """Low-precision copies that replace a model's weights in it; their gradients are added to the fp32 weights'.

    On a machine without a GPU, embeddings are looked up in the fp32 weights and cast, which gives the same numbers; of
    their gradients only the rows looked up are made. The whole gradient, in both precisions, would be the largest
    tensors of a small model's step. (A GPU adds rows in an arbitrary order, so that no run could be repeated.)

    Args:
        model: modified in place; tied weights stay tied, except to an embedding that keeps its fp32 weight, and frozen
            weights are cast to `dtype`.
        dtype: dtype of the copies.
        device: device to which the model is moved; by default it is not moved.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device | None = None) -> None:
        cast_frozen(model, dtype)  # before the move: the device may have room for the copies only
        if device is not None:
            model.to(device)
        self._trained: dict[nn.Parameter, nn.Parameter] = {}
        for module in model.modules():
            is_plain = type(module) is nn.Embedding  # a subclass may compute with its weight
            if is_plain and module.weight.requires_grad and not torch.cuda.is_available():
                module.register_forward_hook(_cast_rows(dtype))
                continue
            for name, weight in module._parameters.items():
                if weight is None or not weight.requires_grad:
                    continue
                if weight not in self._trained:
                    self._trained[weight] = nn.Parameter(weight.detach().to(dtype))
                    self._trained[weight].grad_dtype = None  # the loss's gradient of the output layer stays fp32
                module._parameters[name] = self._trained[weight]
        for weight, copy in self._trained.items():
            copy.register_post_accumulate_grad_hook(_accumulate_into(weight))

    @torch.no_grad()
    def refresh(self) -> None:
        """Update the copies after the fp32 weights have changed."""
        torch._foreach_copy_(list(self._trained.values()), list(self._trained))


def _cast_rows(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    """A hook that casts what an embedding has looked up, and in the backward pass adds its gradient to the weight's."""

    def cast(embedding: nn.Embedding, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        rows, weight, ids = output.detach().to(dtype), embedding.weight, inputs[0]
        if not torch.is_grad_enabled():
            return rows

        def accumulate(gradient: torch.Tensor) -> None:
            if embedding.padding_idx is not None:
                gradient = gradient.masked_fill((ids == embedding.padding_idx)[..., None], 0)
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.index_add_(0, ids.flatten(), gradient.flatten(0, -2).to(weight.dtype))

        rows.requires_grad_().register_hook(accumulate)
        return rows

    return cast


def _accumulate_into(weight: nn.Parameter):  # type: ignore[no-untyped-def]
    def accumulate(copy: torch.Tensor) -> None:
        assert copy.grad is not None
        if weight.grad is None:
            weight.grad = copy.grad.to(weight.dtype)
        else:
            weight.grad.add_(copy.grad)
        copy.grad = None

    return accumulate
