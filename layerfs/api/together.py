"""The blocking parts of transfers side by side, in threads, for callers that block.

What :mod:`layerfs.api.concurrency` does for trio, without trio: to import it takes a tenth of a second, in which a pull
has its first layers.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from layerfs.errors import Unreachable
from layerfs.formats.digest import Digest
from layerfs.registry.http import HttpClient
from layerfs.registry.pull import Pull
from layerfs.registry.push import Push
from layerfs.registry.watch import Stopped
from layerfs.store.image import ImageRecord

__all__ = ["each", "first_failure", "pull_layers", "push_layers", "run_together"]

T = TypeVar("T")
R = TypeVar("R")

#: Seconds between two polls of a caller that waits for its threads.
_POLL = 0.1


def pull_layers(pull: Pull, http: HttpClient, jobs: int, check: Callable[[], None] | None = None) -> list[ImageRecord]:
    """Receive and lay down the layers of a pull, and make its images.

    Args:
        pull: what is wanted.
        http: its connections; they are cut when the pull fails or is given up.
        jobs: layers received at a time.
        check: polled meanwhile; what it raises ends the pull.

    Raises:
        LayerfsError, OSError: the first thing that went wrong; see :meth:`Pull.lay_down`.
    """
    records: list[ImageRecord] = []

    def lay_down() -> None:
        records.extend(pull.lay_down())

    run_together([lay_down, *[pull.receive] * min(jobs, len(pull.wanted))], _stopping(pull, http), check)
    return records


def push_layers(push: Push, http: HttpClient, jobs: int, tag: str, check: Callable[[], None] | None = None) -> Digest:
    """See to it that a registry has all layers of an image, then put the image; return its manifest's digest.

    Args:
        push: what is pushed, and where to.
        http: its connections; they are cut when the push fails or is given up.
        jobs: layers sent at a time.
        tag: what to call the image.
        check: polled meanwhile; what it raises ends the push.

    Raises:
        LayerfsError, OSError: the first thing that went wrong; see :meth:`Push.put_layer`.
    """
    stop = _stopping(push, http)
    found = each(push.put_layer, push.layers, jobs, stop, check)
    layers = {str(layer.blob.digest): blob for layer, blob in zip(push.layers, found, strict=True)}
    return each(lambda name: push.put_image(layers, name), [tag], 1, stop, check)[0]


def each(
    work: Callable[[T], R],
    items: Sequence[T],
    jobs: int,
    stop: Callable[[], None],
    check: Callable[[], None] | None = None,
) -> list[R]:
    """Do the same for several items, so many at a time; return the results in the items' order.

    Args:
        work: what to do, in a thread.
        items: for what.
        jobs: how many at a time.
        stop: called when one fails, or the caller does: makes the running ones end soon. No others are begun.
        check: as for :func:`run_together`.

    Raises:
        LayerfsError, OSError: the first thing that went wrong; others are notes.
    """
    results: dict[int, R] = {}
    todo = deque(enumerate(items))

    def worker() -> None:
        while True:
            try:
                position, item = todo.popleft()
            except IndexError:
                return
            results[position] = work(item)

    def stop_all() -> None:
        todo.clear()
        stop()

    run_together([worker] * min(max(1, jobs), len(items)), stop_all, check)
    return [results[position] for position in range(len(items))]


def _stopping(transfer: Pull | Push, http: HttpClient) -> Callable[[], None]:
    """Return what makes all threads of a transfer end soon."""

    def stop() -> None:
        transfer.stop()
        http.abort()

    return stop


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
