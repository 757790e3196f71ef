"""Reads layers in one thread while another lays them down: the two halves of a load.

The producing half receives and decompresses, the consuming one parses and writes; between them stands a bounded queue,
so memory does not depend on the size of anything. The digests of blob and tar are computed by whichever half would have
to wait for the other: so two threads are busy all the time, whatever the compression and the size of the files.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from layerfs.errors import FormatError, LayerfsError, LimitExceeded
from layerfs.formats.codec import PIECE, decompress, detect
from layerfs.formats.digest import Digest, new_hash
from layerfs.formats.tar.header import BLOCK

if TYPE_CHECKING:
    from hashlib import _Hash

T = TypeVar("T")

__all__ = [
    "Chunk",
    "DigestBacklog",
    "LayerBegin",
    "LayerEnd",
    "LayerEvent",
    "LayerFailed",
    "name_layer",
    "prefetch",
    "read_blob",
]

#: Pieces in the queue, 16 MiB together: enough for one half to go on while the other writes a tree.
_DEPTH = (16 << 20) // PIECE

#: Seconds to wait for the reading thread when a load ends early.
_PATIENCE = 2.0

#: Bytes read before the compression is known.
_HEAD = 1 << 18

#: A layer may grow to this before its expansion is looked at.
_RATIO_AFTER = 4 << 30

#: Then it may have at most this many times its compressed size in all. Files of zeros, which become holes, reach the
#: 1032 of deflate; only zstd can exceed it.
_MAX_RATIO = 1100

#: And at most this many times in bytes that take space on disk, long runs of zeros left out. Real layers have 2 to 20.
_MAX_FILLED_RATIO = 200

_ZEROS = bytes(PIECE)


@dataclass(frozen=True, slots=True)
class LayerBegin:
    """A layer's bytes follow. ``size`` is of the blob as stored, for progress."""

    member: str
    size: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next bytes of the layer's tar, in multiples of 512 but for the last; ``done`` bytes of the blob were read."""

    data: bytes
    done: int


@dataclass(frozen=True, slots=True)
class LayerEnd:
    """The layer is complete: digest and size of the blob as stored, and the digest of the tar."""

    member: str
    blob: Digest
    size: int
    diff_id: Digest


@dataclass(frozen=True, slots=True)
class LayerFailed:
    """The layer's bytes are damaged; the rest of it was passed over. ``blob`` and ``size`` are of all of it."""

    member: str
    error: LayerfsError
    blob: Digest
    size: int


LayerEvent = LayerBegin | Chunk | LayerEnd | LayerFailed


class DigestBacklog:
    """Bytes that are still to be digested, in order, by whichever thread has time. Thread-safe."""

    def __init__(self) -> None:
        """Start with nothing to do."""
        self._todo: deque[tuple[_Hash, bytes]] = deque()
        self._busy = threading.Lock()  # held while one piece is digested: so pieces keep their order

    def add(self, hasher: _Hash, data: bytes) -> None:
        """Put bytes at the end. Beyond as many pieces as the queue has, the caller works itself."""
        self._todo.append((hasher, data))
        while len(self._todo) > _DEPTH:
            with self._busy:
                self._digest_one()

    def work(self) -> bool:
        """Digest one piece; return False when there is none, or another thread is at it."""
        if not self._busy.acquire(blocking=False):
            return False
        try:
            return self._digest_one()
        finally:
            self._busy.release()

    def finish(self) -> None:
        """Digest all that is left; only then are the hashes what they should be."""
        with self._busy:
            while self._digest_one():
                pass

    def _digest_one(self) -> bool:
        if not self._todo:
            return False
        hasher, data = self._todo.popleft()
        hasher.update(data)
        return True


class _Counted:
    """Counts a blob's bytes, and has them digested, on their way to the decoder."""

    def __init__(self, head: bytes, read: Callable[[int], bytes], algorithm: str, backlog: DigestBacklog) -> None:
        self.size = 0
        self.hasher: _Hash = new_hash(algorithm)
        self._head = head
        self._read = read
        self._backlog = backlog
        self.tee: Callable[[bytes], object] | None = None

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._read(size)
        if data:
            self._backlog.add(self.hasher, data)
            self.size += len(data)
            if self.tee is not None:
                self.tee(data)
        return data


