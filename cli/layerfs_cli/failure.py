"""From exceptions to one line, a hint and an exit code. The one table of exit codes; the library's errors carry theirs.

====  ==========================================  ====  ==============================================
code  meaning                                     code  meaning
====  ==========================================  ====  ==============================================
0     done                                        6     conflict: exists, in use, ambiguous
1     other error; ``check`` found problems       7     the store is unusable
2     usage, bad reference                        8     mount or unmount failed, no backend
3     not found                                   129   the terminal went away (SIGHUP)
4     content is not what its digest promises     130   interrupted from the keyboard
5     a registry refused, or cannot be reached    141   the reader of standard output went away
                                                  143   told to end (SIGTERM)
====  ==========================================  ====  ==============================================
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from typing import Final

import click

from layerfs.errors import LayerfsError
from layerfs_cli.output import flush
from layerfs_cli.text import printable

__all__ = ["Terminated", "exit_code", "report", "say"]

_NOT_FOUND: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_INTERRUPTED: Final = 130
_BROKEN_PIPE: Final = 141


class Terminated(BaseException):
    """A signal asked the program to end; the exit code is 128 and its number."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(number)
        self.number = number


def exit_code(error: BaseException) -> int:
    """Return the exit code that an exception means."""
    if isinstance(error, LayerfsError):
        return error.exit_code
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _INTERRUPTED
    if isinstance(error, Terminated):
        return 128 + error.number
    if isinstance(error, BrokenPipeError):
        return _BROKEN_PIPE
    if isinstance(error, OSError):
        return 3 if error.errno in _NOT_FOUND else 1
    return 7 if _is_database_error(error) else 1


def report(error: BaseException, *, debug: bool, name: str | None = None) -> int:
    """Say on standard error what went wrong, and return the exit code.

    Args:
        error: any exception.
        debug: whether to add the traceback.
        name: what it happened with, said before a message that does not; None where there is only one.
    """
    code = exit_code(error)
    try:
        flush()
    except OSError:
        _silence_stdout()
    if code == _BROKEN_PIPE:
        return code
    message, hint = _describe(error)
    if debug and not isinstance(error, click.ClickException):
        import traceback

        with contextlib.suppress(OSError):  # a standard error that takes nothing, as in say
            traceback.print_exception(error)
    if message:
        say(f"layerfs: error: {f'{name}: ' if name and name not in message else ''}{message}")
    if hint:
        say(f"layerfs: hint: {hint}")
    return code


def _describe(error: BaseException) -> tuple[str, str | None]:
    if isinstance(error, LayerfsError):
        return str(error), error.hint
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "layerfs"
        return _one_sentence(error.format_message()), f"See: {path} --help"
    if isinstance(error, click.ClickException):
        return _one_sentence(error.format_message()), None
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", None
    if isinstance(error, Terminated):
        return f"ended by {signal.Signals(error.number).name}", None
    if isinstance(error, MemoryError):
        return "out of memory", None
    if isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return ": ".join([*names, error.strerror or str(error)]), None
    if _is_database_error(error):
        return f"the store's database: {error}", "Run: layerfs check"
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"bug in layerfs: {what}", "Please report it with what --debug adds."


def _one_sentence(message: str) -> str:
    """Return click's message in the form of ours: one line, lower case, no full stop."""
    line = " ".join(message.split()).removesuffix(".")
    return line[:1].lower() + line[1:]


def _is_database_error(error: BaseException) -> bool:
    """Whether SQLite raised it, without importing SQLite to ask."""
    return any(base.__module__ == "sqlite3" and base.__name__ == "Error" for base in type(error).__mro__)


def say(line: str) -> None:
    """Write a line to standard error, without what could move a terminal's cursor; or not, if it takes nothing."""
    with contextlib.suppress(OSError):  # nobody is there to be told
        click.echo(printable(line), err=True)


def _silence_stdout() -> None:
    """Let the interpreter flush what is left to nowhere: it would complain at its end."""
    if sys.stdout is None:
        return
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
