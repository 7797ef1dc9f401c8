"""The folder of scores: whole parts only, of one model and one data set."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscp.commands.score import _shared_folder
from inscp.errors import UserError
from inscp.records import Score
from inscp.selection.scores import ScoreFolder, summary

MADE_BY = {
    "model": "m",
    "given": "text",
    "sources": [{"name": "a", "path": "a", "fingerprint": "1"}, {"name": "b", "path": "b", "fingerprint": "2"}],
}


def test_scores_come_back_source_by_source_in_the_order_of_the_records(tmp_path: Path) -> None:
    folder = ScoreFolder.create(tmp_path / "s", MADE_BY)
    folder.write(0, 10, [Score("a:4", 5, 9, 2.5)], {})
    folder.write(0, 9, [Score("a:3", 5, 9, 2.5)], {"why": 2})
    folder.write(1, 0, [Score("b:1", 1, 1, 1.0)], {})
    folder.write(0, 0, [Score("a:1", 2, 4, 3.0), Score("a:2", 3, 6, 1.0)], {"why": 1})
    assert folder.unscored(0) == {"why": 3}
    assert [s.id for s in folder.read(0)] == ["a:1", "a:2", "a:3", "a:4"]
    assert list(folder.read(1)) == [Score("b:1", 1, 1, 1.0)]
    assert folder.has(0, 9)
    assert not folder.has(1, 1)
    assert folder.numbers(0)[2].tolist() == [3.0, 1.0, 2.5, 2.5]


def test_the_data_sets_perplexity_is_that_of_all_its_tokens() -> None:
    made = summary(np.array([10, 30]), np.array([20, 60]), np.array([10.0, 90.0]))
    assert made["perplexity"] == pytest.approx(math.exp(100 / 40))
    assert made["bits_per_byte"] == pytest.approx(100 / math.log(2) / 80)
    assert made["perplexity_p50"] == pytest.approx(math.exp(2.0))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": "other"}, "another model"),
        ({"given": "template"}, "another given"),
        ({"window": 64}, "another window"),  # of which an older folder says nothing
        ({"sources": [{"name": "a", "path": "a", "fingerprint": "9"}]}, "of other data"),
    ],
)
def test_scores_that_were_made_otherwise_are_not_mixed_in(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    ScoreFolder.create(tmp_path / "s", MADE_BY)
    with pytest.raises(UserError, match=complaint):
        ScoreFolder.create(tmp_path / "s", MADE_BY | change)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        ScoreFolder.create(tmp_path, MADE_BY)


def test_scores_of_changed_data_are_distinguished_from_those_of_other_data(tmp_path: Path) -> None:
    folder = ScoreFolder.create(tmp_path / "s", MADE_BY)
    assert folder.index("renamed", "2") == 1
    with pytest.raises(UserError, match="has changed since"):
        folder.index("a", "9")
    with pytest.raises(UserError, match="was not scored"):
        folder.index("c", "9")


def test_ranks_read_the_weights_after_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("torch.distributed.barrier", lambda: order.append("waits"))

    def made_by() -> dict[str, Any]:
        order.append("reads")
        return MADE_BY

    for rank in (0, 1):
        _shared_folder(tmp_path / "scores", made_by, rank, 2)
    assert order == ["reads", "waits", "waits", "reads"]
