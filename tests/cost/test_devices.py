"""What a device computes is measured in a moment, however slow it is."""

import time

import pytest
import torch

from inscp.cost.devices import matrix_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize("seconds_a_row", [1e-5, 1e-2])
def test_a_product_that_takes_long_is_measured_of_few_rows(seconds_a_row, monkeypatch):
    measured = []

    def product(a: torch.Tensor, b: torch.Tensor) -> None:
        measured.append(len(a))
        time.sleep(len(a) * seconds_a_row)

    monkeypatch.setattr(torch, "mm", product)
    assert matrix_rate(CPU, torch.float32) == pytest.approx(2 * 2048**2 / seconds_a_row, rel=0.2)
    assert max(measured) == (2048 if seconds_a_row < 1e-3 else 32)