def read_blob(
    member: str,
    size: int,
    read: Callable[[int], bytes],
    *,
    blob_algorithm: str = "sha256",
    diff_algorithm: str = "sha256",
    head: bytes = b"",
    backlog: DigestBacklog | None = None,
    keep: Callable[[str], Callable[[bytes], object]] | None = None,
) -> Generator[LayerEvent, None, None]:
    """Yield the events of one layer; the whole blob has been read when they end.

    Args:
        member: the blob's name in the archive.
        size: its announced size.
        read: returns up to that many bytes, and nothing at the end of the blob.
        blob_algorithm: for the digest of the blob.
        diff_algorithm: for the digest of the tar.
        head: bytes of the blob that were read already.
        backlog: where digesting may be left to the consumer, for whom :meth:`DigestBacklog.work` is; None does it here.
        keep: called with ``member`` if the blob is compressed; what it returns gets all bytes of the blob.

    Raises:
        OSError: what ``read`` and ``keep`` raise. Damaged data is no exception but a :class:`LayerFailed`.
    """
    head = head or read(_HEAD)
    backlog = backlog or DigestBacklog()
    source = _Counted(head, read, blob_algorithm, backlog)
    yield LayerBegin(member, size)
    try:
        codec = detect(head)
        if keep is not None and codec != "none":
            source.tee = keep(member)
        plain = codec == "none" and blob_algorithm == diff_algorithm
        hasher = source.hasher if plain else new_hash(diff_algorithm)
        total = filled = 0
        rest = b""
        for piece in decompress(source.read, codec):
            if not plain:
                backlog.add(hasher, piece)
            total += len(piece)
            if piece != _ZEROS:
                filled += len(piece)
            if total > _RATIO_AFTER and (filled > source.size * _MAX_FILLED_RATIO or total > source.size * _MAX_RATIO):
                most = _MAX_FILLED_RATIO if total <= source.size * _MAX_RATIO else _MAX_RATIO
                raise LimitExceeded(f"layer {member} expands to more than {most} times its {source.size} bytes")
            whole = rest + piece if rest else piece
            cut = len(whole) & -BLOCK
            rest = whole[cut:]
            if cut:
                yield Chunk(whole[:cut] if rest else whole, source.size)
        if rest:
            yield Chunk(rest, source.size)
        while source.read(PIECE):  # whatever follows the compressed data belongs to the blob's digest too
            pass
    except FormatError as error:
        while source.read(PIECE):
            pass
        backlog.finish()
        yield LayerFailed(member, error, Digest(blob_algorithm, source.hasher.hexdigest()), source.size)
        return
    backlog.finish()
    blob = Digest(blob_algorithm, source.hasher.hexdigest())
    diff_id = Digest(diff_algorithm, hasher.hexdigest())
    yield LayerEnd(member, blob, source.size, diff_id)


class _Stopped(Exception):
    """The consumer went away."""


def prefetch(
    events: Iterable[T], idle: Callable[[], bool] = lambda: False, *, depth: int = _DEPTH
) -> Generator[T, None, None]:
    """Run a generator in a thread of its own and yield what it yields, at most a bounded number of items ahead.

    An exception of the generator is raised here. When the consumer stops early, so does the thread, at its next item.

    Args:
        events: what to run.
        idle: called by a half that would have to wait for the other, until it returns False for nothing to do.
        depth: how many items may be ahead.
    """
    ready: queue.Queue[list[T] | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: list[T] | BaseException | None) -> None:
        while ready.full() and not stop.is_set() and idle():
            pass
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return
        raise _Stopped

    def run() -> None:
        try:
            for event in events:
                put([event])
            put(None)
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the consuming thread
            with contextlib.suppress(_Stopped):
                put(error)

    thread = threading.Thread(target=run, name="layerfs-read", daemon=True)
    thread.start()
    try:
        while True:
            while ready.empty() and idle():
                pass
            item = ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield from item
    finally:
        stop.set()
        # It ends within milliseconds, unless it waits in a read on a silent pipe: that must not hold an interrupt up.
        thread.join(timeout=_PATIENCE)


def name_layer(error: LayerfsError, key: str) -> None:
    """Let an error that says what is wrong inside a layer say in which one."""
    if isinstance(error, FormatError) and not str(error).startswith("layer "):
        error.args = (f"layer {key}: {error}",)
