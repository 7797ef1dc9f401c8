"""Where a model that is not trained computes: on this process's GPU, else on the CPU, or in shards over ranks."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from inscp.model.isolation import isolates_documents, longest_isolated
from inscp.model.loss import NextTokenLoss
from inscp.model.weights import load_sharded
from inscp.pretrained import empty_model, load_model


def best_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def attention_for(dtype: torch.dtype) -> str | None:
    """Attention by document has no fp32 kernel on GPUs; elsewhere what the model takes by itself."""
    return "eager" if best_device().type == "cuda" and dtype == torch.float32 else None


def scoring_batch_tokens(loss: NextTokenLoss, given: int | None = None) -> int:
    """Tokens of a forward pass, all in one row: as given, else fewer where attention is over the row and not by
    document; at most what a text may have without changing others. 1, so that each text is a batch of its own, where
    the model does not isolate documents."""
    if not isolates_documents(loss, best_device()):
        return 1
    found = given or (32768 if best_device().type == "cuda" and loss.by_document else 4096)
    return min(found, longest_isolated(loss.model.config))


def scoring_model(spec: str, dtype: torch.dtype) -> NextTokenLoss:
    """A model on the best device, for likelihoods and, inside, for generation."""
    return whole_model(spec, dtype, attention_for(dtype), best_device())


def whole_model(spec: str, dtype: torch.dtype, attention: str | None, device: torch.device) -> NextTokenLoss:
    """All of a model on one device; arguments as for `load_model`."""
    with torch.device("cpu"):  # in Lightning's device context it would be read to the device at once
        return inference_loss(load_model(spec, dtype, attention)).to(device)


def sharded_model(
    spec: str, dtype: torch.dtype, attention: str | None, device: torch.device, shard: Callable[[NextTokenLoss], None]
) -> NextTokenLoss:
    """A sharded model, of which every rank reads its own shards only.

    Args:
        spec, dtype, attention: as for `load_model`.
        device: where the shards lie.
        shard: spreads the model, while it is empty, over the ranks.
    """
    with torch.device("cpu"):
        root = inference_loss(empty_model(spec, dtype, attention))
    shard(root)
    load_sharded(root, root.model, spec, device)
    return root


def inference_loss(model: PreTrainedModel) -> NextTokenLoss:
    """A frozen model in evaluation mode, wrapped in its loss."""
    return NextTokenLoss(model.requires_grad_(False).eval()).eval()
