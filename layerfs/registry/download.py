"""Receives one blob, as often interrupted as it may be, while something else already reads it.

The receiving thread runs :meth:`Download.run`, which appends to the blob's part on disk; the reading one takes the
bytes from there as they come, through :meth:`Download.read`. So a layer is indexed while it arrives, receiving never
waits for indexing, memory does not depend on either, and what was received survives the process. Where the disk has no
room for a part, bytes pass through memory instead, a few at a time.

Nothing is verified here but sizes. The reader digests all bytes, those from an earlier run included.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from layerfs.errors import IntegrityError, NotFound, RegistryError, Unreachable
from layerfs.formats.digest import Digest, new_hash
from layerfs.formats.oci import Descriptor
from layerfs.registry.access import Access
from layerfs.registry.http import PIECE, HttpResponse
from layerfs.registry.repository import Repository
from layerfs.registry.retry import Backoff
from layerfs.store.part import Part

__all__ = ["Download", "Receiver"]

#: Bytes after which a connection that breaks counts as one that had worked.
_PROGRESS = 1 << 20

#: Bytes that wait in memory where there is no part.
_MAX_SPILL = 4 << 20

#: Seconds that nothing has to come for a blob to be given up whose content is known to be damaged.
_PATIENCE = 2.0

#: Seconds between two polls of a thread that waits for the other.
_POLL = 0.2

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


class Receiver:
    """Receives one blob over as many connections, and from as many registries, as it takes. For one thread.

    Attributes:
        resumed: whether a connection went on where another one had ended.
    """

    def __init__(
        self, repositories: Sequence[Repository], blob: Descriptor, access: Access, check: Callable[[], None]
    ) -> None:
        """Prepare; nothing is asked for.

        Args:
            repositories: where the blob may be had, in order.
            blob: what is wanted.
            access: how often to try.
            check: polled; what it raises ends it.
        """
        self.blob = blob
        self.resumed = False
        self.ranges = True
        self._repositories = repositories
        self._access = access
        self._check = check

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """Yield the blob's bytes from a position on; their number is right, their digest is for the caller.

        Raises:
            RegistryError, NotFound, IntegrityError: no registry sends it, or one sends something else.
        """
        position = start
        tries = Backoff(self._access.attempts, self._access.retry_delay, self._check)
        sources = iter(self._repositories)
        repository = next(sources)
        while position < self.blob.size:
            began = position
            try:
                for piece in self._connection(repository, position):
                    self._check()
                    position += len(piece)
                    yield piece
            except (RegistryError, NotFound, IntegrityError) as error:
                if position - began >= _PROGRESS:
                    tries.renew()
                try:
                    if not isinstance(error, RegistryError):
                        raise
                    tries.wait(error)
                except (RegistryError, NotFound, IntegrityError):
                    # What one registry does not give, the next one may have.
                    following = next(sources, None)
                    if following is None:
                        raise
                    repository = following
                    tries.renew()
                self.resumed = self.resumed or position > 0

    def _connection(self, repository: Repository, position: int) -> Iterator[bytes]:
        """Yield bytes of the blob from a position on until the connection ends, at most to the blob's end."""
        with repository.blob(self.blob.digest, start=position if self.ranges else 0, attempts=1) as answer:
            skip = self._skipped(answer, position, repository)
            left = self.blob.size - position
            while data := answer.read(PIECE):
                if skip:
                    dropped = min(skip, len(data))
                    skip -= dropped
                    data = data[dropped:]
                    self._check()
                if len(data) > left:
                    raise IntegrityError(
                        f"layer {self.blob.digest}: {repository.server.domain} sends more than {self.blob.size} bytes"
                    )
                if data:
                    left -= len(data)
                    yield data
            if left or skip:
                host = repository.server.domain
                raise Unreachable(f"{host}: the connection broke in {self.blob.digest}", temporary=True)

    def _skipped(self, answer: HttpResponse, position: int, repository: Repository) -> int:
        """Return how many bytes of an answer come before the position; refuse one that is not the blob's.

        Raises:
            Unreachable: the range is not the one asked for; the next request asks for none.
            IntegrityError: the blob is announced with another size.
        """
        size, expected, host = answer.length, self.blob.size, repository.server.domain
        if answer.status == 200:
            if size is not None and size != expected:
                raise IntegrityError(f"layer {self.blob.digest}: {host} has {size} bytes, expected {expected}")
            return position
        found = _CONTENT_RANGE.fullmatch((answer.header("Content-Range") or "").strip())
        if answer.status == 206 and found is not None:
            total = None if found[3] == "*" else int(found[3])
            right = (int(found[1]), int(found[2])) == (position, expected - 1) and total in (None, expected)
            if right and size in (None, expected - position):
                return 0
        self.ranges = False
        raise Unreachable(f"{host}: answers another range of {self.blob.digest} than asked for", temporary=True)


