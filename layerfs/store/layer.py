"""Layers in the store: finding them, reading them back byte for byte, and telling whether they are whole."""

from __future__ import annotations

import mmap
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from layerfs.errors import DigestMismatch, FormatError, IntegrityError, NotFound
from layerfs.formats.digest import Digest, new_hash
from layerfs.formats.erofs.reader import Tree
from layerfs.store.database import stored_digest
from layerfs.store.handle import StoreHandle
from layerfs.store.poll import raise_own

__all__ = [
    "LayerRecord",
    "chain_layers",
    "device_paths",
    "device_tag",
    "find_donors",
    "find_holders",
    "find_layer",
    "get_layer",
    "is_intact",
    "is_whole",
    "list_layers",
    "map_tree",
    "open_layer_tree",
    "open_tree",
    "read_layer",
    "tag_digest",
    "verify_layer",
]

_READ = 1 << 20

_COLUMNS = "id, diff_id, tar_size, file_size, tar_mtime, tree_size, tree_mtime, entries"


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One row of the layer table; see :mod:`layerfs.store.schema`."""

    id: int
    diff_id: Digest
    tar_size: int
    file_size: int
    tar_mtime: int
    tree_size: int
    tree_mtime: int
    entries: int


def find_layer(handle: StoreHandle, diff_id: Digest) -> LayerRecord | None:
    """Return the record of a layer, or None."""
    row = handle.database.connection.execute(
        f"SELECT {_COLUMNS} FROM layer WHERE diff_id = ?", (str(diff_id),)
    ).fetchone()
    return _record(row) if row else None


def get_layer(handle: StoreHandle, identifier: int) -> LayerRecord:
    """Return the record with this row ID.

    Raises:
        NotFound: somebody else has removed it.
    """
    row = handle.database.connection.execute(f"SELECT {_COLUMNS} FROM layer WHERE id = ?", (identifier,)).fetchone()
    if row is None:
        raise NotFound("layer", f"number {identifier}")
    return _record(row)


def list_layers(handle: StoreHandle) -> list[LayerRecord]:
    """Return all layers, in the order in which they came."""
    return list(map(_record, handle.database.connection.execute(f"SELECT {_COLUMNS} FROM layer ORDER BY id")))


def chain_layers(handle: StoreHandle, image: int) -> list[LayerRecord]:
    """Return the layers of the image with this row ID, bottom first; none if there is no such image."""
    rows = handle.database.connection.execute(
        f"SELECT {_COLUMNS} FROM image_layer JOIN layer ON layer.id = image_layer.layer WHERE image = ?"
        " ORDER BY position",
        (image,),
    )
    return list(map(_record, rows))


def device_tag(diff_id: Digest) -> bytes:
    """Return what the device table of a tree calls a layer: its hex digits, or the raw 64 bytes of a sha512."""
    return diff_id.hex.encode() if diff_id.algorithm == "sha256" else bytes.fromhex(diff_id.hex)


def tag_digest(tag: bytes) -> Digest:
    """Return the diffID that a tag of the device table stands for.

    Raises:
        FormatError: the tag is no digest.
    """
    try:
        return Digest("sha256", tag.decode("ascii"))
    except ValueError:
        # A reader strips trailing NULs, which a raw digest may end with.
        if len(tag) > 64:
            raise FormatError(f"device tag {tag!r} is no digest") from None
        return Digest("sha512", tag.ljust(64, b"\0").hex())


def device_paths(handle: StoreHandle, tree: Tree) -> list[str]:
    """Return the layer files that a tree's device table names, in its order.

    Raises:
        FormatError: a tag is no digest.
    """
    # The usual tag is the diffID's hex digits as they are: 499 digests would be a sixth of the time of a mount.
    start = f"{handle.layout.root}/layers/sha256/"
    return [
        f"{start}{slot.tag.decode()}/layer.tar"
        if len(slot.tag) == 64 and slot.tag.isalnum()
        else handle.layout.layer_tar(tag_digest(slot.tag))
        for slot in tree.devices
    ]


def open_tree(path: str) -> Tree:
    """Return the tree in a file, mapped. The mapping lives as long as the tree.

    Raises:
        OSError: ENOENT and the like.
        FormatError: not a whole tree.
    """
    with open(path, "rb", buffering=0) as file:
        return map_tree(file.fileno())


def open_layer_tree(handle: StoreHandle, diff_id: Digest) -> Tree:
    """Return the tree of a layer, as :func:`open_tree`, where it has to be there.

    Raises:
        IntegrityError: it is missing.
        FormatError: it is not a whole tree.
        OSError: EACCES, EIO.
    """
    try:
        return open_tree(handle.layout.layer_tree(diff_id))
    except FileNotFoundError as error:
        raise IntegrityError(
            f"the tree of layer {diff_id} is missing in the store", hint="Run: layerfs check --repair"
        ) from error


def map_tree(fd: int) -> Tree:
    """Return the tree in an open file, which may be closed; otherwise as :func:`open_tree`."""
    if not os.fstat(fd).st_size:
        raise FormatError("an EROFS image of no bytes")
    return Tree(memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)))


def is_intact(handle: StoreHandle, layer: LayerRecord) -> bool:
    """Return whether a layer's files are as they were committed, as far as sizes, times and the superblock tell.

    This costs microseconds and finds files that are missing, cut short or written to; :func:`verify_layer` reads all.

    Raises:
        OSError: of this process, not of the files: EMFILE, ENOMEM and the like.
    """
    try:
        tar = os.stat(handle.layout.layer_tar(layer.diff_id))
        tree = os.stat(handle.layout.layer_tree(layer.diff_id))
        if (tar.st_size, tar.st_mtime_ns) != (layer.file_size, layer.tar_mtime):
            return False
        if (tree.st_size, tree.st_mtime_ns) != (layer.tree_size, layer.tree_mtime):
            return False
        open_tree(handle.layout.layer_tree(layer.diff_id))
    except (OSError, FormatError) as error:
        raise_own(error)
        return False
    return True


def find_donors(handle: StoreHandle, layer: LayerRecord) -> list[LayerRecord]:
    """Return the other layers that a layer borrows bytes from."""
    rows = handle.database.connection.execute(
        f"SELECT {_COLUMNS} FROM layer WHERE id IN (SELECT donor FROM extent WHERE layer = ? AND donor != layer)",
        (layer.id,),
    )
    return [_record(row) for row in rows.fetchall()]


def find_holders(handle: StoreHandle, size: int, mark: int, most: int) -> list[tuple[LayerRecord, int]]:
    """Return up to ``most`` layers that hold a file of this size and mark, and at which offset; the newest first."""
    rows = handle.database.connection.execute(
        f"SELECT {_COLUMNS}, offset FROM content JOIN layer ON layer.id = content.layer WHERE size = ? AND mark = ?"
        " ORDER BY layer DESC LIMIT ?",
        (size, mark, most),
    )
    return [(_record(row[:-1]), row[-1]) for row in rows.fetchall()]


def is_whole(handle: StoreHandle, layer: LayerRecord) -> bool:
    """Return whether a layer and all that it borrows from are as they were committed; see :func:`is_intact`."""
    return is_intact(handle, layer) and all(is_intact(handle, donor) for donor in find_donors(handle, layer))


def read_layer(handle: StoreHandle, layer: LayerRecord, *, check: Callable[[], None] | None = None) -> Iterator[bytes]:
    """Yield the layer's tar byte for byte as it was received, the holes filled from their donors.

    Args:
        handle: the store.
        layer: which one.
        check: polled once per piece.

    Raises:
        IntegrityError: a tar is missing or shorter than it should be.
    """
    extents = handle.database.connection.execute(
        "SELECT extent.offset, extent.size, layer.diff_id, extent.donor_offset FROM extent"
        " JOIN layer ON layer.id = extent.donor WHERE extent.layer = ? ORDER BY extent.offset",
        (layer.id,),
    ).fetchall()
    with ExitStack() as stack:
        files: dict[str, int] = {}

        def tar(diff_id: str) -> int:
            if diff_id not in files:
                path = handle.layout.layer_tar(stored_digest(diff_id))
                try:
                    files[diff_id] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise IntegrityError(f"layer {diff_id}: {error.strerror}: {path}") from error
                stack.callback(os.close, files[diff_id])
            return files[diff_id]

        own = str(layer.diff_id)
        position = 0
        for offset, size, donor, donor_offset in [*extents, (layer.tar_size, 0, own, 0)]:
            for name, start, length in ((own, position, offset - position), (donor, donor_offset, size)):
                yield from _pieces(tar(name), start, length, name, check)
            position = offset + size


def verify_layer(handle: StoreHandle, layer: LayerRecord, *, check: Callable[[], None] | None = None) -> None:
    """Read a layer back through its extents and compare it with its diffID.

    Raises:
        IntegrityError: it is not what it was.
    """
    hasher = new_hash(layer.diff_id.algorithm)
    size = 0
    for piece in read_layer(handle, layer, check=check):
        hasher.update(piece)
        size += len(piece)
    actual = Digest(layer.diff_id.algorithm, hasher.hexdigest())
    if actual != layer.diff_id:
        raise DigestMismatch("layer in the store", expected=str(layer.diff_id), actual=str(actual), size=size)


def _pieces(fd: int, start: int, length: int, name: str, check: Callable[[], None] | None) -> Iterator[bytes]:
    end = start + length
    while start < end:
        if check is not None:
            check()
        try:
            piece = os.pread(fd, min(_READ, end - start), start)
        except OSError as error:
            raise IntegrityError(f"layer {name}: {error.strerror} at byte {start}") from error
        if not piece:
            raise IntegrityError(f"layer {name} is cut short at byte {start}")
        yield piece
        start += len(piece)


def _record(row: sqlite3.Row | tuple[int, str, int, int, int, int, int, int]) -> LayerRecord:
    return LayerRecord(row[0], stored_digest(row[1]), *row[2:])
