"""Blocking functions side by side, in threads, for callers that block: a pull from a program without an event loop.

What :mod:`layerfs.api.concurrency` does for trio, without trio: to import it takes a tenth of a second, in which a pull
has its first layers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from layerfs.errors import Unreachable
from layerfs.registry.pull import Stopped

__all__ = ["first_failure", "run_together"]

#: Seconds between two polls of a caller that waits for its threads.
_POLL = 0.1


def run_together(
    tasks: Sequence[Callable[[], None]], stop: Callable[[], None], check: Callable[[], None] | None = None
) -> None:
    """Run functions at the same time, each in a thread, until all are done or one fails.

    A signal that the caller's thread turns into an exception ends them like anything that ``check`` raises.

    Args:
        tasks: what to run.
        stop: called when one fails, or the caller does: makes the others end soon, with :class:`Stopped` or otherwise.
        check: polled while they run; what it raises ends them.

    Raises:
        LayerfsError, OSError: the first thing that went wrong; others are notes.

    Blocking: until all have ended.
    """
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            ended.put(error)
        else:
            ended.put(None)

    threads = [threading.Thread(target=run, args=(task,), name="layerfs-task", daemon=True) for task in tasks]
    failures: list[BaseException] = []
    running = len(threads)
    try:
        for thread in threads:
            thread.start()
        while running:
            try:
                error = ended.get(timeout=_POLL)
            except queue.Empty:
                if check is not None:
                    check()
                continue
            running -= 1
            if error is not None:
                failures.append(error)
            # Not for one that was stopped itself: whoever did that is about to say why, and has not yet.
            if error is not None and not isinstance(error, Stopped):
                stop()
    except BaseException:
        stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise
    if failures:
        raise first_failure([error for error in failures if not isinstance(error, Stopped)] or failures)


def first_failure(failures: Sequence[BaseException]) -> BaseException:
    """Return the first of some errors, with the others as notes, but for connections that were cut because of it."""
    first, *others = failures
    for other in others:
        if str(other) != str(first) and not isinstance(other, Unreachable):
            first.add_note(f"also: {other}")
    return first
