"""Attention inside each document of packed rows, on a CPU.

Documents of like length are gathered into batches, padded at their ends, where causal attention does not look; short
ones are multiplied out there, which is several times as fast as torch's own kernel, long ones given to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

_SHORT = 384
"""Documents up to so many tokens are multiplied out."""
_SCORES = 1 << 19
"""Attention scores at once where they are multiplied out: 2 MB, which a cache holds."""


@dataclass(frozen=True)
class _Group:
    """Documents of like length.

    Attributes:
        count, width: so many documents, padded to so many tokens.
        tokens: int64 [count x width], which token stands where; any in the padding.
        filled, padding: the places that are none and those that are.
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
        """[count, H, width, D] -> the documents' places in [B, H, L, D], whose tokens lie one behind the other."""
        slots, tokens = x.transpose(1, 2).flatten(0, 1), self.tokens
        if len(self.padding):
            slots, tokens = slots.index_select(0, self.filled), tokens.index_select(0, self.filled)
        into.transpose(1, 2).view(-1, *slots.shape[1:]).index_copy_(0, tokens, slots)


@lru_cache(maxsize=2)
def _groups(lengths: bytes) -> tuple[_Group, ...]:
    """The documents in groups whose longest is at most a quarter (and a few tokens) longer than the shortest."""
    sizes = np.trim_zeros(np.frombuffer(lengths, dtype=np.int64), "b")
    starts = np.cumsum(sizes) - sizes
    order = np.argsort(sizes, kind="stable")
    ascending = sizes[order]
    groups, begin = [], 0
    while begin < len(order):
        end = int(np.searchsorted(ascending, ascending[begin] * 1.25 + 8, side="right"))
        length, start, width = ascending[begin:end, None], starts[order[begin:end], None], int(ascending[end - 1])
        places = np.arange(width)
        tokens = torch.from_numpy((start + np.minimum(places, length - 1)).ravel())
        is_filled = (places < length).ravel()
        filled, padding = (torch.from_numpy(np.flatnonzero(where)) for where in (is_filled, ~is_filled))
        groups.append(_Group(end - begin, width, tokens, filled, padding))
        begin = end
    return tuple(groups)


@torch.library.custom_op("inscp::document_attention", mutates_args=())
def document_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention inside each document, on a CPU, as one operation for compilers and checkpointing.

    Args:
        query: [B, H, L, D].
        key, value: [B, H', L, D]; each serves H / H' heads.
        lengths: of `inscp.model.attention.Documents`.
        scale: of the scores.
        window: how many tokens back each looks, itself included; 0 is all.

    Returns:
        [B, L, H, D], and for the backward pass fp32 [B, L, H]: the logarithm of the sum of exponentials.
    """
    output, log_sums = _outputs(query, value)
    for group in _groups(lengths.numpy().tobytes()):
        q, k, v = (group.gather(x) for x in (query, key, value))
        if _is_short(group.width, window):
            result = _multiplied_out(q, k, v, scale)
        else:
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
        grad = group.gather(gradient.transpose(1, 2))
        if _is_short(group.width, window):
            results = _multiplied_out_backward(grad, q, k, v, scale)
        else:
            result, log_sum = (group.gather(x) for x in (output.transpose(1, 2), log_sums.transpose(1, 2)[..., None]))
            results = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, q, k, v, result, log_sum[..., 0], 0.0, **_seen(group.width, window, q), scale=scale
            )
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


def _is_short(width: int, window: int) -> bool:
    return width <= _SHORT and not 0 < window < width


def _seen(width: int, window: int, like: torch.Tensor) -> dict[str, Any]:
    """What torch's kernel is told about which tokens see which."""
    if not 0 < window < width:
        return {"is_causal": True}
    distance = torch.arange(width)[:, None] - torch.arange(width)
    bias = torch.zeros(width, width, dtype=like.dtype)
    return {"is_causal": False, "attn_mask": bias.masked_fill_((distance < 0) | (distance >= window), -torch.inf)}


def _multiplied_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of n documents of one width: q [n, H, W, D], k and v [n, H', W, D] -> [n, H, W, D]."""
    queries, keys, values = _folded(q, k), _folded(k, k), _folded(v, k)
    output = queries.new_empty(*queries.shape[:-1], v.shape[-1])
    for part in _parts(queries, keys):
        shares = _shares(queries[part], keys[part], scale)
        torch.bmm(shares.to(v.dtype), values[part], out=output[part])
    return output.view(*q.shape[:-1], v.shape[-1])


def _multiplied_out_backward(
    gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, ...]:
    queries, keys, values, grads = _folded(q, k), _folded(k, k), _folded(v, k), _folded(gradient, k)
    q_grad, k_grad, v_grad = (torch.empty_like(x) for x in (queries, keys, values))
    for part in _parts(queries, keys):
        shares = _shares(queries[part], keys[part], scale)
        torch.bmm(shares.to(v.dtype).mT, grads[part], out=v_grad[part])
        shares_grad = torch.bmm(grads[part], values[part].mT)
        means = torch.sum(shares * shares_grad, -1, keepdim=True)
        scores_grad = shares.mul_(shares_grad - means).mul_(scale).to(q.dtype)
        torch.bmm(scores_grad, keys[part], out=q_grad[part])
        torch.bmm(scores_grad.mT, queries[part], out=k_grad[part])
    return q_grad.view(q.shape), k_grad.view(k.shape), v_grad.view(v.shape)


def _folded(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[n, H, W, D] -> [n H', H / H' W, D]: heads that share a key one below the other, for one product to serve all."""
    return x.reshape(len(k) * k.shape[1], -1, x.shape[-1])


def _parts(queries: torch.Tensor, keys: torch.Tensor) -> Iterator[slice]:
    at_once = max(1, _SCORES // (queries.shape[1] * keys.shape[1]))
    return (slice(begin, begin + at_once) for begin in range(0, len(queries), at_once))


def _shares(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(queries keys^T scale) in fp32, products included, without a look ahead."""
    width = keys.shape[1]
    future = torch.full((width, width), -torch.inf).triu_(1).repeat(queries.shape[1] // width, 1)
    scores = torch.baddbmm(future, queries.float(), keys.float().mT, alpha=scale)
    return torch.softmax(scores, -1, out=scores)
