"""The parts of a pull that run in threads of their own: receiving layers, and laying down what arrives.

Who starts the threads is said in ``api/``: this floor has no event loop. :class:`Pull` is what they share. A layer is
claimed before it is received, by a lock on its part, so that of all pulls that want it one fetches it; the others find
it in the store when it is there, or take over when that pull ends without it.

Layers are laid down one after the other, by one thread, in the order in which they were claimed, while the following
ones are received. A pull waits for another one's layer only while it holds no claim that it could work on, so two
pulls cannot wait for each other.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from layerfs.errors import Conflict, DigestMismatch, FormatError, IntegrityError, LayerfsError
from layerfs.formats.codec import PIECE
from layerfs.formats.digest import Digest
from layerfs.formats.tar.header import BLOCK
from layerfs.registry.access import Access
from layerfs.registry.download import Download
from layerfs.registry.loader import Progress
from layerfs.registry.pipeline import (
    Chunk,
    DigestBacklog,
    LayerEnd,
    LayerEvent,
    LayerFailed,
    name_layer,
    prefetch,
    read_blob,
)
from layerfs.registry.plan import ImagePlan, LayerPlan
from layerfs.registry.remote import RemoteImages
from layerfs.registry.watch import Stopped
from layerfs.store.gc import collect
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord
from layerfs.store.ingest import Ingest, IngestedLayer, Pending
from layerfs.store.kept_blob import has_blob
from layerfs.store.layer import find_layer, is_whole
from layerfs.store.new_image import NewImage, commit_images
from layerfs.store.part import Part, discard_part

__all__ = ["LayerVanished", "Pull"]

_log = logging.getLogger(__name__)

#: Layers rarely take more than so many times their compressed size.
_EXPANSION = 4

#: Seconds between two reports about one layer.
_TELL_EVERY = 0.1

#: Seconds before a layer that another pull is at is looked for again.
_LOOK_AGAIN = 0.05

#: Seconds that a pull waits for another one before it says so.
_SILENCE = 3.0

#: Seconds between two polls of the laying thread while nothing has been claimed.
_POLL = 0.2


class LayerVanished(Conflict):
    """Another process removed a layer that the store had when a pull began; the next try receives it."""


class Pull:
    """One pull, from the plan to the images. A context manager that lets go of all claims.

    Attributes:
        wanted: the layers that have to be received, bottom first, each once.
    """

    def __init__(
        self,
        handle: StoreHandle,
        remote: RemoteImages,
        access: Access,
        *,
        keep_blobs: bool = False,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Look which layers the store lacks.

        Args:
            handle: the store.
            remote: what is wanted, and where it is.
            access: how registries are reached.
            keep_blobs: whether compressed blobs are kept beside their layers.
            progress: told about every layer.
            check: polled by all threads; what it raises ends the pull.
        """
        self._handle = handle
        self._remote = remote
        self._access = access
        self._keep = keep_blobs
        self._progress = progress
        self._user_check = check
        self._stopped = False
        self._told: dict[str, tuple[str, float]] = {}
        self._tell_lock = threading.Lock()
        self._claimed: queue.SimpleQueue[tuple[LayerPlan, Download | None]] = queue.SimpleQueue()
        self._parts: list[tuple[LayerPlan, Part]] = []
        self._bad: set[str] = set()
        plans = {layer.member: layer for image in remote.images for layer in image.layers}
        self._plans = plans
        self.wanted = [layer for layer in plans.values() if not self._has(layer)]
        self._todo = deque(self.wanted)
        self._waiting_since, self._said_waiting = math.inf, False
        lacking = {layer.member for layer in self.wanted}
        for layer in plans.values():
            self._tell(layer, "Waiting" if layer.member in lacking else "Already exists", 0, None)

    def __enter__(self) -> Self:
        """Return the pull itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let go of all parts: removed when the images are there, kept for the next try otherwise."""
        for layer, part in self._parts:
            part.close(remove=kind is None or layer.member in self._bad)
        if kind is None:
            # Parts of layers that an earlier pull had finished before it was killed.
            for layer in self._plans.values():
                if layer.blob is not None:
                    discard_part(self._handle, layer.blob.digest)

    def stop(self) -> None:
        """Make all threads end soon."""
        self._stopped = True

    def check(self) -> None:
        """Raise what ends this pull, if anything does."""
        if self._stopped:
            raise Stopped
        if self._user_check is not None:
            self._user_check()

    def receive(self) -> None:
        """Receive wanted layers until none is left; for threads of its own, one for every layer at a time.

        Raises:
            RegistryError, NotFound, IntegrityError: as :meth:`Download.run`.
            OSError: ENOSPC, EIO.
        """
        while True:
            try:
                layer = self._todo.popleft()
            except IndexError:
                return
            self.check()
            claim = self._claim(layer)
            if claim:
                self._waiting_since = math.inf
            if isinstance(claim, Download):
                self._receive(layer, claim)
                self._waiting_since = math.inf
            elif not claim:
                self._tell_waiting(layer)
                self._todo.append(layer)
                time.sleep(_LOOK_AGAIN)

    def _tell_waiting(self, layer: LayerPlan) -> None:
        """Say once that nothing is left to do but to wait for another pull."""
        assert layer.blob is not None
        now = time.monotonic()
        with self._tell_lock:
            self._waiting_since = min(self._waiting_since, now)
            if now - self._waiting_since < _SILENCE or self._said_waiting:
                return
            self._said_waiting = True
        _log.warning("another process is receiving layer %s; waiting for it", layer.blob.digest.short)

    def _claim(self, layer: LayerPlan) -> Download | bool:
        """Try to take a layer on.

        Returns:
            The download to run, True if the store has the layer by now, False if another pull is at it.
        """
        assert layer.blob is not None
        if self._has(layer):
            self._claimed.put((layer, None))
            return True
        part = Part.claim(self._handle, layer.blob.digest)
        if part is None:
            return False
        self._parts.append((layer, part))
        if self._has(layer):  # whoever had the lock may just have finished
            self._claimed.put((layer, None))
            return True

        def tell(received: int) -> None:
            assert layer.blob is not None
            self._tell(layer, "Downloading", received, layer.blob.size)

        download = Download(self._remote.repositories, layer.blob, part, self._access, check=self.check, tell=tell)
        self._claimed.put((layer, download))
        return download

    def _receive(self, layer: LayerPlan, download: Download) -> None:
        assert layer.blob is not None
        self._tell(layer, "Downloading", download.part.size, layer.blob.size)
        download.run()
        self._tell(layer, "Download complete", layer.blob.size, layer.blob.size)

    def lay_down(self) -> list[ImageRecord]:
        """Lay all wanted layers down as they are claimed, and make the images; for a thread of its own.

        Raises:
            IntegrityError, FormatError: a layer is not what it should be.
            RegistryError, NotFound: it cannot be had.
            OSError: ENOSPC, EIO.

        Atomicity: the images become visible together, when all are complete and durable. What other images do not need
            of a pull that fails is removed, but for the received parts.
        """
        try:
            with Ingest(self._handle, check=self.check) as ingest:
                lacking = {layer.member for layer in self.wanted}
                # Those that are there are held from now on, so that no collection takes them meanwhile.
                there = {member: layer for member, layer in self._plans.items() if member not in lacking}
                held = ingest.find_layers([layer.diff_id for layer in there.values()])
                layers = {member: held[layer.diff_id] for member, layer in there.items() if layer.diff_id in held}
                layers |= self._lay_all(ingest)
                images = [self._image(ingest, plan, layers) for plan in self._remote.images]
                records = commit_images(ingest, images)
            if self._keep:
                self._keep_blobs()
            return records
        finally:
            with contextlib.suppress(OSError, LayerfsError):
                collect(self._handle)

    def _lay_all(self, ingest: Ingest) -> dict[str, IngestedLayer]:
        """Lay down what arrives, and return it by the member's name.

        One thread reads all layers: so it goes on with the next one while the tree of the last is made.
        """
        layers = {}
        backlog = DigestBacklog()
        with contextlib.closing(prefetch(self._arrivals(backlog), backlog.work)) as events:
            try:
                for event in events:
                    assert isinstance(event, _Claimed)
                    layer, download = event.layer, event.download
                    if download is None:
                        self._tell(layer, "Already exists", 0, None)
                    else:
                        layers[layer.member] = self._lay_one(ingest, layer, download, _one_layer(events))
            except BaseException:
                self.stop()  # all threads: the reading one would wait for more, and is waited for here
                raise
        return layers

    def _arrivals(self, backlog: DigestBacklog) -> Iterator[_Claimed | LayerEvent]:
        """Yield the wanted layers as they are claimed, each with its events after it."""
        for _ in self.wanted:
            layer, download = self._next_claimed()
            yield _Claimed(layer, download)
            if download is not None:
                yield from _events(layer, download.read, backlog)

    def _next_claimed(self) -> tuple[LayerPlan, Download | None]:
        while True:
            self.check()
            with contextlib.suppress(queue.Empty):
                return self._claimed.get(timeout=_POLL)

    def _image(self, ingest: Ingest, plan: ImagePlan, layers: dict[str, IngestedLayer]) -> NewImage:
        found = []
        for layer in plan.layers:
            ready = layers.get(layer.member) or ingest.find_layer(layer.diff_id)
            if ready is None:
                raise LayerVanished(
                    f"layer {layer.diff_id} was removed from the store while it was being used", reason="in-use",
                    hint="Pull again.",
                )  # fmt: skip
            if ready.diff_id != layer.diff_id:  # one blob under two diffIDs
                raise DigestMismatch("layer", expected=str(layer.diff_id), actual=str(ready.diff_id), size=0)
            found.append(ready)
        assert plan.manifest is not None
        received = self._remote.received
        is_index = plan.origin is not None and plan.origin[1] == received.digest != plan.manifest[0]
        return NewImage(
            (plan.config.digest, plan.config.raw), plan.manifest, found, plan.names, origin=plan.origin,
            index=(received.digest, received.raw) if is_index else None,
        )  # fmt: skip

    def _lay_one(
        self, ingest: Ingest, layer: LayerPlan, download: Download, events: Iterator[LayerEvent]
    ) -> IngestedLayer:
        try:
            laid = self._lay(ingest, layer, events)
        except (IntegrityError, FormatError) as error:
            _name(error, layer)
            if not download.resumed:
                self._bad.add(layer.member)
                self._refuse_blob(layer, download)
                raise
            _exhaust(events)
            # What an earlier connection left may be what is wrong: once more, all in one go.
            backlog = DigestBacklog()
            try:
                with contextlib.closing(prefetch(_events(layer, download.again(), backlog), backlog.work)) as again:
                    return self._lay(ingest, layer, again)
            except (IntegrityError, FormatError) as second:
                _name(second, layer)
                self._bad.add(layer.member)
                raise second from error
        _exhaust(events)
        self._make_room(download)
        return laid

    def _refuse_blob(self, layer: LayerPlan, download: Download) -> None:
        """Raise, of a layer whose tar is damaged, if the blob is not even the one that was asked for.

        Raises:
            DigestMismatch: so it is.
        """
        assert layer.blob is not None
        actual = download.digest()
        if actual not in (None, layer.blob.digest):
            raise DigestMismatch("layer", expected=str(layer.blob.digest), actual=str(actual), size=layer.blob.size)

    def _make_room(self, download: Download) -> None:
        """Throw away what was received of a layer that is laid down, if the disk may not have room for both.

        Otherwise it stays until the image is there: this pull may be killed before.
        """
        root = self._handle.layout.root
        found = os.statvfs(root)
        needed = _EXPANSION * sum(layer.blob.size for layer in self.wanted if layer.blob is not None)
        if not self._keep and found.f_bavail * found.f_frsize < needed:
            download.part.clear()

    def _lay(self, ingest: Ingest, layer: LayerPlan, events: Iterator[LayerEvent]) -> IngestedLayer:
        assert layer.blob is not None
        blob, begun = layer.blob, ingest.begin_layer(layer.diff_id)
        if isinstance(begun, IngestedLayer) and not self._keep:
            self._tell(layer, "Already exists", 0, None)
            return begun
        pending = begun if isinstance(begun, Pending) else None
        found = None if isinstance(begun, Pending) else begun
        try:
            for event in events:
                self.check()
                match event:
                    case Chunk() if pending is not None:
                        pending.writer.write(event.data)
                        self._tell(layer, "Extracting", event.done, blob.size)
                    case LayerFailed():
                        # That the blob is another one says more than what is wrong inside.
                        _check(blob.digest, blob.size, event)
                        raise event.error
                    case LayerEnd():
                        _check(blob.digest, blob.size, event)
                        if pending is not None:
                            found = ingest.finish_layer(pending, event.diff_id, (event.blob, event.size))
                            pending = None
        except BaseException:
            if pending is not None:
                ingest.abandon(pending)
            raise
        assert found is not None
        self._tell(layer, "Pull complete", blob.size, blob.size)
        return found

    def _keep_blobs(self) -> None:
        """Keep the blobs that were received, now that their image is there; a collection must not see one before."""
        with self._handle.trees_kept():
            for layer, part in self._parts:
                if layer.blob is None or layer.blob.digest == layer.diff_id:
                    continue
                if part.size == layer.blob.size:
                    part.keep()
                elif not has_blob(self._handle, layer.blob):
                    _log.warning("layer %s: there was no room to keep its blob", layer.blob.digest)

    def _has(self, layer: LayerPlan) -> bool:
        """Return whether nothing of a layer has to be received."""
        found = find_layer(self._handle, layer.diff_id)
        if found is None or not is_whole(self._handle, found):
            return False
        blob = layer.blob
        return not self._keep or blob is None or blob.digest == layer.diff_id or has_blob(self._handle, blob)

    def _tell(self, layer: LayerPlan, state: str, done: int, total: int | None) -> None:
        """Report on a layer: every change of its state, and not too often how it gets on.

        Receiving and laying down overlap; what is behind is what is reported.
        """
        if self._progress is None:
            return
        assert layer.blob is not None
        key = str(layer.blob.digest)
        now = time.monotonic()
        with self._tell_lock:
            before, when = self._told.get(key, ("", 0.0))
            if state == before and now - when < _TELL_EVERY:
                return
            if before in ("Pull complete", "Already exists"):
                return
            if state == "Extracting" and before in ("Waiting", "Downloading"):
                return  # it arrives more slowly than it is laid down
            self._told[key] = (state, now)
            self._progress.update(key, state, done, total)


