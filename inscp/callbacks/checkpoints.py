"""When checkpoints are written, and which are kept."""

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from inscp.callbacks.steps import ends_step
from inscp.callbacks.throughput import clock_paused
from inscp.errors import RunError, UserError, on_every_rank
from inscp.model.checkpoint import (
    CheckpointWriter,
    add_to_manifest,
    complete_checkpoints,
    read_manifest,
    remove_checkpoint,
    remove_partial,
    step_folder,
)

_METRIC = "metric"
_PATIENCE = 30.0
"""Seconds to wait until all nodes see a file that one has created: network file systems take a while."""


class Checkpoints(Checkpoint):
    """Writes checkpoints at regular intervals, and keeps the best ones by a held-out set.

    A failed write (a full disk, say) is logged, and training continues; old checkpoints are removed only when a newer
    one is complete.

    Args:
        dirpath: folder of the checkpoints; by default `checkpoints` in the run's folder. On a machine that may be
            preempted, give one that outlives it. A run starts only if the folder has no checkpoints of another run.
        every_n_steps: optimizer steps between two checkpoints; null writes only those of `monitor`.
        keep_last: number of newest checkpoints to keep; with 2, a damaged one costs little.
        monitor: loss or perplexity of a held-out set (`val/zh_tw/loss`), lower is better; a checkpoint is then also
            written after every validation.
        keep_best: number of best checkpoints to keep.
        asynchronous: write in the background during training, from a copy in CPU memory.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_steps: int | None = 100,
        keep_last: int = 2,
        monitor: str | None = None,
        keep_best: int = 1,
        asynchronous: bool = False,
    ) -> None:
        for name, value in {"every_n_steps": every_n_steps, "keep_last": keep_last, "keep_best": keep_best}.items():
            if value is not None and value < 1:
                raise UserError(f"checkpoint.{name}", f"{value} is not positive", "Give 1 or more.")
        self.folder = Path(dirpath or "checkpoints")
        self.is_given_folder = dirpath is not None
        self._every_n_steps, self._keep_last = every_n_steps, keep_last
        self._monitor, self._keep_best = monitor, keep_best
        self._asynchronous, self._writer = asynchronous, CheckpointWriter(asynchronous)
        self._newest: int | None = None  # the step that is on disk, or being written

    def require_measured(self, held_out: Iterable[str]) -> None:
        """Check that `monitor` is measured on one of the held-out sets, given by their names.

        Raises:
            UserError: it is not.
        """
        known = [f"val/{name}/{kind}" for name in held_out for kind in ("loss", "perplexity")]
        if self._monitor is not None and self._monitor not in known:
            fix = f"Choose from: {', '.join(known)}." if known else "Name held-out sets in data.validation."
            raise UserError("checkpoint.monitor", f"{self._monitor} is not measured", fix)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)  # named by time, and the ranks' clocks differ
        if stage == "fit" and trainer.world_size > 1:
            self._require_one_view(trainer)
        if trainer.is_global_zero and stage == "fit":
            remove_partial(self.folder)

    def _require_one_view(self, trainer: Trainer) -> None:
        """Check that all ranks see the same folder and resume from the same checkpoint.

        Raises:
            UserError: they do not: each would write its part of a checkpoint where the others cannot find it.
        """
        strategy, place = trainer.strategy, self.folder if self.is_given_folder else self.folder.parent
        probe = place / ".seen_by_all_ranks"
        if trainer.is_global_zero:
            place.mkdir(parents=True, exist_ok=True)
            probe.touch()
        strategy.barrier()
        until = time.monotonic() + _PATIENCE
        while not (sees := probe.exists()) and time.monotonic() < until:
            time.sleep(0.1)
        resumes_from = str(trainer.ckpt_path)
        all_see = strategy.reduce_boolean_decision(sees)
        all_agree = strategy.reduce_boolean_decision(strategy.broadcast(resumes_from) == resumes_from)
        if trainer.is_global_zero:
            probe.unlink()
        if not (all_see and all_agree):
            apart, differ = f"not all processes can see {place}", "the processes find different checkpoints"
            what = differ if all_see else apart
            fix = "Give a folder that all nodes share (checkpoint.dirpath, trainer.default_root_dir)."
            raise on_every_rank(UserError("checkpoint.dirpath", what, fix))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path:
            self._newest = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        if self._every_n_steps and trainer.global_step % self._every_n_steps == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if ends_step(trainer, trainer.fit_loop.batch_idx):  # else inside a step
            self.save(trainer, extra={_METRIC: {self._monitor: float(trainer.callback_metrics[self._monitor])}})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer)

    def save(self, trainer: Trainer, wait: bool = False, extra: Mapping[str, Any] | None = None) -> str:
        """Write a checkpoint of the model after this step; every rank must take part.

        Args:
            trainer: the trainer, between two optimizer steps.
            wait: wait until it is on disk, even if writing is asynchronous.
            extra: values for its manifest: the metric that was measured after this step.

        Returns:
            The error message; empty if there was no error.
        """
        path = step_folder(self.folder, trainer.global_step)
        with clock_paused(trainer):
            self._finish(trainer)
            is_there = trainer.strategy.broadcast(path.exists())
            if is_there and self._newest == trainer.global_step:  # written before its validation, or resumed from
                if trainer.is_global_zero and extra:
                    self._add(path, extra)
                return ""
            if is_there:  # a damaged one, or one later than the checkpoint that was resumed from
                if trainer.is_global_zero:
                    remove_checkpoint(path)
                trainer.strategy.barrier()
            self._newest = trainer.global_step
            trainer.save_checkpoint(path, storage_options=(self._writer, extra))
            return self._finish(trainer) if wait or not self._asynchronous else ""

    def _add(self, path: Path, extra: Mapping[str, Any]) -> None:
        try:
            add_to_manifest(path, extra)
        except OSError as error:
            rank_zero_warn(f"the measurement cannot be stored in {path} ({error.strerror}); training continues")

    def _finish(self, trainer: Trainer) -> str:
        try:
            self._writer.wait()
        except RunError as error:
            whole, _ = complete_checkpoints(self.folder)
            kept = f"the last complete one is {whole[0]}" if whole else "there is no earlier one"
            rank_zero_warn(f"{error}; {kept}; training continues")
            return str(error)
        if trainer.is_global_zero:
            self._prune()
        return ""

    def _prune(self) -> None:
        """Remove complete checkpoints that are neither among the newest nor among the best."""
        whole, _ = complete_checkpoints(self.folder)
        values = {path: read_manifest(path).get(_METRIC, {}).get(self._monitor, math.nan) for path in whole}
        measured = [path for path in whole if math.isfinite(values[path])]
        best = sorted(measured, key=lambda path: values[path])[: self._keep_best]
        for path in whole[self._keep_last :]:
            if path not in best:
                remove_checkpoint(path)
