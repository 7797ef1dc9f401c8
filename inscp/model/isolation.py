"""Whether a model keeps the documents of a packed row apart, asked of the model itself.

Attention does, where it learns from positions which tokens are one document. Layers that carry a state along the row
(convolutions, linear attention, state spaces) do not, nor do some models that build their masks without positions.
There is no list of names: a document stands in a row twice, and a model that keeps documents apart predicts both alike.
"""

import sys

import torch
from transformers import PretrainedConfig

from inscp.errors import UserError
from inscp.model.loss import NextTokenLoss
from inscp.model.parallel import reshard
from inscp.records import IGNORED, PackedBatch

_LENGTH = 24
"""Tokens of the document, which repeats itself where it sees itself: few are enough."""
_TOLERANCE = 0.02
"""Of the norm of the negative log-likelihoods. Both are bitwise alike on a CPU, in bf16 too; SmolLM2-135M that sees the
first document is off by half (on a CPU, November 2026). A last digit of bf16 logits is 0.005."""


@torch.no_grad()
def isolates_documents(loss: NextTokenLoss, device: torch.device) -> bool:
    """Whether a document behind another one in a row is as likely as alone: one forward pass of 48 tokens.

    Args:
        loss: the model with its weights, on one device or sharded; then every rank must ask.
        device: where it computes.
    """
    vocabulary = loss.model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (_LENGTH,), generator=torch.Generator().manual_seed(0))
    targets, positions = torch.full_like(ids, IGNORED), torch.arange(_LENGTH)
    targets[:-1] = ids[1:]
    ids, targets, positions = (tensor.repeat(2)[None] for tensor in (ids, targets, positions))
    batch = PackedBatch(ids, targets, positions, (_LENGTH, _LENGTH), step_targets=1, step_tokens=2 * _LENGTH)
    is_training = loss.training
    try:
        with torch.compiler.set_stance("force_eager"):  # blocks are compiled for the training's rows alone
            first, second = loss.eval()(batch.to(device), per_target=True).chunk(2)
    finally:
        loss.train(is_training)
        reshard(loss)  # a checkpoint may be read into the shards next
    return bool((second - first).norm() <= _TOLERANCE * first.norm())


def longest_isolated(config: PretrainedConfig) -> int:
    """How many tokens a document may have without changing the others of its batch; without end for most models.

    A document longer than those of pre-training makes LongRoPE (Phi-4-mini) take other frequencies for all of the
    batch. Dynamic RoPE does so only beyond what the model can see at once, and no row is longer than that.
    """
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [given, *(kind for kind in given.values() if isinstance(kind, dict))]  # one for each type of layers
    ends = (kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope")
    return min(ends, default=sys.maxsize)


def require_isolated_length(config: PretrainedConfig, spec: str, row_length: int) -> None:
    """
    Args:
        config: the model's.
        spec: its name for messages.
        row_length: tokens that a document has at most.

    Raises:
        UserError: a document may be long enough to change the others of its batch.
    """
    if row_length > (longest := longest_isolated(config)):
        what = f"a document of more than {longest:,} tokens changes the positions of all others in its batch (longrope)"
        raise UserError(spec, what, f"Set data.row_length to {longest}.")


def require_isolation(loss: NextTokenLoss, spec: str, device: torch.device, row_length: int) -> None:
    """Refuse a model that does not keep documents apart; to be asked in the precision that computes.

    Args:
        loss, device: as for `isolates_documents`.
        spec: the model's name for messages.
        row_length: tokens that a document has at most.

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
