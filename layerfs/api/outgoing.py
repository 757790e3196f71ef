"""How images and trees go out: archives and layouts, plain tars, directories."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from layerfs.api.base import StorePart, StrPath
from layerfs.api.callback import callbacks
from layerfs.errors import InvalidReference, LayerfsError
from layerfs.store import image as catalog
from layerfs.store.snapshot import is_dressed
from layerfs.store.view import ImageTree

if TYPE_CHECKING:
    from layerfs.changeset.extract import Skipped
    from layerfs.registry.save import SavedImage
    from layerfs.values import Image

__all__ = ["OutgoingPart"]


class OutgoingPart(StorePart):
    """Saving, exporting, extracting."""

    def save(
        self,
        images: Sequence[str | Image] | str | Image,
        target: StrPath | BinaryIO,
        *,
        form: str = "docker-archive",
        compression: str | None = None,
        level: int | None = None,
        check: Callable[[], None] | None = None,
    ) -> list[SavedImage]:
        """Write images into an archive or a layout that other tools accept. Nothing is kept in between.

        Args:
            images: which ones; one that is named by a name has that name in the archive, one by its ID has none,
                an :class:`Image` all of its names.
            target: path of the archive, or of the layout's directory, which is added to if it is one; or a stream.
            form: ``docker-archive``, ``oci-archive`` or ``oci``. The first has uncompressed layers and manifest.json.
            compression: of the layers of an OCI form: ``none``, ``gzip`` or ``zstd``. None takes the compressed blobs
                where they were kept, so that the manifest stays as it was, and else does not compress.
            level: of the compression, with which all layers are compressed anew; None means 6 for gzip, 3 for zstd.
            check: polled; what it raises ends the work.

        Returns:
            What was written, in order.

        Raises:
            NotFound: no such image.
            IntegrityError: a layer is damaged; an archive at a path is then not there.
            InvalidReference: there is no such compression or level, or the form has none.
            LayerfsError: the target cannot be written, or there is no image to save.

        Blocking: reads every layer once, twice where a stream that cannot seek gets compressed layers: their size and
            digest stand before them.
        Atomicity: an archive at a path appears complete or not at all; so does an image in a layout.
        """
        from layerfs.formats.compress import check_level
        from layerfs.registry.save import FORMATS, save_archive, save_layout
        from layerfs.registry.target import open_target
        from layerfs.values import Image

        if form not in FORMATS:
            raise LayerfsError(f"no such form: {form}", hint=f"Use one of {', '.join(FORMATS)}.")
        check_level(compression, level)
        if form == "docker-archive" and compression not in (None, "none"):
            raise InvalidReference("layers of a docker archive are not compressed", hint="Use the form oci-archive.")
        wanted = []
        for image in [images] if isinstance(images, str | Image) else images:
            record = self._sent(image)
            named = catalog.name_manifests(self._handle, record)
            if isinstance(image, str):
                name = catalog.name_among(image, list(named))
                wanted.append((record, [name] if name is not None else []))
            elif form == "docker-archive" or not named:
                wanted.append((record, list(named)))
            else:  # each name with its manifest
                for manifest in dict.fromkeys(named.values()):
                    names = [name for name in named if named[name] == manifest]
                    wanted.append((replace(record, manifest=manifest), names))
        if not wanted:
            raise LayerfsError("there is no image to save")
        if form == "oci":
            if not isinstance(target, str | bytes) and hasattr(target, "write"):
                raise LayerfsError("an OCI layout is a directory, not a stream", hint="Use --format oci-archive.")
            with callbacks() as own:
                return save_layout(
                    self._handle, wanted, target, compression=compression, level=level, check=own.check(check)
                )
        with callbacks() as own, open_target(target, sync=self._handle.sync) as file:
            check = own.check(check)
            docker = form == "docker-archive"
            return save_archive(
                self._handle, wanted, file, docker=docker, compression=compression, level=level, check=check
            )

    def export(
        self, name: str | Image, *, latest: int | None = None, check: Callable[[], None] | None = None
    ) -> Generator[bytes, None, None]:
        """Yield all that a container or an image shows, as one plain tar.

        Args:
            name: a container when it is the name of one, else an image.
            latest: no time in it is after this, in seconds since the epoch.
            check: polled; what it raises ends the work.

        Raises:
            NotFound: there is neither.
            IntegrityError: a layer is missing or cut short.
            Conflict: a file of the container was written to while it was read.
        """
        from layerfs.changeset.layer_tar import write_layer
        from layerfs.changeset.overlay_form import uses_userxattr
        from layerfs.changeset.trees import walk_tree
        from layerfs.changeset.upper import walk_upper

        snapshot = self._existing(name) if isinstance(name, str) else None
        if snapshot is None:
            with ImageTree(self._handle, self._record(name)) as tree:
                yield from write_layer(walk_tree(tree), plain=True, latest=latest, check=check)
            return
        record = catalog.find_image(self._handle, str(snapshot.image))
        with ImageTree(self._handle, record) as tree:
            upper = self._handle.layout.upper(snapshot.id)
            steps = walk_upper(upper, tree, userxattr=uses_userxattr(), whole=True, dressed=is_dressed(upper))
            yield from write_layer(steps, plain=True, latest=latest, check=check)

    def extract(
        self,
        image: str | Image,
        target: StrPath,
        *,
        path: bytes = b"/",
        check: Callable[[], None] | None = None,
    ) -> Skipped:
        """Write the files of an image, or of one of its directories, into a directory; as any user.

        Args:
            image: which one.
            target: the directory, made if it is not there; it has to be empty.
            path: what to extract: a directory of the image, or a single file; symlinks on the way are followed.
            check: polled; what it raises ends the work.

        Returns:
            What could not be kept, because only root can: owners, devices, some xattrs.

        Raises:
            NotFound: no such image.
            OSError: ENOENT for the path in the image.
            Conflict: the target has something in it.
            LayerfsError: ENOSPC, EACCES and the like, of the target.
        """
        from layerfs.changeset.extract import extract_tree

        with callbacks() as own, ImageTree(self._handle, self._record(image)) as tree:
            check = own.check(check)
            nid = tree.resolve(path)
            try:
                return extract_tree(tree, nid, target, leaf=path.rstrip(b"/").rpartition(b"/")[2], check=check)
            except OSError as error:
                where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
                raise LayerfsError(f"cannot extract to {os.fspath(target)}: {where}{error.strerror}") from error
