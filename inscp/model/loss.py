"""The next-token loss: summed in fp32 over the targets, without ever holding all logits.

The logits of a batch (tokens x vocabulary) are the largest tensor of a training step. Here the output layer and the
cross-entropy work on chunks of rows, and the gradients of a chunk are formed in the forward pass, in the place of its
logits: products in the compute dtype, softmax and sums in fp32. Positions without a target cost nothing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from inscp.model.attention import Documents, attend_by_document
from inscp.records import PackedBatch

CHUNK, GPU_CHUNK = 512, 2048
"""Rows of logits that are alive at once: on a CPU 50 MB in bf16 at 50 k vocabulary; on a GPU as many as are worth a
pass over the sums of the weight's gradient, 2.6 GB with their softmax at 128 k."""
_CACHED = 1 << 20
"""fp32 numbers that a CPU's caches hold."""


class NextTokenLoss(nn.Module):
    """A causal language model whose output is its loss.

    It is the root of what is sharded, so that the output embedding is whole while the loss uses it.

    Args:
        model: a causal language model with its weights.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.linear_head = has_linear_head(model)
        self.by_document = attend_by_document(model)

    def forward(self, batch: PackedBatch, each: bool = False) -> torch.Tensor:
        """The negative log-likelihood of the batch's targets in nats, fp32: summed, and differentiable.

        With `each` that of every target, [N] in the order of the rows, without gradients.
        """
        # transformers isolates packed documents when position ids restart, with neither attention mask nor cache;
        # with FlashAttention it looks for them only where there is one row.
        shape = (1, -1) if "flash" in self.model.config._attn_implementation else batch.input_ids.shape
        input_ids, targets, position_ids = (
            tensor.reshape(shape) for tensor in (batch.input_ids, batch.targets, batch.position_ids)
        )
        inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
        if self.by_document:
            inputs["documents"] = Documents(batch.lengths, input_ids.device)
        targets = targets.flatten().index_select(0, batch.places)
        if self.linear_head:
            hidden = self.model.base_model(**inputs).last_hidden_state.flatten(0, 1).index_select(0, batch.places)
            weight = self.model.get_output_embeddings().weight
            return linear_nlls(hidden, weight, targets) if each else linear_nll_sum(hidden, weight, targets)
        logits = self.model(**inputs).logits.flatten(0, 1).index_select(0, batch.places)
        return F.cross_entropy(logits.float(), targets, reduction="none" if each else "sum")


def linear_nll_sum(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of `hidden @ weight.T` against `targets`, chunk by chunk.

    Args:
        hidden: [N, H].
        weight: [V, H], the output embedding.
        targets: int64 [N].

    Returns:
        fp32 scalar, in nats.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    weight = weight if torch.is_grad_enabled() else weight.detach()  # whose gradient would be made all the same
    return _LinearNLL.apply(hidden, weight, targets, dtype)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def linear_nlls(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each row of `hidden @ weight.T`, fp32 [N] in nats; arguments as for `linear_nll_sum`."""
    rows_at_once = _rows_at_once()
    all_logits = hidden.new_empty(min(rows_at_once, len(targets)), len(weight))
    nlls = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), rows_at_once):
        rows = slice(start, start + rows_at_once)
        logits = torch.mm(hidden[rows], weight.T, out=all_logits[: len(targets[rows])])
        nlls[rows] = _nlls(logits, targets[rows], into_gradients=False)
    return nlls


class _LinearNLL(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        low_hidden, low_weight = hidden.to(dtype), weight.to(dtype)
        hidden_grad = torch.empty_like(low_hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        # Written over again for every chunk: on a CPU, fresh memory of this size costs more than the products in it.
        rows_at_once = _rows_at_once()
        all_logits = low_hidden.new_empty(min(rows_at_once, len(targets)), len(weight))
        product = torch.empty_like(low_weight) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), rows_at_once):
            rows = slice(start, start + rows_at_once)
            chunk, target = low_hidden[rows], targets[rows]
            logits = torch.mm(chunk, low_weight.T, out=all_logits[: len(target)])
            total += _nlls(logits, target, into_gradients=wants_hidden or wants_weight).sum()
            if hidden_grad is not None:
                torch.mm(logits, low_weight, out=hidden_grad[rows])
            if weight_grad is not None:
                grown = _in_cached_rows(torch.mm(logits.T, chunk, out=product))
                # torch makes an fp32 copy of what it adds to fp32 sums: here never of all of it
                for sums, part in zip(_in_cached_rows(weight_grad), grown, strict=True):
                    sums += part
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        gradients = [
            kept if kept is None else kept.mul_(gradient).to(dtype)  # the factor stays fp32 inside
            for kept, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None


def _nlls(logits: torch.Tensor, targets: torch.Tensor, into_gradients: bool) -> torch.Tensor:
    """The negative log-likelihoods [N] of `targets` [N]; `logits` [N, V] may become the gradients of their sum.

    Softmax in fp32, on a CPU for so many rows at a time as its caches hold.
    """
    parts = _in_cached_rows(logits)
    nlls = torch.empty(len(logits), 1, dtype=torch.float32, device=logits.device)
    exact = torch.empty(parts[0].shape, dtype=torch.float32, device=logits.device)
    shares = torch.empty_like(exact)
    rows = (tensor.split(len(parts[0])) for tensor in (targets[:, None], nlls))
    for part, target, nll in zip(parts, *rows, strict=True):
        x, p = exact[: len(part)].copy_(part), shares[: len(part)]
        torch.softmax(x, 1, out=p)
        highest, place = x.max(1, keepdim=True)  # whose share never underflows
        nll.copy_(highest - p.gather(1, place).log_() - x.gather(1, target))
        if into_gradients:
            part.copy_(p.scatter_add_(1, target, p.new_full(target.shape, -1.0)))
    return nlls[:, 0]


def _rows_at_once() -> int:
    """By the machine and not the tensors', for `doctor` to count as a training does."""
    return GPU_CHUNK if torch.cuda.is_available() else CHUNK


def _in_cached_rows(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[N, …] in parts of so many rows as a CPU's caches hold; elsewhere as it is."""
    return x.split(max(1, _CACHED // x.shape[1]) if x.device.type == "cpu" else len(x))


@torch.no_grad()
def has_linear_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its last hidden states times its output embedding and nothing else.

    Asked of the model's own forward pass, between random hidden states and a small random output layer in the place
    of the model's, so that no weight is needed: soft-capped (Gemma 2), scaled (Cohere, Granite) and biased heads are
    found without a list of names.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):  # whatever the model is being made on
        hidden = torch.randn(1, 4, head.in_features, generator=generator)
        small = torch.randn(8, head.in_features, generator=generator)  # logits in the tens, where a soft cap shows
    body, weight = model.base_model, head.weight
    try:
        body.forward = lambda *_, **__: _BodyOutput(hidden)  # type: ignore[assignment]
        head.weight = nn.Parameter(small)
        logits = model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False).logits
        return torch.allclose(F.linear(hidden, small), logits, rtol=1e-4, atol=1e-4)
    except (AttributeError, TypeError, RuntimeError):  # a model that is put together otherwise
        return False
    finally:
        del body.forward
        head.weight = weight


class _BodyOutput:
    """Hidden states as a model's body returns them, and None for all else that its forward pass may ask for."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        return None
