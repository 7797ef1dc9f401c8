"""Runs what is not done: each training run, merge and evaluation in a process of its own, one after the other.

What is done is recognised by its complete files: an exported model, a results file. Their folders are named after a
digest of what determines them, so that a changed study runs only what has changed, and studies with common arms run
them once. The same command resumes a killed study, and an interrupted training run from its last checkpoint.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from inscp.errors import RunError, UserError
from inscp.experiment.configuration import Config, changed
from inscp.experiment.parent import ParentRun
from inscp.experiment.places import Place, Places
from inscp.experiment.processes import Commands, Failure, say
from inscp.experiment.runs import Run
from inscp.experiment.study import Study
from inscp.progress import duration


class Runner:
    """Runs the runs of a study.

    Args:
        study: the study.
        places: where its runs are.
    """

    def __init__(self, study: Study, places: Places) -> None:
        self._study, self._places = study, places
        self._commands = Commands()
        self._parent = ParentRun(study.mlflow, study.name, study.question)
        self._failed: dict[str, Failure] = {}  # by the name of the run

    def run(self, runs: Sequence[Run], every: Sequence[Run]) -> None:
        """Run what is not done; a run that fails does not stop the others.

        Args:
            runs: the runs to do here.
            every: all runs of the study; other processes may do the rest.

        Raises:
            Stopped: it was interrupted; the same command resumes.
            UserError: some runs failed, all of them because of wrong input.
            RunError: some runs failed.
        """
        try:
            self._places.runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"{self._places.out} cannot be made ({error.strerror})"
            raise UserError("--out", what, "Give another folder.") from error
        todo = self._places.left(runs)
        started, status = time.monotonic(), "KILLED"
        self._parent.begin()
        try:
            with self._commands.listening():
                for number, run in enumerate(todo):
                    spent = time.monotonic() - started
                    left = f", {duration(spent / number * (len(todo) - number))} left" if number else ""
                    say(f"[{len(runs) - len(todo) + number + 1}/{len(runs)}] {run.title}{left}")
                    self._try(run, self._finish)
            status = "FAILED" if self._failed else "SCHEDULED" if self._places.left(every) else "FINISHED"
        finally:
            self._parent.end(status)
        if self._failed:
            where = f"{len(self._failed)} of {len(runs)} runs failed"
            titles = {run.name: run.title for run in runs}
            what = "; ".join(f"{titles[name]}: {failure.why}" for name, failure in self._failed.items())
            if all(failure.status == 2 for failure in self._failed.values()):
                raise UserError(where, what, "Fix it, then rerun the same command to resume.")
            raise RunError(f"{where}: {what}")

    def _try(self, run: Run, action: Callable[[Place, int], Failure | None]) -> None:
        """Do something with a run while no other process works on it, and record its failure."""
        with self._commands.locked(self._places.runs / f"{run.fingerprint[:8]}.lock") as lock:
            at = self._places.made(run)
            at.folder.mkdir(parents=True, exist_ok=True)
            if failure := action(at, lock):
                self._failed[run.name] = failure

    def _finish(self, at: Place, lock: int) -> Failure | None:
        """Make and evaluate the model, as far as it is not done."""
        if at.is_done:  # by another process, meanwhile
            return None
        if failure := self._make(at, lock):
            return failure
        return self._measure(at, lock) if at.run.evaluate else None

    def _make(self, at: Place, lock: int) -> Failure | None:
        """Make the model, if it does not exist."""
        run = at.run
        if at.model is not None:
            return None
        if run.before and run.before.name not in self._failed and self._places.made(run.before).model is None:
            say(f"    {run.before.title}, from which it starts, has no weights any more; making them again")
            self._try(run.before, self._make)
        before = self._places.made(run.before).model if run.before else run.original
        if before is None:
            assert run.before is not None
            return Failure(2, f"{run.before.title}, from which it starts, does not exist")
        for exported in at.exported:  # whose weights were deleted: the commands would consider it made
            shutil.rmtree(exported)
        for items in at.folder.glob("results-*.items"):  # partial answers of another model
            if not items.with_suffix(".json").exists():
                shutil.rmtree(items)
        if run.trains:
            fixed: Config = {
                "model.pretrained": before,
                "trainer.default_root_dir": str(at.folder),
                "checkpoint.dirpath": None,  # the run's own folder, else it would resume from another arm
                "mlflow": self._tracking(run),
            }
            options = ["--ckpt_path", "last"]
        else:
            fixed, options = {"model": before, "out": str(at.folder / "model")}, []
        failure = self._commands.run(run.command, changed(run.config, fixed), at.folder, lock, *options)
        return failure or (None if at.model else Failure(1, "it ended without a model"))

    def _measure(self, at: Place, lock: int) -> Failure | None:
        fixed = {"model": at.model, "out": str(at.results), "mlflow": self._tracking(at.run)}
        failure = self._commands.run("evaluate", changed(at.run.evaluate, fixed), at.folder, lock)
        return failure or (None if at.is_done else Failure(1, "it ended without results"))

    def _tracking(self, run: Run) -> Config:
        """Settings of an MLflow run of its own under that of the study."""
        given = asdict(self._study.mlflow)
        parent = self._parent.run_id
        tags = {**self._study.mlflow.tags, "study": self._study.name, **run.axes()}
        return given | {"name": run.title, "tags": tags | ({"mlflow.parentRunId": parent} if parent else {})}
