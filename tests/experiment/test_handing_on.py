"""What a study's processes owe each other: no run is made twice at once, and none keeps the study from stopping."""

import errno
import fcntl
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from socket import gethostname

import pytest

from inscp.errors import Stopped, UserError
from inscp.experiment.parent import ParentRun
from inscp.experiment.processes import Commands
from inscp.tracking.mlflow_run import store_client
from inscp.tracking.tracked_run import Tracking


def is_free(file: Path) -> bool:
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_command_that_outlives_its_study_keeps_the_place_locked(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with Commands().locked(file) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    assert not is_free(file)
    child.kill()
    child.wait()
    assert is_free(file)


def test_waiting_for_another_process_is_reported_and_can_be_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands, file = Commands(), tmp_path / "lock"
    with Commands().locked(file), commands.listening():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Stopped) as stopped, commands.locked(file):
            raise AssertionError
    assert stopped.value.status == Stopped.RESTART
    assert capsys.readouterr().err.count(f"process {os.getpid()} on {gethostname()}, or a command started by it") == 1


def test_where_files_cannot_be_locked_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:  # as Lustre does without its option `flock`
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = pytest.raises(UserError, match=r"lock: its file system does not support locks \(Function not implemented\)")
    with told, Commands().locked(tmp_path / "lock"):
        raise AssertionError


def test_variables_for_keys_of_a_training_reach_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given"
    (tmp_path / "python").write_text(f"#!/usr/bin/env bash\nenv > {given}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("INSCP_FIT__MODEL__EMA_DECAY", "0.9")
    monkeypatch.setenv("INSCP_CACHE", "kept")
    with Commands().locked(tmp_path / "lock") as lock:
        assert Commands().run("fit", {}, tmp_path, lock) is None
    assert "INSCP_CACHE=kept" in given.read_text()
    assert "EMA_DECAY" not in given.read_text()


def test_a_server_that_is_down_is_reported_and_stops_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started = time.monotonic()
    parent = ParentRun(Tracking(tracking_uri="http://127.0.0.1:9"), "study", "?")
    parent.begin()
    parent.keep(tmp_path, "report")
    parent.end("FINISHED")
    assert parent.run_id is None
    assert "does not accept the study's run" in capsys.readouterr().err
    assert time.monotonic() - started < 60


def test_nothing_is_opened_where_nothing_is_tracked(tmp_path: Path) -> None:
    parent = ParentRun(Tracking(tracking_uri=f"sqlite:///{tmp_path}/store.db", enabled=False), "study", "?")
    parent.begin()
    parent.end("FINISHED")
    assert not list(tmp_path.iterdir())


def test_a_report_ends_the_run_of_a_study_that_nobody_runs_and_no_other(tmp_path: Path) -> None:
    tracking = Tracking(tracking_uri=f"sqlite:///{tmp_path}/store.db")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "report.md").write_text("so")
    client = store_client(tracking.uri)

    def reported(name: str) -> str:
        parent = ParentRun(tracking, name, "?")
        parent.keep(tmp_path / "page", "report")
        return str(client.get_run(parent.run_id).info.status)

    assert reported("alone") == "FINISHED"
    assert reported("alone") == "FINISHED"  # a second report finds it, and it does not go on
    ParentRun(tracking, "running", "?").begin()
    assert reported("running") == "RUNNING"
