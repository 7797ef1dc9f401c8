"""A small corpus and a training on it, for tests of everything behind the data path."""

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from inscp.callbacks.provenance import Provenance
from inscp.commands.fit import TRAINER_DEFAULTS
from inscp.data.datamodule import InsCPDataModule
from inscp.model.module import InsCPModule
from inscp.model.optim import Optimizer
from inscp.model.strategies import OneDevice

SENTENCES = ("今天天氣很好。", "我們去夜市吃東西。", "台灣的山很高。", "The sea is blue.", "Hyvää päivää!")


def write_corpus(folder: Path, records: int = 40) -> Path:
    """Documents of unequal length, so that rows hold different numbers of targets."""
    path = folder / "corpus.jsonl"
    texts = ["".join(SENTENCES[(i + k) % len(SENTENCES)] for k in range(1 + i % 4)) + str(i) for i in range(records)]
    path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), "utf-8")
    return path


def write_conversations(folder: Path) -> Path:
    """Thirty short questions in English with their answers, to be replayed."""
    path = folder / "english.jsonl"
    pairs = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}, of course."} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, pairs)), "utf-8")
    return path


def data_module(corpus: Path, model: str, **options: Any) -> InsCPDataModule:
    """Rows of 64 tokens, one a micro-batch."""
    return InsCPDataModule(str(corpus), pretrained=model, **({"row_length": 64, "batch_size": 1} | options))


def module(model: str, **options: Any) -> InsCPModule:
    """A high learning rate and no decay, so that differences show."""
    return InsCPModule(model, Optimizer(learning_rate=1e-2, warmup=0.0, schedule="linear"), **options)


class Losses(Callback):
    """Keeps each optimizer step's loss, learning rate and gradient norm, by the step's number from 1."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[float, ...]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            names = ("train/loss", "train/lr", "train/grad_norm")
            self.steps[trainer.global_step] = tuple(float(trainer.callback_metrics[name]) for name in names)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """The trainer of the command line, silent, in fp32 on one CPU process."""
    if not any(isinstance(callback, Provenance) for callback in callbacks):
        callbacks = (Provenance(folder), *callbacks)
    fixed = {
        "callbacks": [*callbacks],
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "logger": False,
        "enable_progress_bar": False,
        "accelerator": "cpu",
        "devices": 1,
        "strategy": OneDevice(),
        "precision": "32-true",
        "default_root_dir": folder,
    }
    return Trainer(**(TRAINER_DEFAULTS | fixed | options))


def fit(
    folder: Path, data: InsCPDataModule, *callbacks: Callback, learner: InsCPModule | None = None,
    resume: Path | None = None, **options: Any,
) -> Losses:  # fmt: skip
    """Train to the end, from a checkpoint where there is one; the options are the trainer's."""
    losses = Losses()
    run = trainer(folder, losses, *callbacks, **options)
    run.fit(learner or module(data.pretrained), datamodule=data, ckpt_path=resume)
    return losses
