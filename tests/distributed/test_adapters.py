"""Adapters, averages, shields and compiled blocks train alike on one process and in shards, and export one model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import HALF, TWO, fit, project, require_equal, steps
from safetensors.torch import load_file

from inscp.commands.export import export
from inscp.commands.extend import extend
from inscp.model.checkpoint import complete_checkpoints, read_tensors, stored_tensors
from inscp.model.new_tokens import first_new_token

PARTS = {"average": "ema", "shield": "shield"}
"""What else a checkpoint keeps, and which variants make it."""
VARIANTS: dict[str, list[Any]] = {
    "lora_dropout": ["--model.adapter", "LoRA", "--model.adapter.rank", "4", "--model.adapter.dropout", "0.1"],
    "lora_ema": ["--model.adapter", '{"rank": 2, "targets": ["q_proj", "down_proj"]}', "--model.ema_decay", "0.8"],
    "ema_compile": ["--model.ema_decay", "0.9", "--model.compile", "true", "--model.activation_checkpointing", "2"],
    "shield": ["--model.shield.sources", "more.jsonl", "--model.shield.tagger", "InsCPTagger",
               "--model.optimizer.weight_decay", "0.1"],
    "new_tokens": ["--model.new_tokens_only", "true", "--model.optimizer.weight_decay", "0.1"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    made = project(tmp_path_factory.mktemp("adapters"), tiny_model_folder)
    extend(tiny_model_folder, str(made / "more.jsonl"), str(made / "longer"), tokens=30)
    return made


def run_of(folder: Path, log: str) -> Path:
    [run] = (folder / f"{log}_runs").glob("*/*")
    return run


@pytest.mark.parametrize("name", VARIANTS)
def test_it_resumes_in_shards_and_exports_the_trained_model(
    folder: Path, tiny_model_folder: str, tmp_path: Path, name: str
) -> None:
    base = folder / "longer" if name == "new_tokens" else Path(tiny_model_folder)
    options = ["--model.pretrained", base, "--trainer.max_steps", "9", "--checkpoint.every_n_steps", "3"]
    variant = [*VARIANTS[name], *options]
    is_alike_on_one = "dropout" not in name  # whose random numbers each rank draws for its own rows
    if is_alike_on_one:  # in micro-batches of the ranks' size, for which blocks are compiled once
        fit(folder, f"{name}_one", *variant, *HALF, "--trainer.accumulate_grad_batches", "4")
    fit(folder, f"{name}_two", *variant, *TWO)
    two, sharded = run_of(folder, f"{name}_two"), steps(folder, f"{name}_two")

    middle = two / "checkpoints" / "step-00000006"
    fit(folder, f"{name}_resumed", *variant, *TWO, "--ckpt_path", middle)
    assert steps(folder, f"{name}_resumed") == {step: values for step, values in sharded.items() if step > 6}

    [newest, *_], _ = complete_checkpoints(two / "checkpoints")
    parts = {stored.partition(".")[0] for stored in stored_tensors(newest)}
    assert parts == {"model", "optimizer"} | {kept for kept, sign in PARTS.items() if sign in name}
    if "lora" in name:
        assert all("lora_" in stored for stored in stored_tensors(newest))
    export(str(newest), str(tmp_path / "exported"))
    file = "model.safetensors"
    assert (tmp_path / "exported" / file).read_bytes() == (two / "model" / file).read_bytes()
    original, together = (load_file(path / file) for path in (base, two / "model"))
    assert original.keys() == together.keys()
    assert any(not torch.equal(original[key].bfloat16(), together[key]) for key in original)
    if name == "shield":
        assert_shielded(newest, original)
    if name == "new_tokens":
        first = first_new_token(str(base))
        assert all(torch.equal(original[key][:first].bfloat16(), together[key][:first]) for key in original)
    assert json.loads((two / "model" / "config.json").read_text())["model_type"] == "llama"

    if not is_alike_on_one:
        return
    require_equal(sharded, steps(folder, f"{name}_one"), rel=1e-4)
    alone = load_file(run_of(folder, f"{name}_one") / "model" / file)
    assert all((alone[key].float() - together[key].float()).abs().max() < 1e-2 for key in alone)


def assert_shielded(checkpoint: Path, original: dict[str, torch.Tensor]) -> None:
    """Half of every matrix's columns are bit by bit what they were, the others are not."""
    sizes = stored_tensors(checkpoint)
    frozen = {
        name.removeprefix("shield."): torch.zeros(size, dtype=torch.bool)
        for name, size in sizes.items()
        if name.startswith("shield.")
    }
    trained = {name: torch.zeros(sizes[f"model.{name}"]) for name in frozen}
    read_tensors(checkpoint, {f"shield.{name}": columns for name, columns in frozen.items()})
    read_tensors(checkpoint, {f"model.{name}": weight for name, weight in trained.items()})
    assert len(frozen) == 14
    for name, columns in frozen.items():
        same = trained[name] == original[name]
        assert columns.sum() * 2 == len(columns)
        assert same[:, columns].all()
        assert same[:, ~columns].float().mean() < 0.05
