"""Two ranks that share a model ask it together, and stop together."""

import json
from pathlib import Path

import pytest
from launch import FSDP2, fit, project, steps

ASKING = ["--stop_when_aligned.prompts", "prompts.jsonl", "--stop_when_aligned.languages", "[fi, en]",
          "--stop_when_aligned.every_n_tokens", 500, "--stop_when_aligned.alignment", 0, "--stop_when_aligned.ended", 0,
          "--stop_when_aligned.retention", 0, "--stop_when_aligned.max_new_tokens", 4]  # fmt: skip


def test_shards_are_asked_by_all_ranks_and_the_training_goes_on_and_ends_as_on_one(
    tmp_path: Path, tiny_model_folder: str
) -> None:
    folder = project(tmp_path, tiny_model_folder)
    prompts = [{"en": f"What is {i}?", "fi": f"Mikä on {i}?"} for i in range(3)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    fit(folder, "one", *ASKING, "--trainer.default_root_dir", "one_runs")
    fit(folder, "two", *ASKING, *FSDP2, "--data.batch_size", "1", "--trainer.default_root_dir", "two_runs")
    one, two = steps(folder, "one"), steps(folder, "two")
    assert one.keys() == two.keys() == steps(folder, "two", rank=1).keys()
    for step, values in one.items():
        assert two[step] == pytest.approx(values, rel=1e-5), step
    files = [next((folder / f"{runs}_runs").glob("*/*/alignment.json")) for runs in ("one", "two")]
    found, shared = (json.loads(file.read_text("utf-8")) for file in files)
    assert found["stopped"] == shared["stopped"] is not None
    assert [one["step"] for one in found["history"]] == [one["step"] for one in shared["history"]]
    assert len(found["history"]) >= 3
    assert found["history"][-1]["step"] == max(one)
    assert next((folder / "two_runs").glob("*/*/model/model.safetensors")).exists()
