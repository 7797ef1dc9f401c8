"""An exponential moving average of the trained weights (EMA), sharded as they are."""

from collections.abc import Iterable

import torch
from torch import nn


class WeightAverage:
    """Follows a model's trainable weights; forgets a step by `decay` with every step after it.

    Args:
        model: its weights, as they are now, are the first average.
        decay: of each step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        torch._foreach_lerp_(list(self.tensors.values()), _tensors(self._parameters.values()), 1 - self._decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the model's weights."""
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


def _tensors(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    return [p.detach() for p in parameters]
