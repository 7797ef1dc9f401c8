"""Attention within each document of packed rows, on a CPU.

Documents of similar length are gathered into batches, padded at the end, which causal attention does not see, and
passed to torch's kernel. Its backward pass takes as long as several forward passes; matmuls replace it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

_BLOCK = 128
"""Queries per block of the backward pass; keys after the last query are skipped."""
_SCORES = 1 << 19
"""Attention scores computed at once: 2 MB, which fits in a cache."""
_NEGLIGIBLE = 64
"""Tokens of padding that cost less than a group of documents of its own."""
_LOG2_E = 1 / math.log(2)
"""As exponents of 2: torch's vectorised power of 2 takes a third of the time of MKL's exponential on an AMD CPU."""


@dataclass(frozen=True)
class _Group:
    """Documents of similar length.

    Attributes:
        count, width: number of documents, and the number of tokens to which they are padded.
        tokens: int64 [count x width], the token at each position; arbitrary in the padding.
        filled, padding: the positions with a token, and those without.
    """

    count: int
    width: int
    tokens: torch.Tensor
    filled: torch.Tensor
    padding: torch.Tensor

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, L, D] -> [count, H, width, D], zero in the padding."""
        flat = x.transpose(1, 2).flatten(0, 1).index_select(0, self.tokens).index_fill_(0, self.padding, 0)
        return flat.view(self.count, self.width, *flat.shape[1:]).transpose(1, 2)

    def scatter(self, x: torch.Tensor, into: torch.Tensor) -> None:
        """[count, H, width, D] -> the documents' places in [B, H, L, D], which is stored as [B, L, H, D]."""
        slots, tokens = x.transpose(1, 2).flatten(0, 1), self.tokens
        if len(self.padding):
            slots, tokens = slots.index_select(0, self.filled), tokens.index_select(0, self.filled)
        into.transpose(1, 2).view(-1, *slots.shape[1:]).index_copy_(0, tokens, slots)


@lru_cache(maxsize=2)
def _groups(lengths: bytes) -> tuple[_Group, ...]:
    """The documents, grouped by the length to which they are padded."""
    sizes = np.trim_zeros(np.frombuffer(lengths, dtype=np.int64), "b")
    starts, widths = np.cumsum(sizes) - sizes, _padded(sizes)
    for width, wider in pairwise(np.unique(widths)):
        padded = widths == width
        if padded.sum() * (wider - width) <= _NEGLIGIBLE:
            widths[padded] = wider
    groups = []
    for width in np.unique(widths):
        length, start = (x[widths == width, None] for x in (sizes, starts))
        places = np.arange(width)
        tokens = torch.from_numpy((start + np.minimum(places, length - 1)).ravel())
        is_filled = (places < length).ravel()
        filled, padding = (torch.from_numpy(np.flatnonzero(where)) for where in (is_filled, ~is_filled))
        groups.append(_Group(len(length), int(width), tokens, filled, padding))
    return tuple(groups)


