"""Activation checkpointing and compilation of each transformer block.

Both replace a block's `forward` and keep its name and its parameters' names, so that checkpoints and sharding are not
affected; the hooks of `fully_shard` stay outside.
"""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch._functorch.config as functorch
from torch import nn
from torch.nn.attention.varlen import _varlen_attn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from inscp.errors import UserError
from inscp.model.cpu_attention import document_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ActivationCheckpointing = Literal["none", "block", "selective"] | int
"""Which activations the backward pass recomputes: `none`; those of every `block`; those of every n-th block (a number);
or `selective`, all except attention and every second matmul."""

_MATRIX_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_ATTENTION = {
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_cudnn_attention",
    )
} | {document_attention._opoverload, _varlen_attn._opoverload}


def blocks(model: "PreTrainedModel") -> list[nn.Module]:
    """The transformer blocks, whatever the architecture calls them: the longest ModuleList of its decoder.

    The blocks of image towers and the experts of a block, which may be more numerous, do not count.
    """
    lists = _lists(decoder(model))
    inside = {module for outer in lists for block in outer for module in block.modules()}
    return list(max((one for one in lists if one not in inside), key=len, default=[]))


def decoder(model: "PreTrainedModel") -> nn.Module:
    """The part that contains the blocks, which text passes through after the embeddings; else the whole model."""
    named = model.get_decoder()
    return named if _lists(named) else model  # ModernBERT calls its output head the decoder


def _lists(part: nn.Module) -> list[nn.ModuleList]:
    return [module for module in part.modules() if isinstance(module, nn.ModuleList)]


def checkpoint_activations(model: "PreTrainedModel", how: ActivationCheckpointing) -> None:
    """Let blocks discard their activations after the forward pass and recompute them in the backward pass.

    Raises:
        UserError: `how` is a number that is not positive.
    """
    if how == "none":
        return
    if isinstance(how, int) and how < 1:
        raise UserError("model.activation_checkpointing", f"must be at least 1, not {how}", "Give 1 or more, or none.")
    context: dict[str, Any] = {"context_fn": _selective_contexts} if how == "selective" else {}
    for block in blocks(model)[:: how if isinstance(how, int) else 1]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **context)  # type: ignore[method-assign]


def _selective_contexts() -> Any:
    seen = {False: 0, True: 0}  # matmuls in the forward pass and its recomputation, which must choose the same ones

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operation in _MATRIX_PRODUCTS:
            seen[context.is_recompute] += 1
            keep = seen[context.is_recompute] % 2 == 0  # Llama's seventh and last is needed by nothing in the block
        else:
            keep = operation in _ATTENTION
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def compile_blocks(model: "PreTrainedModel") -> None:
    """Compile each block with torch.compile: one graph, reused for all blocks of the same shape."""
    # Each kind of layer is compiled for training, for validation and for a teacher beneath adapters, and once more
    # where lengths change. With torch's limit of 8, the last of these, training, would not be compiled at all.
    torch._dynamo.config.recompile_limit = 64
    # The inputs of matmuls are recomputed where that takes no matmul: a third less memory, in the same time.
    functorch.ban_recompute_materialized_backward = False
    # Silences a warning about in-place operations in checkpointed blocks, of which there are none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    for block in blocks(model):
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
