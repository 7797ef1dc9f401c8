"""An exponential moving average of the trained weights (EMA), sharded as they are."""

from collections.abc import Mapping

import torch
from torch import nn


class MovingAverage:
    """Follows weights that are trained; forgets a step by `decay` with every step after it.

    At first it forgets faster, by (1 + n) / (10 + n) in the step behind n others: of a training of few steps little
    more than the original would be left otherwise.

    Args:
        weights: by name; as they are now, they are the first average.
        decay: of each step, in (0, 1).
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self._decay, self._weights = decay, weights
        self.tensors = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, steps_before: int) -> None:
        """Take in the weights after an optimizer step that stands behind so many others."""
        decay = min(self._decay, (1 + steps_before) / (10 + steps_before))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._weights.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights."""
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
