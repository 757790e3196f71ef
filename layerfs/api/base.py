"""What every part of the porcelain stands on: an open store, and how names become records and values."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from layerfs.errors import InvalidReference, LayerfsError, NotFound, StoreError, StoreReadOnly
from layerfs.formats.platform import Platform
from layerfs.store import image as catalog
from layerfs.store.handle import StoreHandle, open_store
from layerfs.store.snapshot import Snapshot, find_snapshot

if TYPE_CHECKING:
    from layerfs.mount.record import MountRecord, MountRecords
    from layerfs.values import Container, Image

__all__ = ["STORE_ERRORS", "StorePart", "StrPath", "refuse_inside_trio"]

StrPath = str | os.PathLike[str]

_log = logging.getLogger(__name__)

#: What a file system answers that cannot be written to, or has no room; :meth:`StorePart._writing` says so.
STORE_ERRORS = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT})

#: What an image is shown with whose config cannot be read.
_NO_PLATFORM = Platform("unknown", "unknown")


class StorePart:
    """An open store; a part of :class:`layerfs.api.Store`, which is all parts together."""

    def __init__(self, handle: StoreHandle) -> None:
        """Wrap an open store; use :meth:`open`."""
        self._handle = handle

    @classmethod
    def open(cls, root: StrPath, *, runroot: StrPath | None = None, sync: bool = True) -> Self:
        """Open a store, made if it is not there.

        Args:
            root: its directory.
            runroot: where mount records are kept, a directory that does not outlive a boot; ``ROOT/run`` if None.
            sync: False skips every fsync: faster, and a power cut may lose or damage what was reported done.

        Raises:
            StoreTooNew: a newer layerfs wrote it.
            StoreReadOnly: no permission.
            StoreError: the directory is something else, or damaged.
            InvalidReference: the path is empty.
        """
        if not os.fspath(root):
            raise InvalidReference("the root of a store must not be empty")
        path = os.path.abspath(root)
        run = os.path.abspath(runroot) if runroot is not None else os.path.join(path, "run")
        return cls(open_store(path, run, sync=sync))

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the store's files. Mounts stay."""
        self._handle.close()

    @contextmanager
    def _writing(self, what: str, *, hint: str | None = None) -> Iterator[None]:
        """Say of a store that cannot be written to, or has no room left, that it is so.

        Args:
            what: is being done.
            hint: what to do where it cannot be written to.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in STORE_ERRORS or isinstance(error, LayerfsError):
                raise
            root = self._handle.layout.root
            where = f": {os.fsdecode(error.filename)}" if error.filename else ""
            if error.errno == errno.EROFS:
                raise StoreReadOnly(
                    f"the store {root} cannot be written to: {error.strerror}{where}", root=root, hint=hint
                ) from error
            raise StoreError(
                f"{what} failed in the store {root}: {error.strerror}{where}", root=root,
                hint=f"Free space on the file system of {root}, with layerfs gc or otherwise, and try again.",
            ) from error  # fmt: skip

    def _record(self, image: str | Image) -> catalog.ImageRecord:
        if isinstance(image, str):
            return catalog.find_image(self._handle, image)
        record = catalog.find_image(self._handle, str(image.id))
        is_there = image.manifest_digest in catalog.image_manifests(self._handle, record)
        return replace(record, manifest=image.manifest_digest) if is_there else record

    def _sent(self, image: str | Image) -> catalog.ImageRecord:
        """Return an image that is about to go out; warn if that is not what a digest asks for."""
        record = self._record(image)
        asked = catalog.digest_in(image) if isinstance(image, str) else None
        if asked not in (None, record.manifest, record.digest):
            _log.warning(
                "the manifest %s of image %s goes out, and not the index %s that lists it",
                record.manifest, record.digest.short, asked,
            )  # fmt: skip
        return record

    def _image(self, record: catalog.ImageRecord) -> Image:
        from layerfs.formats.oci import ImageConfig
        from layerfs.values import Image

        layers = catalog.image_layers(self._handle, record)
        platform, created, damage = _NO_PLATFORM, None, None
        try:
            config = ImageConfig.parse(self._handle.read_blob(record.digest), algorithm=record.digest.algorithm)
            platform, created = config.platform, config.created
        except StoreError as error:
            damage = str(error)
        named = catalog.name_manifests(self._handle, record)
        return Image(
            record.digest, record.manifest, tuple(named), record.chain_id,
            platform, created, sum(layer.tar_size for layer in layers), len(layers), damage,
            tuple(catalog.image_origins(self._handle, record)),
            tuple(named.values()), record.given,
        )  # fmt: skip

    def _images(self, records: list[catalog.ImageRecord]) -> list[Image]:
        images = [self._image(record) for record in records]
        # A document may be missing because another process has removed the image since its record was read.
        return [
            image for image in images
            if image.damage is None or catalog.find_record(self._handle, image.id) is not None
        ]  # fmt: skip

    def _container(self, snapshot: Snapshot, mount: MountRecord | None) -> Container:
        from layerfs.values import Container

        image = catalog.find_record(self._handle, snapshot.image)  # None: removed with it, a moment ago
        names = [] if image is None else catalog.image_names(self._handle, image)
        name = names[0] if names else None
        target, dead = (mount.target, mount.is_dead) if mount is not None else (None, False)
        return Container(snapshot.id, snapshot.name, snapshot.image, name, snapshot.created, target, dead)

    def _existing(self, name: str) -> Snapshot | None:
        try:
            return find_snapshot(self._handle, name)
        except NotFound:
            return None

    def _records(self) -> MountRecords:
        # Mounting is imported where it is used: loads and lists do without, and start a fifth sooner.
        from layerfs.mount.mounted import adopt_mounts, records_of

        _ = self._handle.database.connection  # which a store that was closed has not
        adopt_mounts(self._handle)
        return records_of(self._handle)


def refuse_inside_trio() -> None:
    """Refuse to block an event loop.

    Raises:
        LayerfsError: this is a trio task.
    """
    loaded = sys.modules.get("trio")  # who has not imported it is in no task of it
    if loaded is not None and loaded.lowlevel.in_trio_run() and loaded.lowlevel.in_trio_task():
        raise LayerfsError("this call blocks, and was made inside a trio task", hint="Use AsyncStore there.")
