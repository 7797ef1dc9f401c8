"""However a training is spread over processes, it is the same training."""

from pathlib import Path
from typing import Any

import pytest
from launch import DDP, FSDP2, fit, project, rows, steps
from safetensors.torch import load_file

HALF = ["--data.batch_size", "1"]
OPTIONS = ["--trainer.devices", "2", "--trainer.strategy", "inscp.model.strategies.FSDP2"]
SPREADS: dict[str, list[Any]] = {
    "fsdp2": [*FSDP2, *HALF],
    "ddp": [*DDP, *HALF],
    "hsdp": [*OPTIONS, "--trainer.strategy.replicate", 2, *HALF],
    "tensor_parallel": [*OPTIONS, "--trainer.strategy.tensor_parallel", 2],
    "cpu_offload": [*OPTIONS, "--trainer.strategy.cpu_offload", "true", *HALF],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    folder = project(tmp_path_factory.mktemp("equality"), tiny_model_folder)
    fit(folder, "one", "--trainer.default_root_dir", "one_runs")
    return folder


@pytest.mark.parametrize("name", SPREADS)
def test_two_ranks_train_as_one_process_does(folder: Path, name: str) -> None:
    fit(folder, name, *SPREADS[name], "--trainer.default_root_dir", f"{name}_runs")
    one, two = steps(folder, "one"), steps(folder, name)
    assert one.keys() == two.keys()
    assert len(one) >= 20
    for step, values in one.items():
        assert two[step] == pytest.approx(values, rel=1e-5), step
    ranks = (0,) if name == "tensor_parallel" else (0, 1)
    assert rows(folder, name, ranks) == rows(folder, "one")
    assert one[20][0] < one[1][0] - 0.5
    models = [load_file(next((folder / f"{run}_runs").glob("*/*/model/model.safetensors"))) for run in ("one", name)]
    assert {key: tensor.shape for key, tensor in models[0].items()} == {k: t.shape for k, t in models[1].items()}
    assert all((models[0][key].float() - models[1][key].float()).abs().max() < 1e-2 for key in models[0])
