"""Freezing parts of matrices while the rest of them is trained."""

from collections.abc import Mapping

import torch
from torch import nn

from inscp.model.sharded import local_tensor


class FrozenParts:
    """Keeps parts of matrices frozen: no gradient and no weight decay.

    Args:
        weights: fp32 matrices by name, whole or sharded along their rows.
        masks: the frozen part of each: bool, broadcastable to this rank's part of the matrix.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], masks: dict[str, torch.Tensor]) -> None:
        self.weights, self._masks = weights, masks

    def move_masks(self) -> None:
        """Move the masks to the devices of their matrices, which Lightning moves during setup."""
        for name, weight in self.weights.items():
            self._masks[name] = self._masks[name].to(local_tensor(weight).device)

    def zero_gradients(self) -> None:
        """Zero the gradients of the frozen parts, so that Adam does not move them."""
        for name, mask in self._masks.items():
            gradient = self.weights[name].grad
            if gradient is not None:
                local_tensor(gradient).masked_fill_(mask, 0.0)

    @torch.no_grad()
    def apply_weight_decay(self, amount: float) -> None:
        """Apply weight decay to the trained parts; the optimizer must not decay these matrices.

        Args:
            amount: learning rate x weight decay.
        """
        if amount:
            for name, mask in self._masks.items():
                local_tensor(self.weights[name]).mul_(1 - amount * ~mask)
