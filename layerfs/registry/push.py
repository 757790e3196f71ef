"""The parts of a push: which layers the registry has or can be given as the manifest names them, and what goes else.

If every blob that an image's own manifest names is on the registry, can be mounted there, or is in the store as it is,
that manifest is pushed, byte for byte. Otherwise the layers that cannot are compressed anew, and a manifest is made
that differs in those layers alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from layerfs.errors import NotFound, RegistryError, StoreError, UnsupportedFormat
from layerfs.formats.amend import layer_type, with_blobs
from layerfs.formats.codec import detect
from layerfs.formats.compress import check_level, compress
from layerfs.formats.digest import Digest
from layerfs.formats.media_type import DOCKER_MANIFEST, Compression, layer_compression
from layerfs.formats.oci import Descriptor, Manifest
from layerfs.formats.reference import Reference
from layerfs.formats.tar.header import BLOCK
from layerfs.registry.access import Access
from layerfs.registry.loader import Progress
from layerfs.registry.repository import Repository
from layerfs.registry.upload import Uploader
from layerfs.registry.watch import Stopped
from layerfs.store.database import stored_digest
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, image_layers
from layerfs.store.kept_blob import has_blob
from layerfs.store.layer import LayerRecord, read_layer

__all__ = ["LayerPush", "Push"]

#: Seconds between two reports about one layer.
_TELL_EVERY = 0.1

#: Repositories of the same registry that a blob is tried to be mounted from.
_MAX_SOURCES = 3

_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class LayerPush:
    """One layer to push: its place in the image, its record, and what the image's own manifest calls it."""

    position: int
    record: LayerRecord
    blob: Descriptor


