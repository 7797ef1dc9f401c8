"""`python -m inscp COMMAND`: dispatch and exit statuses. Heavy imports wait until a command is chosen."""

import errno
import gc
import importlib
import os
import signal
import sys
from difflib import get_close_matches
from functools import cache
from types import ModuleType

from inscp import __version__
from inscp.commands import COMMANDS
from inscp.errors import RunError, Stopped, UserError, first_line

_MODULES = {"validate": "fit", "test": "fit"}

USAGE = """usage: python -m inscp COMMAND [options]

Teach a chat model a language without losing its alignment (InstructionCP, arXiv 2405.20175).

commands:
{commands}

  python -m inscp COMMAND --help   show the options of a command
  python -m inscp fit --config configs/quickstart.yaml
options: --version, --debug (show the traceback of an error)
"""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_WRONG_PATHS = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 success; 2 invalid user input; 75 interrupted, rerun the same command to resume; 130 Ctrl-C; 141 the reader of
    stdout has gone (`| head`); 1 any other error.
    """
    try:
        status = _main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again at exit
        return 128 + signal.SIGPIPE


def _main(arguments: list[str]) -> int:
    if "--debug" in arguments:
        os.environ["INSCP_DEBUG"] = "1"
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())), end="")
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars would write every step to a log file
    # LightningCLI parses it, and Lightning launches other ranks with it.
    sys.argv = [sys.argv[0], *arguments]
    try:
        return _run(arguments[0], arguments[1:])
    except (UserError, RunError) as error:
        if os.environ.get("INSCP_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:  # a file without permission, a full disk
        is_file_error = error.filename is not None or error.errno in _FULL
        if os.environ.get("INSCP_DEBUG") or not is_file_error:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""  # a failed write names no file
        print(f"error: {where}{error.strerror}. Check the path, its permissions and the disk.", file=sys.stderr)
        return 2 if isinstance(error, _WRONG_PATHS) else 1
    except Stopped as stopped:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would now only change the exit status
        if str(stopped):  # one rank prints it for all
            print(stopped, file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _run(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=1)
        fix = f"Did you mean {near[0]}?" if near else f"Give one of: {', '.join(COMMANDS)}."
        raise UserError(command, "no such command", fix)
    try:
        with _module("inscp.commands.parser_errors").known_files(arguments):  # before the command's slow imports
            _module(f"inscp.commands.{_MODULES.get(command, command)}").run(command, arguments)
    except ValueError as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, UserError):  # jsonargparse wraps it where a key accepts several types
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's class, without importing torch
            raise
        fix = "Lower the batch size or row length, or use more devices; `doctor` estimates what a run needs."
        raise RunError(f"the device ran out of memory ({first_line(error).rstrip('.')}). {fix}") from error
    return 0


@cache
def _module(name: str) -> ModuleType:
    """Import a command's module with the garbage collector off, and exclude the half a million imported objects from
    later collections: scanning them took more than a second, and as long again at exit."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
