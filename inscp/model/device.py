"""Where a model that is not trained computes: this process's GPU, else the CPU."""

import torch

from inscp.model.isolation import keeps_documents_apart
from inscp.model.loss import NextTokenLoss
from inscp.pretrained import load_model


def best_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def attention_for(dtype: torch.dtype) -> str | None:
    """Attention by document has no fp32 kernel on GPUs; elsewhere what the model takes by itself."""
    return "eager" if best_device().type == "cuda" and dtype == torch.float32 else None


def scoring_batch_tokens(loss: NextTokenLoss, given: int | None = None) -> int:
    """Tokens of a forward pass, all in one row: as many as are given, else few where its attention is over the row and
    not by document. 1, which makes each text a batch, where the model cannot tell them apart."""
    if not keeps_documents_apart(loss, best_device()):
        return 1
    return given or (32768 if best_device().type == "cuda" and loss.by_document else 4096)


def scoring_model(spec: str, dtype: torch.dtype) -> NextTokenLoss:
    """A model in evaluation mode on the best device, for likelihoods and, inside, for generation."""
    return NextTokenLoss(load_model(spec, dtype, attention_for(dtype)).to(best_device()))  # type: ignore[arg-type]
