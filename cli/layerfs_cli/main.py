"""Entry point of the program ``layerfs``. Signals become exceptions here, so that every verb cleans up."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

from layerfs_cli.failure import Terminated
from layerfs_cli.program import program

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and leave with its exit code; see :mod:`layerfs_cli.failure` for the codes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Started by nohup or a service that ignores it, it stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    program.main(prog_name="layerfs")
    raise SystemExit(0)


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    # A second one shall end what the first one's cleaning up hangs in.
    signal.signal(number, signal.SIG_DFL)
    raise Terminated(number)
