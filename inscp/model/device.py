"""Models for inference: on this process's GPU, else on the CPU, or sharded over ranks."""

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
    """`eager` for fp32 on GPUs, where per-document attention has no kernel; else None, the model's default."""
    return "eager" if best_device().type == "cuda" and dtype == torch.float32 else None


def scoring_batch_tokens(loss: NextTokenLoss, given: int | None = None) -> int:
    """Tokens per forward pass, all in one row: as given, else a default that is smaller for attention over whole rows.

    Never more than a text may have without changing others. If the model does not isolate documents it is 1, so that
    each text is its own batch.
    """
    if not isolates_documents(loss, best_device()):
        return 1
    found = given or (32768 if best_device().type == "cuda" and loss.by_document else 4096)
    return min(found, longest_isolated(loss.model.config))


def scoring_model(spec: str, dtype: torch.dtype) -> NextTokenLoss:
    """A model on the best device, for likelihoods; its `model` is for generation."""
    return whole_model(spec, dtype, attention_for(dtype), best_device())


def whole_model(spec: str, dtype: torch.dtype, attention: str | None, device: torch.device) -> NextTokenLoss:
    """A model on one device, not sharded; arguments as for `load_model`."""
    with torch.device("cpu"):  # inside Lightning's device context it would be loaded straight onto the device
        return inference_loss(load_model(spec, dtype, attention)).to(device)


def sharded_model(
    spec: str, dtype: torch.dtype, attention: str | None, device: torch.device, shard: Callable[[NextTokenLoss], None]
) -> NextTokenLoss:
    """A sharded model; each rank reads only its own shards.

    Args:
        spec, dtype, attention: as for `load_model`.
        device: device of the shards.
        shard: shards the model, while it is empty, over the ranks.
    """
    with torch.device("cpu"):
        root = inference_loss(empty_model(spec, dtype, attention))
    shard(root)
    load_sharded(root, root.model, spec, device)
    return root


def inference_loss(model: PreTrainedModel) -> NextTokenLoss:
    """A frozen model in evaluation mode, wrapped in its loss."""
    return NextTokenLoss(model.requires_grad_(False).eval()).eval()
