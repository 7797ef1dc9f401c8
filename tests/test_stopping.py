"""A signal ends a command in order, wherever it comes."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inscp.commands.parser import call
from inscp.errors import Stopped
from inscp.paths import atomic_folder
from inscp.signals import stopping_well


class Asked:
    """Asks this process to stop while it is deleted, where Python drops what is raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def stopped_in(work: Callable[[], object]) -> None:
    with stopping_well():
        work()
        time.sleep(30)


def test_a_signal_that_comes_while_an_object_is_deleted_is_not_lost() -> None:
    begin = time.monotonic()
    with pytest.raises(Stopped, match="SIGTERM: stopped"):
        stopped_in(Asked)
    assert time.monotonic() - begin < 15


def test_a_signal_is_nobodys_error() -> None:
    def mended() -> None:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(30)
        except Exception:  # as there is around a chat template
            pytest.fail("it was taken for an error")

    with pytest.raises(Stopped):
        stopped_in(mended)


def test_a_command_that_is_stopped_leaves_no_half_of_a_folder(tmp_path: Path) -> None:
    def make(out: str) -> None:
        with atomic_folder(Path(out)) as partial:
            (partial / "weights").write_bytes(b"half of them")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    with pytest.raises(Stopped):
        call("make", make, ["--out", str(tmp_path / "model")])
    assert not list(tmp_path.iterdir())


def test_what_handled_signals_before_does_so_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stopping_well():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before
