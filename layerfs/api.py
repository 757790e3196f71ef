"""The porcelain: :class:`Store` is what programs and the command line use; everything below is how it does it.

A store is a directory. It may be used by any number of processes and threads at once. Nothing here reads the
environment or prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import BinaryIO, Self

from layerfs.changeset.change import Change
from layerfs.changeset.upper import compare_upper
from layerfs.errors import Conflict, InvalidReference, MountError, NotFound, StoreError, UnsupportedFormat
from layerfs.formats.digest import Digest
from layerfs.formats.oci import ImageConfig, Manifest
from layerfs.formats.platform import Platform
from layerfs.formats.reference import Reference
from layerfs.formats.transport import parse_source
from layerfs.mount.choose import explain_backends
from layerfs.mount.image import mount_image, records_of, unmount_record
from layerfs.mount.option import MountOptions
from layerfs.mount.record import MountRecord
from layerfs.registry.load import load_source
from layerfs.registry.loader import Progress
from layerfs.registry.plan import Selection
from layerfs.store import image as catalog
from layerfs.store.check import Problem, check_store
from layerfs.store.gc import Reclaimed, collect
from layerfs.store.handle import FORMAT_VERSION, StoreHandle, open_store
from layerfs.store.layer import LayerRecord, find_layer, open_tree, read_layer, verify_layer
from layerfs.store.provenance import Provenance, find_provenance
from layerfs.store.snapshot import (
    Snapshot,
    create_snapshot,
    find_snapshot,
    list_snapshots,
    remove_snapshot,
    sweep_snapshots,
)
from layerfs.store.usage import Usage, measure, shared_bytes
from layerfs.store.view import ImageTree
from layerfs.values import Container, HistoryRow, Image, Info, Layer, Mount, RemovedImage

__all__ = ["Container", "HistoryRow", "Image", "Info", "Layer", "Mount", "RemovedImage", "Store"]

StrPath = str | os.PathLike[str]


class Store:
    """A store of images. A context manager; thread-safe."""

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
        """
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

    # Images in

    def load(
        self,
        source: StrPath | BinaryIO,
        *,
        platform: Platform | None = None,
        all_platforms: bool = False,
        reference: str | None = None,
        position: int | None = None,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Load images from a docker archive, an OCI archive or an OCI layout, recognised by content.

        Args:
            source: path of an archive (possibly compressed as a whole) or of a layout's directory; or a stream, which
                is read in one pass and may be a pipe. The caller closes it.
            platform: of an image for several platforms, this one; None means this machine's.
            all_platforms: all of them instead.
            reference: only the image of this name.
            position: only the image at this place in the archive, from 0.
            progress: told about every layer.
            check: polled several times a second; what it raises ends the load.

        Returns:
            The images, in the archive's order, without any that another process has removed already.

        Raises:
            FormatError: no image archive, or a broken one; UnsupportedFormat says what is not supported.
            IntegrityError: a size or digest is not as promised.
            NotFound: a blob is missing, or nothing fits ``platform`` or ``reference``.
            StoreError: no space, or an error of the disk.

        Blocking: reads and writes all layers that the store does not have; with ``sync``, waits for the disk.
        Atomicity: an image is visible once it is complete and durable. A load that fails leaves the store as it was.
        """
        stem = None if hasattr(source, "read") else _stem(os.fspath(source))
        selection = Selection(
            platform or Platform.host(), platform is not None, all_platforms, reference, position, stem
        )
        try:
            records = load_source(self._handle, source, selection, progress=progress, check=check)
        except OSError as error:
            if isinstance(error, MountError):
                raise
            raise StoreError(f"load failed: {_explain(error)}", root=self._handle.layout.root) from error
        return self._images(records)

    def pull(
        self,
        source: str,
        *,
        platform: Platform | None = None,
        all_platforms: bool = False,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Load images through a transport: ``docker-archive:FILE[:REF]``, ``oci-archive:…``, ``oci:DIR[:REF]``.

        Arguments, errors and guarantees are those of :meth:`load`.

        Raises:
            InvalidReference: the text names no transport that is supported.
            UnsupportedFormat: the transport is known, but not supported.
        """
        wanted = parse_source(source)
        if wanted.transport not in ("docker-archive", "oci-archive", "oci"):
            raise UnsupportedFormat(
                f"pulling from {wanted.transport}: is not supported",
                hint="Copy the image to an archive first, then: layerfs pull oci-archive:FILE",
            )
        if not os.path.exists(wanted.path):
            raise NotFound("file or directory", wanted.path)
        if (wanted.transport == "oci") != os.path.isdir(wanted.path):
            kind = "directory" if wanted.transport == "oci" else "file"
            raise InvalidReference(f"{wanted.transport}: needs a {kind}, which {wanted.path} is not")
        return self.load(
            wanted.path, platform=platform, all_platforms=all_platforms, reference=wanted.reference,
            position=wanted.index, progress=progress, check=check,
        )  # fmt: skip

    # Looking

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
        record = self._record(image)
        return ImageConfig.parse(self._handle.read_blob(record.digest), algorithm=record.digest.algorithm)

    def manifest(self, image: str | Image) -> Manifest:
        """Return the manifest that an image came with; one was made for images from docker archives."""
        record = self._record(image)
        return Manifest.parse(self._handle.read_blob(record.manifest), algorithm=record.manifest.algorithm)

    def layers(self, image: str | Image) -> list[Layer]:
        """Return an image's layers, bottom first."""
        record = self._record(image)
        steps = self.config(image).layer_history()
        found = []
        for layer, step in zip(catalog.image_layers(self._handle, record), steps, strict=True):
            row = self._handle.database.connection.execute(
                "SELECT count(DISTINCT image) FROM image_layer WHERE layer = ?", (layer.id,)
            ).fetchone()
            command = step.created_by if step is not None else None
            shared = shared_bytes(self._handle, layer)
            found.append(Layer(layer.diff_id, layer.tar_size, shared, layer.entries, command, row[0]))
        return found

    def history(self, image: str | Image) -> list[HistoryRow]:
        """Return the steps in which an image was made, last first."""
        config = self.config(image)
        layers = catalog.image_layers(self._handle, self._record(image))
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
        """Return an image's files, to look into without a mount; a context manager."""
        return ImageTree(self._handle, self._record(image))

    def which(self, image: str | Image, path: bytes) -> list[Provenance]:
        """Return what the image's layers do to a path, top first.

        Raises:
            OSError: ENOTDIR when a file stands where the path needs a directory.
        """
        record = self._record(image)
        merged = catalog.merged_tree(self._handle, record)
        trees = [
            (layer.diff_id, open_tree(self._handle.layout.layer_tree(layer.diff_id)))
            for layer in catalog.image_layers(self._handle, record)
        ]
        return find_provenance(merged, trees, path)

    def read_layer(self, diff_id: Digest) -> Iterator[bytes]:
        """Yield a layer's uncompressed tar, byte for byte as it was received.

        Raises:
            NotFound: the store has no such layer.
            IntegrityError: it is damaged.
        """
        yield from read_layer(self._handle, self._layer(diff_id))

    def verify_layer(self, diff_id: Digest) -> None:
        """Read a layer back and compare it with its diffID.

        Raises:
            NotFound: the store has no such layer.
            IntegrityError: it is damaged.
        """
        verify_layer(self._handle, self._layer(diff_id))

    def usage(self) -> Usage:
        """Measure the store: sizes on disk, what is shared, what sharing saves."""
        return measure(self._handle)

    def info(self) -> Info:
        """Return what this store and machine are."""
        connection = self._handle.database.connection

        def count(table: str) -> int:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

        layout = self._handle.layout
        return Info(
            layout.root, layout.runroot, FORMAT_VERSION, count("image"), count("layer"), count("snapshot"),
            tuple(explain_backends()),
        )  # fmt: skip

    # Names

    def tag(self, image: str | Image, name: str) -> Reference:
        """Let a name mean an image, whatever it meant before; return the canonical name.

        Raises:
            InvalidReference: the name is none, or has a digest.
        """
        reference = Reference.parse(name).with_default_tag()
        if reference.digest is not None:
            raise InvalidReference(f"{name} has a digest: a name for an image is a repository and a tag")
        record = self._record(image)
        with self._handle.database.transaction() as connection:
            catalog.set_name(connection, reference, record.id)
        return reference

    def remove_image(self, name: str, *, force: bool = False) -> RemovedImage:
        """Remove a name of an image, and the image with its last name; an ID removes the image.

        Args:
            name: as for :meth:`resolve`.
            force: remove an image by ID even when it has several names.

        Raises:
            NotFound, InvalidReference: as :meth:`resolve`.
            Conflict: a container or mount uses it, or an ID was given and it has several names.

        Atomicity: the image is not listed any more before its layers go.
        """
        record = catalog.find_image(self._handle, name)
        names = catalog.image_names(self._handle, record)
        untagged = _named(name, names)
        rest = [] if untagged is None or force else [other for other in names if other != untagged]
        if untagged is None and len(names) > 1 and not force:
            raise Conflict(
                f"image {record.digest.short} has {len(names)} names: {', '.join(names)}", reason="exists",
                hint="Remove them by name, or use --force.",
            )  # fmt: skip
        if rest:
            with self._handle.database.transaction() as connection:
                connection.execute("DELETE FROM name WHERE name = ?", (untagged,))
            return RemovedImage((untagged,) if untagged else (), ())
        self._refuse_used(record)
        with self._handle.database.transaction() as connection:
            if connection.execute("SELECT 1 FROM snapshot WHERE image = ?", (record.id,)).fetchone():
                raise Conflict(f"image {record.digest.short} was just taken into use", reason="in-use")
            connection.execute("DELETE FROM image WHERE id = ?", (record.id,))
        collect(self._handle)
        return RemovedImage(tuple(names), (record.digest,))

    # Containers and mounts

    def containers(self) -> list[Container]:
        """Return all containers, newest first."""
        targets = {record.container: record.target for record in records_of(self._handle).live()}
        return [self._container(snapshot, targets.get(snapshot.name)) for snapshot in list_snapshots(self._handle)]

    def mount(
        self,
        image: str | Image | None,
        target: StrPath | None = None,
        *,
        name: str | None = None,
        read_only: bool = False,
        backend: str = "auto",
        lower: str = "auto",
        options: MountOptions | None = None,
        check: Callable[[], None] | None = None,
    ) -> Mount:
        """Mount an image, with a container's writable layer on top unless ``read_only``.

        Args:
            image: what to mount; None only with the ``name`` of a container that exists.
            target: an existing directory; None makes one below the runroot, named after the container or image.
            name: of the container: one that exists goes on where it was, else it is made. None makes one with a new
                name. Not with ``read_only``.
            read_only: mount the image alone.
            backend: ``auto``, ``overlay`` or ``fuse``.
            lower: ``auto``, ``erofs``, or ``dirs`` to unpack the layers to directories first.
            options: nosuid, nodev and so on.
            check: polled while layers are unpacked.

        Raises:
            NotFound: no such image.
            Conflict: the container is mounted, or belongs to another image, or the target is in use.
            BackendUnavailable: no backend works here; says why for each.
            MountError: the target is no directory, or a step failed.

        Atomicity: when it fails nothing is mounted, and a container that was made for it is gone.
        """
        if read_only and name is not None:
            raise InvalidReference("a read-only mount has no container, so it takes no name")
        snapshot, made = None, False
        if name is not None:
            snapshot = self._existing(name)
        if image is None:
            if snapshot is None:
                raise NotFound("container", name or "", hint="Name an image to make it from.")
            record = catalog.find_image(self._handle, str(snapshot.image))
        else:
            record = self._record(image)
            if snapshot is not None and snapshot.image != record.digest:
                raise Conflict(
                    f"container {snapshot.name} belongs to image {snapshot.image.short}, not {record.digest.short}",
                    reason="exists", hint="Choose another name, or remove it with: layerfs rm " + snapshot.name,
                )  # fmt: skip
        if target is not None and not os.path.isdir(target):
            problem = "is not a directory" if os.path.lexists(target) else "does not exist"
            raise MountError(f"target {os.fspath(target)} {problem}", hint="Make it first with: mkdir -p")
        if snapshot is None and not read_only:
            snapshot, made = create_snapshot(self._handle, record, name), True
        place, own = (target, False) if target is not None else self._own_target(record, snapshot)
        try:
            mounted = mount_image(
                self._handle, record, place, snapshot=snapshot, read_only=read_only, backend=backend, lower=lower,
                options=options, check=check,
            )  # fmt: skip
        except BaseException:
            if made and snapshot is not None:
                remove_snapshot(self._handle, snapshot)
            if own:
                os.rmdir(place)
            raise
        return _mount(mounted)

    def umount(self, target_or_name: str, *, lazy: bool = False) -> Mount:
        """Unmount a container or image, by target, container name or ID, image name, or ID of the mount.

        Raises:
            NotFound: nothing of layerfs is mounted there.
            MountError: it is in use; the message says by whom.
        """
        record = records_of(self._handle).find(target_or_name)
        if record is None:
            record = self._mounted_as(target_or_name)
        unmount_record(self._handle, record, lazy=lazy)
        if os.path.dirname(record.target) == self._targets():
            os.rmdir(record.target)
        return _mount(record)

    def mounts(self) -> list[Mount]:
        """Return the mounts that exist, oldest first; records of mounts that are gone are dropped on the way."""
        return [_mount(record) for record in records_of(self._handle).live()]

    def diff(self, container: str) -> Iterator[Change]:
        """Yield what was changed in a container, a directory before what is in it, in byte order of names.

        Raises:
            NotFound: no such container.

        Blocking: reads the container's writable layer only, and looks its paths up in the image's tree.
        """
        snapshot = find_snapshot(self._handle, container)
        record = catalog.find_image(self._handle, str(snapshot.image))
        upper = os.path.join(self._handle.layout.snapshot(snapshot.id), "upper")
        yield from compare_upper(upper, catalog.merged_tree(self._handle, record))

    def remove_container(self, name: str, *, force: bool = False) -> Container:
        """Remove a container and all that was written in it.

        Args:
            name: its name, ID or the beginning of its ID.
            force: unmount it first.

        Raises:
            NotFound: no such container.
            Conflict: it is mounted.
        """
        snapshot = find_snapshot(self._handle, name)
        for record in records_of(self._handle).live():
            if record.container == snapshot.name:
                if not force:
                    raise Conflict(
                        f"container {snapshot.name} is mounted at {record.target}", reason="mounted",
                        hint=f"Unmount it first with: layerfs umount {snapshot.name}",
                    )  # fmt: skip
                self.umount(record.id)
        remove_snapshot(self._handle, snapshot)
        return self._container(snapshot, None)

    # Upkeep

    def check(self, *, repair: bool = False, check: Callable[[], None] | None = None) -> Iterator[Problem]:
        """Yield what is wrong with the store, after reading all of it; see :func:`layerfs.store.check.check_store`."""
        yield from check_store(self._handle, repair=repair, check=check)

    def gc(self) -> Reclaimed:
        """Remove what nothing refers to: layers of failed loads, trees, documents."""
        sweep_snapshots(self._handle)
        return collect(self._handle)

    def _record(self, image: str | Image) -> catalog.ImageRecord:
        return catalog.find_image(self._handle, image if isinstance(image, str) else str(image.id))

    def _image(self, record: catalog.ImageRecord) -> Image:
        config = ImageConfig.parse(self._handle.read_blob(record.digest), algorithm=record.digest.algorithm)
        layers = catalog.image_layers(self._handle, record)
        return Image(
            record.digest, record.manifest, tuple(catalog.image_names(self._handle, record)), record.chain_id,
            config.platform, config.created, sum(layer.tar_size for layer in layers), len(layers),
        )  # fmt: skip

    def _images(self, records: list[catalog.ImageRecord]) -> list[Image]:
        images = []
        for record in records:
            try:
                images.append(self._image(record))
            except StoreError:
                # Another process may have removed it since its record was read.
                if catalog.has_image(self._handle, record.digest):
                    raise
        return images

    def _layer(self, diff_id: Digest) -> LayerRecord:
        layer = find_layer(self._handle, diff_id)
        if layer is None:
            raise NotFound("layer", str(diff_id))
        return layer

    def _container(self, snapshot: Snapshot, target: str | None) -> Container:
        names = catalog.image_names(self._handle, catalog.find_image(self._handle, str(snapshot.image)))
        name = names[0] if names else None
        return Container(snapshot.id, snapshot.name, snapshot.image, name, snapshot.created, target)

    def _existing(self, name: str) -> Snapshot | None:
        try:
            return find_snapshot(self._handle, name)
        except NotFound:
            return None

    def _refuse_used(self, record: catalog.ImageRecord) -> None:
        users = [snapshot.name for snapshot in list_snapshots(self._handle) if snapshot.image == record.digest]
        if users:
            raise Conflict(
                f"image {record.digest.short} is used by container {', '.join(users)}", reason="in-use",
                hint=f"Remove it first with: layerfs rm {users[0]}",
            )  # fmt: skip
        mounted = [row.target for row in records_of(self._handle).live() if row.image_id == str(record.digest)]
        if mounted:
            raise Conflict(
                f"image {record.digest.short} is mounted at {', '.join(mounted)}", reason="mounted",
                hint=f"Unmount it first with: layerfs umount {mounted[0]}",
            )  # fmt: skip

    def _targets(self) -> str:
        return os.path.join(self._handle.layout.runroot, "targets")

    def _own_target(self, record: catalog.ImageRecord, snapshot: Snapshot | None) -> tuple[str, bool]:
        place = os.path.join(self._targets(), snapshot.name if snapshot is not None else record.digest.short)
        os.makedirs(self._targets(), mode=0o700, exist_ok=True)
        os.makedirs(place, mode=0o755, exist_ok=True)
        return place, True

    def _mounted_as(self, text: str) -> MountRecord:
        """Find a mount by the container or image that a shorter or familiar name means."""
        live = records_of(self._handle).live()[::-1]
        snapshot = self._existing(text)
        if snapshot is not None:
            for record in live:
                if record.container == snapshot.name:
                    return record
            raise NotFound("mount of container", text)
        try:
            image = catalog.find_image(self._handle, text)
        except (NotFound, InvalidReference):
            raise NotFound("mount", text, hint="List what is mounted with: layerfs mount") from None
        found = [record for record in live if record.image_id == str(image.digest)]
        if len(found) > 1:
            places = ", ".join(record.target for record in found)
            raise Conflict(f"{text} is mounted {len(found)} times: {places}", reason="ambiguous")
        if not found:
            raise NotFound("mount of image", text, hint="List what is mounted with: layerfs mount")
        return found[0]


def _mount(record: MountRecord) -> Mount:
    return Mount(
        record.id, record.target, Digest.parse(record.image_id), record.image_name, record.container, record.backend,
        record.read_only, record.created, record.pid,
    )  # fmt: skip


def _named(text: str, names: list[str]) -> str | None:
    """Return the canonical name that a text is, if it is one of these."""
    try:
        name = str(Reference.parse(text).with_default_tag())
    except InvalidReference:
        return None
    return name if name in names else None


def _stem(path: str) -> str | None:
    """Return what images of an archive are called that have only a tag: the file's name without its endings."""
    name = os.path.basename(os.path.abspath(path)).lower().partition(".")[0]
    return name or None


def _explain(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"
