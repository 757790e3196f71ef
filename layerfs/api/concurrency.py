"""Concurrency for trio: functions that run the blocking parts of transfers in threads.

:class:`layerfs.api.AsyncStore` awaits them; what :class:`layerfs.api.Store` does is :mod:`layerfs.api.together`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from layerfs.api.together import first_failure
from layerfs.formats.digest import Digest
from layerfs.registry.http import HttpClient
from layerfs.registry.pull import Pull
from layerfs.registry.push import Push
from layerfs.registry.watch import Stopped
from layerfs.store.image import ImageRecord

__all__ = ["each", "in_thread", "pull_layers", "push_layers"]

T = TypeVar("T")
R = TypeVar("R")


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
