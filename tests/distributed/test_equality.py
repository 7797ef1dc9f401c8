"""However a training is spread over processes, it is the same training."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import EXPERTS, HALF, SIZES, SPREADS, fit, project, random_model, require_equal, rows, start, steps
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from inscp.model.checkpoint import complete_checkpoints, read_tensors, stored_tensors

TAUGHT = ["--data.train", "corpus.jsonl", "--data.replay", "{sources: more.jsonl, share: 0.3}",
          "--model.distillation", "Distillation"]  # fmt: skip
LORA = ["--model.adapter", "LoRA", "--model.adapter.rank", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    folder = project(tmp_path_factory.mktemp("equality"), tiny_model_folder)
    fit(folder, "one")
    return folder


@pytest.mark.parametrize("name", SPREADS)
def test_two_ranks_train_as_one_process_does(folder: Path, name: str) -> None:
    fit(folder, name, *SPREADS[name])
    one = steps(folder, "one")
    assert len(one) >= 20
    require_equal(steps(folder, name), one)
    ranks = (0,) if name == "tensor_parallel" else (0, 1)
    assert rows(folder, name, ranks) == rows(folder, "one")
    assert one[20][0] < one[1][0] - 0.5
    models = [load_file(next((folder / f"{run}_runs").glob("*/*/model/model.safetensors"))) for run in ("one", name)]
    assert {key: tensor.shape for key, tensor in models[0].items()} == {k: t.shape for k, t in models[1].items()}
    assert all((models[0][key].float() - models[1][key].float()).abs().max() < 1e-2 for key in models[0])


def test_in_bf16_two_ranks_train_as_one_process_does_but_for_rounding(folder: Path) -> None:
    given = ["--trainer.precision", "bf16-mixed", "--trainer.max_steps", "4"]
    fit(folder, "one_bf16", *given)
    fit(folder, "two_bf16", *given, *SPREADS["fsdp2"])
    exact, one, two = (steps(folder, run) for run in ("one", "one_bf16", "two_bf16"))
    assert one.keys() == set(range(1, 5))
    assert exact[1][::2] != one[1][::2] == pytest.approx(exact[1][::2], rel=1e-2)  # loss and norm, of other digits
    require_equal(two, one, rel=1e-3)


def test_nodes_whose_processes_lightning_starts_have_one_run_and_one_folder(folder: Path) -> None:
    """And the tables of a new store are made once."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    given = ["--trainer.num_nodes", "2", "--trainer.strategy", "fsdp2", *HALF, "--trainer.max_steps", "4",
             "--ckpt_path", "last", "--trainer.default_root_dir", "nodes_runs", "--mlflow.enabled", "true",
             "--mlflow.tracking_uri", "sqlite:///nodes.db"]  # fmt: skip
    nodes = [start(folder, f"node_{number}", *given, NODE_RANK=number, **address) for number in "10"]
    try:
        assert [node.wait(timeout=120) for node in nodes] == [0, 0], [node.stderr[-2000:] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert len(list((folder / "nodes_runs").glob("*/*"))) == 1
    client = MlflowClient(f"sqlite:///{folder}/nodes.db")
    assert len(client.search_runs([one.experiment_id for one in client.search_experiments()])) == 1


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    folder = project(tmp_path_factory.mktemp("taught"), tiny_model_folder)
    fit(folder, "one", *TAUGHT)
    return folder


@pytest.fixture(scope="module")
def taught_by_adapters(taught: Path) -> Path:
    fit(taught, "one_lora", *TAUGHT, *LORA)
    return taught


@pytest.mark.parametrize("name", ["fsdp2", "ddp", "tensor_parallel"])
def test_a_teacher_teaches_two_ranks_as_one_process(taught: Path, name: str) -> None:
    """Also where a rank has no replayed row, and the other one has."""
    fit(taught, name, *TAUGHT, *SPREADS[name])
    require_equal(steps(taught, name), steps(taught, "one"))


@pytest.mark.parametrize("name", ["fsdp2", "ddp"])
def test_what_lies_beneath_adapters_teaches_two_ranks(taught_by_adapters: Path, name: str) -> None:
    fit(taught_by_adapters, f"{name}_lora", *TAUGHT, *LORA, *SPREADS[name])
    require_equal(steps(taught_by_adapters, f"{name}_lora"), steps(taught_by_adapters, "one_lora"))


ARCHITECTURES: dict[str, tuple[PretrainedConfig, list[Any]]] = {
    "tied": (LlamaConfig(**SIZES, tie_word_embeddings=True), SPREADS["fsdp2"]),
    # Its heads share a norm, whose gradient each rank has for its own heads alone.
    "normed_heads": (Qwen3Config(**SIZES, head_dim=16), SPREADS["tensor_parallel"]),
    "experts": (EXPERTS, SPREADS["fsdp2"]),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_that_are_not_laid_out_plainly_train_as_well(tmp_path: Path, tiny_model_folder: str, name: str) -> None:
    config, spread = ARCHITECTURES[name]
    folder = project(tmp_path / "project", random_model(tmp_path / "model", config, tiny_model_folder))
    few = ["--trainer.max_steps", "8"]
    fit(folder, "one", *few)
    fit(folder, "two", *few, *spread)
    assert steps(folder, "one").keys() == set(range(1, 9))
    require_equal(steps(folder, "two"), steps(folder, "one"), rel=1e-4)
    kept = [read_all(folder / runs) for runs in ("one_runs", "two_runs")]
    assert kept[0].keys() == kept[1].keys()
    for key in kept[0]:
        torch.testing.assert_close(kept[1][key], kept[0][key], rtol=1e-2, atol=1e-5, msg=key)


def read_all(runs: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint: weights and both moments of the gradients."""
    [folder] = runs.glob("*/*/checkpoints")
    newest = complete_checkpoints(folder)[0][0]
    tensors = {name: torch.zeros(size) for name, size in stored_tensors(newest).items()}
    read_tensors(newest, tensors)
    return tensors
