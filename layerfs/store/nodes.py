"""From a tree on disk back to nodes in memory, to merge it with others or to write it anew."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence

from layerfs.errors import FormatError
from layerfs.formats.digest import Digest
from layerfs.formats.erofs.reader import DIRECTORY_TYPE, Tree
from layerfs.formats.tree import Node
from layerfs.store.layer import tag_digest

__all__ = ["read_nodes"]


def read_nodes(tree: Tree, device: Callable[[Digest], object], chain: Sequence[object] = ()) -> Node:
    """Return the whole tree as nodes; hard links are shared nodes.

    Args:
        tree: a tree of a layer, or a merged one.
        device: makes the key for ``Node.device`` from the diffID of a layer tar.
        chain: the keys of the layers that a merged tree is of, bottom first: files that it carries name these again.

    Raises:
        FormatError: the tree is damaged.
    """
    keys = [device(tag_digest(slot.tag)) for slot in tree.devices]
    made: dict[int, Node] = {}
    root = _node(tree, tree.root, keys, chain)
    stack = [(tree.root, root)]
    while stack:
        nid, parent = stack.pop()
        children: dict[bytes, Node] = {}
        parent.children = children
        for name, child, kind in tree.readdir(nid):
            node = made.get(child)
            if node is None:
                node = _node(tree, child, keys, chain)
                if kind == DIRECTORY_TYPE:
                    stack.append((child, node))
                else:
                    made[child] = node
            children[name] = node
    return root


def _node(tree: Tree, nid: int, keys: list[object], chain: Sequence[object]) -> Node:
    inode = tree.inode(nid)
    xattrs = tree.xattrs(nid) if inode.xattr_end > inode.xattr_start else None
    node = Node(inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_ns, xattrs)
    node.rdev = inode.rdev
    if stat.S_ISLNK(inode.mode):
        node.target = tree.readlink(nid)
        node.size = len(node.target)
    elif stat.S_ISREG(inode.mode) and inode.size:
        node.size = inode.size
        found = tree.file_data(inode)
        assert found is not None
        if found[0] < len(keys):
            node.device, node.offset = keys[found[0]], found[1]
        else:
            layer, node.offset = tree.origin(inode)
            if layer >= len(chain):
                raise FormatError(f"inode {nid} was taken from layer {layer} of {len(chain)}")
            node.device = chain[layer]
    return node