@dataclass(frozen=True, slots=True)
class _Claimed:
    """What follows is of this layer, up to its end; without a download the store has it, and nothing follows."""

    layer: LayerPlan
    download: Download | None


def _one_layer(events: Iterator[_Claimed | LayerEvent]) -> Iterator[LayerEvent]:
    """Yield the events of one layer, and leave those of the next."""
    for event in events:
        assert not isinstance(event, _Claimed)
        yield event
        if isinstance(event, LayerEnd | LayerFailed):
            return


def _exhaust(events: Iterator[LayerEvent]) -> None:
    """Read a layer to its end that is not needed, or no longer."""
    for _ in events:
        pass


def _events(layer: LayerPlan, read: Callable[[int], bytes], backlog: DigestBacklog) -> Iterator[LayerEvent]:
    """Yield the events of one layer that arrives in pieces of any size."""
    assert layer.blob is not None
    head = b""
    while len(head) < BLOCK and (data := read(PIECE)):  # what tells compressions apart
        head += data
    yield from read_blob(
        layer.member, layer.blob.size, read, blob_algorithm=layer.blob.digest.algorithm,
        diff_algorithm=layer.diff_id.algorithm, head=head, backlog=backlog,
    )  # fmt: skip


def _name(error: LayerfsError, layer: LayerPlan) -> None:
    assert layer.blob is not None
    name_layer(error, str(layer.blob.digest))


def _check(digest: Digest, size: int, event: LayerEnd | LayerFailed) -> None:
    if event.size != size:
        raise IntegrityError(f"layer {digest}: {event.size} bytes, expected {size}")
    if event.blob != digest:
        raise DigestMismatch("layer", expected=str(digest), actual=str(event.blob), size=size)
