"""pyfuse3's loop, made to look for the next request before it goes to sleep.

Between any two requests pyfuse3 waits in trio for the descriptor to become readable, and that costs more than a
request. It finds trio under that name in its own namespace, as its support of asyncio does: here the name means an
object that first polls the descriptor itself, for a while in which the next request of a busy client arrives, and waits
in trio only after that. One worker serves all requests one after the other, so the lock between workers does nothing.
"""

from __future__ import annotations

import select
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any

import pyfuse3
import trio

__all__ = ["run"]

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


async def run(ready: Callable[[], None], beside: Callable[..., Awaitable[None]]) -> None:
    """Serve requests until the file system is unmounted.

    Args:
        ready: called when the kernel's first request is answered; the mount works from then on.
        beside: a task that runs meanwhile, and is cancelled at the end; nothing is served before it says that it has
            started (``task_status`` of :meth:`trio.Nursery.start`).
    """
    pyfuse3.trio = _Trio(ready)  # type: ignore[attr-defined]
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(beside)
            await pyfuse3.main(min_tasks=1, max_tasks=1)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.trio = trio  # type: ignore[attr-defined]
