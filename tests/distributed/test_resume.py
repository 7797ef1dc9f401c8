"""A training that was killed goes on as if nothing had happened."""

import random
from pathlib import Path
from typing import Any

import pytest
from launch import DDP, FSDP2, HALF, SHARDS, TWO, fit, project, require_equal, rows, start, steps
from mlflow.tracking import MlflowClient

from inscp.commands.export import export
from inscp.model.checkpoint import complete_checkpoints

LAST = ["--ckpt_path", "last"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    """A project with uninterrupted trainings on one process and on two."""
    folder = project(tmp_path_factory.mktemp("resume"), tiny_model_folder)
    fit(folder, "one")
    fit(folder, "two", *TWO)
    return folder


def saving(root: Path) -> bool:
    """Whether a checkpoint is just being written."""
    return any(root.glob("*/*/checkpoints/*.partial/*"))


@pytest.mark.parametrize(
    ("whole", "spread", "moment"),
    [
        ("one", [], "step 1"),
        ("one", [], "save"),
        ("two", TWO, "step"),
        ("two", TWO, "save"),
    ],
)
def test_killed_at_any_moment_every_later_step_is_the_uninterrupted_ones_bit_by_bit(
    folder: Path, whole: str, spread: list[Any], moment: str
) -> None:
    log = f"{whole} killed {moment}".replace(" ", "_")
    expected = steps(folder, whole)
    draw = random.Random(log)
    step = {"step 1": 1, "save": draw.randint(4, 16)}.get(moment, draw.randint(3, 18))
    process = start(folder, log, *spread, *LAST)
    process.until(lambda: len(steps(folder, log)) >= step)
    if moment == "save":
        process.until(lambda: saving(folder / f"{log}_runs"))
    process.kill()
    before = steps(folder, log)
    assert len(before) < len(expected)
    done = fit(folder, log, *spread, *LAST)
    assert "resuming from" in done.stderr or len(before) < 4
    assert steps(folder, log) == expected
    ranks = (0, 1) if spread else (0,)
    assert rows(folder, log, ranks) == rows(folder, whole, ranks)
    [model] = (folder / f"{log}_runs").glob("*/*/model/model.safetensors")
    [other] = (folder / f"{whole}_runs").glob("*/*/model/model.safetensors")
    assert model.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("spread", [[], TWO])
def test_killed_as_soon_as_a_checkpoint_is_whole_the_mlflow_run_has_every_step_once(
    folder: Path, spread: list[Any]
) -> None:
    log = f"tracked_{len(spread)}"
    store = f"sqlite:///{folder}/{log}.db"
    options = [*spread, "--mlflow.enabled", "true", "--mlflow.tracking_uri", store, *LAST]
    process = start(folder, log, *options)
    process.until(lambda: list((folder / f"{log}_runs").glob("*/*/checkpoints/step-00000008")))
    process.kill()
    fit(folder, log, *options)
    client = MlflowClient(store)
    [run] = client.search_runs([client.get_experiment_by_name("inscp").experiment_id])
    assert run.info.status == "FINISHED"
    last = max(steps(folder, log))
    for name in ("train/loss", "train/lr", "train/tokens_per_second"):
        assert sorted(point.step for point in client.get_metric_history(run.info.run_id, name)) == list(
            range(1, last + 1)
        )


def checkpoint(folder: Path, runs: str, step: int) -> Path:
    return next((folder / runs).glob(f"*/*/checkpoints/step-{step:08}"))


@pytest.mark.parametrize(("whole", "spread"), [("one", TWO), ("one", [*DDP, *HALF]), ("two", [])])
def test_on_another_number_of_ranks_it_resumes_at_the_next_unseen_row(
    folder: Path, whole: str, spread: list[Any]
) -> None:
    log = f"{whole}_elsewhere_{len(spread)}_{spread[3:4]}"
    fit(folder, log, *spread, "--ckpt_path", checkpoint(folder, f"{whole}_runs", 10))
    require_equal(steps(folder, log), {step: values for step, values in steps(folder, whole).items() if step > 10})
    seen, known = rows(folder, log, (0, 1) if spread else (0,)), rows(folder, whole, (0, 1) if whole == "two" else (0,))
    assert seen == {step: known[step] for step in seen}


def test_twice_the_rows_a_step_skip_and_repeat_none(folder: Path) -> None:
    fit(folder, "wider", *FSDP2, "--ckpt_path", checkpoint(folder, "one_runs", 10))
    before, after = rows(folder, "one"), rows(folder, "wider", (0, 1))
    assert len(after[11]) == 2 * len(before[11])
    expected = sorted(row for step, seen in before.items() if step > 10 for row in seen)
    assert sorted(row for seen in after.values() for row in seen) == expected


def test_export_of_shards_gives_the_bytes_of_the_training_that_wrote_them(folder: Path, tmp_path: Path) -> None:
    [whole] = (folder / "two_runs").glob("*/*/checkpoints")
    newest = complete_checkpoints(whole)[0][0]
    assert len(list(newest.glob("shard-00002-*"))) > 1
    assert newest.name == f"step-{max(steps(folder, 'two')):08}"
    export(str(newest), str(tmp_path / "exported"))
    name = "model.safetensors"
    assert (tmp_path / "exported" / name).read_bytes() == (whole.parent / "model" / name).read_bytes()


def test_other_data_are_refused_with_both_fingerprints(folder: Path) -> None:
    arguments = ["--data.train", "more.jsonl", "--ckpt_path", checkpoint(folder, "one_runs", 10)]
    done = fit(folder, "other", *arguments, status=2)
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "data fingerprint" in line
    assert "--data.force_resume true" in line


def test_an_ended_training_is_not_trained_again(folder: Path) -> None:
    done = fit(folder, "again", *LAST, "--trainer.default_root_dir", "one_runs")
    assert "this run is already finished; its model is one_runs/" in done.stderr
    assert not steps(folder, "again")


def test_weights_that_stay_gathered_are_those_of_the_checkpoint(folder: Path) -> None:
    """Also of what was gathered ahead of reading it, to see whether the model keeps documents apart."""
    kept = [*SHARDS, *HALF, "--trainer.strategy.reshard_after_forward", "false", "--trainer.max_steps", "6"]
    fit(folder, "gathered", *kept)
    [checkpoint] = (folder / "gathered_runs").glob("*/*/checkpoints/step-00000004")
    fit(folder, "gathered_again", *kept, "--ckpt_path", checkpoint)
    whole, resumed = steps(folder, "gathered"), steps(folder, "gathered_again")
    assert resumed == {step: values for step, values in whole.items() if step > 4}
    assert len(resumed) == 2
