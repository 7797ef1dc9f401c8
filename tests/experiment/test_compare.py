"""Evaluations are compared with others."""

import math
from pathlib import Path

import pytest

from inscp.commands.compare import _label, _line, compare
from inscp.errors import UserError
from inscp.evaluation.results import Metric
from inscp.experiment.estimates import Difference


@pytest.mark.parametrize("names", [["a.json", "a.json"], ["a.json", "b.json", "./b.json"], ["0" * 32, "0" * 32]])
def test_an_evaluation_is_not_compared_with_itself(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{names[-1]}: it is named twice"):
        compare(names)


def test_a_model_that_is_not_here_any_more_is_called_by_the_folders_of_its_run() -> None:
    assert _label("outputs/runs/inscp-fi/inscp-tiny-fi/20261128-181410/model", None) == "inscp-tiny-fi 20261128-181410"
    assert _label("org/tiny", None) == "tiny"


def test_a_sure_change_is_not_printed_as_zero_and_zero_has_no_sign() -> None:
    sure = Difference(2.0, 2.0002, Metric(0.0002, (0.0001, 0.0003), 200), 1e-9)
    assert _line("loss", sure).split()[1:7] == ["2.000", "2.000", "+0.0002", "+0.0001", "to", "+0.0003"]
    unsure = Difference(2.0, 1.9998, Metric(-0.0002, (-0.003, 0.0026), 200), 0.9)
    assert _line("loss", unsure).split()[3:7] == ["0.000", "-0.003", "to", "+0.003"]


def test_no_p_value_is_printed_as_zero() -> None:
    change = Metric(0.2, (0.1, 0.3), 200)
    found = [_line("ended", Difference(0.1, 0.3, change, p)).split() for p in (1e-9, 0.0006, 0.5, math.nan)]
    assert [row[-2] for row in found] == ["<0.001", "0.001", "0.500", "–"]
