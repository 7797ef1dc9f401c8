"""The average follows the weights, from the first step on."""

import torch
from torch import nn

from inscp.model.moving_average import MovingAverage


def test_a_short_training_is_averaged_as_well_as_a_long_one() -> None:
    """With a decay that would leave 99 of 100 parts of the original after ten steps."""
    weight = nn.Parameter(torch.zeros(1))
    average = MovingAverage({"w": weight}, decay=0.999)
    for step in range(10):
        weight.data += 1.0
        average.update(step)
    assert 7 < average.tensors["w"].item() < 10


def test_the_first_step_leaves_a_tenth_of_the_original() -> None:
    weight = nn.Parameter(torch.zeros(1))
    average = MovingAverage({"w": weight}, decay=0.999)
    weight.data += 1.0
    average.update(steps_before=0)
    torch.testing.assert_close(average.tensors["w"], torch.tensor([0.9]))


def test_later_a_step_is_forgotten_by_its_decay() -> None:
    weight = nn.Parameter(torch.ones(1))
    average = MovingAverage({"w": weight}, decay=0.9)
    average.tensors["w"].zero_()
    average.update(steps_before=1000)
    torch.testing.assert_close(average.tensors["w"], torch.tensor([0.1]))
