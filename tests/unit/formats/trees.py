"""Trees of nodes for tests: made by code or by hypothesis, and described so that two of them can be compared."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass

from hypothesis import strategies as st

from layerfs.formats.erofs.reader import DIRECTORY_TYPE, Tree
from layerfs.formats.erofs.writer import Device, write_tree
from layerfs.formats.tree import Node, directory

__all__ = [
    "DEVICES",
    "Facts",
    "device_node",
    "facts_of_image",
    "facts_of_nodes",
    "regular",
    "symlink",
    "trees",
    "write",
]

BLOCKS = 0xFFFFFFFF

#: Two layers of the largest size there is.
DEVICES = [Device("one", b"1" * 64, BLOCKS), Device("two", b"2" * 64, BLOCKS)]

UUID = bytes(range(16))


@dataclass(frozen=True)
class Facts:
    """All that can be told about one name."""

    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    nlink: int
    rdev: int
    target: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    data: tuple[int, int] | None
    first_name: bytes  # of all names of this inode


def regular(size: int = 0, offset: int = 0, device: str = "one", mode: int = 0o644) -> Node:
    node = Node(stat.S_IFREG | mode)
    if size:
        node.size, node.offset, node.device = size, offset, device
    return node


def symlink(target: bytes) -> Node:
    node = Node(stat.S_IFLNK | 0o777)
    node.target, node.size = target, len(target)
    return node


def device_node(kind: int, major: int, minor: int) -> Node:
    node = Node(kind | 0o600)
    node.rdev = os.makedev(major, minor)
    return node


def folder(children: dict[bytes, Node]) -> Node:
    node = directory(implicit=False)
    node.children = children
    return node


def write(root: Node) -> bytes:
    return write_tree(root, DEVICES, UUID)


def facts_of_nodes(root: Node) -> dict[bytes, Facts]:
    """Return the facts of every path of a tree in memory."""
    order = [device.key for device in DEVICES]
    paths: list[tuple[bytes, Node]] = []
    names: dict[int, list[bytes]] = {}
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        paths.append((path, node))
        names.setdefault(id(node), []).append(path)
        stack += [(path + b"/" + name, child) for name, child in (node.children or {}).items()]
    found = {}
    for path, node in paths:
        subdirectories = sum(child.children is not None for child in (node.children or {}).values())
        found[path] = Facts(
            node.mode,
            node.uid,
            node.gid,
            node.mtime,
            node.mtime_ns,
            0 if node.children is not None else node.size,
            len(names[id(node)]) if node.children is None else 2 + subdirectories,
            node.rdev,
            node.target,
            tuple(sorted((node.xattrs or {}).items())),
            (order.index(node.device), node.offset) if stat.S_ISREG(node.mode) and node.size else None,
            min(names[id(node)]),
        )
    return found


def facts_of_image(image: bytes) -> dict[bytes, Facts]:
    """Return the facts of every path as the reader tells them."""
    tree = Tree(image)
    paths: list[tuple[bytes, int]] = []
    names: dict[int, list[bytes]] = {}
    stack = [(b"", tree.root)]
    while stack:
        path, nid = stack.pop()
        paths.append((path, nid))
        names.setdefault(nid, []).append(path)
        if stat.S_ISDIR(tree.inode(nid).mode):
            for name, child, kind in tree.readdir(nid):
                assert (kind == DIRECTORY_TYPE) == stat.S_ISDIR(tree.inode(child).mode)
                assert tree.lookup(nid, name) == child
                stack.append((path + b"/" + name, child))
    found = {}
    for path, nid in paths:
        inode = tree.inode(nid)
        found[path] = Facts(
            inode.mode,
            inode.uid,
            inode.gid,
            inode.mtime,
            inode.mtime_ns,
            0 if stat.S_ISDIR(inode.mode) else inode.size,
            inode.nlink,
            inode.rdev,
            tree.readlink(nid) if stat.S_ISLNK(inode.mode) else None,
            tuple(sorted(tree.xattrs(nid).items())),
            tree.data(nid) if stat.S_ISREG(inode.mode) else None,
            min(names[nid]),
        )
    return found


ANYONE = 0xFFFFFFFF
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *row)
    for row in [(1, 7, ANYONE), (2, 6, 1000), (4, 5, ANYONE), (8, 4, 50), (16, 7, ANYONE), (32, 0, ANYONE)]
)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)

#: Names of one directory: any bytes but NUL and the slash, and not "." or "..".
names = (
    st.binary(min_size=1, max_size=255)
    .map(lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"1"))
    .map(lambda raw: b"dot" if raw in (b".", b"..") else raw)
)
_xattr_values = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"", b"shared", bytes(600), b"s" * 511, b"s" * 512]),
    st.builds(lambda byte, size: byte * size, st.binary(min_size=1, max_size=1), st.integers(0, 65535)),
)
_plain_xattrs = st.dictionaries(
    st.builds(
        lambda space, rest: space + rest,
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        st.binary(min_size=1, max_size=240).map(lambda raw: raw.replace(b"\0", b"0")),
    ),
    _xattr_values,
    max_size=3,
)
_special_xattrs = st.sets(
    st.sampled_from([(b"security.capability", CAPABILITY), (b"system.posix_acl_access", ACL)]), max_size=2
).map(dict)
_xattrs = st.builds(lambda one, two: {**one, **two} or None, _plain_xattrs, _special_xattrs) | st.none()
_times = st.integers(-(2**63), 2**63 - 1) | st.integers(-10, 2**33)
_ids = st.integers(0, 2**32 - 2) | st.integers(0, 1000)


@st.composite
def attributed(draw: st.DrawFn, nodes: st.SearchStrategy[Node]) -> Node:
    """Give a node attributes of every kind."""
    node = draw(nodes)
    node.mode = stat.S_IFMT(node.mode) | (0o777 if node.target is not None else draw(st.integers(0, 0o7777)))
    node.uid, node.gid = draw(_ids), draw(_ids)
    node.mtime, node.mtime_ns = draw(_times), draw(st.integers(0, 999_999_999))
    node.xattrs = draw(_xattrs)
    if node.xattrs and not (stat.S_ISREG(node.mode) or stat.S_ISDIR(node.mode)):
        # What Linux does not let anyone set, or read, on anything else.
        node.xattrs = {
            name: value for name, value in node.xattrs.items() if not name.startswith((b"user.", b"system."))
        } or None
    return node


_offsets = st.integers(0, 2**30).map(lambda block: block * 512)
_sizes = st.one_of(
    st.integers(0, 5000),
    st.sampled_from([511, 512, 513, 4096, 2**32, 5 << 30, (1 << 40) - 1, 1 << 40, (1 << 40) + 1]),
)
_leaves = attributed(
    st.one_of(
        st.builds(regular, _sizes, _offsets, st.sampled_from(["one", "two"])),
        st.builds(symlink, st.binary(min_size=1, max_size=600).map(lambda raw: raw.replace(b"\0", b"0"))),
        st.builds(symlink, st.integers(1, 4095).map(lambda size: b"t" * size)),
        st.builds(
            device_node,
            st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]),
            st.integers(0, 4095),
            st.integers(0, 2**20 - 1),
        ),
        st.builds(Node, st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK])),
    )
)


def trees(most: int = 30) -> st.SearchStrategy[Node]:
    """Return a strategy of trees with hard links, of some ``most`` entries."""

    def inner(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return attributed(st.builds(folder, st.dictionaries(names, children, max_size=8)))

    plain = attributed(
        st.builds(folder, st.dictionaries(names, st.recursive(_leaves, inner, max_leaves=most), max_size=8))
    )
    return st.builds(_with_links, plain, st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), names), max_size=4))


def _with_links(root: Node, links: list[tuple[int, int, bytes]]) -> Node:
    """Add hard links: some file gets another name in some directory."""
    folders: list[Node] = [root]
    leaves: list[Node] = []
    for node in folders:
        for child in (node.children or {}).values():
            (leaves if child.children is None else folders).append(child)
    for which, where, name in links:
        children = folders[where % len(folders)].children
        if leaves and children is not None:
            children.setdefault(name, leaves[which % len(leaves)])
    return root
