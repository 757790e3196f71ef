"""What tests ask of a store: its files, an image's files, and whether everything in it is whole."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from layerfs.api import Store
from layerfs.values import Image

__all__ = ["assert_clean", "assert_whole", "contents", "disk", "read_file", "tree_files"]


def tree_files(root: Path) -> dict[str, bytes]:
    """Return the digests of everything in a store that must not depend on how or when it got there."""
    found = {}
    for part in ("layers", "images"):
        for path in sorted((root / part).rglob("*")):
            if path.is_file():
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).digest()
    return found


def contents(store: Store, image: str | Image) -> dict[bytes, bytes]:
    """Return the files of an image by path: bytes of regular ones, targets of symlinks, else the type."""
    found: dict[bytes, bytes] = {}
    with store.tree(image) as tree:
        for path, nid, _ in tree.walk():
            mode = tree.inode(nid).mode
            if stat.S_ISREG(mode):
                found[path] = b"".join(tree.pieces(nid))
            elif stat.S_ISLNK(mode):
                found[path] = b"-> " + tree.readlink(nid)
            else:
                found[path] = b"type %o" % stat.S_IFMT(mode)
    return found


def read_file(store: Store, image: str | Image, path: bytes) -> bytes:
    with store.tree(image) as tree:
        return tree.read(tree.resolve(path))


def assert_clean(store: Store) -> None:
    """Fail unless the store is whole and nothing unfinished lies in it."""
    problems = list(store.check())
    assert not problems, problems
    root = Path(store.info().root)
    assert not os.listdir(root / "ingest")
    assert not store._handle.database.connection.execute("SELECT * FROM lease").fetchall()
    known = {row[0] for row in store._handle.database.connection.execute("SELECT diff_id FROM layer")}
    used = {
        row[0]
        for row in store._handle.database.connection.execute(
            "SELECT diff_id FROM layer JOIN image_layer ON image_layer.layer = layer.id"
        )
    }
    on_disk = {f"{path.parent.name}:{path.name}" for path in (root / "layers").glob("*/*")}
    assert known == used == on_disk


def assert_whole(store: Store) -> None:
    """Fail unless the store is clean and every layer reads back as what its diffID says."""
    assert_clean(store)
    for image in store.images():
        for layer in store.layers(image):
            hasher = hashlib.new(layer.diff_id.algorithm)
            size = 0
            for piece in store.read_layer(layer.diff_id):
                hasher.update(piece)
                size += len(piece)
            assert (hasher.hexdigest(), size) == (layer.diff_id.hex, layer.size)
        contents(store, image)


def disk(root: Path) -> int:
    """Return the bytes allocated for everything below a directory."""
    return sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))
