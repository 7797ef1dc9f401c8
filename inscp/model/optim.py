"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from inscp.errors import UserError
from inscp.model.sharded import full_tensor, local_tensor

Schedule = Literal["cosine", "linear", "wsd", "constant"]


@dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up and decay.

    Args:
        learning_rate: peak learning rate. If it is too high, the model forgets its English.
        weight_decay: weight decay of matrices (norms and biases have none).
        betas: Adam betas.
        eps: Adam epsilon.
        schedule: learning-rate schedule after the warm-up: `cosine` or `linear` decay, `wsd` (constant, then decay over
            the last fifth; Hu et al. 2024, arXiv 2404.06395), or `constant`.
        warmup: fraction of the run in which the learning rate rises from 0, in [0, 1).
        final: learning rate at the end, as a fraction of the peak.

    Raises:
        UserError: a value is out of range.
    """

    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    final: float = 0.1

    def __post_init__(self) -> None:
        below = {"betas": 1.0, "warmup": 1.0}
        for name in ("learning_rate", "weight_decay", "betas", "eps", "warmup", "final"):
            given, end = getattr(self, name), below.get(name, math.inf)
            if not all(0 <= value < end for value in (given if name == "betas" else (given,))):
                fix = f"Give a number from 0 to below {end:g}." if end < math.inf else "Give 0 or more."
                raise UserError(f"model.optimizer.{name}", f"{given} is out of range", fix)

    def build(
        self, parameters: Collection[nn.Parameter], undecayed: Iterable[nn.Parameter] = ()
    ) -> torch.optim.Optimizer:
        """Fused AdamW, without weight decay for vectors and for `undecayed`."""
        without = {p for p in parameters if p.ndim < 2}.union(undecayed)
        groups = [
            {"params": [p for p in parameters if p not in without], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p in without], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True)

    def factor(self, begin: float, end: float) -> float:
        """The learning rate of a step, as a fraction of the peak.

        Args:
            begin, end: fractions of the run that are completed before and after the step.
        """
        if begin < self.warmup:
            return min(1.0, end / (self.warmup + end - begin))
        return self.final + (1 - self.final) * _DECAYS[self.schedule]((begin - self.warmup) / (1 - self.warmup))


def initialise_states(optimizer: torch.optim.Optimizer) -> None:
    """Create AdamW's moments before the first step, each on the device of its weight.

    torch creates them in the first step. That is too late to read a checkpoint into them, and their memory would be
    scattered among that of the activations. To be called after Lightning's setup, which moves all optimizer states to
    the GPU, including those of offloaded weights.
    """
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


_DECAYS: dict[Schedule, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "wsd": lambda done: min(1.0, (1 - done) / 0.2),
    "constant": lambda done: 1.0,
}


def state_tensors(weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as `WEIGHT.STATE`, sharded as the weights are."""
    return {f"{name}.{key}": value for name, p in weights.items() for key, value in optimizer.state[p].items()}


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale gradients down to a total norm of at most `max_norm`.

    Args:
        parameters: whole, or sharded over one or several device meshes.
        max_norm: maximum norm of all gradients together; with inf, the norm is only measured.

    Returns:
        fp32 scalar: the norm before clipping.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    meshes: dict[object, list[torch.Tensor]] = {}
    for gradient in gradients:
        meshes.setdefault(gradient.device_mesh if isinstance(gradient, DTensor) else None, []).append(gradient)
    norms = [nn.utils.get_total_norm(group) for group in meshes.values()]
    total = torch.linalg.vector_norm(torch.stack([full_tensor(norm) for norm in norms]))
    if max_norm < math.inf:
        torch._foreach_mul_([local_tensor(g) for g in gradients], (max_norm / (total + 1e-6)).clamp(max=1.0))
    return total
