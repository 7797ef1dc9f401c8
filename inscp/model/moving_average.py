"""An exponential moving average of the trained weights (EMA), sharded as they are."""

from collections.abc import Mapping

import torch
from torch import nn


class MovingAverage:
    """An exponential moving average of trained weights.

    The decay of a step after n others is at most (1 + n) / (10 + n): with the full decay from the start, the average of
    a short training would be little more than the original.

    Args:
        weights: by name; their current values are the first average.
        decay: of each step, in (0, 1).
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self._decay, self._weights = decay, weights
        self.tensors = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, steps_before: int) -> None:
        """Update the average after an optimizer step that follows so many others."""
        decay = min(self._decay, (1 + steps_before) / (10 + steps_before))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._weights.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights."""
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
