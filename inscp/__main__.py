"""`python -m inscp COMMAND`: the commands and how they end. Nothing heavy is imported before a command is chosen."""

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
    """Run a command; returns the exit status.

    0 done; 2 the user's input is wrong; 75 interrupted, the same command goes on; 130 Ctrl-C; 141 nobody reads on what
    it prints (`| head`); 1 anything else.
    """
    try:
        status = _main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
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
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars, of which a log file would keep every step
    # What LightningCLI parses, and what Lightning starts other ranks with.
    sys.argv = [sys.argv[0], *arguments]
    try:
        return _run(arguments[0], arguments[1:])
    except (UserError, RunError) as error:
        if os.environ.get("INSCP_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:  # a file that may not be read or written, a full disk
        is_of_disk = error.filename is not None or error.errno in _FULL
        if os.environ.get("INSCP_DEBUG") or not is_of_disk:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""  # a write does not say where
        print(f"error: {where}{error.strerror}. Check the path, its permissions and the disk.", file=sys.stderr)
        return 2 if isinstance(error, _WRONG_PATHS) else 1
    except Stopped as stopped:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending; a second Ctrl-C would only change the status
        if str(stopped):  # one rank tells it for all
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
        with _module("inscp.commands.parser_errors").known_files(arguments):  # before seconds of a command's imports
            _module(f"inscp.commands.{_MODULES.get(command, command)}").run(command, arguments)
    except ValueError as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, UserError):  # jsonargparse hides it where a key has several types
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        fix = "Lower the batch size or row length, or use more devices; `doctor` estimates what a run needs."
        raise RunError(f"the device ran out of memory ({first_line(error).rstrip('.')}). {fix}") from error
    return 0


@cache
def _module(name: str) -> ModuleType:
    """Import a command's module without the garbage collector, here or later, looking through half a million objects
    that stay; it took a second and more, and as much at the end."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
