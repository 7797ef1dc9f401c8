"""Attention within each document of packed rows, whose cost grows with the square of the document lengths.

Attention over whole rows, with a mask that separates documents, grows with the square of the row length, and most of
it is discarded. GPUs use torch's variable-length FlashAttention, CPUs `inscp.model.cpu_attention`.
"""

import warnings
from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from inscp.errors import UserError
from inscp.model import cpu_attention
from inscp.model.cpu_attention import document_attention
from inscp.model.precision import has_fast_bf16

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""The name of the KV cache argument, which transformers 5.24 renamed."""

_NAME = "documents"
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
"""Names of the attention dropout in model configurations; the per-document kernels do not support dropout."""
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
"""torch 2.11 lets query heads share a key head without this option."""
_WIDEST, _STEP = 256, 8
"""The largest head width that FlashAttention supports on a GPU (Dao 2023, arXiv 2307.08691, and its README), and the
number it must be a multiple of: torch pads heads only for its other attention."""


class Documents:
    """The positions of the documents in a packed batch of T tokens, row after row.

    Args:
        lengths: lengths of the documents, with each row's padding as one more document; their sum is T.
        device: device of the batch.

    Attributes:
        lengths: int64 [T] in CPU memory, zero after the last document; all batches have the same shape, so that a model
            is compiled only once.
        ends: on a GPU only: int32 [documents + 1], the start of each document and the end of the last.
        longest: number of tokens of the longest document.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = torch.zeros(sum(lengths), dtype=torch.int64)
        self.lengths[: len(lengths)] = torch.tensor(lengths)
        self.longest = max(lengths)
        if device.type == "cuda":
            ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, pin_memory=True)
            self.ends = ends.to(device, non_blocking=True)  # does not synchronise


def attend_by_document(model: PreTrainedModel) -> bool:
    """Make a model that uses torch's attention (`sdpa`) attend within documents, where transformers allows it.

    Returns:
        whether it does; its body then accepts `documents`. Calls without them (generation) are unchanged.
    """
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return False
    on_gpu = torch.cuda.is_available()
    if on_gpu and not has_fast_bf16():  # FlashAttention also needs Ampere
        return False
    for layer in layer_configs(model):
        width = max(head_widths(layer))
        if on_gpu and (width > _WIDEST or width % _STEP):  # Gemma 4; OpenLLaMA 3B
            return False
        if getattr(layer, "attention_chunk_size", None):  # Llama 4: its chunks need a mask
            return False
        if any(getattr(layer, name, None) for name in _DROPOUTS):  # GPT-2; torch's attention over rows supports it
            return False
    if not on_gpu and (obstacle := cpu_attention.obstacle()):
        warnings.warn(f"{obstacle} Until then attention covers whole rows behind a mask, which is slower", stacklevel=2)
        return False
    model.set_attn_implementation(_NAME)
    return True


def layer_configs(model: PreTrainedModel) -> list[Any]:
    """The text model's configuration for each of its layers."""
    return list(model.config.get_text_config().per_layer_config)


def head_widths(layer: Any) -> tuple[int, int]:
    """The width of a layer's query and key heads, and of its value heads.

    They differ in multi-head latent attention (MLA, as in DeepSeek-V2).
    """
    whole = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
    if not getattr(layer, "qk_nope_head_dim", None):
        return whole, whole
    return layer.qk_nope_head_dim + layer.qk_rope_head_dim, layer.v_head_dim


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """None in training, where no mask over rows is needed; torch's attention is causal without one."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query [B, H, L, D], key and value [B, H', L, D] -> [B, L, H, D]."""
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)  # type: ignore
    if dropout:
        what = "its attention uses dropout, which packed rows do not support"
        raise UserError("model", what, "Set model.attn_implementation to eager.")
    if torch.is_autocast_enabled(query.device.type):  # where rotary embeddings leave query and key in fp32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) for x in (query, key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = sliding_window or 0
    width = value.shape[-1]
    if width < query.shape[-1]:  # MLA; the kernels support a single width, and zeros add nothing
        value = F.pad(value, (0, query.shape[-1] - width))
    if query.device.type == "cpu" and query.dtype in cpu_attention.DTYPES:
        return document_attention(query, key, value, documents.lengths, scale, window)[0][..., :width], None
    if not query.is_cuda or query.dtype == torch.float32:
        what = f"there is no attention by document for {query.dtype} on {query.device.type}"
        raise UserError("trainer.precision", what, "Use bf16-mixed, or set model.attn_implementation to eager.")
    rows, _, length, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    output = varlen_attn(q, k, v, documents.ends, documents.ends, documents.longest, documents.longest,
                         scale=scale, window_size=(window - 1, 0), **_GROUPED)  # fmt: skip
    assert isinstance(output, torch.Tensor)
    return output.view(rows, length, *output.shape[1:])[..., :width], None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