class Push:
    """One push of one image. Methods may be called from several threads.

    Attributes:
        layers: what has to be there, bottom first, each once.
    """

    def __init__(
        self,
        handle: StoreHandle,
        image: ImageRecord,
        repository: Repository,
        access: Access,
        *,
        compression: Compression | None = None,
        level: int | None = None,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Look at the image.

        Args:
            handle: the store.
            image: what to push.
            repository: where to.
            access: how registries are reached.
            compression: of all layers; None leaves them as the image's manifest has them, where that is possible.
            level: of the compression, for layers that have to be compressed.
            progress: told about every layer.
            check: polled by all threads; what it raises ends the push.

        Raises:
            InvalidReference: the compression has no such level.
            StoreError: a document of the image is damaged.
        """
        check_level(compression or "gzip", level)
        self._handle = handle
        self._repository = repository
        self._compression = compression
        self._level = level
        self._progress = progress
        self._user_check = check
        self._stopped = False
        self._uploader = Uploader(repository, access, self.check)
        self._told: dict[str, tuple[str, float]] = {}
        self._tell_lock = threading.Lock()
        self._config = handle.read_blob(image.digest)
        self._image = image
        self._manifest = Manifest.parse(handle.read_blob(image.manifest), algorithm=image.manifest.algorithm)
        self._docker = self._manifest.media_type == DOCKER_MANIFEST
        found: dict[str, LayerPush] = {}
        for position, record in enumerate(image_layers(handle, image)):
            blob = self._manifest.layers[position]
            found.setdefault(str(blob.digest), LayerPush(position, record, blob))
        self.layers = list(found.values())
        for layer in self.layers:
            self._tell(layer, "Waiting", 0, None)

    def stop(self) -> None:
        """Make all threads end soon."""
        self._stopped = True

    def check(self) -> None:
        """Raise what ends this push, if anything does."""
        if self._stopped:
            raise Stopped
        if self._user_check is not None:
            self._user_check()

    def put_layer(self, layer: LayerPush) -> Descriptor:
        """See to it that the registry has a layer; return what the manifest has to call it.

        Raises:
            RegistryError, NotFound: the registry refuses, or cannot be reached.
            IntegrityError: it has stored something else, or the layer in the store is damaged.
        """
        wanted = self._compression
        blob = layer.blob
        announced = layer_compression(blob.media_type)
        # Who asks for a level wants these bytes, not those that somebody else made of the layer.
        if self._level is None and (wanted is None or wanted == announced):
            if self._is_there(layer, blob.digest, blob.size):
                return blob
            pieces = self._bytes_as_named(layer)
            if pieces is not None:
                self._uploader.put(blob.digest, blob.size, pieces, self._telling(layer, blob.size))
                self._tell(layer, "Pushed", blob.size, blob.size)
                return blob
        compression: Compression = wanted or ("gzip" if announced == "none" else announced)
        media_type = layer_type(compression, docker=self._docker)
        known = self._known_blob(layer, compression) if self._level is None else None
        if known is not None:
            return Descriptor(media_type, *known)
        if compression == "none":
            digest, size = layer.record.diff_id, layer.record.tar_size
            if not self._is_there(layer, digest, size):
                self._uploader.put(digest, size, partial(self._tar, layer), self._telling(layer, size))
                self._tell(layer, "Pushed", size, size)
            return Descriptor(media_type, digest, size)
        digest, size = self._compress(layer, compression)
        return Descriptor(media_type, digest, size)

    def put_image(self, layers: dict[str, Descriptor], tag: str) -> Digest:
        """Put config and manifest, once all layers are there; return the digest of the manifest.

        Args:
            layers: what :meth:`put_layer` returned, by the digest in the image's own manifest.
            tag: what to call it.

        Raises:
            RegistryError, IntegrityError: as :meth:`put_layer`.
        """
        config = self._manifest.config
        if self._repository.blob_size(config.digest, push=True) is None:
            self._uploader.put(config.digest, len(self._config), lambda: [self._config], lambda _: None)
        raw, media_type = self._manifest.raw, self._manifest.media_type
        if any(str(found.digest) != name for name, found in layers.items()):
            raw = with_blobs(raw, {Digest.parse(name): found for name, found in layers.items()})
            media_type = Manifest.parse(raw).media_type
        return self._repository.put_manifest(tag, raw, media_type)

    def _is_there(self, layer: LayerPush, digest: Digest, size: int) -> bool:
        """Return whether the repository has a blob, or can get it from another one on its registry."""
        if self._repository.blob_size(digest, push=True) in (size, -1):
            self._tell(layer, "Layer already exists", 0, None)
            return True
        for source in self._sources(layer.record):
            if self._uploader.mount(digest, source):
                self._tell(layer, f"Mounted from {source}", 0, None)
                return True
        return False

    def _sources(self, record: LayerRecord) -> list[str]:
        """Return other repositories on the registry that images with this layer are called after, or came from."""
        rows = self._handle.database.connection.execute(
            "SELECT name.name FROM name JOIN image_layer ON image_layer.image = name.image WHERE image_layer.layer = ?1"
            " UNION SELECT repository FROM origin JOIN image_layer ON image_layer.image = origin.image"
            " WHERE image_layer.layer = ?1",
            (record.id,),
        )
        found = {
            reference.path
            for (name,) in rows.fetchall()
            if (reference := Reference.parse(name)).domain == self._repository.server.domain
        }
        return sorted(found - {self._repository.path})[:_MAX_SOURCES]

    def _bytes_as_named(self, layer: LayerPush) -> Callable[[], Iterable[bytes]] | None:
        """Return what yields the very bytes that the manifest names, or None if the store cannot."""
        if layer.blob.digest == layer.record.diff_id:
            return partial(self._tar, layer)
        if has_blob(self._handle, layer.blob):
            return partial(self._kept, layer.blob.digest)
        return None

    def _known_blob(self, layer: LayerPush, compression: Compression) -> tuple[Digest, int] | None:
        """Return a compressed form of a layer that the registry has from an earlier push."""
        rows = self._handle.database.connection.execute(
            "SELECT digest, size FROM compressed WHERE layer = ?", (layer.record.id,)
        )
        for text, size in rows.fetchall():
            digest = stored_digest(text)
            if digest == layer.blob.digest and self._compression in (None, layer_compression(layer.blob.media_type)):
                continue  # looked for already
            if self._repository.blob_size(digest) == size and self._sniff(digest) == compression:
                self._tell(layer, "Layer already exists", 0, None)
                return digest, size
        return None

    def _sniff(self, digest: Digest) -> str | None:
        """Return how a blob on the registry is compressed, by its first bytes."""
        try:
            with self._repository.blob(digest) as answer:
                return detect(answer.read(BLOCK))
        except (RegistryError, NotFound, UnsupportedFormat):
            return None

    def _compress(self, layer: LayerPush, compression: Compression) -> tuple[Digest, int]:
        total = layer.record.tar_size
        done = 0

        def counted() -> Iterator[bytes]:
            nonlocal done
            for piece in self._tar(layer):
                done += len(piece)
                self._tell(layer, "Pushing", done, total)
                yield piece

        packed = compress(counted(), compression, self._level)
        digest, size = self._uploader.put_stream(packed)
        # So that the next push finds it there; one from a store that takes nothing does without.
        with contextlib.suppress(StoreError), self._handle.database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO compressed SELECT ?, id, ? FROM layer WHERE diff_id = ?",
                (str(digest), size, str(layer.record.diff_id)),
            )
        self._tell(layer, "Pushed", size, size)
        return digest, size

    def _tar(self, layer: LayerPush) -> Iterator[bytes]:
        return read_layer(self._handle, layer.record, check=self.check)

    def _kept(self, digest: Digest) -> Iterator[bytes]:
        with open(self._handle.layout.blob(digest), "rb", buffering=0) as file:
            while data := file.read(_READ):
                yield data

    def _telling(self, layer: LayerPush, total: int) -> Callable[[int], None]:
        return lambda done: self._tell(layer, "Pushing", done, total)

    def _tell(self, layer: LayerPush, state: str, done: int, total: int | None) -> None:
        if self._progress is None:
            return
        key = str(layer.record.diff_id)
        now = time.monotonic()
        with self._tell_lock:
            before, when = self._told.get(key, ("", 0.0))
            if state == before and now - when < _TELL_EVERY:
                return
            self._told[key] = (state, now)
            self._progress.update(key, state, done, total)
