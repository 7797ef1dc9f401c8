"""A training that is told to stop saves, says so by its exit status, and goes on where it was."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch import TWO, fit, project, start, steps, together
from lightning import Callback, LightningModule, Trainer
from mlflow.tracking import MlflowClient
from processes import Command

from inscp.callbacks import checkpoints, export
from inscp.model.checkpoint import complete_checkpoints

LONG = ["--data.epochs", "40.0", "--checkpoint.every_n_steps", "1000"]
LAST = ["--ckpt_path", "last"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    return project(tmp_path_factory.mktemp("signals"), tiny_model_folder)


def begun(folder: Path, log: str, *arguments: Any) -> Command:
    """A training that has trained at least three steps and has hundreds before it."""
    process = start(folder, log, *LONG, *LAST, *arguments)
    process.until(lambda: len(steps(folder, log)) >= 3)
    return process


def children(process: Command) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.parametrize(
    ("number", "spread", "to_child", "status"),
    [
        (signal.SIGTERM, [], False, 75),
        (signal.SIGINT, [], False, 130),
        (signal.SIGTERM, TWO, False, 75),
        (signal.SIGUSR1, TWO, True, 75),
    ],
)
def test_a_signal_to_any_rank_saves_and_ends_all_after_the_same_step(
    folder: Path, number: signal.Signals, spread: list[Any], to_child: bool, status: int
) -> None:
    log = f"{number.name}_{len(spread)}_{to_child}"
    process = begun(folder, log, *spread)
    os.kill(children(process)[0] if to_child else process.pid, number)
    assert process.wait(timeout=60) == status, process.stderr
    assert f"{number.name}: stopped after step {max(steps(folder, log))}" in process.stderr
    assert "checkpoint written; rerun the same command to resume" in process.stderr
    [run] = (folder / f"{log}_runs").glob("*/*")
    [checkpoint], _ = complete_checkpoints(run / "checkpoints")
    last = max(steps(folder, log))
    assert checkpoint.name == f"step-{last:08}"
    if spread:
        assert max(steps(folder, log, rank=1)) == last
    assert not (run / "model").exists()
    if not to_child:
        return
    done = fit(folder, log, *LONG, *LAST, *spread, "--trainer.max_steps", str(last + 2))
    assert f"resuming from {checkpoint.relative_to(folder)}" in done.stderr
    assert list(steps(folder, log)) == list(range(1, last + 3))
    assert (run / "model").is_dir()


def test_a_signal_to_the_processes_that_load_data_too_saves(folder: Path) -> None:
    """As SLURM and systemd send it."""
    process = begun(folder, "loading", "--data.num_workers", "2")
    loading = children(process)
    assert len(loading) >= 2
    for pid in (*loading, process.pid):
        os.kill(pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 75, process.stderr
    [run] = (folder / "loading_runs").glob("*/*")
    assert complete_checkpoints(run / "checkpoints")[0]


class LongStep(Callback):
    """Makes the steps behind the third longer than any test waits, and leaves a file when that begins."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            Path(trainer.default_root_dir, f"long_{trainer.global_rank}").touch()
            time.sleep(60)


@pytest.mark.parametrize("spread", [[], TWO])
def test_a_second_ctrl_c_ends_at_once(folder: Path, spread: list[Any]) -> None:
    log = f"twice_{len(spread)}"
    process = begun(folder, log, *spread, "--trainer.callbacks+", "test_signals.LongStep")
    process.until(lambda: len(list((folder / f"{log}_runs").glob("long_*"))) == (2 if spread else 1))
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    process.until(lambda: "Ctrl-C again to stop at once" in process.stderr)
    os.killpg(process.pid, signal.SIGINT)
    start_of_end = time.monotonic()
    assert process.wait(timeout=60) == 130
    assert time.monotonic() - start_of_end < 30  # of the 60 that the step would take
    assert not list((folder / f"{log}_runs").glob("*/*/checkpoints/step-*"))


class LongExport(Callback):
    """Makes the export take as long as it takes a test to break it off, and leaves a file when it begins."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        write = export.export_model

        def slow(*args: Any) -> None:
            Path(trainer.default_root_dir, "exporting").touch()
            time.sleep(2)
            write(*args)

        export.export_model = slow


def test_a_signal_does_not_break_off_the_export(folder: Path) -> None:
    process = start(folder, "exported", "--trainer.callbacks+", "test_signals.LongExport")
    process.until((folder / "exported_runs" / "exporting").exists)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 0, process.stderr[-3000:]
    assert next((folder / "exported_runs").glob("*/*/model/model.safetensors")).is_file()


class ToldToStop(Callback):
    """Is told to stop in the third step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_what_is_measured_in_the_step_of_a_signal_is_kept(folder: Path) -> None:
    (folder / "asked.jsonl").write_text(json.dumps({"fi": "Mikä on 2?", "en": "What is 2?"}), "utf-8")
    asked = {
        "prompts": "asked.jsonl",
        "languages": "[fi, en]",
        "every_n_tokens": 1,
        "retention": 0,
        "max_new_tokens": 2,
    }
    options = [part for name, value in asked.items() for part in (f"--stop_when_aligned.{name}", str(value))]
    fit(folder, "asked", *options, *LAST, "--trainer.callbacks+", "test_signals.ToldToStop", status=75)
    fit(folder, "asked", *options, *LAST, "--trainer.max_steps", "5")
    [file] = (folder / "asked_runs").glob("*/*/alignment.json")
    assert [one["step"] for one in json.loads(file.read_text("utf-8"))["history"]] == [1, 2, 3, 4, 5]


