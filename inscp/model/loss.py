"""The next-token loss, and the divergence from a teacher, summed in fp32 without ever holding all logits.

The logits of a batch (tokens x vocabulary) are the largest tensor of a training step. Here the output layer and the
cross-entropy work on chunks of rows, and a chunk's gradients are computed in the forward pass and overwrite its logits:
matmuls in the compute dtype, softmax and sums in fp32. Positions without a target cost nothing.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from inscp.model.attention import Documents, attend_by_document
from inscp.records import PackedBatch

CHUNK, GPU_CHUNK = 512, 2048
"""Rows of logits held at once, multiples of `_ROWS`: on a CPU 50 MB in bf16 at a vocabulary of 50 k; on a GPU enough to
be worth a pass over the accumulated weight gradient, 2.6 GB with their softmax at 128 k."""
_CACHE_NUMBERS = 1 << 20
"""fp32 numbers that fit in a CPU's caches."""
_ROWS = 32
"""Every matmul has a multiple of this number of rows, however many targets there are: on a CPU, oneDNN generates and
keeps half a megabyte of code for each shape."""


@dataclass(frozen=True)
class Predictions:
    """A model's predictions at N positions; the logits are `hidden @ weight.T`.

    Attributes:
        hidden: [N, H]; if the output layer is not such a product, the logits themselves, [N, V].
        weight: [V, H], the output embedding; None if `hidden` contains the logits.
        importance: of a teacher: weight of a divergence from it, relative to the negative log-likelihood of a target.
    """

    hidden: torch.Tensor
    weight: torch.Tensor | None
    importance: float = 1.0

    @property
    def logits(self) -> torch.Tensor:
        """All logits, [N, V]."""
        return self.hidden if self.weight is None else (_padded(self.hidden) @ self.weight.T)[: len(self.hidden)]

    def __getitem__(self, rows: slice) -> "Predictions":
        return replace(self, hidden=self.hidden[rows])


class Losses(NamedTuple):
    """Losses summed over a batch's targets, in nats, fp32.

    Attributes:
        total: the training loss, differentiable: the negative log-likelihoods (times the probabilities, if targets are
            weighted by them), plus the divergences from a teacher, if there is one, times its importance.
        divergence: KL(teacher || model) at the teacher's positions, without its importance and without gradients.
    """

    total: torch.Tensor
    divergence: torch.Tensor


class NextTokenLoss(nn.Module):
    """A causal language model whose output is its loss.

    It is the root module for sharding, so that the output embedding is gathered while the loss uses it.

    Args:
        model: a causal language model with its weights.
        by_probability: in training, weight each target's negative log-likelihood by the model's probability of the
            target, as a constant (dynamic fine-tuning; Wu et al. 2025, arXiv 2508.05629).
    """

    def __init__(self, model: PreTrainedModel, by_probability: bool = False) -> None:
        super().__init__()
        self.model = model
        self.by_probability = by_probability
        self.linear_head = has_linear_head(model)
        self.by_document = attend_by_document(model)

    def forward(
        self,
        batch: PackedBatch,
        per_target: bool = False,
        teacher: Predictions | None = None,
        return_predictions: bool = False,
    ) -> Losses | torch.Tensor | Predictions:
        """The batch's losses.

        Args:
            batch: a batch with N targets.
            per_target: return the negative log-likelihood of every target instead, fp32 [N], row after row, without
                gradients.
            teacher: another model's predictions to learn, at the last M of the N target positions.
            return_predictions: return the predictions instead, for a model that learns from this one.
        """
        mine = self.predictions(batch)
        if return_predictions:
            return mine
        targets = batch.targets.flatten().index_select(0, batch.target_positions)
        by_probability = self.by_probability and self.training
        if mine.weight is not None:
            if per_target:
                return linear_nlls(mine.hidden, mine.weight, targets)
            return linear_losses(mine.hidden, mine.weight, targets, teacher, by_probability)
        logits = mine.logits.float()
        if per_target:
            return F.cross_entropy(logits, targets, reduction="none")
        n = len(targets) - (len(teacher.hidden) if teacher else 0)
        nlls = F.cross_entropy(logits[:n], targets[:n], reduction="none")
        total = _terms(nlls, by_probability).sum()
        if teacher is None:
            return Losses(total, logits.new_zeros(()))
        wanted = teacher.logits.float().log_softmax(1)
        divergence = F.kl_div(logits[n:].log_softmax(1), wanted, reduction="sum", log_target=True)
        return Losses(total + teacher.importance * divergence, divergence.detach())

    def predictions(self, batch: PackedBatch) -> Predictions:
        """The model's predictions at the target positions of the batch."""
        # transformers isolates packed documents when position ids restart, with neither attention mask nor cache;
        # with FlashAttention it does so only for a single row.
        shape = (1, -1) if "flash" in self.model.config._attn_implementation else batch.input_ids.shape
        input_ids, position_ids = batch.input_ids.reshape(shape), batch.position_ids.reshape(shape)
        inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
        if self.by_document:
            inputs["documents"] = Documents(batch.lengths, input_ids.device)
        if self.linear_head:
            states = self.model.base_model(**inputs).last_hidden_state
            weight = self.model.get_output_embeddings().weight
        else:
            states, weight = self.model(**inputs).logits, None
        return Predictions(states.flatten(0, 1).index_select(0, batch.target_positions), weight)


