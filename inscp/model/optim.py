"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Schedule = Literal["cosine", "linear", "wsd", "constant"]


@dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up and decay.

    Args:
        learning_rate: the highest one. It decides what is forgotten: too high, and the model loses its English.
        weight_decay: of weight matrices (norms and biases have none).
        betas: of Adam.
        eps: of Adam.
        schedule: after the warm-up: `cosine` or `linear` decay, `wsd` (stays, then falls over the last fifth;
            Hu et al. 2024, arXiv 2404.06395), or `constant`.
        warmup: share of the steps in which the rate rises from 0.
        final: the rate at the end, as a share of the highest.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    final: float = 0.1

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW over the model's trainable parameters, fused."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True)

    def factor(self, total_steps: int) -> Callable[[int], float]:
        """Step (from 0) -> share of the highest learning rate."""
        warmup = math.ceil(self.warmup * total_steps)

        def at(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
            return self.final + (1 - self.final) * _DECAYS[self.schedule](done)

        return at


_DECAYS: dict[Schedule, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "wsd": lambda done: min(1.0, (1 - done) / 0.2),
    "constant": lambda done: 1.0,
}