class Download:
    """One blob on its way. :meth:`run` belongs to one thread, :meth:`read` to another.

    Attributes:
        blob: its descriptor.
        part: where its bytes go.
    """

    def __init__(
        self,
        repositories: Sequence[Repository],
        blob: Descriptor,
        part: Part,
        access: Access,
        *,
        check: Callable[[], None],
        tell: Callable[[int], None],
    ) -> None:
        """Prepare; nothing is asked for.

        Args:
            repositories: where the blob may be had, in order.
            blob: what is wanted.
            part: where its bytes go, with what an earlier run left there.
            access: how often to try.
            check: polled by both threads; what it raises ends them.
            tell: told the number of bytes that are there.
        """
        self.blob = blob
        self.part = part
        if part.size > blob.size:
            part.clear()
        self._receiver = Receiver(repositories, blob, access, check)
        self._receiver.resumed = part.size > 0
        self._check = check
        self._tell = tell
        self._changed = threading.Condition(threading.Lock())
        self._received = part.size
        self._spill: deque[bytes] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._taken = 0

    @property
    def resumed(self) -> bool:
        """Whether any byte is of an earlier connection: a blob worth a try from the start when it turns out wrong."""
        return self._receiver.resumed

    def run(self) -> None:
        """Receive what is missing.

        Raises:
            RegistryError, NotFound, IntegrityError: no registry sends it, or one sends something else. The reader gets
                the same error.
        """
        try:
            for piece in self._receiver.pieces(self._received):
                self._store(piece)
                self._tell(self._received)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
            raise
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def read(self, size: int) -> bytes:
        """Return up to ``size`` of the next bytes, and nothing at the end of the blob.

        Raises:
            RegistryError, NotFound, IntegrityError: what ended :meth:`run`.

        Blocking: until there are some.
        """
        saved = self.part.size
        if self._taken < saved:
            data = self.part.read(self._taken, min(size, saved - self._taken))
            if not data:
                raise IntegrityError(f"received part of {self.blob.digest} was cut short by another program")
            self._taken += len(data)
            return data
        with self._changed:
            while True:
                if self._spill:
                    data = self._spill.popleft()
                    if len(data) > size:
                        self._spill.appendleft(data[size:])
                        data = data[:size]
                    self._taken += len(data)
                    self._changed.notify_all()
                    return data
                if self._taken < self.part.size:
                    break
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return b""
                self._check()
                self._changed.wait(_POLL)
        return self.read(size)

    def digest(self) -> Digest | None:
        """Return the digest of all that was received, when it is the whole blob; None if that cannot be had.

        Blocking: until the blob is there, or does not get on for two seconds; nothing of it is decompressed.
        """
        hasher, done = new_hash(self.blob.digest.algorithm), 0
        patience = time.monotonic() + _PATIENCE
        while done < self.blob.size:
            self._check()
            data = self.part.read(done, min(PIECE, self.part.size - done)) if done < self.part.size else b""
            if data:
                hasher.update(data)
                done += len(data)
                patience = time.monotonic() + _PATIENCE
                continue
            with self._changed:
                if (
                    time.monotonic() > patience
                    or self._error is not None
                    or self._ended
                    or self._received != self.part.size
                ):
                    return None
                self._changed.wait(_POLL)
        return Digest(self.blob.digest.algorithm, hasher.hexdigest())

    def again(self) -> Callable[[int], bytes]:
        """Forget all that was received, and return a function that reads the blob anew, as :meth:`read` does.

        It is received in one go, by the thread that reads; what :meth:`run` still receives is waited for.
        """
        while self.read(PIECE):
            pass
        self.part.clear()
        self._received = 0
        self._receiver.resumed = self._receiver.ranges = False
        pieces = self._receiver.pieces()
        rest = b""

        def read(size: int) -> bytes:
            nonlocal rest
            if not rest:
                rest = next(pieces, b"")
                unsaved = self._append(rest)
                self._received += len(unsaved)
            data, rest = rest[:size], rest[size:]
            return data

        return read

    def _append(self, piece: bytes) -> bytes:
        """Add bytes to the part, and return those that found no room; after such all others are returned too."""
        kept = self.part.size
        if self._received != kept:
            return piece
        try:
            self.part.append(piece)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        self._received = self.part.size
        return piece[self.part.size - kept :]

    def _store(self, piece: bytes) -> None:
        # Only this thread appends, so the spill is the end of the blob once it has begun.
        piece = self._append(piece)
        with self._changed:
            if piece:
                while sum(map(len, self._spill)) > _MAX_SPILL:
                    self._check()
                    self._changed.wait(_POLL)
                self._spill.append(piece)
                self._received += len(piece)
            self._changed.notify_all()
