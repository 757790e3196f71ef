"""Concurrency for trio: functions that run the blocking parts of transfers in threads.

:class:`layerfs.api.AsyncStore` awaits them; :class:`layerfs.api.Store` runs them through :func:`run_blocking`, but for
the pull, which cannot wait for trio to be imported; see :mod:`layerfs.api.together`. This is the one place that starts
an event loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from layerfs.api.base import refuse_inside_trio
from layerfs.api.together import first_failure
from layerfs.formats.digest import Digest
from layerfs.registry.http import HttpClient
from layerfs.registry.pull import Pull, Stopped
from layerfs.registry.push import Push
from layerfs.store.image import ImageRecord

__all__ = ["each", "in_thread", "pull_layers", "push_layers", "run_blocking"]

T = TypeVar("T")
R = TypeVar("R")

#: Seconds between two polls of a caller that waits for its event loop.
_POLL = 0.1


async def pull_layers(pull: Pull, http: HttpClient, jobs: int) -> list[ImageRecord]:
    """Receive and lay down the layers of a pull, and make its images.

    Args:
        pull: what is wanted.
        http: its connections; they are cut when the pull is cancelled or fails.
        jobs: layers received at a time.

    Raises:
        LayerfsError, OSError: the first thing that went wrong; see :meth:`Pull.lay_down`.
    """
    # Threads beside the receiving ones: one lays down. They must not wait for each other's turn.
    threads = trio.CapacityLimiter(jobs + 1)
    records: list[ImageRecord] = []

    async def receive() -> None:
        await trio.to_thread.run_sync(pull.receive, limiter=threads)

    async def lay_down() -> None:
        records.extend(await trio.to_thread.run_sync(pull.lay_down, limiter=threads))

    def stop() -> None:
        pull.stop()
        http.abort()

    await _together([lay_down, *[receive] * min(jobs, len(pull.wanted))], stop)
    return records


async def push_layers(push: Push, http: HttpClient, jobs: int, tag: str) -> Digest:
    """See to it that a registry has all layers of an image, then put the image; return its manifest's digest.

    Args:
        push: what is pushed, and where to.
        http: its connections; they are cut when the push is cancelled or fails.
        jobs: layers sent at a time.
        tag: what to call the image.

    Raises:
        LayerfsError, OSError: the first thing that went wrong; see :meth:`Push.put_layer`.
    """

    def stop() -> None:
        push.stop()
        http.abort()

    found = await each(push.put_layer, push.layers, jobs, stop)
    layers = {str(layer.blob.digest): blob for layer, blob in zip(push.layers, found, strict=True)}
    return await in_thread(lambda: push.put_image(layers, tag), stop)


async def each(work: Callable[[T], R], items: Sequence[T], jobs: int, stop: Callable[[], None]) -> list[R]:
    """Do the same blocking work for several items, so many at a time; return the results in the items' order.

    Args:
        work: what to do, in a thread.
        items: for what.
        jobs: how many at a time.
        stop: called when it is cancelled or fails: makes the running ones end soon.

    Raises:
        LayerfsError, OSError: the first thing that went wrong.
    """
    results: dict[int, R] = {}
    todo = deque(enumerate(items))
    threads = trio.CapacityLimiter(max(1, jobs))

    async def worker() -> None:
        while todo:
            position, item = todo.popleft()
            results[position] = await trio.to_thread.run_sync(work, item, limiter=threads)

    await _together([worker] * max(1, min(jobs, len(items))), stop)
    return [results[position] for position in range(len(items))]


async def in_thread(work: Callable[[], R], stop: Callable[[], None]) -> R:
    """Do blocking work in a thread; ``stop`` makes it end soon when it is cancelled."""
    return (await each(lambda _: work(), [None], 1, stop))[0]


async def _together(tasks: Sequence[Callable[[], Awaitable[None]]], stop: Callable[[], None]) -> None:
    """Run tasks at the same time until all are done or one fails; then the first error counts, others are notes."""
    done = False

    async def guard() -> None:
        # A thread does not notice that its task is cancelled: this task does, and tells it.
        try:
            await trio.sleep_forever()
        finally:
            if not done:
                stop()

    failures: list[BaseException] = []

    async def guarded(task: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await task()
        except Exception as error:  # noqa: BLE001 - raised again below
            # Whoever stopped it is about to say why, and has not yet.
            if not isinstance(error, Stopped):
                failures.append(error)
                scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guard)
        async with trio.open_nursery() as inner:
            for task in tasks:
                inner.start_soon(guarded, task, nursery.cancel_scope)
        done = True
        nursery.cancel_scope.cancel()
    if failures:
        raise first_failure(failures)


def run_blocking(function: Callable[[], Awaitable[T]], check: Callable[[], None] | None = None) -> T:
    """Run a trio function from code that blocks, in a thread with an event loop of its own.

    So a signal that the caller's thread turns into an exception cancels it like anything that ``check`` raises.

    Args:
        function: what to run.
        check: polled while it runs; what it raises cancels it.

    Raises:
        LayerfsError: this is called inside a trio task, which must not block.
    """
    refuse_inside_trio()
    finished = threading.Event()
    started = threading.Event()
    results: list[T] = []
    failures: list[BaseException] = []
    scope = trio.CancelScope()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        started.set()
        with scope:
            results.append(await function())

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            failures.append(error)
        finally:
            started.set()
            finished.set()

    thread = threading.Thread(target=run, name="layerfs-trio", daemon=True)
    thread.start()
    try:
        while not finished.wait(_POLL):
            if check is not None:
                check()
    except BaseException:
        started.wait()
        if tokens:
            try:
                tokens[0].run_sync_soon(scope.cancel)
            except trio.RunFinishedError:
                finished.set()
        finished.wait()
        thread.join()
        raise
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
