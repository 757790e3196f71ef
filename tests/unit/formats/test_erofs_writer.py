"""What the EROFS writer puts where, and what it refuses."""

from __future__ import annotations

import hashlib
import stat
import struct
import zlib

import pytest

from layerfs.errors import FormatError, LimitExceeded
from layerfs.formats.erofs.layout import BLOCK, INODE, SLOT, SUPER_OFFSET, SUPERBLOCK, crc32c
from layerfs.formats.erofs.reader import Tree
from layerfs.formats.erofs.writer import MAX_DEVICE_BLOCKS, Carried, Device, write_tree
from layerfs.formats.tree import Node
from tests.unit.formats.trees import DEVICES, UUID, device_node, folder, regular, symlink, write


def sample() -> Node:
    plain = regular(5000, 1024)
    plain.xattrs = {b"user.a": b"1", b"trusted.b": bytes(700)}
    return folder(
        {
            b"bin": symlink(b"usr/bin"),
            b"etc": folder({b"passwd": plain, b"link": plain, b"empty": regular()}),
            b"dev": folder({b"null": device_node(stat.S_IFCHR, 1, 3)}),
            b"long": symlink(b"l" * 2000),
            b"many": folder({b"%04d" % number: regular(number, 512) for number in range(200)}),
        }
    )


def test_superblock() -> None:
    image = write(sample())
    (magic, checksum, compat, bits, _, root, inodes, _, _, blocks, meta, xattr, uuid, name, incompat, _, devices,
     table, _) = SUPERBLOCK.unpack_from(image, SUPER_OFFSET)  # fmt: skip
    assert (magic, compat, bits, uuid, incompat) == (0xE0F5E1E2, 3, 9, UUID, 4 | 8)
    assert blocks * BLOCK == len(image)
    assert (devices, table * 128) == (2, SUPER_OFFSET + 128)
    assert name == b"layerfs %08x" % zlib.crc32(image[SUPER_OFFSET + 128 :])
    assert inodes == 209
    assert root * SLOT == BLOCK  # never 0
    assert meta >= xattr
    block = bytearray(image[SUPER_OFFSET : SUPER_OFFSET + BLOCK])
    block[4:8] = bytes(4)
    assert crc32c(bytes(block)) == checksum
    assert not image[:SUPER_OFFSET].strip(b"\0")


def test_a_tree_without_devices_has_no_device_table() -> None:
    image = write_tree(folder({}), [], UUID)
    assert Tree(image).devices == ()
    assert SUPERBLOCK.unpack_from(image, SUPER_OFFSET)[14] == 4
    assert len(image) == 4 * BLOCK


def test_golden_bytes() -> None:
    """A tree that is on disk is compared with one made again: a change here is a change of the format."""
    digest = hashlib.sha256(write(sample())).hexdigest()
    assert digest == "a3c3a64acd5d02f2e27bae4881b424358713212d3deea103bc9f5dfdf9f2bb27"


def test_inodes_never_cross_a_block() -> None:
    children = {}
    for number in range(300):
        node = children[b"%03d" % number] = regular(number)
        node.xattrs = {b"user.x": b"v" * number} if number % 3 else None
    tree = Tree(write(folder(children)))
    for _, nid, _ in tree.readdir(tree.root):
        inode = tree.inode(nid)
        assert inode.xattr_start % BLOCK == 0 or inode.xattr_start % BLOCK >= INODE.size


@pytest.mark.parametrize("length", range(300, 520))
def test_what_stands_inline_stands_in_the_block_of_its_inode(length: int) -> None:
    """Kernels before 6.9 refuse a symlink whose xattrs cross a block, though its target would not."""
    link = symlink(b"t" * (length % 400 + 1))
    link.xattrs = {b"trusted.x": b"v" * length}
    tree = Tree(write(folder({b"a": regular(), b"l": link})))
    nid = tree.lookup(tree.root, b"l")
    assert nid is not None
    inode = tree.inode(nid)
    if inode.layout == 2:
        assert (inode.xattr_start - INODE.size) // BLOCK == (inode.xattr_end + inode.size - 1) // BLOCK


def test_inodes_of_a_directory_lie_together() -> None:
    tree = Tree(write(sample()))
    many = tree.lookup(tree.root, b"many")
    assert many is not None
    nids = [nid for _, nid, _ in tree.readdir(many)]
    assert nids == sorted(nids)
    assert nids[-1] - nids[0] < 200 * 4


def test_equal_xattrs_are_stored_once() -> None:
    def tree(value: bytes, count: int) -> int:
        children = {}
        for number in range(count):
            node = children[b"%d" % number] = regular()
            node.xattrs = {b"user.value": value}
        return len(write(folder(children)))

    assert tree(bytes(60_000), 50) < 70_000
    assert tree(b"v" * 400, 100) < 100 * 200 + 4096


