"""An average of sharded weights is measured, and the training goes on with the weights."""

from pathlib import Path

import pytest
from launch import HALF, SHARDS, fit, project, require_equal, steps

AVERAGED = ["--model.ema_decay", 0.5, "--trainer.val_check_interval", 4, "--trainer.max_steps", 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    folder = project(tmp_path_factory.mktemp("average"), tiny_model_folder)
    fit(folder, "one", *AVERAGED)
    return folder


@pytest.mark.parametrize("reshard", ["true", "false"])
def test_after_a_validation_no_rank_computes_with_averaged_weights(folder: Path, reshard: str) -> None:
    log = f"two_{reshard}"
    fit(folder, log, *AVERAGED, *SHARDS, *HALF, "--trainer.strategy.reshard_after_forward", reshard)
    assert len(steps(folder, "one")) == 8
    require_equal(steps(folder, log), steps(folder, "one"))
