"""What differs: between a container and its image, between images, in a layer; and images made of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from layerfs.api.base import StorePart, StrPath
from layerfs.api.callback import callbacks
from layerfs.errors import Conflict, InvalidReference, LayerfsError, NotFound
from layerfs.store import image as catalog
from layerfs.store.layer import find_layer, open_layer_tree
from layerfs.store.snapshot import find_snapshot, is_dressed
from layerfs.store.view import ImageTree

if TYPE_CHECKING:
    from layerfs.changeset.change import Change, Step
    from layerfs.formats.digest import Digest
    from layerfs.formats.platform import Platform
    from layerfs.values import Image

__all__ = ["ChangePart"]


class ChangePart(StorePart):
    """Comparing, committing, applying."""

    def diff(self, container: str) -> Generator[Change, None, None]:
        """Yield what was changed in a container, a directory before what is in it, in byte order of names.

        Raises:
            NotFound: no such container.

        Blocking: reads the container's writable layer only, and looks its paths up in the image's tree.
        """
        from layerfs.changeset.overlay_form import uses_userxattr
        from layerfs.changeset.upper import compare_upper

        snapshot = find_snapshot(self._handle, container)
        record = catalog.find_image(self._handle, str(snapshot.image))
        tree = catalog.merged_tree(self._handle, record)
        upper = self._handle.layout.upper(snapshot.id)
        yield from compare_upper(upper, tree, userxattr=uses_userxattr(), dressed=is_dressed(upper))

    def steps(self, old: str | Image | None, new: str | Image, *, exact: bool = False) -> Generator[Step, None, None]:
        """Yield the same with both states of every path, of a container or between two images.

        Args:
            old: an image; None for the image that the container ``new`` was made from.
            new: a container when it is the name of one, else an image. A container may also be compared with an image
                that is not its own.
            exact: also yield what a layer has to repeat but no list shows, see
                :class:`layerfs.changeset.change.Step`.

        Returns:
            Steps; each is good until the next one is taken.

        Raises:
            NotFound: no such container or image.
            Conflict: two images whose names begin so.

        Blocking: of a container, its writable layer is read; of two images, what their layers touch that they do not
            share. Files whose attributes are equal are read where they are not the same bytes of the same layer.
        """
        from layerfs.changeset.overlay_form import uses_userxattr
        from layerfs.changeset.upper import walk_upper

        snapshot = self._existing(new) if isinstance(new, str) else None
        if snapshot is None and old is None:
            hint = "List what there is with: layerfs ps"
            if isinstance(new, str) and self._is_image(new):
                hint = f"Of an image, say what to compare it with: layerfs diff BASE {new}"
            raise NotFound("container", str(new), hint=hint)
        if snapshot is None:
            assert old is not None
            yield from self._between(self._record(old), self._record(new), exact=exact)
            return
        record = catalog.find_image(self._handle, str(snapshot.image))
        with ImageTree(self._handle, record) as tree:
            upper = self._handle.layout.upper(snapshot.id)
            dressed = is_dressed(upper)
            if old is None or self._record(old).chain_id == record.chain_id:
                yield from walk_upper(upper, tree, userxattr=uses_userxattr(), exact=exact, dressed=dressed)
                return
            with ImageTree(self._handle, self._record(old)) as before:
                yield from walk_upper(
                    upper, tree, userxattr=uses_userxattr(), exact=exact, before=before, dressed=dressed
                )

    def layer_steps(self, diff_id: Digest, *, exact: bool = False) -> Generator[Step, None, None]:
        """Yield what a layer does by itself: what it has as added, what it hides as deleted.

        Args:
            diff_id: of the layer.
            exact: as for :meth:`steps`.

        Raises:
            NotFound: the store has no such layer.
        """
        from layerfs.changeset.trees import walk_layer

        if find_layer(self._handle, diff_id) is None:
            raise NotFound("layer", str(diff_id))
        with ImageTree(self._handle, open_layer_tree(self._handle, diff_id)) as tree:
            for step in walk_layer(tree):
                if exact or step.kind is not None:
                    yield step

    def layer_tar(
        self, old: str | Image | None, new: str | Image, *, latest: int | None = None,
        check: Callable[[], None] | None = None,
    ) -> Generator[bytes, None, None]:  # fmt: skip
        """Yield the same changes as an OCI layer tar, which makes ``new`` of ``old``.

        Args:
            old: as for :meth:`steps`.
            new: as for :meth:`steps`.
            latest: no time in it is after this, in seconds since the epoch.
            check: polled; what it raises ends the work.

        Raises:
            Conflict: a file was written to while it was read.
            UnsafePath: a file has the name of a whiteout.
        """
        from layerfs.changeset.layer_tar import write_layer

        yield from write_layer(self.steps(old, new, exact=True), latest=latest, check=check)

    def commit(
        self,
        container: str,
        name: str | None = None,
        *,
        message: str = "",
        author: str | None = None,
        changes: Sequence[str] = (),
        squash: bool = False,
        compression: str = "none",
        latest: int | None = None,
        force: bool = False,
        check: Callable[[], None] | None = None,
    ) -> Image:
        """Make an image of a container: its image's layers, and one with what was changed.

        Args:
            container: its name or ID; it may be mounted, see :mod:`layerfs.changeset.commit`.
            name: of the new image; None for no name.
            message: comment of the step in the image's history.
            author: of the image.
            changes: instructions that change its config, such as ``CMD ["sh"]``.
            squash: make one layer of all.
            compression: how the new layer stands in the manifest: ``none``, ``gzip`` or ``zstd``.
            latest: no time in the new layer is after this, in seconds since the epoch; what SOURCE_DATE_EPOCH says.
            force: let a name mean the new image that means another one.
            check: polled; what it raises ends the work.

        Returns:
            The image. The same change gives the same image, on any day.

        Raises:
            NotFound: no such container.
            Conflict: the name is taken, or the container is written to all the time.
            InvalidReference: a name or an instruction that is none.
            UnsafePath: a file has the name of a whiteout.

        Atomicity: the image is visible once it is complete and durable; the container is not changed.
        """
        from layerfs.changeset.commit import commit_container
        from layerfs.mount.in_use import why_mounted
        from layerfs.mount.mounted import container_lock

        snapshot = find_snapshot(self._handle, container)
        with callbacks() as own, self._writing("commit"), container_lock(self._handle, snapshot):
            mounted = why_mounted(self._handle, snapshot) is not None
            record = commit_container(
                self._handle, snapshot, name, message=message, author=author, changes=changes, squash=squash,
                compression=compression, latest=latest, force=force, mounted=mounted, check=own.check(check),
            )  # fmt: skip
        return self._image(record)

    def squash(
        self,
        image: str | Image,
        name: str | None = None,
        *,
        first: int = 0,
        message: str = "",
        compression: str = "none",
        latest: int | None = None,
        force: bool = False,
        check: Callable[[], None] | None = None,
    ) -> Image:
        """Make an image of which the layers from ``first`` on, counted from 0, are one.

        Raises:
            NotFound, InvalidReference: no such image, or layer of it.
            Conflict: the name is taken.
        """
        from layerfs.changeset.commit import squash_image

        with callbacks() as own, self._writing("squash"):
            record = squash_image(
                self._handle, self._record(image), name, first=first, message=message, compression=compression,
                latest=latest, force=force, check=own.check(check),
            )  # fmt: skip
        return self._image(record)

    def rebase(
        self,
        image: str | Image,
        onto: str | Image,
        name: str | None = None,
        *,
        base: str | Image | None = None,
        force: bool = False,
        check: Callable[[], None] | None = None,
    ) -> Image:
        """Make an image that has the layers of ``onto`` in place of those of its base.

        Args:
            image: what is rebased.
            onto: the new base.
            name: of the new image.
            base: the old base; None finds the image of the store that shares most of the lowest layers.
            force: let a name mean the new image that means another one.
            check: polled; what it raises ends the work.

        Raises:
            NotFound: no such image, or no base.
            InvalidReference: ``base`` is not at the bottom of the image.
            Conflict: the name is taken.
            FormatError: the layers do not fit on the new base.
        """
        from layerfs.changeset.commit import rebase_image

        old = None if base is None else self._record(base)
        with callbacks() as own, self._writing("rebase"):
            record = rebase_image(
                self._handle, self._record(image), self._record(onto), name, base=old, force=force,
                check=own.check(check),
            )  # fmt: skip
        return self._image(record)

    def import_tree(
        self,
        source: StrPath | Iterable[bytes],
        name: str | None = None,
        *,
        message: str = "",
        author: str | None = None,
        changes: Sequence[str] = (),
        platform: Platform | str | None = None,
        compression: str = "none",
        latest: int | None = None,
        force: bool = False,
        check: Callable[[], None] | None = None,
    ) -> Image:
        """Make an image of one layer from a plain tree.

        Args:
            source: a directory of the host, or the pieces of an uncompressed tar, which becomes the layer as it is.
            name: of the new image.
            message: comment of the one step in its history.
            author: of the image.
            changes: instructions that set its config.
            platform: what it is for; None means this machine's.
            compression: how the layer stands in the manifest: ``none``, ``gzip`` or ``zstd``.
            latest: no time in a layer made of a directory is after this, in seconds since the epoch.
            force: let a name mean the new image that means another one.
            check: polled; what it raises ends the work.

        Raises:
            FormatError: the source is no tar, or not one that a layer can be.
            Conflict: the name is taken.
            LayerfsError: the source is no directory, or cannot be read.
        """
        from layerfs.changeset.commit import import_tree

        tree = os.fspath(source) if isinstance(source, str | os.PathLike) else source
        if isinstance(tree, str) and not os.path.isdir(tree):
            problem = "is not a directory" if os.path.lexists(tree) else "does not exist"
            raise LayerfsError(f"cannot import {tree}: it {problem}", hint="Name a directory, or give a tar's pieces.")
        with callbacks() as own, self._writing("import"):
            try:
                record = import_tree(
                    self._handle, tree if isinstance(tree, str) else own.pieces(tree), name, message=message,
                    author=author, changes=changes, platform=platform, compression=compression, latest=latest,
                    force=force, check=own.check(check),
                )  # fmt: skip
            except PermissionError as error:
                where = os.fsdecode(error.filename) if error.filename else tree
                raise LayerfsError(f"cannot read {where}: {error.strerror}") from error
        return self._image(record)

    def apply(self, container: str, pieces: Iterable[bytes], *, check: Callable[[], None] | None = None) -> None:
        """Change a container as a layer says.

        Args:
            container: its name or ID; not mounted.
            pieces: of the layer's uncompressed tar.
            check: polled; what it raises ends the work.

        Raises:
            NotFound: no such container.
            Conflict: it is mounted.
            FormatError: the tar is none, or leaves its root; the container is then as it was.

        Atomicity: the tar is read to its end before anything is changed. A crash afterwards may leave a part done.
        """
        from layerfs.changeset.apply import apply_tar
        from layerfs.changeset.overlay_form import uses_userxattr
        from layerfs.mount.image import dressed_upper

        snapshot = find_snapshot(self._handle, container)
        record = catalog.find_image(self._handle, str(snapshot.image))
        with (
            callbacks() as own,
            self._writing("apply"),
            ImageTree(self._handle, record) as tree,
            dressed_upper(self._handle, snapshot, tree.tree) as upper,
        ):
            apply_tar(self._handle, own.pieces(pieces), upper, tree, userxattr=uses_userxattr(), check=own.check(check))

    def _is_image(self, text: str) -> bool:
        try:
            self._record(text)
        except (NotFound, InvalidReference, Conflict):
            return False
        return True

    def _between(self, old: catalog.ImageRecord, new: catalog.ImageRecord, *, exact: bool) -> Iterator[Step]:
        from layerfs.changeset.trees import touched_by, walk_trees

        layers = [[layer.diff_id for layer in catalog.image_layers(self._handle, record)] for record in (old, new)]
        shared = 0
        for one, other in zip(*layers, strict=False):
            if one != other:
                break
            shared += 1
        with ImageTree(self._handle, old) as before, ImageTree(self._handle, new) as after:
            touched = None
            if shared:
                own = [open_layer_tree(self._handle, each) for side in layers for each in side[shared:]]
                touched = touched_by(own, (before, after))
            yield from walk_trees(before, after, touched, exact=exact)