def linear_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    teacher: Predictions | None = None,
    by_probability: bool = False,
) -> Losses:
    """The losses of `hidden @ weight.T` against `targets`, chunk by chunk.

    Args:
        hidden: [N, H].
        weight: [V, H], the output embedding.
        targets: int64 [N].
        teacher: predictions to learn at the last M positions instead of their targets.
        by_probability: as for `NextTokenLoss`.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    weight = weight if torch.is_grad_enabled() else weight.detach()  # `apply` would compute its gradient regardless
    losses = _LinearLosses.apply(hidden, weight, targets, teacher, dtype, by_probability)  # type: ignore[no-untyped-call]
    return Losses(*losses)


@torch.no_grad()
def linear_nlls(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each row of `hidden @ weight.T`, fp32 [N] in nats; arguments as for `linear_losses`."""
    rows_at_once = _chunk_rows(len(targets))
    all_logits = hidden.new_empty(rows_at_once, len(weight))
    nlls = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for rows in _chunks(0, len(targets), rows_at_once):
        chunk = _padded(hidden[rows])
        logits = torch.mm(chunk, weight.T, out=all_logits[: len(chunk)])
        nlls[rows] = _nlls(logits[: rows.stop - rows.start], targets[rows])
    return nlls


class _LinearLosses(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        teacher: Predictions | None,
        dtype: torch.dtype,
        by_probability: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        low_hidden, low_weight = hidden.to(dtype), weight.to(dtype)
        hidden_grad = torch.empty_like(low_hidden) if wants_hidden else None
        new = torch.empty_like if len(targets) else torch.zeros_like  # the first chunk fills it
        weight_grad = new(weight, dtype=torch.float32) if wants_weight else None
        # Reused for every chunk: on a CPU, fresh memory of this size costs more than the matmuls that fill it.
        rows_at_once = _chunk_rows(len(targets))
        all_logits = low_hidden.new_empty(rows_at_once, len(weight))
        weight_rows = _cache_rows(low_weight)
        product = torch.empty_like(low_weight[: weight_rows if wants_weight else 0])
        total, divergence = (torch.zeros((), dtype=torch.float32, device=hidden.device) for _ in range(2))
        n_targets = len(targets) - (len(teacher.hidden) if teacher else 0)
        for rows in _chunks(0, n_targets, rows_at_once) + _chunks(n_targets, len(targets), rows_at_once):
            chunk = _padded(low_hidden[rows])
            all_rows = torch.mm(chunk, low_weight.T, out=all_logits[: len(chunk)])
            logits = all_rows[: rows.stop - rows.start]  # the others are zero, as are their gradients
            if teacher is None or rows.start < n_targets:
                nlls = _nlls(logits, targets[rows], wants_hidden or wants_weight, by_probability)
                total += _terms(nlls, by_probability).sum()
            else:
                taught = teacher[rows.start - n_targets : rows.stop - n_targets]
                found = _divergences(logits, taught, into_gradients=wants_hidden or wants_weight).sum()
                divergence += found
                total += teacher.importance * found
            if hidden_grad is not None:
                hidden_grad[rows] = torch.mm(all_rows, low_weight)[: len(logits)]
            if weight_grad is not None:
                for part in _chunks(0, len(weight), weight_rows):
                    sums = weight_grad[part]
                    added = torch.mm(all_rows[:, part].T, chunk, out=product[: len(sums)])
                    sums.add_(added) if rows.start else sums.copy_(added)
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.mark_non_differentiable(divergence)
        return total, divergence

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        hidden_grad, weight_grad = (kept if kept is None else kept.mul_(gradient) for kept in ctx.saved_tensors)
        return hidden_grad, weight_grad, None, None, None, None  # autograd casts them to the dtypes that it expects


def _terms(nlls: torch.Tensor, by_probability: bool) -> torch.Tensor:
    """The contribution of each target to the loss."""
    return nlls * nlls.detach().neg().exp() if by_probability else nlls


def _nlls(
    logits: torch.Tensor, targets: torch.Tensor, into_gradients: bool = False, by_probability: bool = False
) -> torch.Tensor:
    """The negative log-likelihoods [N] of `targets` [N]; `logits` [N, V] may be overwritten with their gradients.

    The softmax is fp32, on a CPU for as many rows at a time as fit in its caches.
    """
    parts = logits.split(_cache_rows(logits))
    nlls = torch.empty(len(logits), 1, dtype=torch.float32, device=logits.device)
    exact = torch.empty(parts[0].shape, dtype=torch.float32, device=logits.device)
    probabilities = torch.empty_like(exact)
    rows = (tensor.split(len(parts[0])) for tensor in (targets[:, None], nlls))
    for part, target, nll in zip(parts, *rows, strict=True):
        x, p = exact[: len(part)].copy_(part), probabilities[: len(part)]
        torch.softmax(x, 1, out=p)
        highest = x.amax(1, keepdim=True)  # whose probability never underflows
        nll.copy_(highest - p.amax(1, keepdim=True).log_() - x.gather(1, target))
        if into_gradients:
            gradient = p.scatter_add_(1, target, p.new_full(target.shape, -1.0))
            part.copy_(gradient.mul_(nll.neg().exp()) if by_probability else gradient)
    return nlls[:, 0]


def _divergences(logits: torch.Tensor, teacher: Predictions, into_gradients: bool) -> torch.Tensor:
    """KL(teacher || model) of each row [N], from logits [N, V] of both.

    `logits` may be overwritten with the gradients of the sum, times the teacher's importance.
    """
    divergences = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    parts = logits.split(_cache_rows(logits))
    rows = (tensor.split(len(parts[0])) for tensor in (teacher.logits, divergences))
    for part, wanted, divergence in zip(parts, *rows, strict=True):
        log_p, log_q = (x.float().log_softmax(1) for x in (part, wanted))
        q = log_q.exp()
        divergence.copy_(log_q.sub_(log_p).mul_(q).sum(1))
        if into_gradients:
            part.copy_(log_p.exp_().sub_(q).mul_(teacher.importance))
    return divergences


def _chunks(begin: int, end: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, end)) for start in range(begin, end, size)]