def test_more_shared_xattrs_than_one_inode_can_name() -> None:
    node, twin = regular(), regular()
    node.xattrs = {b"user.%d" % number: b"v%d" % number for number in range(400)}
    twin.xattrs = dict(node.xattrs)
    tree = Tree(write(folder({b"a": node, b"b": twin})))
    for name in (b"a", b"b"):
        nid = tree.lookup(tree.root, name)
        assert nid is not None
        assert tree.xattrs(nid) == dict(sorted(node.xattrs.items()))


def test_writing_twice_gives_the_same_and_leaves_the_tree_alone() -> None:
    root = sample()
    image = write(root)
    assert write(root) == image == write(sample())


def with_xattrs(xattrs: dict[bytes, bytes]) -> Node:
    node = regular()
    node.xattrs = xattrs
    return folder({b"f": node})


@pytest.mark.parametrize(
    ("root", "error"),
    [
        (with_xattrs({b"com.apple.x": b""}), FormatError),
        (with_xattrs({b"user.": b""}), FormatError),
        (with_xattrs({b"system.posix_acl_access.x": b""}), FormatError),
        (with_xattrs({b"user." + b"n" * 256: b""}), LimitExceeded),
        (with_xattrs({b"user.x": bytes(65536)}), LimitExceeded),
        (with_xattrs({b"user.%d" % number: bytes(500) for number in range(1000)}), LimitExceeded),
        (folder({b"n" * 256: regular()}), FormatError),
        (folder({b"": regular()}), FormatError),
    ],
)
def test_refused(root: Node, error: type[Exception]) -> None:
    with pytest.raises(error):
        write(root)


def test_a_device_that_is_too_large_is_refused() -> None:
    write_tree(folder({}), [Device("k", b"t", MAX_DEVICE_BLOCKS)], UUID)
    with pytest.raises(LimitExceeded):
        write_tree(folder({}), [Device("k", b"t", MAX_DEVICE_BLOCKS + 1)], UUID)


@pytest.mark.parametrize(
    ("size", "offset"), [(1, 10 * BLOCK), (10 * BLOCK + 1, 0), (512, 2**42), (BLOCK, 9 * BLOCK + 512)]
)
def test_a_file_outside_its_device_is_refused(size: int, offset: int) -> None:
    with pytest.raises(FormatError, match="device"):
        write_tree(folder({b"f": regular(size, offset)}), [Device("one", b"t", 10)], UUID)


def test_files_that_the_image_carries() -> None:
    twice = regular(5, 1024, device="small")
    xattrs = regular(600, 2048, device="small")
    xattrs.xattrs = {b"user.a": b"b", b"user.large": bytes(600)}
    root = folder({b"twice": twice, b"again": twice, b"same": regular(5, 1024, device="small"), b"xattrs": xattrs,
                   b"named": regular(5, 1024), b"empty": regular()})  # fmt: skip
    content = {(1024, 5): b"hello", (2048, 600): b"x" * 600}
    image = write_tree(root, [Device("one", b"t", 10)], UUID, [Carried("small", 7, content)])
    tree = Tree(image)
    assert tree.is_whole()
    found = {name: (tree.inode(nid), tree.data(nid)) for name, nid, _ in tree.readdir(tree.root)}
    assert found[b"named"][1] == (0, 1024)
    assert found[b"empty"][1] is None
    assert found[b"twice"] == found[b"again"]
    assert found[b"same"][1] == found[b"twice"][1]  # the same bytes once
    for name, offset, data in ((b"twice", 1024, b"hello"), (b"xattrs", 2048, b"x" * 600)):
        inode, place = found[name]
        assert place is not None
        assert place[0] == len(tree.devices) == 1
        assert place[1] % BLOCK == 0
        assert tree.carried(place[1], inode.size) == data
        assert tree.origin(inode) == (7, offset)
    assert len(image) == found[b"xattrs"][1][1] + 2 * BLOCK if found[b"xattrs"][1] else False


def test_a_tree_of_which_all_is_carried_has_no_devices() -> None:
    image = write_tree(
        folder({b"f": regular(1, 512, device="small")}), [], UUID, [Carried("small", 0, {(512, 1): b"x"})]
    )
    tree = Tree(image)
    assert tree.devices == ()
    assert tree.data(tree.resolve(b"f")) == (0, len(image) - BLOCK)


def test_chunks_of_files_beyond_one_tebibyte() -> None:
    image = write(folder({b"f": regular((1 << 40) + 1, 512)}))
    tree = Tree(image)
    nid = tree.lookup(tree.root, b"f")
    assert nid is not None
    inode = tree.inode(nid)
    assert inode.value == 0x20 | 31
    indexes = struct.unpack_from("<HHIHHI", image, inode.xattr_end)
    assert indexes == (0, 1, 1, 0, 1, 1 + (1 << 31))


def test_the_tag_of_a_device_names_it() -> None:
    assert [(slot.tag, slot.blocks) for slot in Tree(write(folder({}))).devices] == [
        (device.tag, device.blocks) for device in DEVICES
    ]
