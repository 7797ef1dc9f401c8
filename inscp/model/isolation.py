"""Whether a model isolates the documents of a packed row, determined by running it.

Attention does if it derives from the positions which tokens belong to a document. Layers that carry a state along the
row (convolutions, linear attention, state spaces) do not, nor do some models that build their masks without positions.
There is no list of names: a row contains the same document twice, and a model that isolates documents predicts both
alike.
"""

import sys

import torch
from transformers import PretrainedConfig

from inscp.errors import UserError
from inscp.model.loss import NextTokenLoss
from inscp.model.parallel import reshard
from inscp.records import IGNORED, PackedBatch

_LENGTH = 24
"""Tokens of the document; few are enough, because a model that sees the first copy repeats it in the second."""
_TOLERANCE = 0.02
"""Relative to the norm of the negative log-likelihoods. The two are bitwise equal on a CPU, also in bf16; if
SmolLM2-135M sees the first document, they differ by half (on a CPU, November 2026). The last digit of bf16 logits is
0.005."""


@torch.no_grad()
def isolates_documents(loss: NextTokenLoss, device: torch.device) -> bool:
    """Whether a document after another one in a row is as likely as alone: one forward pass of 48 tokens.

    Args:
        loss: the model with its weights, on one device or sharded; if sharded, every rank must take part.
        device: device on which it computes.
    """
    vocabulary = loss.model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (_LENGTH,), generator=torch.Generator().manual_seed(0))
    targets, positions = torch.full_like(ids, IGNORED), torch.arange(_LENGTH)
    targets[:-1] = ids[1:]
    ids, targets, positions = (tensor.repeat(2)[None] for tensor in (ids, targets, positions))
    batch = PackedBatch(ids, targets, positions, (_LENGTH, _LENGTH), step_targets=1, step_tokens=2 * _LENGTH)
    is_training = loss.training
    try:
        with torch.compiler.set_stance("force_eager"):  # blocks are compiled for training rows only
            first, second = loss.eval()(batch.to(device), per_target=True).chunk(2)
    finally:
        loss.train(is_training)
        reshard(loss)  # a checkpoint may be read into the shards next
    return bool((second - first).norm() <= _TOLERANCE * first.norm())


def longest_isolated(config: PretrainedConfig) -> int:
    """How many tokens a document may have without changing the others of its batch; sys.maxsize for most models.

    A document longer than those of pre-training makes LongRoPE (Phi-4-mini) use other frequencies for the whole batch.
    Dynamic RoPE does so only beyond the model's context length, and no row is longer than that.
    """
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [given, *(kind for kind in given.values() if isinstance(kind, dict))]  # one per layer type
    ends = (kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope")
    return min(ends, default=sys.maxsize)


def require_isolated_length(config: PretrainedConfig, spec: str, row_length: int) -> None:
    """
    Args:
        config: the model's configuration.
        spec: its name, for messages.
        row_length: maximum number of tokens per document.

    Raises:
        UserError: a document may be long enough to change the others of its batch.
    """
    if row_length > (longest := longest_isolated(config)):
        what = f"a document of more than {longest:,} tokens changes the positions of all others in its batch (longrope)"
        raise UserError(spec, what, f"Set data.row_length to {longest}.")


def require_isolation(loss: NextTokenLoss, spec: str, device: torch.device, row_length: int) -> None:
    """Refuse a model that does not isolate documents; to be called in the compute precision.

    Args:
        loss, device: as for `isolates_documents`.
        spec: the model's name, for messages.
        row_length: maximum number of tokens per document.

    Raises:
        UserError: it lets a document see the one before it, or a document may be long enough to change the others.
    """
    require_isolated_length(loss.model.config, spec, row_length)
    if isolates_documents(loss, device):
        return
    what = "its layers let a document in a packed row see the previous one"
    loss.model.set_attn_implementation("eager")
    if isolates_documents(loss, device):
        raise UserError(spec, what, "Set model.attn_implementation to eager, which keeps them apart.")
    fix = "Use a model with plain attention in every layer (Llama, Qwen3, Gemma 3, …); eager attention does not help."
    raise UserError(spec, what, fix)
