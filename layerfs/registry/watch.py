"""Deadlines that hold, and operations that can be ended from outside.

A server can keep a connection busy for ever with a byte now and then, which no time-out of a socket notices. So every
operation has a deadline, and a thread cuts the connections of those that pass theirs. The same cut is what ends blocked
operations when a transfer is cancelled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Cut", "Cuttable", "Operation", "Stopped", "Watch"]


class Stopped(Exception):
    """A transfer was stopped by whoever started it, who knows why."""


class Cut(Exception):
    """An operation was ended from outside: because it passed its deadline (``expired``), or with everything else."""

    def __init__(self, message: str, *, expired: bool) -> None:
        """Keep the reason."""
        super().__init__(message)
        self.expired = expired


class Cuttable(Protocol):
    """A connection."""

    def cut(self) -> None:
        """End whatever waits for it, from any thread."""


class Operation:
    """What one thread is waiting for: the connection as soon as there is one, and until when."""

    __slots__ = ("connection", "deadline", "expired")

    def __init__(self, deadline: float, connection: Cuttable | None) -> None:
        """Start waiting."""
        self.connection = connection
        self.deadline = deadline
        self.expired = False


class Watch:
    """Watches all operations of one client. Thread-safe.

    Attributes:
        aborted: whether everything has been given up.
    """

    def __init__(self, timeout: float) -> None:
        """Prepare; the thread starts with the first operation.

        Args:
            timeout: seconds that operations usually have, which says how often to look.
        """
        self.aborted = False
        self._pause = min(1.0, timeout / 4)
        #: By thread, the innermost last: a body that is sent may come from another registry.
        self._operations: dict[int, list[Operation]] = {}
        self._connections: set[Cuttable] = set()
        self._wake = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def operation(self, seconds: float, connection: Cuttable | None = None) -> Iterator[Operation]:
        """Give the block, in this thread, so many seconds; its connection is cut when they are over.

        Raises:
            Cut: it took longer, whether the block then raised or not.
        """
        operation = Operation(time.monotonic() + seconds, connection)
        thread = threading.get_ident()
        with self._wake:
            if self.aborted:
                raise Cut("given up", expired=False)
            self._operations.setdefault(thread, []).append(operation)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="layerfs-watch", daemon=True)
                self._thread.start()
        try:
            yield operation
        except Exception:
            if not operation.expired:
                raise
        finally:
            with self._wake:
                operations = self._operations[thread]
                operations.pop()
                if operations:
                    # What waited for this one had no time of its own meanwhile.
                    operations[-1].deadline = max(operations[-1].deadline, time.monotonic() + seconds)
                else:
                    del self._operations[thread]
        # The end of a connection may look like the end of a header or body.
        if operation.expired:
            raise Cut(f"no answer within {seconds:g} s", expired=True)

    def extending(self, pieces: Iterator[bytes], seconds: float) -> Iterator[bytes]:
        """Yield a body's pieces, each of which gives this thread's operation ``seconds`` from then on."""
        thread = threading.get_ident()
        for piece in pieces:
            self._operations[thread][-1].deadline = time.monotonic() + seconds
            yield piece

    def opened(self, connection: Cuttable) -> None:
        """Take note of a new connection, which this thread's operation uses."""
        with self._wake:
            self._connections.add(connection)
        self.used(connection)
        if self.aborted:
            connection.cut()

    def used(self, connection: Cuttable) -> None:
        """Take note that this thread's operation uses a connection."""
        operations = self._operations.get(threading.get_ident())
        if operations:
            operations[-1].connection = connection

    def gone(self, connection: Cuttable) -> None:
        """Forget a connection."""
        with self._wake:
            self._connections.discard(connection)

    def abort(self) -> None:
        """Cut all connections, and refuse further operations."""
        self.aborted = True
        with self._wake:
            connections = list(self._connections)
        for connection in connections:
            connection.cut()

    def close(self) -> None:
        """Abort, and end the thread."""
        self.abort()
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with self._wake:
            while not self._closed:
                now = time.monotonic()
                for operations in self._operations.values():
                    operation = operations[-1]
                    if operation.deadline <= now and not operation.expired and operation.connection is not None:
                        operation.expired = True
                        operation.connection.cut()
                self._wake.wait(self._pause)
