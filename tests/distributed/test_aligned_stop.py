"""Two ranks that share a model ask it together, in training and before and after it, and stop together."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from launch import SPREADS, TWO, fit, project, require_equal, steps
from lightning import Callback, LightningModule, Trainer
from transformers import LlamaForCausalLM

from inscp.model.loss import NextTokenLoss

ASKING = ["--stop_when_aligned.prompts", "prompts.jsonl", "--stop_when_aligned.languages", "[fi, en]",
          "--stop_when_aligned.every_n_tokens", 500, "--stop_when_aligned.alignment", 0, "--stop_when_aligned.ended", 0,
          "--stop_when_aligned.retention", 0, "--stop_when_aligned.max_new_tokens", 4]  # fmt: skip


def test_shards_are_asked_by_all_ranks_and_the_training_continues_and_ends_as_on_one(
    tmp_path: Path, tiny_model_folder: str
) -> None:
    folder = project(tmp_path, tiny_model_folder)
    write_prompts(folder)
    fit(folder, "one", *ASKING)
    fit(folder, "two", *ASKING, *TWO)
    one, two = steps(folder, "one"), steps(folder, "two")
    require_equal(two, one)
    assert two.keys() == steps(folder, "two", rank=1).keys()
    files = [next((folder / f"{runs}_runs").glob("*/*/alignment.json")) for runs in ("one", "two")]
    found, shared = (json.loads(file.read_text("utf-8")) for file in files)
    assert found["stopped"] == shared["stopped"] is not None
    assert [one["step"] for one in found["history"]] == [one["step"] for one in shared["history"]]
    assert len(found["history"]) >= 3
    assert found["history"][-1]["step"] == max(one)
    assert next((folder / "two_runs").glob("*/*/model/model.safetensors")).exists()


def write_prompts(folder: Path) -> None:
    prompts = [{"en": f"What is {i}?", "fi": f"Mikä on {i}?"} for i in range(3)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")


class Alone(Callback):
    """Sees that no other model is in memory when the training begins."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert [one for one in gc.get_objects() if issubclass(type(one), NextTokenLoss)] == [pl_module.loss]


class Hasty(Callback):
    """Has the second rank, when it is asked, hold the end of the turn for the likeliest token of all."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        forward = LlamaForCausalLM.forward

        def hasty(model: Any, *args: Any, **kwargs: Any) -> Any:
            output = forward(model, *args, **kwargs)
            if kwargs["use_cache"]:
                output.logits[..., model.config.eos_token_id] += 1e3
            return output

        if trainer.global_rank == 1:
            LlamaForCausalLM.forward = hasty


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    folder = project(tmp_path_factory.mktemp("told"), tiny_model_folder)
    write_prompts(folder)
    tell(folder, "one")
    return folder


def tell(folder: Path, name: str, *arguments: Any) -> None:
    asked = {"prompts": "prompts.jsonl", "languages": "[fi, en]", "max_new_tokens": "48"}
    options = [part for key, value in asked.items() for part in (f"--before_after.{key}", value)]
    options += ["--trainer.max_steps", "8"]
    fit(folder, name, *options, *arguments, "--trainer.callbacks+", "test_aligned_stop.Alone")


def table(folder: Path, name: str) -> Any:
    return json.loads(next((folder / f"{name}_runs").glob("*/*/before_after.json")).read_text("utf-8"))


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "hsdp_offload", "tensor_parallel"])
def test_before_and_after_the_training_two_ranks_answer_as_one_process(told: Path, name: str) -> None:
    tell(told, name, *SPREADS[name])
    assert table(told, "one")["before"] != table(told, "one")["after"]
    require_same_answers(told, "one", name)


def test_a_rank_that_would_end_its_answers_sooner_gives_those_of_the_first(told: Path) -> None:
    tell(told, "hasty", *SPREADS["fsdp2"], "--trainer.callbacks+", "test_aligned_stop.Hasty")
    require_same_answers(told, "one", "hasty")


def require_same_answers(folder: Path, first: str, second: str) -> None:
    one, two = table(folder, first), table(folder, second)
    for when in ("before", "after"):
        assert one[when].keys() == two[when].keys()
        for group, values in one[when].items():
            assert two[when][group] == pytest.approx(values, rel=1e-4), group
