"""A first training stage for the tokens that `extend` added, before all weights are trained.

A new token is initialised to the mean of the tokens that it replaces, which predicts badly, and if all weights were
trained, they would adapt to compensate. Trained first, at a high learning rate, the new rows adapt to the model as it
is, and nothing else changes (new embeddings first: Kim et al. 2024, arXiv 2402.14714).
"""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from inscp.errors import UserError
from inscp.model.frozen import FrozenParts
from inscp.model.origin import EXTENDED, read_origin
from inscp.model.sharded import local_tensor, sharded_like
from inscp.pretrained import first_free_id, load_tokenizer


def first_new_token(pretrained: str) -> int:
    """The id of the first token of the latest extension.

    Raises:
        UserError: no tokens were added.
    """
    origin = read_origin(pretrained)
    stages = reversed(origin.stages if origin else [])
    extended = next((stage for stage in stages if stage.arm == EXTENDED), None)
    if extended is None:
        fix = "Add some first with: python -m inscp extend."
        raise UserError("model.new_tokens_only", f"no tokens were added to {pretrained}", fix)
    return first_free_id(load_tokenizer(pretrained)) - int(extended.training["new tokens"])


def freeze_all_but_embeddings(model: PreTrainedModel) -> None:
    """Train only the embeddings and the output layer's matrix."""
    model.requires_grad_(False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.requires_grad_(True)


class FrozenRows(FrozenParts):
    """Freezes the rows of all other tokens in the embeddings and the output layer.

    Args:
        weights: the two matrices by name, whole or sharded along their rows; one if they are tied.
        first: id of the first new token.

    Attributes:
        weights: the matrices by name.
        tensors: the frozen parts in a checkpoint; empty here, because `first` determines them.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], first: int) -> None:
        rows = {name: torch.arange(len(weight)) < first for name, weight in weights.items()}
        old = {name: local_tensor(sharded_like(weights[name], of))[:, None] for name, of in rows.items()}
        super().__init__(weights, old)
        self.tensors: dict[str, torch.Tensor] = {}
