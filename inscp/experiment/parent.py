"""The MLflow parent run of a whole study. A study continues if the server is down."""

import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from inscp.tracking.mlflow_run import MLflowRun, reason
from inscp.tracking.pieces import End, Start, now
from inscp.tracking.store import absolute
from inscp.tracking.tracked_run import Tracking


class ParentRun:
    """Created on first use, and found again by every later process of the same study.

    Args:
        tracking: MLflow settings.
        name: name of the study.
        question: the question that it answers.
    """

    def __init__(self, tracking: Tracking, name: str, question: str) -> None:
        self._tracking = tracking
        tags = {"study": name, "mlflow.note.content": question, **tracking.tags}
        # Studies of one name may ask different questions.
        key = blake2b(f"{name}\n{question}".encode(), digest_size=8).hexdigest()
        start = Start(absolute(tracking.uri), tracking.experiment, name, tags, f"study {key}", now(), None)
        self._run = MLflowRun(start)
        if tracking.enabled:
            self._run.connect()

    @property
    def run_id(self) -> str | None:
        """None if nothing is tracked, or the server is down."""
        if self._tracking.enabled and self._run.run_id is None:
            self._try(lambda: self._run.open(resume=False))
        return self._run.run_id

    def begin(self) -> None:
        """Report to MLflow that the study is running, for the first time or again."""
        if self._tracking.enabled:
            self._try(self._run.open)

    def end(self, status: str) -> None:
        """Report to MLflow how the study has ended for now.

        Args:
            status: `FINISHED`, `SCHEDULED` if some runs are left, `FAILED` or `KILLED`.
        """
        if self._run.run_id is not None:
            self._try(lambda: self._run.send([End(status, now())]))

    def keep(self, folder: Path, artifact: str) -> None:
        """Log the files of a folder as artifacts."""
        if self.run_id is not None:
            self._try(lambda: self._run.keep_files(folder, artifact))
        if self._run.is_new:  # other studies made all its runs, and nothing else ends it
            self.end("FINISHED")

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever the store, the network or the server raises
            uri = self._tracking.uri
            print(f"warning: MLflow at {uri} does not accept the study's run ({reason(error)}); the study continues",
                  file=sys.stderr, flush=True)  # fmt: skip
