"""Runs what is not done: each training, merge and evaluation a process of its own, one behind the other.

What is done is known by the files that are there whole: an exported model, a results file. Their folders are named
after a digest of what decides them, so that a changed study runs what has changed and nothing else. A killed study goes
on with the same command, and the training that was under way from its last checkpoint.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from inscp.callbacks.mlflow_run import MLflowRun
from inscp.callbacks.pieces import End, Start
from inscp.callbacks.plain_lines import duration
from inscp.callbacks.tracking import Tracking
from inscp.errors import RunError, Stopped
from inscp.experiment.configuration import Config, changed
from inscp.experiment.study import Run, Study
from inscp.paths import write_whole


@dataclass(frozen=True)
class Place:
    """Where one run's files lie.

    Attributes:
        run: it is.
        folder: of its model.
    """

    run: Run
    folder: Path

    @property
    def model(self) -> str | None:
        """Its model, as every command takes it; None where it is not made yet."""
        if self.run.fit is None and self.run.merge is None:
            return self.run.original
        made = sorted(self.folder.glob("*/*/model")) if self.run.fit is not None else [self.folder / "model"]
        return next((str(path) for path in reversed(made) if path.is_dir()), None)

    @property
    def results(self) -> Path:
        """Its results file, which is there when it has been measured."""
        return self.folder / f"results-{self.run.measure[:8]}.json"

    @property
    def is_done(self) -> bool:
        return self.model is not None and (self.results.is_file() or not self.run.evaluate)


def place(run: Run, out: Path) -> Place:
    """Where a run's files lie under the study's folder of outputs."""
    return Place(run, out / run.name)


class Runner:
    """Runs the runs of a study.

    Args:
        study: which study.
        name: of the study.
        out: its folder of outputs.
    """

    def __init__(self, study: Study, name: str, out: Path) -> None:
        self._study, self._name, self._out = study, name, out
        self._process: subprocess.Popen[str] | None = None
        self._stopped_by = 0
        self._parent: MLflowRun | None = None

    def run(self, runs: Sequence[Run]) -> None:
        """Run what is not done; a run that fails does not keep the others from running.

        Raises:
            Stopped: it was interrupted; the same command goes on.
            RunError: some have failed.
        """
        todo = [run for run in runs if not place(run, self._out).is_done]
        failed: list[str] = []
        started = time.monotonic()
        with self._listening():
            for number, run in enumerate(todo):
                self._leave_if_told()
                spent = time.monotonic() - started
                left = f", {duration(spent / number * (len(todo) - number))} left" if number else ""
                _tell(f"[{len(runs) - len(todo) + number + 1}/{len(runs)}] {run.title}{left}")
                if why := self._try(run):
                    failed.append(f"{run.title}: {why}")
        self._close("FAILED" if failed else "FINISHED")
        if failed:
            raise RunError(f"{len(failed)} of {len(runs)} runs failed: " + "; ".join(failed))

    def _try(self, run: Run) -> str:
        """Why it could not be run; empty where it could."""
        at = place(run, self._out)
        at.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{at.folder}.lock"):  # another job of the same study may need it too
            if at.model is None:
                before = place(run.before, self._out).model if run.before else run.original
                if before is None:
                    return f"{run.before.title if run.before else ''} is not there"
                if why := self._make(at, before):
                    return why
            if run.evaluate and not at.results.is_file():
                return self._measure(at)
        return ""

    def _make(self, at: Place, before: str) -> str:
        run = at.run
        if run.fit is not None:
            fixed = {
                "model.pretrained": before,
                "trainer.default_root_dir": str(at.folder),
                "mlflow": self._tracking(run),
            }
            return self._command("fit", changed(run.fit, fixed), at, "--ckpt_path", "last")
        return self._command("merge", changed(run.merge or {}, {"model": before, "out": str(at.folder / "model")}), at)

    def _measure(self, at: Place) -> str:
        fixed = {"model": at.model, "out": str(at.results), "mlflow": self._tracking(at.run)}
        return self._command("evaluate", changed(at.run.evaluate, fixed), at)

    def _command(self, command: str, config: Config, at: Place, *options: str) -> str:
        """Run a command of this program on a configuration that is kept; returns what went wrong."""
        file = at.folder / f"{command}.yaml"
        write_whole(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        line = [sys.executable, "-m", "inscp", command, "--config", str(file), *options]
        last = ""
        with (at.folder / f"{command}.log").open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert self._process.stdout is not None
            for said in self._process.stdout:
                log.write(said)
                log.flush()
                _tell(f"    {said.rstrip()}")
                last = said.strip() or last
            status = self._process.wait()
        self._leave_if_told()
        return "" if status == 0 else f"{command} ended with status {status} ({last.removeprefix('error: ')})"

    @contextmanager
    def _listening(self) -> Any:
        """Hand a request to stop on to the command that runs; it saves, and the study ends behind it."""

        def stop(number: int, _: Any) -> None:
            self._stopped_by = number
            if self._process and self._process.poll() is None and number != signal.SIGINT:  # which it gets itself
                self._process.send_signal(number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _leave_if_told(self) -> None:
        if self._stopped_by:
            status = 130 if self._stopped_by == signal.SIGINT else Stopped.RESTART
            raise Stopped("the study was stopped; the same command goes on", status)

    def _tracking(self, run: Run) -> Config:
        """A run of its own under the study's."""
        given = asdict(self._study.mlflow)
        if not self._study.mlflow.enabled:
            return given
        tags = {"study": self._name, **run.axes(), "mlflow.parentRunId": str(self._parent_run().run_id)}
        return given | {"name": run.title, "tags": {**self._study.mlflow.tags, **tags}}

    def _parent_run(self) -> MLflowRun:
        if self._parent is None:
            self._parent = parent_run(self._study.mlflow, self._name, self._study.question)
        return self._parent

    def _close(self, status: str) -> None:
        if self._parent is not None:
            self._parent.send([End(status, round(time.time() * 1000))])


def parent_run(tracking: Tracking, name: str, question: str) -> MLflowRun:
    """The MLflow run of a whole study, started or found again."""
    found = MLflowRun(tracking.tracking_uri)
    found.connect()
    tags = {"study": name, "mlflow.note.content": question}
    now = round(time.time() * 1000)
    found.send([Start(tracking.tracking_uri, tracking.experiment, name, tags, f"study {name}", now, None)])
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