def _padded(x: torch.Tensor) -> torch.Tensor:
    """`x` with rows of zeros after its own, up to a multiple of `_ROWS`."""
    return F.pad(x, (0, 0, 0, -len(x) % _ROWS))


def _chunk_rows(targets: int) -> int:
    """Rows of logits held at once for a number of targets.

    It depends on the machine and not on the tensors' device: `doctor` estimates a GPU's memory with CPU tensors.
    """
    return min(GPU_CHUNK if torch.cuda.is_available() else CHUNK, max(_ROWS, targets + -targets % _ROWS))


def _cache_rows(x: torch.Tensor) -> int:
    """Rows of `x` [N, …] that fit in a CPU's caches; all of them on a machine with a GPU (see `_chunk_rows`)."""
    return len(x) if torch.cuda.is_available() else max(1, _CACHE_NUMBERS // x.shape[1])


@torch.no_grad()
def has_linear_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its last hidden states times its output embedding and nothing else.

    This is determined by the model's own forward pass, with random hidden states and a small random output layer
    instead of the model's, so that no weights are needed: soft-capped (Gemma 2), scaled (Cohere, Granite) and biased
    heads are recognised without a list of names.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):  # whatever device the model is being built on
        hidden = torch.randn(1, 4, head.in_features, generator=generator)
        small = torch.randn(8, head.in_features, generator=generator)  # logits in the tens, where a soft cap shows
    body, weight = model.base_model, head.weight
    try:
        body.forward = lambda *_, **__: _BodyOutput(hidden)  # type: ignore[assignment]
        head.weight = nn.Parameter(small)
        logits = model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False).logits
        return torch.allclose(F.linear(hidden, small), logits, rtol=1e-4, atol=1e-4)
    except (AttributeError, TypeError, RuntimeError):  # a model with a different structure
        return False
    finally:
        del body.forward
        head.weight = weight


class _BodyOutput:
    """Hidden states as a model's body returns them, and None for any other attribute that is read."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        return None
