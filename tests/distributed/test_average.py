"""An average of sharded weights is measured, and the training goes on with the weights."""

from pathlib import Path

import pytest
from launch import fit, project, steps

AVERAGED = ["--model.ema_decay", 0.5, "--trainer.val_check_interval", 8]
FSDP2 = ["--trainer.devices", "2", "--trainer.strategy", "inscp.model.strategies.FSDP2", "--data.batch_size", "1"]


@pytest.mark.parametrize("reshard", ["true", "false"])
def test_behind_a_validation_no_rank_computes_with_averaged_weights(
    tmp_path: Path, tiny_model_folder: str, reshard: str
) -> None:
    folder = project(tmp_path, tiny_model_folder)
    fit(folder, "one", *AVERAGED, "--trainer.default_root_dir", "one_runs")
    sharding = [*FSDP2, "--trainer.strategy.reshard_after_forward", reshard]
    fit(folder, "two", *AVERAGED, *sharding, "--trainer.default_root_dir", "two_runs")
    one, two = steps(folder, "one"), steps(folder, "two")
    assert one.keys() == two.keys()
    assert len(one) > 8
    for step, values in one.items():
        assert two[step] == pytest.approx(values, rel=1e-5), step
