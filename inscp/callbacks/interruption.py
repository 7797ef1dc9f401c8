"""Signals: a run that is asked to stop finishes its step and writes a checkpoint."""

import os
import re
import signal
import sys
import threading
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from inscp.callbacks.checkpoints import Checkpoints
from inscp.callbacks.steps import ends_step
from inscp.data.datamodule import data_of
from inscp.errors import Stopped
from inscp.signals import exit_status, received_by
from inscp.tracking.tracker import tracker_of


def how_to_go_on() -> str:
    """How to resume an interrupted run; the commands of a study, for example, already have the option."""
    is_given = re.search(r"--ckpt_path[ =]last\b", " ".join(sys.argv))
    return "rerun the same command to resume" if is_given else "rerun with --ckpt_path last to resume"


class Interruption(Callback):
    """Saves and stops at SIGTERM, at SIGUSR1 (SLURM's usual warning before the end) and at the first Ctrl-C.

    Whichever rank receives the signal, all stop after the same step; after the last step the run ends as usual, with
    its model exported and prompted. A second Ctrl-C ends the run at once.

    Args:
        checkpoints: writes the checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._received = 0
        self._listening = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # These replace Lightning's own handlers, which on SIGTERM end a run with status 0 and no checkpoint, and call
        # collectives inside a handler.
        if stage == "fit":
            trainer._signal_connector.register_signal_handlers = partial(self._listen, trainer)  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        number = int(trainer.strategy.reduce(received, reduce_op="max"))
        is_last = trainer.should_stop or trainer.global_step >= data_of(trainer).total_steps
        if number and not is_last:
            self._stop(trainer, signal.Signals(number))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listening.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._listening.close()

    def _stop(self, trainer: Trainer, number: signal.Signals) -> None:
        problem = trainer.strategy.broadcast(self._checkpoints.save(trainer, wait=True))
        where = f"{number.name}: stopped after step {trainer.global_step} of {data_of(trainer).total_steps}"
        if problem:
            message, status = f"{where}; {problem}", 1
        else:
            message, status = f"{where}; checkpoint written; {how_to_go_on()}", exit_status(number)
        if tracker := tracker_of(trainer):
            tracker.finalize("interrupted")  # Lightning would report it as failed
        # One process per node reports the status: launchers kill the others, or that one if another fails first.
        raise Stopped(message if trainer.is_global_zero else "", 0 if trainer.local_rank else status)

    def _listen(self, trainer: Trainer) -> None:
        if threading.current_thread() is threading.main_thread():
            self._listening.enter_context(received_by(partial(self._receive, trainer)))

    def _receive(self, trainer: Trainer, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._received == signal.SIGINT:
                if trainer.strategy.launcher is not None:
                    trainer.strategy.launcher.kill(signal.SIGKILL)
                os._exit(130)
            if trainer.is_global_zero:
                os.write(
                    2,
                    b"\nstopping after this step, with a checkpoint or the export; Ctrl-C again to stop at once\n",
                )
        self._received = number
