"""Scores are the same on any number of ranks, whether each has the whole model or a share of it."""

import json
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from launch import together
from processes import Command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    for name, records in (("many", 2500), ("few", 3)):
        texts = [f"{i} on luku, {'ja ' * (i % 9)}se on hyvä." for i in range(records)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    return folder


def scored(folder: Path, model: str, out: str, ranks: int, *arguments: str) -> list[dict[str, float]]:
    given = ("--model", model, "--data", "[many.jsonl, few.jsonl]", "--out", out, "--precision", "fp32", *arguments)
    together(partial(Command, "score", *given, cwd=folder, GLOO_SOCKET_IFNAME="lo"), ranks)
    return pq.read_table(folder / out).to_pylist()


@pytest.fixture(scope="module")
def alone(folder: Path, tiny_model_folder: str) -> list[dict[str, float]]:
    return scored(folder, tiny_model_folder, "alone", 1)


@pytest.mark.parametrize("arguments", [(), ("--shard_model", "true")])
def test_two_ranks_score_as_one_does(
    folder: Path, tiny_model_folder: str, alone: list[dict[str, float]], arguments: tuple[str, ...]
) -> None:
    # Three chunks and one: the ranks have unequal work, and shards must be gathered by both to the end.
    both = scored(folder, tiny_model_folder, f"both{len(arguments)}", 2, *arguments)
    assert len(both) == 2503
    assert [row["id"] for row in both] == [row["id"] for row in alone]
    for a, b in zip(both, alone, strict=True):
        assert a["nll"] == pytest.approx(b["nll"], rel=1e-5)
