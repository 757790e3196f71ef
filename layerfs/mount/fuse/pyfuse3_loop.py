"""pyfuse3's loop, made to look for the next request before it goes to sleep.

Between any two requests pyfuse3 waits in trio for the descriptor to become readable, and that costs more than a
request. It finds trio under that name in its own namespace, as its support of asyncio does: here the name means an
object that first polls the descriptor itself, for a while in which the next request of a busy client arrives, and waits
in trio only after that. One worker serves all requests one after the other, so the lock between workers does nothing.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any

import pyfuse3
import trio

from layerfs.mount.fuse.pyfuse3_operations import UnionOperations
from layerfs.mount.fuse.specification import FuseSpecification
from layerfs.union.union import Union

__all__ = ["serve_through_pyfuse3"]

#: Milliseconds of polling before the loop sleeps in trio.
_POLL = 2
#: Requests after which other tasks get their turn, however busy the client is.
_TURN = 512


class _Done:
    """What can be awaited and has no more to do; one for all, where a coroutine each time costs more than the rest."""

    def __await__(self) -> Generator[Any, Any, None]:
        return _nothing()  # type: ignore[no-any-return]


_DONE = _Done()
_nothing: Any = ().__iter__


class _NoLock:
    """A lock for a single worker."""

    def __aenter__(self) -> _Done:
        return _DONE

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> _Done:
        return _DONE


class _Polling:
    """What pyfuse3 takes for ``trio.lowlevel``."""

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    def wait_readable(self, fd: int) -> Awaitable[None]:
        """Wait for a request."""
        if self._poll is None:
            waiter = select.poll()
            waiter.register(fd, select.POLLIN)
            self._poll = waiter.poll
        self._count += 1
        if self._count == 2:
            self._ready()
        if self._count % _TURN and self._poll(_POLL):
            return _DONE
        return trio.lowlevel.wait_readable(fd)  # noqa: ASYNC105 - pyfuse3 awaits what it gets


class _Trio:
    """What pyfuse3 takes for trio."""

    Lock = _NoLock

    def __init__(self, ready: Callable[[], None]) -> None:
        self.lowlevel = _Polling(ready)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def serve_through_pyfuse3(
    device: int, union: Union, wanted: FuseSpecification, started: Callable[[], None], detach: Callable[[], bool]
) -> None:
    """Serve until the file system is unmounted.

    Args:
        device: descriptor of /dev/fuse that was given to the mount; it is closed at the end.
        union: what is served.
        wanted: how.
        started: called when the kernel's first request is answered; the mount works from then on.
        detach: takes the mount out of the tree, and says whether it could.
    """
    operations = UnionOperations(union, timeout=wanted.timeout, acl=wanted.acl)
    try:
        pyfuse3.init(operations, f"/dev/fd/{device}", set())
    except RuntimeError as error:
        os.close(device)
        raise OSError(errno.EPERM, f"libfuse refused the mount: {error}") from None
    except BaseException:
        os.close(device)
        raise
    try:
        trio.run(_run, started, detach)
    finally:
        pyfuse3.close(unmount=False)


async def _run(ready: Callable[[], None], detach: Callable[[], bool]) -> None:
    """Serve, and wait for signals."""
    pyfuse3.trio = _Trio(ready)  # type: ignore[attr-defined]
    try:
        async with trio.open_nursery() as nursery:
            # Nothing is served before signals are waited for.
            await nursery.start(_wait_for_signal, detach)
            await pyfuse3.main(min_tasks=1, max_tasks=1)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.trio = trio  # type: ignore[attr-defined]


async def _wait_for_signal(
    detach: Callable[[], bool], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Detach the mount at the first signal, end at the second."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        detached = False
        async for _ in signals:
            # In a thread: taking it away may make the kernel write, which this process has to serve.
            if detached or not await trio.to_thread.run_sync(detach):
                pyfuse3.terminate()
                return
            detached = True
