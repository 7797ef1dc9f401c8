"""The learning rate rises, then falls as named; norms are not decayed."""

import math
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from torch import nn

from inscp.errors import UserError
from inscp.model.optim import Optimizer, Schedule, clip_gradients, initialise_states


def rates(schedule: Schedule, steps: int = 100) -> list[float]:
    optimizer = Optimizer(schedule=schedule, warmup=0.1, final=0.1)
    return [optimizer.factor(step / steps, (step + 1) / steps) for step in range(steps + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_the_rate_rises_over_the_warm_up_to_its_highest(schedule: Schedule) -> None:
    values = rates(schedule)
    assert values[:11] == sorted(values[:11])
    assert 0 < values[0] < 0.1
    assert max(values) == values[10] == 1.0


@pytest.mark.parametrize(("schedule", "middle", "last"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1),
                                                          ("wsd", 1.0, 0.1), ("constant", 1.0, 1.0)])  # fmt: skip
def test_the_rate_falls_as_the_schedule_says(schedule: Schedule, middle: float, last: float) -> None:
    values = rates(schedule)
    assert values[55] == pytest.approx(middle)
    assert values[100] == pytest.approx(last)


def test_wsd_stays_until_the_last_fifth_after_the_warm_up() -> None:
    values = rates("wsd")
    assert values[10:82] == pytest.approx([1.0] * 72)
    assert values[91] == pytest.approx(0.55)  # halfway from 0.82 to the end


def test_matrices_are_decayed_and_norms_and_biases_are_not() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    groups = Optimizer(weight_decay=0.5).build(list(model.parameters())).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.5, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0,
    }  # fmt: skip


def test_one_step_is_that_of_adamw() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer(learning_rate=0.1).build([parameter])
    initialise_states(optimizer)
    parameter.grad = torch.full((2, 2), 3.0)
    optimizer.step()
    assert torch.allclose(parameter, torch.full((2, 2), 0.9))  # Adam's first step is the rate itself


def test_adam_has_the_betas_and_the_eps_that_are_given() -> None:
    [group, _] = Optimizer(betas=(0.5, 0.6), eps=1e-3).build([nn.Parameter(torch.ones(2, 2))]).param_groups
    assert (group["betas"], group["eps"]) == ((0.5, 0.6), 1e-3)


@pytest.mark.parametrize(("most", "factor"), [(math.inf, 1.0), (5.5, 1.0), (1.0, 0.2)])
def test_gradients_are_scaled_down_by_the_norm_of_all_and_never_up(most: float, factor: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    for parameter, gradient in zip(parameters, (3.0, 4.0), strict=False):  # the last one has none
        parameter.grad = torch.tensor([gradient])
    assert clip_gradients(parameters, most) == 5.0
    clipped = torch.cat([parameter.grad for parameter in parameters if parameter.grad is not None])
    torch.testing.assert_close(clipped, torch.tensor([3.0, 4.0]) * factor)


def test_the_state_of_weights_that_stay_in_cpu_memory_stays_there() -> None:
    """Lightning moves what there is to the device that computes, when it sets up; `meta` stands for a GPU."""
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer(learning_rate=0.1).build([parameter])
    _optimizers_to_device([optimizer], torch.device("meta"))
    initialise_states(optimizer)
    parameter.grad = torch.full((2, 2), 3.0)
    optimizer.step()
    assert {tensor.device.type for tensor in optimizer.state[parameter].values()} == {"cpu"}


@pytest.mark.parametrize(
    "given",
    [{"learning_rate": -1e-4}, {"learning_rate": float("nan")}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)},
     {"eps": -1e-8}, {"warmup": 1.0}, {"warmup": -0.1}, {"final": -0.1}],
)  # fmt: skip
def test_what_nothing_can_be_trained_with_is_reported(given: dict[str, Any]) -> None:
    [name] = given
    with pytest.raises(UserError, match=rf"model\.optimizer\.{name}: .* is out of range"):
        Optimizer(**given)
