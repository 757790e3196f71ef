"""Making images: of a container, of a plain tree, and of other images.

The layer of a commit repeats the container exactly: every type, mode, owner, time, xattr, hard link and device, but for
sockets. What a container only copied up and left as it was is not in it.

A container may be mounted and running meanwhile. Its writable layer is then looked over before and after it is read,
and the commit starts anew when anything in it changed in between: so what is committed is a state that it really had. A
container that never rests is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain

from layerfs.changeset.build import (
    BuiltLayer,
    base_layers,
    building,
    history_of,
    ingest_layer,
    newest_time,
    not_empty,
    save_image,
    tree_of,
)
from layerfs.changeset.layer_tar import whiteout_name, write_layer
from layerfs.changeset.overlay_form import uses_userxattr
from layerfs.changeset.trees import walk_tree, walk_trees
from layerfs.changeset.upper import walk_upper
from layerfs.errors import Conflict, InvalidReference, NotFound
from layerfs.formats.amend import history_step, new_config, with_layers
from layerfs.formats.erofs.reader import Tree
from layerfs.formats.oci import ImageConfig
from layerfs.formats.platform import Platform
from layerfs.formats.tree import Node
from layerfs.formats.whiteout import OPAQUE_MARKER, WHITEOUT_PREFIX
from layerfs.linux.directory_stack import walk_status
from layerfs.store.derive import merge_layers
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, find_image, image_layers, list_images, name_to_give
from layerfs.store.ingest import Ingest
from layerfs.store.layer import open_layer_tree
from layerfs.store.snapshot import Snapshot, is_dressed
from layerfs.store.view import ImageTree

__all__ = ["commit_container", "import_tree", "rebase_image", "squash_image"]

#: How often a container is read again that was written to meanwhile.
_ATTEMPTS = 3


def commit_container(
    handle: StoreHandle,
    snapshot: Snapshot,
    name: str | None,
    *,
    message: str = "",
    author: str | None = None,
    changes: Sequence[str] = (),
    squash: bool = False,
    compression: str = "none",
    latest: int | None = None,
    force: bool = False,
    mounted: bool = False,
    check: Callable[[], None] | None = None,
) -> ImageRecord:
    """Make an image of a container: its image's layers, and one with what was changed.

    Args:
        handle: the store.
        snapshot: the container.
        name: of the new image; None for no name.
        message: comment of the step in the image's history.
        author: of the image; None leaves that of the old one.
        changes: instructions that change its config, such as ``CMD ["sh"]``.
        squash: make one layer of all.
        compression: of the new layer in the image's manifest; ``gzip`` and ``zstd`` keep it compressed as well.
        latest: no time in the new layer is after this, in seconds since the epoch.
        force: let a name mean the new image that means another one.
        mounted: whether somebody may write meanwhile.
        check: polled; what it raises ends the work.

    Raises:
        Conflict: the name is taken; or the container was written to again and again.
        InvalidReference: an instruction or a name that is none.
        UnsafePath: a file has the name of a whiteout.
    """
    reference = name_to_give(handle, name) if name is not None else None
    image = replace(find_image(handle, str(snapshot.image)), manifest=snapshot.manifest)
    base = _config(handle, image)
    with_layers(base, base.diff_ids, [], changes=changes)  # a wrong instruction is told before any work
    with building(handle, check=check) as ingest:
        layers = base_layers(ingest, image)
        built = _consistent_layer(ingest, snapshot, image, compression, latest, check, mounted=mounted)
        created = _time_of(ingest, built, base, latest)
        empty = built is None
        if built is not None:
            layers.append(built)
        history = history_of(base)
        if squash and layers:
            layers = [_flattened(ingest, layers, 0, compression, latest, check)]
            history, empty = [], False
        step = history_step(created, "layerfs commit", author=author or "", comment=message, empty=empty)
        config = with_layers(
            base, [layer.layer.diff_id for layer in layers], [*history, step], created=created, author=author,
            changes=changes,
        )  # fmt: skip
        # The layer fits on its own base; merging both costs more than the commit and is left to the first mount.
        return save_image(ingest, config, layers, reference, force=force, tree_later=True)


def squash_image(
    handle: StoreHandle,
    image: ImageRecord,
    name: str | None,
    *,
    first: int = 0,
    message: str = "",
    compression: str = "none",
    latest: int | None = None,
    force: bool = False,
    check: Callable[[], None] | None = None,
) -> ImageRecord:
    """Make an image of which the layers from ``first`` (counted from 0) on are one.

    Raises:
        Conflict: the name is taken.
        InvalidReference: the image has no such layer.
    """
    reference = name_to_give(handle, name) if name is not None else None
    base = _config(handle, image)
    if not 0 <= first < len(base.diff_ids):
        raise InvalidReference(
            f"image {image.digest.short} has no layer {first}", hint=f"It has {len(base.diff_ids)}, counted from 0."
        )
    with building(handle, check=check) as ingest:
        layers = base_layers(ingest, image)
        flat = _flattened(ingest, layers, first, compression, latest, check)
        layers[first:] = [flat]
        step = history_step(base.created, f"layerfs squash from layer {first}", comment=message)
        config = with_layers(base, [layer.layer.diff_id for layer in layers], [*history_of(base, first), step])
        return save_image(ingest, config, layers, reference, force=force)


def rebase_image(
    handle: StoreHandle,
    image: ImageRecord,
    onto: ImageRecord,
    name: str | None,
    *,
    base: ImageRecord | None = None,
    force: bool = False,
    check: Callable[[], None] | None = None,
) -> ImageRecord:
    """Make an image that has the layers of ``onto`` in place of those of its base.

    Args:
        handle: the store.
        image: what is rebased.
        onto: the new base.
        name: of the new image.
        base: the old base, whose layers must be the image's lowest; None takes the named image of the store that
            shares most layers in this way.
        force: as for :func:`commit_container`.
        check: polled.

    Raises:
        InvalidReference: ``base`` is not at the bottom of the image.
        NotFound: no image of the store is.
        FormatError: the upper layers do not fit on the new base (a hard link into nowhere).
        Conflict: the name is taken.
    """
    reference = name_to_give(handle, name) if name is not None else None
    config, target = _config(handle, image), _config(handle, onto)
    old = _old_base(handle, image, config, onto) if base is None else base
    below = _config(handle, old).diff_ids
    if config.diff_ids[: len(below)] != below:
        raise InvalidReference(
            f"image {old.digest.short} is not the base of {image.digest.short}: its layers are not the lowest ones"
        )
    with building(handle, check=check) as ingest:
        layers = [*base_layers(ingest, onto), *base_layers(ingest, image)[len(below) :]]
        history = [*history_of(target), *history_of(config)[len(history_of(config, len(below))) :]]
        new = with_layers(config, [layer.layer.diff_id for layer in layers], history)
        return save_image(ingest, new, layers, reference, force=force)


def import_tree(
    handle: StoreHandle,
    source: str | Iterable[bytes],
    name: str | None,
    *,
    message: str = "",
    author: str | None = None,
    changes: Sequence[str] = (),
    platform: Platform | str | None = None,
    compression: str = "none",
    latest: int | None = None,
    force: bool = False,
    check: Callable[[], None] | None = None,
) -> ImageRecord:
    """Make an image of one layer from a plain tree.

    Args:
        handle: the store.
        source: a directory of the host, or the pieces of an uncompressed tar, which becomes the layer as it is.
        name: of the new image.
        message: comment of the one step in its history.
        author: of the image.
        changes: instructions that set its config.
        platform: what it is for; None means this machine's.
        compression: as for :func:`commit_container`.
        latest: as for :func:`commit_container`; a tar is not changed.
        force: as for :func:`commit_container`.
        check: polled.

    Raises:
        FormatError: the source is no tar, or not one that a layer can be.
        Conflict: the name is taken.
    """
    reference = name_to_give(handle, name) if name is not None else None
    base = ImageConfig.parse(new_config(Platform.of(platform)))
    with_layers(base, [], [], changes=changes)
    with building(handle, check=check) as ingest:
        if isinstance(source, str):
            pieces = write_layer(walk_upper(source, None, whole=True), latest=latest, check=check)
        else:
            pieces = not_empty(source)
        built = ingest_layer(ingest, pieces, compression)
        if not isinstance(source, str):  # of a directory, the names were looked at when its tar was written
            _refuse_whiteouts(tree_of(handle, built.layer, ingest.keys.get))
        created = _time_of(ingest, built, base, latest)
        step = history_step(created, "layerfs import", author=author or "", comment=message)
        config = with_layers(base, [built.layer.diff_id], [step], created=created, author=author, changes=changes)
        return save_image(ingest, config, [built], reference, force=force)


def _refuse_whiteouts(root: Node) -> None:
    """Refuse a tree that a layer would lose files of: a tar of plain files may have names that are whiteouts there.

    Raises:
        UnsafePath: it has one.
    """
    todo = [(b"", root)]
    while todo:
        path, node = todo.pop()
        if node.is_opaque:
            raise whiteout_name(path + b"/" + OPAQUE_MARKER)
        for name, child in (node.children or {}).items():
            if child.is_whiteout:
                raise whiteout_name(path + b"/" + WHITEOUT_PREFIX + name)
            todo.append((path + b"/" + name, child))


def _consistent_layer(
    ingest: Ingest,
    snapshot: Snapshot,
    image: ImageRecord,
    compression: str,
    latest: int | None,
    check: Callable[[], None] | None,
    *,
    mounted: bool,
) -> BuiltLayer | None:
    """Return the layer of what was changed in a container, None when nothing was."""
    upper = ingest.handle.layout.upper(snapshot.id)
    for attempt in range(_ATTEMPTS):
        before = _signature(upper) if mounted else None
        try:
            built = _layer_of(ingest, upper, image, compression, latest, check)
        except (Conflict, FileNotFoundError, NotADirectoryError):
            if not mounted or attempt == _ATTEMPTS - 1:
                raise
            continue
        if not mounted or _signature(upper) == before:
            return built
    raise Conflict(
        f"container {snapshot.name} was written to each of the {_ATTEMPTS} times that it was read", reason="changed",
        hint="Stop what writes in it, or unmount it first.",
    )  # fmt: skip


def _layer_of(
    ingest: Ingest,
    upper: str,
    image: ImageRecord,
    compression: str,
    latest: int | None,
    check: Callable[[], None] | None,
) -> BuiltLayer | None:
    if not is_dressed(upper):
        return None  # never mounted: its root does not even have the image's attributes yet
    with ImageTree(ingest.handle, image) as tree:
        steps = walk_upper(upper, tree, userxattr=uses_userxattr(), exact=True)
        first = next(steps, None)
        if first is None:
            return None
        return ingest_layer(ingest, write_layer(chain((first,), steps), latest=latest, check=check), compression)


def _signature(upper: str) -> set[tuple[int, ...]]:
    """Return what changes whenever something below a directory does: identity, size and times of every inode."""
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return {_state(os.fstat(fd)), *map(_state, walk_status(fd))}
    finally:
        os.close(fd)


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _flattened(
    ingest: Ingest,
    layers: Sequence[BuiltLayer],
    first: int,
    compression: str,
    latest: int | None,
    check: Callable[[], None] | None,
) -> BuiltLayer:
    """Return one layer that does what the layers from ``first`` on do together."""
    ingest.flush()
    with _merged(ingest, layers) as new:
        if first:
            with _merged(ingest, layers[:first]) as old:
                steps = walk_trees(old, new, exact=True)
                return ingest_layer(ingest, write_layer(steps, latest=latest, check=check), compression)
        return ingest_layer(ingest, write_layer(walk_tree(new), latest=latest, check=check), compression)


def _merged(ingest: Ingest, layers: Sequence[BuiltLayer]) -> ImageTree:
    """Return the merged tree of layers that may be of no image."""
    handle = ingest.handle
    pairs = [
        (layer.root if layer.root is not None else open_layer_tree(handle, layer.diff_id), layer.key)
        for layer in (built.layer for built in layers)
    ]
    return ImageTree(handle, Tree(merge_layers(pairs, ingest.keys)))


def _old_base(handle: StoreHandle, image: ImageRecord, config: ImageConfig, onto: ImageRecord) -> ImageRecord:
    """Return the image of the store that has the most of an image's lowest layers and no other ones."""
    best: tuple[int, ImageRecord] | None = None
    for record in list_images(handle):
        if record.digest in (image.digest, onto.digest):
            continue
        own = [layer.diff_id for layer in image_layers(handle, record)]
        if 0 < len(own) < len(config.diff_ids) and list(config.diff_ids[: len(own)]) == own:
            best = max(best, (len(own), record), key=lambda pair: pair[0]) if best else (len(own), record)
    if best is None:
        below = [layer.diff_id for layer in image_layers(handle, onto)]
        if below == list(config.diff_ids[: len(below)]):
            raise InvalidReference(f"image {image.digest.short} stands on {onto.digest.short} already")
        raise NotFound(
            "image that is the base of", str(image.digest.short), hint="Load its base first, or name it with --from."
        )
    return best[1]


def _time_of(ingest: Ingest, built: BuiltLayer | None, base: ImageConfig, latest: int | None) -> int:
    """Return when an image was made: with its newest file, or with its base when nothing in it is newer."""
    if built is None:
        return base.created or 0
    ingest.flush()
    return max(newest_time(ingest.handle, built.layer, latest), base.created or 0)


def _config(handle: StoreHandle, image: ImageRecord) -> ImageConfig:
    return ImageConfig.parse(handle.read_blob(image.digest), algorithm=image.digest.algorithm)
