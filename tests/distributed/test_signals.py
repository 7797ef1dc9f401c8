"""A training that is told to stop saves, says so by its exit status, and goes on where it was."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from launch import FSDP2, fit, project, start, steps
from lightning import Callback, LightningModule, Trainer
from processes import Command

from inscp.callbacks import export
from inscp.model.checkpoint import whole_checkpoints

TWO = [*FSDP2, "--data.batch_size", "1"]
LONG = ["--data.epochs", "40.0", "--checkpoint.every_n_steps", "1000"]
LAST = ["--ckpt_path", "last"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: str) -> Path:
    return project(tmp_path_factory.mktemp("signals"), tiny_model_folder)


def begun(folder: Path, log: str, *arguments: Any) -> Command:
    """A training that has trained at least three steps and has hundreds before it."""
    process = start(folder, log, *LONG, *LAST, "--trainer.default_root_dir", f"{log}_runs", *arguments)
    end = time.monotonic() + 120
    while len(steps(folder, log)) < 3:
        assert process.poll() is None, process.stderr[-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)
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
def test_a_signal_to_any_rank_saves_and_ends_all_behind_the_same_step(
    folder: Path, number: signal.Signals, spread: list[Any], to_child: bool, status: int
) -> None:
    log = f"{number.name}_{len(spread)}_{to_child}"
    process = begun(folder, log, *spread)
    os.kill(children(process)[0] if to_child else process.pid, number)
    assert process.wait(timeout=60) == status, process.stderr
    assert f"{number.name}: stopped behind step {max(steps(folder, log))}" in process.stderr
    assert "--ckpt_path last" in process.stderr
    [run] = (folder / f"{log}_runs").glob("*/*")
    [checkpoint], _ = whole_checkpoints(run / "checkpoints")
    last = max(steps(folder, log))
    assert checkpoint.name == f"step-{last:08}"
    if spread:
        assert max(steps(folder, log, rank=1)) == last
    assert not (run / "model").exists()
    if not to_child:
        return
    done = fit(folder, log, *LONG, *LAST, "--trainer.default_root_dir", f"{log}_runs", *spread,
               "--trainer.max_steps", str(last + 2))  # fmt: skip
    assert f"going on from {checkpoint.relative_to(folder)}" in done.stderr
    assert list(steps(folder, log)) == list(range(1, last + 3))
    assert (run / "model").is_dir()


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
    while len(list((folder / f"{log}_runs").glob("long_*"))) < (2 if spread else 1):
        assert process.poll() is None, process.stderr[-3000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    while "Ctrl-C again ends at once" not in process.stderr:
        assert process.poll() is None, process.stderr[-3000:]
        time.sleep(0.01)
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
    process = start(folder, "exported", "--trainer.default_root_dir", "exported_runs",
                    "--trainer.callbacks+", "test_signals.LongExport")  # fmt: skip
    while not (folder / "exported_runs" / "exporting").exists():
        assert process.poll() is None, process.stderr[-3000:]
        time.sleep(0.01)
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
    arguments = [*options, "--trainer.default_root_dir", "asked_runs", *LAST]
    fit(folder, "asked", *arguments, "--trainer.callbacks+", "test_signals.ToldToStop", status=75)
    fit(folder, "asked", *arguments, "--trainer.max_steps", "5")
    [file] = (folder / "asked_runs").glob("*/*/alignment.json")
    assert [one["step"] for one in json.loads(file.read_text("utf-8"))["history"]] == [1, 2, 3, 4, 5]
