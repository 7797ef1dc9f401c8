"""Runs commands of this program in processes of their own, and forwards to them the signals that stop a study."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

import yaml

from inscp.errors import Stopped, UserError
from inscp.experiment.configuration import Config
from inscp.paths import write_atomically
from inscp.signals import exit_status, received_by


@dataclass(frozen=True)
class Failure:
    """The failure of a command.

    Attributes:
        status: its exit status.
        why: the reason as text.
    """

    status: int
    why: str


class Commands:
    """Runs one command at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stopped_by = 0

    def run(self, command: str, config: Config, folder: Path, lock: int, *options: str) -> Failure | None:
        """Run a command on a configuration, which is kept in the folder with the command's output.

        Args:
            command: `fit`, `merge`, `extend` or `evaluate`.
            config: the whole configuration.
            folder: folder for `COMMAND.yaml` and `COMMAND.log`.
            lock: from `locked`; it is held as long as the command runs, even if this process is killed.
            options: further options of the command.

        Raises:
            Stopped: this process was asked to stop, and the command has ended.
        """
        self.stop_if_signalled()
        file, last = folder / f"{command}.yaml", ""
        write_atomically(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        line = [sys.executable, "-m", "inscp", command, "--config", str(file), *options]
        # Such a variable would change the training, but not the digests that identify runs.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INSCP_FIT__")}
        with (folder / f"{command}.log").open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                             start_new_session=True, pass_fds=[lock], env=environment)  # fmt: skip
            if self._stopped_by:  # since the last check
                self._process.send_signal(self._stopped_by)
            assert self._process.stdout is not None
            for said in self._process.stdout:
                log.write(said)
                log.flush()
                say(f"    {said.rstrip()}")
                last = said.strip() or last
            status = self._process.wait()
        self.stop_if_signalled()
        why = f"{command} ended with status {status} ({last.removeprefix('error: ')})"
        return Failure(status, why) if status else None

    def listening(self) -> AbstractContextManager[None]:
        """Signals inside this context are forwarded to the command; a training run saves a checkpoint on them."""

        def stop(number: int, _: Any) -> None:
            self._stopped_by = number
            if self._process and self._process.poll() is None:
                self._process.send_signal(number)

        return received_by(stop)

    @contextmanager
    def locked(self, file: Path) -> Iterator[int]:
        """Hold a lock file, as soon as no other process (another job of the same study, say) holds it.

        Raises:
            Stopped: this process was asked to stop while it waited.
            UserError: the file system does not support locks.
        """
        waits = False
        with file.open("a") as opened:
            while True:
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waits:
                        holder = file.read_text("utf-8") or "another process"
                        say(f"    {holder}, or a command started by it, holds the lock {file}; waiting")
                    waits = True
                    self.stop_if_signalled()
                    time.sleep(0.5)
                except OSError as error:
                    what = f"its file system does not support locks ({error.strerror})"
                    raise UserError(str(file), what, "Give a folder on another file system with --out.") from error
            opened.truncate(0)
            opened.write(f"process {os.getpid()} on {gethostname()}")
            opened.flush()
            yield opened.fileno()

    def stop_if_signalled(self) -> None:
        """
        Raises:
            Stopped: this process was asked to stop.
        """
        if self._stopped_by:
            raise Stopped("the study was stopped; rerun the same command to resume", exit_status(self._stopped_by))


def say(line: str) -> None:
    """Report progress to the user."""
    print(line, file=sys.stderr, flush=True)
