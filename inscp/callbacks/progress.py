"""Progress display: a bar on a terminal, plain lines in a log file."""

import sys
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from inscp.callbacks.steps import ends_step
from inscp.data.datamodule import data_of
from inscp.progress import SECONDS_BETWEEN_LINES, duration


def progress() -> Callback:
    """The progress display for standard error: a terminal or a file."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()


class TerminalProgress(TQDMProgressBar):
    """A bar of the micro-batches with time left, the step's loss and tokens per second."""

    @property
    def sanity_check_description(self) -> str:
        return "held-out text, original model,"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = trainer.callback_metrics
        names = {"loss": ("train/loss", ".3f"), "tokens/s": ("train/tokens_per_second", ",.0f")}
        return {short: f"{float(metrics[name]):{form}}" for short, (name, form) in names.items() if name in metrics}

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description("training")


class PlainProgress(Callback):
    """One line every ten seconds: step, loss, tokens per second, time left."""

    def __init__(self) -> None:
        self._started = self._last_shown = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._last_shown = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step = time.monotonic(), trainer.global_step
        steps = data_of(trainer).total_steps
        is_due = now - self._last_shown >= SECONDS_BETWEEN_LINES or step == steps
        if not (is_due and ends_step(trainer, batch_idx) and trainer.is_global_zero):
            return
        self._last_shown = now
        left = (now - self._started) / max(1, step - self._first_step) * (steps - step)
        metrics = trainer.callback_metrics
        print(
            f"step {step}/{steps}  loss {float(metrics['train/loss']):.3f}  "
            f"{float(metrics['train/tokens_per_second']):,.0f} tokens/s  {duration(left)} left",
            file=sys.stderr,
            flush=True,
        )
