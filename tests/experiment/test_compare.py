"""Evaluations are compared with others."""

from pathlib import Path

import pytest

from inscp.commands.compare import compare
from inscp.errors import UserError


@pytest.mark.parametrize("names", [["a.json", "a.json"], ["a.json", "b.json", "./b.json"], ["0" * 32, "0" * 32]])
def test_an_evaluation_is_not_compared_with_itself(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{names[-1]}: it is named twice"):
        compare(names)
