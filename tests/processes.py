"""Commands in processes of their own, without the seconds that each would import for.

A server that has imported what the commands import is forked for each of them. The fork is a process like any other,
with its own memory, environment, group, signals and exit status; what it does not show is how a bare interpreter
starts. It shares the server's hash seed with its siblings, unlike the ranks that Lightning starts by itself.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What the commands import once they know what they have to do.
LATER = (
    "transformers.models.llama.modeling_llama",
    "mlflow.store.tracking.sqlalchemy_store",
    "git",  # by MLflow
    "codecarbon",
    "langcodes",
)


class Command:
    """`python -m inscp ARGUMENTS` in a process and a process group of its own.

    Args:
        arguments: the command and its options.
        cwd: the folder that it runs in.
        stdin: what it reads there.
        environment: changes to this process's.
    """

    def __init__(self, *arguments: object, cwd: Path, stdin: str = "", **environment: str) -> None:
        self._streams = Path(tempfile.mkdtemp(dir=cwd.parent))
        (self._streams / "0").write_text(stdin, "utf-8")
        self.returncode: int | None = None
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        self.pid = _ask({"arguments": list(map(str, arguments)), "cwd": str(cwd), "streams": str(self._streams),
                         "environment": environment})  # fmt: skip

    def poll(self) -> int | None:
        """The exit status, or None while it runs; a signal's number below zero where one killed it."""
        if self.returncode is None:
            self.returncode = _ask({"pid": self.pid})
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """The exit status; a command that takes longer is killed."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(self.stderr[-4000:])
            time.sleep(0.005)
        return status

    def until(self, happens: Callable[[], object], timeout: float = 240) -> None:
        """Wait until something is so, before which the command may not end."""
        end = time.monotonic() + timeout
        while not happens():
            assert self.poll() is None, self.stderr[-4000:]
            assert time.monotonic() < end, self.stderr[-4000:]
            time.sleep(0.001)

    def kill(self) -> None:
        """kill -9 of its whole process group."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self._streams / "1").read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What it has complained so far."""
        return (self._streams / "2").read_text("utf-8", "replace")


def run(*arguments: object, cwd: Path, status: int = 0, stdin: str = "", **environment: str) -> Command:
    """Run a command to its end and see its exit status."""
    done = Command(*arguments, cwd=cwd, stdin=stdin, **environment)
    assert done.wait() == status, done.stderr[-4000:]
    return done


@cache
def _server() -> subprocess.Popen[str]:
    """The server; it ends when its input does, at the latest with this process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([sys.executable, __file__], env=environment, text=True, start_new_session=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    atexit.register(server.communicate)
    return server


def _ask(request: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps(request), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


def _serve() -> dict[str, Any]:
    """Answer requests; in the fork that is to be a command, return what was asked of it."""
    import inscp

    for module in pkgutil.walk_packages(inscp.__path__, "inscp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LATER:
        importlib.import_module(name)
    gc.freeze()
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return request
            os.setpgid(answer, answer)
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.killpg(pid, signal.SIGKILL)
    sys.exit()


def _become(request: dict[str, Any]) -> None:
    """Be `python -m inscp` in this process."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:1] = [request["cwd"], *os.environ["PYTHONPATH"].split(os.pathsep)]
    for number in range(3):
        file = os.open(f"{request['streams']}/{number}", os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.argv[1:] = request["arguments"]
    runpy.run_module("inscp", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _become(_serve())
