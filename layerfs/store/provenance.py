"""Which layer of an image a path comes from, and which layers hide what others have there."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOTDIR
from typing import Literal

from layerfs.formats.digest import Digest
from layerfs.formats.erofs.reader import Tree
from layerfs.formats.whiteout import IMPLICIT_XATTR, OPAQUE_XATTR, is_whiteout_device

__all__ = ["Provenance", "find_provenance"]

#: What a layer does to a path: it is what one sees, it is covered by a layer above, or it covers those below.
Role = Literal["provides", "hidden", "deletes", "opaque", "replaces"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What one layer does to a path.

    Attributes:
        position: of the layer, 0 is the lowest.
        diff_id: the layer.
        role: ``provides`` the path as it is seen; has it, but ``hidden`` by a layer above; ``deletes`` it (or a
            directory above it); is ``opaque`` there, so that nothing below is seen; ``replaces`` a directory above it
            by something else.
        mode: of the layer's own entry, None when it has none.
        size: of the layer's own entry.
    """

    position: int
    diff_id: Digest
    role: Role
    mode: int | None
    size: int


def find_provenance(merged: Tree, layers: Sequence[tuple[Digest, Tree]], path: bytes) -> list[Provenance]:
    """Return what the layers do to a path, top first; layers that do not touch it are left out.

    Args:
        merged: the image's merged tree, by which symlinks above the last name are followed.
        layers: the layers' own trees, bottom first.
        path: need not exist in the merged tree: then the answer says which layer removed it.

    Raises:
        OSError: ELOOP.
    """
    parts = _real_parts(merged, path)
    rows: list[Provenance] = []
    seen = False
    for position in range(len(layers) - 1, -1, -1):
        diff_id, tree = layers[position]
        found, cover = _look(tree, parts)
        if found is not None:
            mode, size = found
            rows.append(Provenance(position, diff_id, "hidden" if seen else "provides", mode, size))
            # A directory is merged with those below it; anything else covers them.
            seen = seen or not stat.S_ISDIR(mode)
        if cover is not None:
            if found is None:
                rows.append(Provenance(position, diff_id, cover, None, 0))
            seen = True
    return rows


def _look(tree: Tree, parts: list[bytes]) -> tuple[tuple[int, int] | None, Role | None]:
    """Return mode and size of the path in one layer, and how the layer covers lower layers there."""
    nid = tree.root
    cover: Role | None = "opaque" if OPAQUE_XATTR in tree.xattrs(nid) else None
    for index, part in enumerate(parts):
        child = tree.lookup(nid, part)
        if child is None:
            return None, cover
        inode = tree.inode(child)
        if is_whiteout_device(inode.mode, inode.rdev):
            return None, "deletes"
        last = index == len(parts) - 1
        if not stat.S_ISDIR(inode.mode):
            return ((inode.mode, inode.size), cover) if last else (None, "replaces")
        xattrs = tree.xattrs(child)
        if OPAQUE_XATTR in xattrs:
            cover = "opaque"
        if last:
            return (None if IMPLICIT_XATTR in xattrs else (inode.mode, 0)), cover
        nid = child
    root = tree.inode(nid)
    return (None if IMPLICIT_XATTR in tree.xattrs(nid) else (root.mode, 0)), cover


def _real_parts(merged: Tree, path: bytes) -> list[bytes]:
    """Return the path's components with symlinks above the last one followed, as far as the tree has them."""
    done: list[bytes] = []
    todo = [part for part in path.split(b"/")[::-1] if part and part != b"."]
    links = 0
    while todo:
        name = todo.pop()
        if name == b"..":
            del done[-1:]
            continue
        try:
            nid = merged.resolve(b"/".join([*done, name]), follow=False)
        except FileNotFoundError:
            nid = None
        except OSError as error:
            if error.errno != ENOTDIR:
                raise
            nid = None
        if nid is not None and todo and stat.S_ISLNK(merged.inode(nid).mode) and links < 40:
            links += 1
            target = merged.readlink(nid)
            if target.startswith(b"/"):
                done.clear()
            todo += [part for part in target.split(b"/")[::-1] if part and part != b"."]
            continue
        done.append(name)
    return done