class LongTable(Callback):
    """Stands in front of the table that comes behind the export, on the first rank, until a file is there."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        (folder / f"behind_export_{trainer.global_rank}").touch()
        while trainer.is_global_zero and not (folder / "go_on").exists():
            time.sleep(0.01)


def exported(folder: Path, log: str, *spread: Any) -> tuple[Command, list[str], Path]:
    """A training that has exported its model and not made its table yet, its arguments, and the folder of its runs."""
    runs = folder / f"{log}_runs"
    tracked = ["--mlflow.enabled", "true", "--mlflow.tracking_uri", f"sqlite:///{log}.db"]
    given = ["--trainer.callbacks+", "test_signals.LongTable", *LAST, *spread, *tracked]
    process = start(folder, log, *given)
    process.until(lambda: len(list(runs.glob("behind_export_*"))) == (2 if spread else 1))
    return process, given, runs


def test_a_signal_to_any_rank_does_not_cost_the_table_after_the_export(folder: Path) -> None:
    process, _, runs = exported(folder, "table", *TWO)
    os.kill(children(process)[0], signal.SIGTERM)
    time.sleep(6)  # Lightning looks at the others every five seconds
    (runs / "go_on").touch()
    assert process.wait(timeout=60) == 0, process.stderr[-3000:]
    assert list(runs.glob("*/*/before_after.json"))


def test_a_training_that_is_killed_after_its_export_continues_to_its_end(folder: Path) -> None:
    process, given, runs = exported(folder, "late")
    process.kill()
    [model] = runs.glob("*/*/model")
    before = (model / "model.safetensors").read_bytes()
    (runs / "go_on").touch()
    done = fit(folder, "late", *given)
    assert "resuming from" in done.stderr
    assert (model / "model.safetensors").read_bytes() == before
    assert list(runs.glob("*/*/before_after.json")) == [model.parent / "before_after.json"]
    client = MlflowClient(f"sqlite:///{folder / 'late.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("inscp").experiment_id])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == len(steps(folder, "late"))
    assert "this run is already finished" in fit(folder, "late", *given).stderr


def test_outputs_that_were_moved_continue_where_they_are(folder: Path) -> None:
    process = begun(folder, "moved")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    (folder / "moved_runs").rename(folder / "elsewhere")
    last = max(steps(folder, "moved"))
    arguments = [*LONG, *LAST, "--trainer.default_root_dir", "elsewhere", "--trainer.max_steps", str(last + 2)]
    fit(folder, "moved", *arguments)
    assert not (folder / "moved_runs").exists()
    assert len(list((folder / "elsewhere").glob("*/*"))) == 1
    assert list(steps(folder, "moved")) == list(range(1, last + 3))


def test_an_error_that_all_ranks_have_is_reported_once_and_costs_nothing_that_was_tracked(folder: Path) -> None:
    given = ["--model.optimizer.learning_rate", "1e30", "--mlflow.enabled", "true", "--mlflow.patience", "8"]
    process = start(folder, "diverged", *TWO, *given, "--mlflow.tracking_uri", "http://127.0.0.1:9")
    assert process.wait(timeout=120) == 1, process.stderr[-3000:]
    assert process.stderr.count("error: ") == 1
    assert list((folder / "diverged_runs").glob("*/*/mlflow_unsent.jsonl"))


def test_ranks_that_do_not_see_one_folder_are_reported_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    def node(**place: str) -> Command:
        root = project(tmp_path / f"node{place['RANK']}", yaml_model(folder))
        return start(root, "apart", *TWO, "--trainer.callbacks+", "test_signals.Impatient", **place)

    first = together(node, 2, status=2)
    assert "not all processes can see apart_runs" in first.stderr
    assert not list(tmp_path.glob("*/apart.*"))


def yaml_model(folder: Path) -> str:
    return str(yaml.safe_load((folder / "small.yaml").read_text("utf-8"))["model"]["pretrained"])


class Impatient(Callback):
    """Does not wait long for what the other node has written."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        checkpoints._PATIENCE = 0.2


@pytest.mark.parametrize(("devices", "started"), [("1", 2), ("2", 1)])
def test_processes_and_devices_that_do_not_agree_are_reported(folder: Path, devices: str, started: int) -> None:
    place = {"WORLD_SIZE": str(started), "LOCAL_RANK": "0", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    process = start(folder, "disagree", "--trainer.devices", devices, **place)
    assert process.wait(timeout=60) == 2
    assert f"trainer.devices: {started} processes were started for {devices}" in process.stderr


class DiesInStepThree(Callback):
    """As a process does that the system kills, on the second rank."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_reported_in_one_line_by_the_others(folder: Path) -> None:
    def rank(**place: str) -> Command:
        return start(folder, "orphan", *TWO, *LAST, "--trainer.callbacks+", "test_signals.DiesInStepThree", **place)

    first = together(rank, 2, status=1)
    assert "error: another process of this run has ended" in first.stderr
    assert "; rerun the same command to resume" in first.stderr
    assert "Traceback" not in first.stderr
