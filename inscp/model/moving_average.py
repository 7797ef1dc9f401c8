"""An exponential moving average of the trained weights (EMA), sharded as they are."""

from collections.abc import Mapping

import torch
from torch import nn


class MovingAverage:
    """An exponential moving average of trained weights.

    After n steps, the decay of the next one is at most (1 + n) / (10 + n): with the full decay from the start, the
    average of a short run would hardly differ from the original.

    Args:
        weights: weights by name; their current values are the initial average.
        decay: decay per step, in (0, 1).
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self._decay, self._weights = decay, weights
        self.tensors = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, steps_before: int) -> None:
        """Update the average after an optimizer step that `steps_before` others preceded."""
        decay = min(self._decay, (1 + steps_before) / (10 + steps_before))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._weights.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights."""
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
