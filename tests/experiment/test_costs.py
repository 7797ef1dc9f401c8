"""What arms have cost and would cost at another size, and how long what is left of a study will take."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inscp.cost.flops import ModelSize, Work, training_flops
from inscp.cost.ledger import Cost
from inscp.experiment import costs
from inscp.experiment.costs import Forecast, cost_grids, training_cost
from inscp.experiment.places import Place
from inscp.experiment.runs import Run
from inscp.experiment.study import Stage
from inscp.pretrained import empty_model


def run(budget: int | None = 1000, evaluate: bool = False, command: str = "fit", original: str = "org/model") -> Run:
    tasks = {"batch_size": 8} if evaluate else {}
    return Run("InsCP", "fi", budget, 0, original, None, tasks, command, {"model": {}})


def place(of: Run, model: str | None = None, trained: Cost | None = None, evaluated: Cost | None = None) -> Any:
    return SimpleNamespace(run=of, model=model, trained=trained, evaluated=evaluated)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are those that a `place` is given."""
    monkeypatch.setattr(costs, "training_cost", lambda at: at.trained)
    monkeypatch.setattr(costs, "evaluation_cost", lambda at: at.evaluated)


def test_what_all_trainings_after_a_model_cost_is_added() -> None:
    stages = [SimpleNamespace(cost=cost) for cost in (Cost(tokens=1).plain(), {}, Cost(tokens=2).plain())]
    found = training_cost(SimpleNamespace(origin=SimpleNamespace(stages=stages)))  # type: ignore[arg-type]
    assert found is not None
    assert found.tokens == 3


@pytest.mark.usefixtures("counted")
def test_a_row_has_cost_the_mean_of_its_seeds_in_what_is_known_of_all() -> None:
    seeds = [Cost(100, 2e9, device_hours=1.0, energy_kwh=1.0), Cost(300, 4e9, device_hours=3.0)]
    asked = Cost(device_hours=0.5)
    rows = {"InsCP": [place(run(), trained=cost, evaluated=asked) for cost in seeds], "original": [place(run())]}
    measured, _ = cost_grids(rows, {})
    assert measured.head == ["", "tokens", "flops", "device hours", "evaluation, device hours"]
    assert measured.rows == [["InsCP", "200", "3.00e+09", "2", "0.5"]]


@pytest.mark.usefixtures("counted")
def test_what_is_projected_is_passes_times_twice_the_parameters_times_the_tokens() -> None:
    rows = {"InsCP": [place(run(), trained=Cost(1000))]}
    _, projected = cost_grids(rows, {"DPO": Stage("InsCP", 0.5, 4.0), "SFT": Stage("orgCP")})
    flops = 2 * 8e9 * 3 * 1000, 2 * 8e9 * (3 * 1000 + 4 * 500)
    hours = [f / (989e12 * 0.4) / 3600 for f in flops]  # an H100's rate, two fifths of which are reached
    assert [row[:4] for row in projected.rows] == [
        ["InsCP", "1,000", f"{flops[0]:.2e}", f"{hours[0]:.3g}"],
        ["InsCP, DPO (not run)", "1,500", f"{flops[1]:.2e}", f"{hours[1]:.3g}"],
    ]


@pytest.mark.usefixtures("counted")
def test_what_is_left_takes_as_long_as_what_is_done() -> None:
    done = [place(run(), "m", Cost(1000, wall_seconds=2.0 * n), Cost(wall_seconds=7.0 * n)) for n in (1, 1, 9)]
    forecast = Forecast(done)
    assert forecast.seconds(place(run(500))) == 15 + 1
    assert forecast.seconds(place(run(500, evaluate=True))) == 15 + 1 + 15 + 7
    assert forecast.seconds(place(run(500, evaluate=True), "made")) == 15 + 7
    assert forecast.seconds(place(run(None, evaluate=True, command="merge"))) == 15 + 15 + 7
    assert forecast.seconds(place(run(None))) is None


@pytest.mark.usefixtures("counted")
def test_where_no_evaluation_is_done_only_the_training_is_reported() -> None:
    forecast = Forecast([place(run(), "m", Cost(1000, wall_seconds=2.0))])
    assert forecast.seconds(place(run(500, evaluate=True))) == 15 + 1 + 15
    assert forecast.seconds(place(run(500, evaluate=True), "made")) is None


def test_where_no_training_is_done_half_the_rate_of_a_matrix_product_is_reached(
    tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "matrix_rate", lambda *_: 1e9)
    flops = training_flops(ModelSize.of(empty_model(tiny_model_folder, torch.float32)), Work(1, 512))
    seconds = Forecast([]).seconds(place(run(original=tiny_model_folder)))
    assert seconds == pytest.approx(15 + 1000 * flops / 0.5e9)


@pytest.mark.parametrize("evaluate", [False, True])
def test_evaluations_are_left_only_where_there_are_some(evaluate: bool, tmp_path: Path) -> None:
    assert Forecast([Place(run(evaluate=evaluate), tmp_path)]).knows_evaluations is not evaluate
