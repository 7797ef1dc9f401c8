"""Tokens a second count what a step waits for and computes, and nothing that is done beside it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from corpus import Losses, data_module, fit

from inscp.callbacks import throughput
from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.throughput import Throughput, clock_paused, peak_rate
from inscp.cost.flops import ModelSize
from inscp.data.pipeline import PackedRows
from inscp.model.checkpoint import CheckpointWriter


class Clock:
    """Time that passes only where a test lets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def passing(self, seconds: float, function: Any) -> Any:
        """The same function, which takes so long."""

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return slow


class Seconds(Losses):
    """Lets each micro-batch compute for a second, each validation batch for 1,000; notes the seconds of each step."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._clock.now += 1

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        self._clock.now += 1000

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            rate = float(trainer.callback_metrics["train/tokens_per_second"])
            self.seconds.append(batch.step_tokens / rate)
            with clock_paused(trainer):
                self._clock.now += 100_000


def test_a_step_takes_its_rows_and_its_computing_and_nothing_else(
    tmp_path: Path, corpus: Path, tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(throughput, "matrix_rate", lambda *_: 1.0)
    monkeypatch.setattr(CheckpointWriter, "write", clock.passing(10_000, CheckpointWriter.write))
    data = data_module(corpus, tiny_model_folder, validation={"held": str(corpus)})
    data.setup("fit")
    training_rows = data.mixture.rows
    get = PackedRows.__getitem__

    def reading(rows: PackedRows, batch: Any) -> Any:
        clock.now += 10 * (rows._cached is training_rows)
        return get(rows, batch)

    monkeypatch.setattr(PackedRows, "__getitem__", reading)
    steps = Seconds(clock)
    saving = Checkpoints(str(tmp_path / "kept"), every_n_steps=2)
    fit(tmp_path, data, Throughput(), steps, saving, accumulate_grad_batches=2, val_check_interval=6)
    first, *others = steps.seconds
    assert first == pytest.approx(12)  # its first rows were there
    assert others == pytest.approx([22] * len(others))
    assert len(others) > 6


def test_utilisation_is_of_all_devices_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, logged, cpu = Clock(), dict[str, float](), torch.device("cpu")
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(throughput, "InsCPModule", SimpleNamespace)
    monkeypatch.setattr(throughput, "peak_rate", lambda *_, **__: (100.0, "measured"))
    monkeypatch.setattr(throughput, "ModelSize", SimpleNamespace(of=lambda _: ModelSize(10.0, 10.0, 4)))
    strategy = SimpleNamespace(root_device=cpu, all_gather=lambda peak: peak)
    trainer: Any = SimpleNamespace(world_size=2, precision="32-true", strategy=strategy, logger=None,
                                   accumulate_grad_batches=1)  # fmt: skip
    learner: Any = SimpleNamespace(model=None, device=cpu, log=logged.__setitem__)
    one = Throughput()
    one.on_train_start(trainer, learner)
    one.on_train_batch_start(trainer, learner, None, 0)
    clock.now += 3
    one.on_train_batch_end(trainer, learner, None, SimpleNamespace(step_tokens=6), 0)  # type: ignore[arg-type]
    assert (logged["train/tokens_per_second"], logged["train/tokens"]) == (2.0, 6.0)
    assert logged["train/mfu"] == 2.0 * 6 * 10 / 200
    resumed = Throughput()
    resumed.load_state_dict(one.state_dict())
    assert resumed.tokens == 6


def test_utilisation_is_of_the_rated_peak_in_bf16_where_the_device_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "matrix_rate", lambda device, dtype: 1e12 * dtype.itemsize)
    names = {"cuda": "NVIDIA H100 80GB HBM3", "cpu": "CPU"}
    monkeypatch.setattr(throughput, "device_name", lambda device: names[device.type])
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert peak_rate(gpu, is_bf16=True) == (989e12, "989 TFLOP/s, rated (H100)")
    assert peak_rate(gpu, is_bf16=False) == (4e12, "4 TFLOP/s, measured")
    assert peak_rate(cpu, is_bf16=True) == (2e12, "2 TFLOP/s, measured")
