"""Attention within each document of packed rows, on a CPU, as one operator for compilation and checkpointing.

The kernel is `cpu_attention.cpp`, which takes documents as they are. torch's kernels take rows behind a mask, or
documents padded to one length, and their backward pass takes several times as long as their forward pass.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch

from inscp.errors import UserError
from inscp.model.native import compiled

_SOURCE = Path(__file__).with_suffix(".cpp")
DTYPES = (torch.float32, torch.bfloat16)
"""What the kernel can read and write."""


def obstacle() -> str | None:
    """Why this machine cannot compile the kernel, and what to do about it; None if it can."""
    try:
        compiled(_SOURCE)
    except UserError as error:
        return str(error)
    return None


@torch.library.custom_op("inscp::document_attention", mutates_args=())
def document_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention within each document, on a CPU, computed in fp32.

    Args:
        query: [B, H, L, D], fp32 or bf16.
        key, value: [B, H', L, D], of the same dtype; each serves H / H' heads.
        lengths: as in `inscp.model.attention.Documents`.
        scale: factor of the scores.
        window: number of tokens that each token attends to, itself included; 0 means no limit.

    Returns:
        [B, L, H, D], and for the backward pass fp32 [B, L, H]: the log-sum-exp of the scores, as exponents of 2.

    Raises:
        ValueError: the tensors do not fit together.
        UserError: the kernel cannot be compiled.
    """
    kinds = {(x.dtype, x.shape[0], *x.shape[2:]) for x in (query, key, value)}
    if len(kinds) > 1 or query.dtype not in DTYPES or lengths.sum() != query.shape[0] * query.shape[2]:
        raise ValueError(f"query, key, value and the documents' lengths do not fit together: {kinds}, {lengths.sum()}")
    output, log_sums = _outputs(query)
    _call(False, (query, key, value, output.transpose(1, 2), log_sums), lengths, scale, window)
    return output, log_sums


@document_attention.register_fake
def _(query: Any, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _outputs(query)


def _outputs(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, length, size = query.shape
    return query.new_empty(rows, length, heads, size), query.new_empty(rows, length, heads, dtype=torch.float32)


@torch.library.custom_op("inscp::document_attention_backward", mutates_args=())
def _document_attention_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor,
    log_sums: torch.Tensor, lengths: torch.Tensor, scale: float, window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    gradients = _tokens_first(query), _tokens_first(key), _tokens_first(value)
    tensors = (gradient.transpose(1, 2), query, key, value, output.transpose(1, 2), log_sums, *gradients)
    _call(True, tensors, lengths, scale, window)
    return gradients


@_document_attention_backward.register_fake
def _(gradient: Any, query: Any, key: Any, value: Any, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _tokens_first(query), _tokens_first(key), _tokens_first(value)


def _tokens_first(x: torch.Tensor) -> torch.Tensor:
    """A new tensor [B, H, L, D] that is stored as [B, L, H, D]."""
    rows, heads, length, size = x.shape
    return x.new_empty(rows, length, heads, size).transpose(1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    query, key, value, lengths, output, log_sums = ctx.saved_tensors
    gradients = _document_attention_backward(
        gradient, query, key, value, output, log_sums, lengths, ctx.scale, ctx.window
    )
    return *gradients, None, None, None


document_attention.register_autograd(_backward, setup_context=_setup_context)


def _call(
    is_backward: bool, tensors: tuple[torch.Tensor, ...], lengths: torch.Tensor, scale: float, window: int
) -> None:
    """Call the kernel, which fills the last of `tensors`; their order is its own."""
    query, key = tensors[is_backward : is_backward + 2]
    whole = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    addresses = (ctypes.c_void_p * len(whole))(*(x.data_ptr() for x in whole))
    strides = [stride for x in whole for stride in x.stride()[:3]]
    rows, heads, length, size = query.shape
    compiled(_SOURCE).document_attention(
        is_backward, query.dtype == torch.bfloat16, addresses, (ctypes.c_int64 * len(strides))(*strides),
        ctypes.c_void_p(lengths.data_ptr()), *map(ctypes.c_int64, (rows, heads, key.shape[1], length, size)),
        window, torch.get_num_threads(), ctypes.c_float(scale),
    )  # fmt: skip
