"""How long what is left of a study will take."""

from pathlib import Path

import pytest

from inscp.experiment.costs import Forecast
from inscp.experiment.places import Place
from inscp.experiment.runs import Run


@pytest.mark.parametrize("evaluate", [{}, {"batch_size": 8}])
def test_evaluations_are_left_only_where_there_are_some(evaluate: dict[str, int], tmp_path: Path) -> None:
    run = Run("InsCP", "fi", 1000, 0, "org/model", None, evaluate, "fit")
    assert Forecast([Place(run, tmp_path)]).knows_evaluations is not bool(evaluate)
