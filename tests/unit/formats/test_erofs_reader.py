"""Paths, names and attributes as the EROFS reader tells them, and what it refuses."""

from __future__ import annotations

import mmap
import os
import stat
import struct
from pathlib import Path

import pytest

from layerfs.errors import FormatError, UnsupportedFormat
from layerfs.formats.erofs.layout import BLOCK, SUPER_OFFSET, crc32c
from layerfs.formats.erofs.reader import DIRECTORY_TYPE, SYMLINK_TYPE, Tree
from tests.unit.formats.trees import device_node, folder, regular, symlink, write


@pytest.fixture(scope="module")
def tree() -> Tree:
    loops = {b"loop": symlink(b"loop"), b"a": symlink(b"b"), b"b": symlink(b"a")}
    chain = {b"c0": symlink(b"usr")} | {b"c%d" % number: symlink(b"c%d" % (number - 1)) for number in range(1, 45)}
    root = folder(
        {
            b"usr": folder({b"lib": folder({b"x": regular(3, 512)}), b"up": symlink(b"../..")}),
            b"lib": symlink(b"usr/lib"),
            b"abs": symlink(b"/usr/lib/"),
            b"out": symlink(b"../../../../usr"),
            b"file": regular(700, 1024, "two"),
            b"tofile": symlink(b"file"),
            b"toslash": symlink(b"file/"),
            b"dangling": symlink(b"nothing"),
            b"root": symlink(b"/"),
            b"empty": folder({}),
            b"\xff\n": regular(),
            b"null": device_node(stat.S_IFCHR, 1, 3),
            b"n" * 255: regular(),
            **loops,
            **chain,
        }
    )
    return Tree(write(root))


@pytest.mark.parametrize(
    ("path", "same"),
    [
        (b"", b"/"),
        (b"/", b"/"),
        (b".", b"/"),
        (b"..", b"/"),
        (b"//usr///lib/./x", b"usr/lib/x"),
        (b"usr/lib/../lib/x", b"usr/lib/x"),
        (b"lib/x", b"usr/lib/x"),
        (b"abs/x", b"usr/lib/x"),
        (b"out/lib/x", b"usr/lib/x"),
        (b"usr/up/lib/x", b"usr/lib/x"),
        (b"root/root/root/usr", b"usr"),
        (b"lib/..", b"usr"),  # the parent of what the link means
        (b"tofile", b"file"),
        (b"lib/", b"usr/lib"),
        (b"empty/", b"empty"),
        (b"c39", b"usr"),  # forty links
    ],
)
def test_resolve(tree: Tree, path: bytes, same: bytes) -> None:
    assert tree.resolve(path) == tree.resolve(same)


@pytest.mark.parametrize(
    ("path", "same"),
    [
        (b"lib", b"lib"),
        (b"lib/", b"usr/lib"),
        (b"lib/.", b"usr/lib"),
        (b"lib/x", b"usr/lib/x"),
        (b"dangling", b"dangling"),
    ],
)
def test_the_last_symlink_is_not_followed_but_for_a_slash(tree: Tree, path: bytes, same: bytes) -> None:
    nid = tree.resolve(path, follow=False)
    names = tree.names(tree.root)
    assert nid == (names[same][0] if b"/" not in same else tree.resolve(same))


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"nothing", FileNotFoundError),
        (b"usr/nothing/x", FileNotFoundError),
        (b"dangling", FileNotFoundError),
        (b"n" * 256, FileNotFoundError),
        (b"file/x", NotADirectoryError),
        (b"file/", NotADirectoryError),
        (b"file/.", NotADirectoryError),
        (b"file/..", NotADirectoryError),
        (b"toslash", NotADirectoryError),
        (b"tofile/x", NotADirectoryError),
        (b"null/x", NotADirectoryError),
    ],
)
def test_resolve_fails_like_the_kernel(tree: Tree, path: bytes, error: type[OSError]) -> None:
    with pytest.raises(error):
        tree.resolve(path)


@pytest.mark.parametrize("path", [b"loop", b"a/x", b"c40", b"loop/"])
def test_too_many_symlinks(tree: Tree, path: bytes) -> None:
    with pytest.raises(OSError, match="symbolic links"):
        tree.resolve(path)


def test_names(tree: Tree) -> None:
    listed = list(tree.readdir(tree.root))
    names = [name for name, _, _ in listed]
    assert names == sorted(names)
    assert b"." not in names
    assert b".." not in names
    kinds = {name: kind for name, _, kind in listed}
    assert (kinds[b"usr"], kinds[b"lib"], kinds[b"file"], kinds[b"null"]) == (DIRECTORY_TYPE, SYMLINK_TYPE, 1, 3)
    assert tree.lookup(tree.root, b"nothing") is None
    assert tree.lookup(tree.root, b".") is None
    assert list(tree.readdir(tree.resolve(b"empty"))) == []
    with pytest.raises(NotADirectoryError):
        tree.names(tree.resolve(b"file"))
    with pytest.raises(NotADirectoryError):
        tree.lookup(tree.resolve(b"null"), b"x")


def test_data(tree: Tree) -> None:
    assert tree.data(tree.resolve(b"usr/lib/x")) == (0, 512)
    assert tree.data(tree.resolve(b"file")) == (1, 1024)
    assert tree.data(tree.resolve(b"\xff\n")) is None
    with pytest.raises(FormatError):
        tree.data(tree.root)
    with pytest.raises(OSError, match="Invalid"):
        tree.readlink(tree.root)
    assert tree.inode(tree.resolve(b"null")).rdev == os.makedev(1, 3)


