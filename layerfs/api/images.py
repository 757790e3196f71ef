"""Images in the store: what there is, what is in it, what it is called."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from layerfs.api.base import StorePart
from layerfs.errors import Conflict, IntegrityError, NotFound, StoreError
from layerfs.formats.digest import Digest
from layerfs.formats.reference import Reference
from layerfs.store import image as catalog
from layerfs.store.database import stored_digest
from layerfs.store.layer import LayerRecord, find_layer, open_layer_tree, read_layer, verify_layer
from layerfs.store.snapshot import list_snapshots
from layerfs.store.view import ImageTree

if TYPE_CHECKING:
    from layerfs.changeset.analysis import ImageReport
    from layerfs.formats.oci import ImageConfig, Manifest
    from layerfs.store.provenance import Provenance
    from layerfs.values import HistoryRow, Image, Layer, RemovedImage

__all__ = ["ImagePart"]


class ImagePart(StorePart):
    """Looking at images, naming and removing them."""

    def images(self) -> list[Image]:
        """Return all images, newest first."""
        return self._images(catalog.list_images(self._handle))

    def resolve(self, name: str) -> Image:
        """Return the image that a name, an ID or the unique beginning of an ID means.

        Raises:
            NotFound: nothing matches.
            Conflict: several images do.
            InvalidReference: the text is neither name nor ID.
        """
        return self._image(catalog.find_image(self._handle, name))

    def config(self, image: str | Image) -> ImageConfig:
        """Return an image's config. Raises as :meth:`resolve`, and StoreError if the document is damaged."""
        from layerfs.formats.oci import ImageConfig

        with self._there(image) as record:
            return ImageConfig.parse(self._handle.read_blob(record.digest), algorithm=record.digest.algorithm)

    def manifest(self, image: str | Image) -> Manifest:
        """Return the manifest that an image came with; one was made for images from docker archives.

        Raises as :meth:`config`.
        """
        from layerfs.formats.oci import Manifest

        with self._there(image) as record:
            return Manifest.parse(self._handle.read_blob(record.manifest), algorithm=record.manifest.algorithm)

    def document(self, name: str) -> bytes:
        """Return the document that a name means, byte for byte: a manifest, or the index that it was pulled by.

        Raises:
            NotFound, InvalidReference: as :meth:`resolve`.
            StoreError: it is damaged.
        """
        with self._there(name) as record:
            asked = catalog.digest_in(name)
            is_index = asked is not None and asked in catalog.image_indexes(self._handle, record)
            return self._handle.read_blob(asked if asked is not None and is_index else record.manifest)

    def layers(self, image: str | Image) -> list[Layer]:
        """Return an image's layers, bottom first. Raises as :meth:`config`, and IntegrityError if some are missing."""
        from layerfs.store.usage import shared_bytes
        from layerfs.values import Layer

        with self._there(image) as record:
            steps = self.config(image).layer_history()
            layers = catalog.image_layers(self._handle, record)
            if len(layers) != len(steps):
                raise IntegrityError(f"image {record.digest.short} has {len(layers)} layers instead of {len(steps)}")
        found = []
        for layer, step in zip(layers, steps, strict=True):
            row = self._handle.database.connection.execute(
                "SELECT count(DISTINCT image) FROM image_layer WHERE layer = ?", (layer.id,)
            ).fetchone()
            command = step.created_by if step is not None else None
            shared = shared_bytes(self._handle, layer)
            found.append(Layer(layer.diff_id, layer.tar_size, shared, layer.entries, command, row[0]))
        return found

    def history(self, image: str | Image) -> list[HistoryRow]:
        """Return the steps in which an image was made, last first. Raises as :meth:`config`."""
        from layerfs.values import HistoryRow

        with self._there(image) as record:
            config = self.config(image)
            layers = catalog.image_layers(self._handle, record)
        rows = []
        fitting = sum(not step.empty_layer for step in config.history) == len(layers)
        remaining = iter(layers)
        for step in config.history:
            layer: LayerRecord | None = next(remaining) if fitting and not step.empty_layer else None
            rows.append(
                HistoryRow(
                    step.created, step.created_by, step.comment,
                    layer.tar_size if layer is not None else 0, layer.diff_id if layer is not None else None,
                )
            )  # fmt: skip
        if not fitting:
            rows += [HistoryRow(None, "", "", layer.tar_size, layer.diff_id) for layer in layers]
        return rows[::-1]

    def tree(self, image: str | Image) -> ImageTree:
        """Return an image's files, to look into without a mount; a context manager.

        Raises as :meth:`resolve`; what is damaged in it, its methods tell.
        """
        return ImageTree(self._handle, self._record(image))

    def which(self, image: str | Image, path: bytes) -> list[Provenance]:
        """Return what the image's layers do to a path, top first.

        Raises:
            NotFound, Conflict, InvalidReference: as :meth:`resolve`, for the image.
            FormatError, IntegrityError: a tree is damaged or missing.
            OSError: ELOOP.
        """
        from layerfs.store.provenance import find_provenance

        record = self._record(image)
        merged = catalog.merged_tree(self._handle, record)
        trees = [
            (layer.diff_id, open_layer_tree(self._handle, layer.diff_id))
            for layer in catalog.image_layers(self._handle, record)
        ]
        return find_provenance(merged, trees, path)

    def analyze(self, image: str | Image, *, check: Callable[[], None] | None = None) -> ImageReport:
        """Return where the bytes of an image are: what each layer adds, changes, hides, and what is wasted.

        Args:
            image: which one.
            check: polled; what it raises ends the work.

        Raises:
            NotFound, InvalidReference: as :meth:`resolve`.
            FormatError: the tree of a layer is damaged.

        Blocking: reads the trees of all layers once, no file contents; memory does not grow with the image.
        """
        from layerfs.changeset.analysis import analyze

        layers = catalog.image_layers(self._handle, self._record(image))
        return analyze([open_layer_tree(self._handle, layer.diff_id) for layer in layers], check=check)

    def find_layer(self, text: str) -> Digest:
        """Return the diffID that a digest, or the unique beginning of one, means.

        Raises:
            NotFound: no layer has it.
            Conflict: several layers do.
        """
        algorithm, _, digits = text.strip().lower().rpartition(":")
        known = [row[0] for row in self._handle.database.connection.execute("SELECT diff_id FROM layer")]
        found = [
            diff_id
            for diff_id in known
            if len(digits) >= catalog.MIN_PREFIX
            and diff_id.partition(":")[2].startswith(digits)
            and algorithm in ("", diff_id.partition(":")[0])
        ]
        if len(found) > 1:
            raise Conflict(f"{text} is the beginning of {len(found)} layer digests", reason="ambiguous")
        if not found:
            raise NotFound("layer", text, hint="List the layers of an image with: layerfs layers --no-trunc")
        return stored_digest(found[0])

    def read_layer(self, diff_id: Digest) -> Generator[bytes, None, None]:
        """Yield a layer's uncompressed tar, byte for byte as it was received.

        Raises:
            NotFound: the store has no such layer.
            IntegrityError: it is damaged.
        """
        yield from read_layer(self._handle, self._layer(diff_id))

    def verify_layer(self, diff_id: Digest, *, check: Callable[[], None] | None = None) -> None:
        """Read a layer back and compare it with its diffID.

        Args:
            diff_id: which one.
            check: polled; what it raises ends the work.

        Raises:
            NotFound: the store has no such layer.
            IntegrityError: it is damaged.
        """
        verify_layer(self._handle, self._layer(diff_id), check=check)

    def tag(self, image: str | Image, name: str) -> Reference:
        """Let a name mean an image, whatever it meant before; return the canonical name.

        Raises:
            NotFound, InvalidReference: as :meth:`resolve`; also InvalidReference for a name that is none, or has a
                digest.
        """
        reference = catalog.name_to_give(self._handle, name)
        record = self._record(image)
        try:
            with self._handle.database.transaction() as connection:
                if record.manifest not in catalog.image_manifests(self._handle, record):
                    record = self._record(str(record.digest))  # the name that had it has just been removed
                catalog.set_name(connection, reference, record.id, record.manifest)
        except sqlite3.IntegrityError as error:
            raise NotFound("image", str(record.digest), hint="Somebody else has just removed it.") from error
        return reference

    def remove_image(self, name: str | Image, *, force: bool = False) -> RemovedImage:
        """Remove a name of an image, and the image with its last one; an ID removes the image.

        ``NAME@DIGEST`` is a name of an image that was pulled by it.

        Args:
            name: as for :meth:`resolve`, or an image, which means its ID.
            force: remove an image by ID even when it has several names.

        Raises:
            NotFound, InvalidReference: as :meth:`resolve`.
            Conflict: a container or mount uses it, or an ID was given and it has several names.
            StoreError: the store cannot be written to, or its database contradicts itself.

        Atomicity: the image is not listed any more before its layers go.
        """
        from layerfs.values import RemovedImage

        if not isinstance(name, str):
            name = str(name.id)
        self._handle.database.refuse_contradictions()
        record = catalog.find_image(self._handle, name)
        with self._handle.database.transaction(frees=True):
            going, gone = catalog.remove_references(self._handle, record, name)
        if gone:
            return RemovedImage((going[0],), ())
        names = catalog.image_names(self._handle, record)
        if not going and len(names) > 1 and not force:
            raise Conflict(
                f"image {record.digest.short} has {len(names)} names: {', '.join(names)}", reason="exists",
                hint="Remove them by name, or use --force.",
            )  # fmt: skip
        from layerfs.store.gc import collect

        self._refuse_used(record)
        with self._handle.database.transaction(frees=True) as connection:
            if connection.execute("SELECT 1 FROM snapshot WHERE image = ?", (record.id,)).fetchone():
                raise Conflict(f"image {record.digest.short} was just taken into use", reason="in-use")
            if going and catalog.remove_references(self._handle, record, name)[1]:
                return RemovedImage((going[0],), ())  # somebody has just given it another name
            if not connection.execute("DELETE FROM image WHERE id = ?", (record.id,)).rowcount:
                raise NotFound("image", str(record.digest), hint="Somebody else has just removed it.")
        collect(self._handle)
        return RemovedImage(tuple(names or going[:1]), (record.digest,))

    @contextlib.contextmanager
    def _there(self, image: str | Image) -> Iterator[catalog.ImageRecord]:
        """Find an image, and tell what is missing of it in the block from an image that was removed meanwhile."""
        record = self._record(image)
        try:
            yield record
        except (StoreError, IntegrityError) as error:
            if catalog.find_record(self._handle, record.digest) is None:
                raise NotFound("image", str(record.digest), hint="Somebody else has just removed it.") from error
            raise

    def _layer(self, diff_id: Digest) -> LayerRecord:
        layer = find_layer(self._handle, diff_id)
        if layer is None:
            raise NotFound("layer", str(diff_id))
        return layer

    def _refuse_used(self, record: catalog.ImageRecord) -> None:
        users = [snapshot.name for snapshot in list_snapshots(self._handle) if snapshot.image == record.digest]
        if users:
            raise Conflict(
                f"image {record.digest.short} is used by container {', '.join(users)}", reason="in-use",
                hint=f"Remove it first with: layerfs rm {users[0]}",
            )  # fmt: skip
        mounted = [row.target for row in self._records().live() if row.image_id == str(record.digest)]
        if mounted:
            raise Conflict(
                f"image {record.digest.short} is mounted at {', '.join(mounted)}", reason="mounted",
                hint=f"Unmount it first with: layerfs umount {mounted[0]}",
            )  # fmt: skip