def _padded(lengths: np.ndarray) -> np.ndarray:
    """Lengths rounded up to multiples of 8 up to 64, and above to one of four numbers per doubling: 80, 96, 112, 128, …

    oneDNN generates a kernel of half a megabyte for every shape of a matmul, so there must be few: with the documents'
    own lengths, memory grew by 10 MB per batch.
    """
    step = 1 << np.maximum(np.frexp(lengths - 1)[1] - 3, 3)
    return -(-lengths // step) * step


@torch.library.custom_op("inscp::document_attention", mutates_args=())
def document_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention within each document, on a CPU, as a single operator for compilation and checkpointing.

    Args:
        query: [B, H, L, D].
        key, value: [B, H', L, D]; each serves H / H' heads.
        lengths: as in `inscp.model.attention.Documents`.
        scale: factor of the scores.
        window: number of tokens that each token attends to, itself included; 0 means no limit.

    Returns:
        [B, L, H, D], and for the backward pass fp32 [B, L, H]: the log-sum-exp of the scores.
    """
    output, log_sums = _outputs(query, value)
    for group in _groups(lengths.numpy().tobytes()):
        q, k, v = (group.gather(x) for x in (query, key, value))
        result, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, **_seen(group.width, window, q), scale=scale
        )
        group.scatter(log_sum[..., None], log_sums.transpose(1, 2)[..., None])
        group.scatter(result, output.transpose(1, 2))
    return output, log_sums


@document_attention.register_fake
def _(query: Any, key: Any, value: Any, lengths: Any, scale: float, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _outputs(query, value)


def _outputs(query: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, length, _ = query.shape
    log_sums = torch.zeros(rows, length, heads, dtype=torch.float32, device=query.device)
    return query.new_empty(rows, length, heads, value.shape[-1]), log_sums


@torch.library.custom_op("inscp::document_attention_backward", mutates_args=())
def _document_attention_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor,
    log_sums: torch.Tensor, lengths: torch.Tensor, scale: float, window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    gradients = _like(query), _like(key), _like(value)
    for group in _groups(lengths.numpy().tobytes()):
        q, k, v = (group.gather(x) for x in (query, key, value))
        tokens_first = (gradient, output, log_sums[..., None])
        grad, result, log_sum = (group.gather(x.transpose(1, 2)) for x in tokens_first)
        results = _gradients(grad, q, k, v, result, log_sum, scale, window if window < group.width else 0)
        for one, into in zip(results, gradients, strict=True):
            group.scatter(one, into)
    return gradients


@_document_attention_backward.register_fake
def _(gradient: Any, query: Any, key: Any, value: Any, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _like(query), _like(key), _like(value)


def _like(x: torch.Tensor) -> torch.Tensor:
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


def _seen(width: int, window: int, like: torch.Tensor) -> dict[str, Any]:
    """The options of torch's kernel for a causal mask, with or without a sliding window."""
    if not 0 < window < width:
        return {"is_causal": True}
    distance = torch.arange(width)[:, None] - torch.arange(width)
    bias = torch.zeros(width, width, dtype=like.dtype)
    return {"is_causal": False, "attn_mask": bias.masked_fill_((distance < 0) | (distance >= window), -torch.inf)}


def _gradients(
    gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor,
    log_sums: torch.Tensor, scale: float, window: int,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """The gradients of causal attention in n documents of one width, in blocks as in FlashAttention-2 (2307.08691).

    Elementwise passes over the scores cost more than the matmuls. Therefore the values subtracted from each score
    (`log_sums`) and from the gradient of each probability (the mean of its row) are extra columns of the matmuls. The
    mean takes two columns: the second holds what the first loses in low precision. Scores are fp32 until the
    probabilities are computed.

    Args:
        gradient, q, output: [n, H, W, D].
        k, v: [n, H', W, D].
        log_sums: fp32 [n, H, W, 1].

    Returns:
        the gradients of q, k and v.
    """
    (count, heads, width, _), dtype = k.shape, q.dtype
    kinds = count * heads

    def folded(x: torch.Tensor) -> torch.Tensor:
        """[n, H, W, D] -> [n H', H / H', W, D]: groups heads that share a key, so that one matmul serves them all."""
        return x.reshape(kinds, -1, width, x.shape[-1])

    means = (gradient.float() * output).sum(-1, keepdim=True)
    coarse = means.to(dtype)
    queries, grads, k, v = folded(q), folded(gradient), k.flatten(0, 1), v.flatten(0, 1)
    query_columns = folded(torch.cat([q.float() * scale, -log_sums], -1) * _LOG2_E)
    grad_columns = folded(torch.cat([gradient, -coarse, (coarse - means).to(dtype)], -1))
    key_columns, value_columns = F.pad(k.float(), (0, 1), value=1), F.pad(v, (0, 2), value=1)
    summed = dtype if width <= _BLOCK else torch.float32  # one block needs no accumulation
    q_grad, k_grad, v_grad = (
        torch.empty_like(queries),
        torch.zeros_like(k, dtype=summed),
        torch.zeros_like(v, dtype=summed),
    )
    for begin in range(0, width, _BLOCK):
        end, first = min(width, begin + _BLOCK), max(0, begin - window + 1) if window else 0
        seen, n_queries, n_keys = slice(first, end), end - begin, end - first
        at_once = max(1, _SCORES // (queries.shape[1] * n_queries * n_keys))
        if at_once > heads:
            at_once -= at_once % heads  # whole documents: sizes that recur
        for start in range(0, kinds, at_once):
            part = slice(start, start + at_once)
            block, block_grads, scored, lifted = (
                x[part, :, begin:end].flatten(1, 2) for x in (queries, grads, query_columns, grad_columns)
            )
            probabilities = torch.bmm(scored, key_columns[part, seen].mT).exp2_().to(dtype)
            square = probabilities.view(-1, n_queries, n_keys).tril_(begin - first)
            if window:
                square.triu_(begin - first - window + 1)
            scores_grad = torch.bmm(lifted, value_columns[part, seen].mT).mul_(probabilities)
            q_grad[part, :, begin:end] = torch.bmm(scores_grad, k[part, seen]).unflatten(1, (-1, n_queries))
            _add(scores_grad.mT, block, k_grad[part, seen])
            _add(probabilities.mT, block_grads, v_grad[part, seen])
    return (
        q_grad.mul_(scale).view(q.shape),
        k_grad.mul_(scale).to(dtype).unflatten(0, (count, heads)),
        v_grad.to(dtype).unflatten(0, (count, heads)),
    )


def _add(a: torch.Tensor, b: torch.Tensor, into: torch.Tensor) -> None:
    """Add the products `a @ b` to sums that may have a higher precision."""
    if a.dtype == into.dtype:
        into.baddbmm_(a, b)
    else:
        into += torch.bmm(a, b)