def test_any_change_of_an_image_is_found() -> None:
    image = write(folder({b"many": folder({b"%04d" % number: regular(number, 512) for number in range(99)})}))
    assert Tree(image).is_whole()
    for position in range(SUPER_OFFSET, len(image), 7):
        changed = bytearray(image)
        changed[position] ^= 4
        try:
            assert not Tree(bytes(changed)).is_whole(), position
        except FormatError:
            assert position < SUPER_OFFSET + BLOCK


def test_an_image_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "tree.erofs"
    path.write_bytes(write(folder({b"d": folder({b"f": regular()})})))
    with path.open("rb") as file:
        tree = Tree(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)))
    assert stat.S_ISREG(tree.inode(tree.resolve(b"d/f")).mode)


def sealed(image: bytearray) -> bytes:
    image[SUPER_OFFSET + 4 : SUPER_OFFSET + 8] = bytes(4)
    checksum = crc32c(bytes(image[SUPER_OFFSET : SUPER_OFFSET + BLOCK]))
    image[SUPER_OFFSET + 4 : SUPER_OFFSET + 8] = checksum.to_bytes(4, "little")
    return bytes(image)


def patched(image: bytes, offset: int, data: bytes) -> bytes:
    changed = bytearray(image)
    changed[offset : offset + len(data)] = data
    return bytes(changed)


IMAGE = write(folder({b"d": folder({b"f": regular(9, 512)}), b"l": symlink(b"t")}))


def super_patched(offset: int, data: bytes) -> bytes:
    return sealed(bytearray(patched(IMAGE, SUPER_OFFSET + offset, data)))


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (b"", FormatError),
        (IMAGE[:1500], FormatError),
        (IMAGE[:-1], FormatError),
        (IMAGE[:-BLOCK], FormatError),
        (patched(IMAGE, SUPER_OFFSET, b"X"), FormatError),
        (patched(IMAGE, SUPER_OFFSET + 50, b"X"), FormatError),  # the checksum tells
        (super_patched(8, bytes(4)), FormatError),  # an image without checksum
        (super_patched(12, b"\x0c"), UnsupportedFormat),  # blocks of 4 KiB
        (super_patched(80, struct.pack("<I", 0x1000)), UnsupportedFormat),
        (super_patched(84, b"\1"), UnsupportedFormat),  # compressed
        (super_patched(86, b"\xff\xff"), FormatError),  # more devices than fit
        (super_patched(88, b"\xff\xff"), FormatError),
    ],
)
def test_images_that_are_none(image: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Tree(image)


def inode_offset(tree: Tree, path: bytes) -> int:
    inode = tree.inode(tree.resolve(path, follow=False))
    return inode.xattr_start - 64


def damaged(path: bytes, offset: int, data: bytes) -> Tree:
    return Tree(patched(IMAGE, inode_offset(Tree(IMAGE), path) + offset, data))


@pytest.mark.parametrize("nid", [10**6, 2**31, 2**58, 2**63, 2**64 - 1])
def test_inode_numbers_outside_the_image(nid: int) -> None:
    with pytest.raises(FormatError, match="outside"):
        Tree(IMAGE).inode(nid)


@pytest.mark.parametrize(
    ("path", "offset", "data"),
    [
        (b"d", 0, b"\0\0"),  # a compact inode
        (b"d", 0, b"\7\0"),  # compressed
        (b"d", 4, b"\0\0"),  # no type
        (b"d", 4, b"\0\xf0"),
        (b"d", 40, b"\xff\xff\xff\xff"),  # nanoseconds
        (b"d", 8, b"\xff" * 8),  # size
        (b"d", 8, struct.pack("<Q", 5)),
        (b"d", 64, struct.pack("<QH", 0, 0)),  # the first name at 0
        (b"d", 64, struct.pack("<QH", 0, 11)),
        (b"d", 64, struct.pack("<QH", 0, 60000)),
        (b"d", 64 + 12, struct.pack("<QH", 0, 500)),
        (b"d", 64 + 12, struct.pack("<QH", 0, 3)),  # a name inside the entries
        (b"d", 64 + 36, b"./."),
        (b"d", 64 + 36, b"\0\0\0"),
        (b"d", 64 + 24, struct.pack("<QHB", 16, 39, 2)),  # the root below itself
    ],
)
def test_damaged_directories(path: bytes, offset: int, data: bytes) -> None:
    tree = damaged(path, offset, data)
    with pytest.raises(FormatError):
        tree.names(tree.resolve(path, follow=False))


@pytest.mark.parametrize(
    ("path", "offset", "data"),
    [
        (b"d/f", 16, struct.pack("<I", 5)),  # chunks without indexes
        (b"d/f", 64, struct.pack("<HHI", 0, 0, 1 << 20)),  # carried behind the end
        (b"d/f", 64, struct.pack("<HHI", 0, 3, 1)),
        (b"d/f", 0, b"\1\0"),  # plain, though it has a size
    ],
)
def test_damaged_files(path: bytes, offset: int, data: bytes) -> None:
    tree = damaged(path, offset, data)
    with pytest.raises(FormatError):
        tree.data(tree.resolve(path))


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (2, b"\xff\xff"),  # more xattrs than the image has bytes
        (64 + 4, b"\xff"),  # more shared ones than there are
        (64 + 12, b"\xff"),  # a longer name
        (64 + 13, b"\x09"),  # a prefix that does not exist
        (64 + 14, b"\xff\xff"),  # a longer value
    ],
)
def test_damaged_xattrs(offset: int, data: bytes) -> None:
    node = regular()
    node.xattrs = {b"user.name": b"value"}
    image = write(folder({b"f": node}))
    place = inode_offset(Tree(image), b"f") + offset
    tree = Tree(patched(image, place, data))
    nid = tree.resolve(b"f")
    with pytest.raises(FormatError):
        tree.xattrs(nid)
