"""Entry point of the program ``layerfs``. Signals become exceptions here, so that every verb cleans up."""

from __future__ import annotations

import gc
import signal
import sys
from types import FrameType
from typing import NoReturn

__all__ = ["main"]


#: Seconds after which a thread that computes in Python lets another one go on. A load has two: with the usual 5 ms, the
#: one that inflates waits that long, several times per mebibyte, while the other writes a tree (1 GB of layers: 2.7 s
#: instead of 3.1, medians, A B A B). It belongs to the whole process, so the program sets it and not the library.
_SWITCH_INTERVAL = 0.0005


#: Objects made since the last collection of reference cycles before there is another. A load makes hundreds of
#: thousands of tree nodes and no cycles: with the usual 700 an eighth of its Python time goes into looking for some.
_CYCLE_THRESHOLD = 100_000


def main() -> NoReturn:
    """Run the command line and leave with its exit code; see :mod:`layerfs_cli.failure` for the codes."""
    # While there is nothing to clean up, an interrupt ends the program at once and without a traceback.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from layerfs_cli.program import program

    signal.signal(signal.SIGINT, interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Started by nohup or a service that ignores it, it stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    gc.set_threshold(_CYCLE_THRESHOLD, 20, 100)
    try:
        program.main(prog_name="layerfs")
    finally:
        _flush_errors()
        # Python looks for cycles once more when it ends, in a process whose memory goes back as a whole.
        gc.freeze()
    raise SystemExit(0)


def _flush_errors() -> None:
    """Give up what standard error does not take: as of 3.12 Python itself would try again, fail and leave with 120."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        sys.stderr = None


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    # A second one shall end what the first one's cleaning up hangs in.
    from layerfs_cli.failure import Terminated

    signal.signal(number, signal.SIG_DFL)
    raise Terminated(number)
