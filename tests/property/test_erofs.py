"""Generated trees: what was written is what is read, the same bytes each time, and no damage breaks the reader."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import FormatError
from layerfs.formats.erofs.directory import DOTS
from layerfs.formats.erofs.layout import BLOCK, SUPER_OFFSET, crc32c
from layerfs.formats.erofs.reader import Tree
from layerfs.formats.tree import Node, directory
from tests.unit.formats.trees import facts_of_image, facts_of_nodes, regular, trees, write


@given(trees())
def test_trees_are_read_as_written(root: Node) -> None:
    image = write(root)
    assert len(image) % BLOCK == 0
    assert facts_of_image(image) == facts_of_nodes(root)


@given(trees())
def test_the_same_tree_gives_the_same_bytes(root: Node) -> None:
    image = write(root)
    assert write(root) == image
    assert write(reordered(root)) == image


def reordered(node: Node) -> Node:
    """Return an equal tree whose dictionaries were filled in another order, hard links kept."""
    copies: dict[int, Node] = {}

    def copy(old: Node) -> Node:
        new = copies.get(id(old))
        if new is None:
            new = copies[id(old)] = Node(old.mode, old.uid, old.gid, old.mtime, old.mtime_ns)
            new.xattrs = dict(reversed(old.xattrs.items())) if old.xattrs else None
            new.size, new.rdev, new.target = old.size, old.rdev, old.target
            new.device, new.offset = old.device, old.offset
        return new

    top = copy(node)
    stack = [(node, top)]
    while stack:
        old, new = stack.pop()
        if old.children is not None:
            new.children = {name: copy(child) for name, child in reversed(old.children.items())}
            stack += [(child, new.children[name]) for name, child in old.children.items()]
    return top


#: Names that the order of bytes puts before, between and behind the dots.
_NAMES = st.sets(
    st.text("-./a~", min_size=1, max_size=40).map(str.encode).filter(lambda name: b"/" not in name and name not in DOTS)
)


@given(_NAMES, st.data())
def test_a_directory_is_read_from_any_row_on(names: set[bytes], data: st.DataObject) -> None:
    root = directory(implicit=False)
    root.children = {name: regular(number, 512 * number) for number, name in enumerate(sorted(names, key=hash))}
    tree = Tree(write(root))
    whole = [(name, child) for name, child, _ in tree.readdir(tree.root)]
    entries = tree.directory(tree.root)
    assert len(entries) == len(whole) == len(names)
    start = data.draw(st.integers(0, len(whole) + 1))
    assert list(entries.read(start)) == whole[start:]
    assert [entries.name(row) for row in range(len(whole))] == sorted(names)
    raw = tree.raw_names(tree.root)
    assert raw is None or (all(name in raw for name in names) and b"missing" not in raw)
    assert raw is not None or len(whole) > 100


@given(trees())
def test_every_path_resolves(root: Node) -> None:
    tree = Tree(write(root))
    for path in facts_of_nodes(root):
        if len(path) < 4000:
            nid = tree.resolve(path, follow=False)
            assert tree.resolve(path.lstrip(b"/"), follow=False) == nid
            assert tree.resolve(path.replace(b"/", b"//./"), follow=False) == nid


def explore(image: bytes) -> None:
    """Read everything that an image has; only FormatError may come of it."""
    try:
        tree = Tree(image)
    except FormatError:
        return
    stack, seen = [tree.root], 0
    while stack and seen < 10_000:
        nid = stack.pop()
        seen += 1
        try:
            inode = tree.inode(nid)
            for read in (tree.xattrs, tree.data):
                try:
                    read(nid)
                except FormatError:
                    continue
            if stat.S_ISLNK(inode.mode):
                assert len(tree.readlink(nid)) == inode.size
            if stat.S_ISDIR(inode.mode):
                stack += [child for _, child, _ in tree.readdir(nid)]
        except FormatError:
            continue
    for path in (b"a/b/c", b"x", b"../l/./m"):
        try:
            tree.resolve(path)
        except (FormatError, OSError):
            continue


def sealed(image: bytearray) -> bytes:
    """Return the image with the checksum of its superblock put right."""
    if len(image) >= SUPER_OFFSET + BLOCK:
        image[SUPER_OFFSET + 4 : SUPER_OFFSET + 8] = bytes(4)
        checksum = crc32c(bytes(image[SUPER_OFFSET : SUPER_OFFSET + BLOCK]))
        image[SUPER_OFFSET + 4 : SUPER_OFFSET + 8] = checksum.to_bytes(4, "little")
    return bytes(image)


damages = st.lists(
    st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8) | st.just(bytes(8))),
    min_size=1,
    max_size=6,
)


@given(trees(8), damages, st.integers(0, 2**20))
def test_any_damage_is_read_or_refused(root: Node, hits: list[tuple[int, bytes]], cut: int) -> None:
    image = write(root)
    damaged = bytearray(image)
    for position, damage in hits:
        # Not the boot block, which nobody reads.
        at = SUPER_OFFSET + position % (len(image) - SUPER_OFFSET)
        damaged[at : at + len(damage)] = damage[: len(damaged) - at]
    explore(bytes(damaged))
    explore(sealed(damaged))
    explore(image[: cut % len(image)])


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    explore(raw)
    explore(sealed(bytearray(bytes(SUPER_OFFSET) + (b"\xe2\xe1\xf5\xe0" + raw).ljust(BLOCK, b"\0"))))
