"""The kernel mounts the trees that layerfs writes, and sees in them what the reader sees."""

from __future__ import annotations

import mmap
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings

from layerfs.formats.erofs.reader import Tree
from layerfs.formats.erofs.writer import Carried, Device, write_tree
from layerfs.formats.tree import Node
from layerfs.linux import mount_api
from tests.unit.formats.trees import (
    ACL,
    BLOCKS,
    CAPABILITY,
    DEVICES,
    Facts,
    device_node,
    facts_of_image,
    facts_of_nodes,
    folder,
    regular,
    symlink,
    trees,
    write,
)

pytestmark = pytest.mark.needs_root


#: Where the superblock's first compatible feature is, which says that it has a checksum.
_SUM_FLAG = 1024 + 8


@cache
def _fsck() -> tuple[str, bool]:
    """Return a fsck.erofs that knows blocks of 512 bytes, and whether it can check a superblock's sum in one.

    That of erofs-utils 1.8 reads on until it crashes: mkfs.erofs makes no sum for such blocks. Skip without one.
    """
    name = os.environ.get("LAYERFS_FSCK_EROFS", "fsck.erofs")
    image = bytearray(write_tree(folder({}), [], bytes(16)))
    for sums in (True, False):
        with tempfile.NamedTemporaryFile() as file:
            image[_SUM_FLAG] &= 0xFF if sums else 0xFE
            file.write(image)
            file.flush()
            try:
                done = subprocess.run([name, file.name], check=False, capture_output=True, text=True)
            except OSError as error:
                pytest.skip(f"{name}: {error.strerror}; LAYERFS_FSCK_EROFS may name one")
        if done.returncode == 0:
            return name, sums
    said = (done.stdout + done.stderr).strip() or f"it ended with {done.returncode}"
    pytest.skip(f"{name} does not know images with blocks of 512 bytes: {said.splitlines()[-1]}")


@contextmanager
def mounted(image: bytes, folder: Path, devices: list[Path]) -> Iterator[bytes]:
    """Mount an image where nobody else sees it; yield the path of its root."""
    path = folder / "tree.erofs"
    path.write_bytes(image)
    try:
        context = mount_api.fsopen("erofs")
    except OSError as error:
        pytest.skip(str(error))
    try:
        mount_api.fsconfig_string(context, "source", path)
        for device in devices:
            mount_api.fsconfig_string(context, "device", device)
        mount_api.fsconfig_flag(context, "ro")
        mount_api.fsconfig_create(context)
        root = mount_api.fsmount(context, mount_api.MountAttribute.RDONLY)
    finally:
        os.close(context)
    try:
        yield b"/proc/self/fd/%d" % root
    finally:
        os.close(root)


def facts_of_mount(root: bytes) -> dict[bytes, Facts]:
    """Return the facts of every path as the kernel tells them; where data lies is not one of them."""
    paths: list[tuple[bytes, os.stat_result]] = []
    names: dict[int, list[bytes]] = {}
    stack = [b""]
    while stack:
        path = stack.pop()
        status = os.stat(root + path, follow_symlinks=not path)
        paths.append((path, status))
        names.setdefault(status.st_ino, []).append(path)
        if stat.S_ISDIR(status.st_mode):
            listed = []
            with os.scandir(root + path) as entries:
                for entry in entries:
                    listed.append(entry.name)
                    assert entry.inode() == os.lstat(entry.path).st_ino
            assert listed == sorted(set(listed))
            stack += [path + b"/" + name for name in listed]
    found = {}
    for path, status in paths:
        full = root + path
        link = bool(path)  # the root itself is reached through a link of /proc
        xattrs = sorted(os.fsencode(name) for name in os.listxattr(full, follow_symlinks=not link))
        found[path] = Facts(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns // 10**9,
            status.st_mtime_ns % 10**9,
            0 if stat.S_ISDIR(status.st_mode) else status.st_size,
            status.st_nlink,
            status.st_rdev,
            os.readlink(full) if stat.S_ISLNK(status.st_mode) else None,
            tuple((name, os.getxattr(full, name, follow_symlinks=not link)) for name in xattrs),
            None,
            min(names[status.st_ino]),
        )
    return found


def without_data(facts: dict[bytes, Facts]) -> dict[bytes, Facts]:
    return {path: replace(fact, data=None) for path, fact in facts.items()}


def compare_data(image: bytes, root: bytes, devices: list[Path]) -> None:
    """Mark some places of the files on the devices, and read them through the mount."""
    random = Random(1)
    wanted = []
    files = [path.open("r+b", buffering=0) for path in devices]
    try:
        for path, fact in facts_of_image(image).items():
            if fact.data is None:
                continue
            index, offset = fact.data
            places = {0, fact.size - 1, fact.size // 2, (1 << 40) - 3, (1 << 40) + 5}
            for place in sorted(place for place in places if 0 <= place < fact.size):
                mark = random.randbytes(min(7, fact.size - place))
                os.pwrite(files[index].fileno(), mark, offset + place)
                wanted.append((path, place, index, offset + place, len(mark)))
        for path, place, index, where, length in wanted:
            fd = os.open(root + path, os.O_RDONLY)
            try:
                assert os.pread(fd, length, place) == os.pread(files[index].fileno(), length, where), (path, place)
            finally:
                os.close(fd)
    finally:
        for file in files:
            file.close()


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sparse files as large as a device can be."""
    where = tmp_path_factory.mktemp("devices")
    paths = [where / str(device.key) for device in DEVICES]
    for path in paths:
        with path.open("wb") as file:
            try:
                file.truncate(BLOCKS * 512)
            except OSError as error:
                pytest.skip(f"no sparse files of 2 TiB here: {error.strerror}")
    return paths


def agree(root: Node, where: Path, devices: list[Path]) -> None:
    image = write(root)
    wanted = facts_of_nodes(root)
    assert facts_of_image(image) == wanted
    with mounted(image, where, devices) as mount:
        assert facts_of_mount(mount) == without_data(wanted)
        compare_data(image, mount, devices)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(root=trees())
def test_generated_trees(root: Node, tmp_path: Path, devices: list[Path]) -> None:
    agree(root, tmp_path, devices)


@pytest.mark.parametrize("count", [0, 1, 17, 100, 20_000])
def test_directories_of_any_size(count: int, tmp_path: Path, devices: list[Path]) -> None:
    names = {b"%d" % number * (1 + number % 40) for number in range(count)}
    names |= {bytes([byte]) for byte in range(1, 256) if byte not in b"./" and len(names) >= 100}
    root = folder({b"sub": folder({name[:255]: regular() for name in names})})
    agree(root, tmp_path, devices)


@pytest.mark.parametrize("length", [1, 2, 100, 243, 244, 254, 255])
def test_names_of_any_length(length: int, tmp_path: Path, devices: list[Path]) -> None:
    """Names fill a block to its last byte, or just not."""
    root = folder(
        {bytes([first]) * length: regular() for first in (1, 45, 46, 47 + 1, 127, 255) if length > 2 or first != 46}
    )
    agree(root, tmp_path, devices)


def test_directories_that_just_fit(tmp_path: Path, devices: list[Path]) -> None:
    """Around the sizes where a directory moves out of its inode, and from one block to the next."""
    root = folder({b"%03d" % size: folder({b"n" * 200: regular(), b"m" * size: regular()}) for size in range(1, 256)})
    agree(root, tmp_path, devices)


def test_symlinks_of_any_length(tmp_path: Path, devices: list[Path]) -> None:
    lengths = [*range(1, 40), *range(370, 520), 1023, 1024, 1025, 4000, 4094, 4095]
    children = {b"%d" % length: symlink(b"t" * length) for length in lengths}
    for length in range(300, 460):
        node = children[b"x%d" % length] = symlink(b"t" * length)
        node.xattrs = {b"trusted.x%d" % length: b"v" * (length % 70)}
    agree(folder(children), tmp_path, devices)


def test_sizes_and_places_of_files(tmp_path: Path, devices: list[Path]) -> None:
    tib = 1 << 40
    sizes = [0, 1, 511, 512, 513, 1 << 20, 2**32 - 1, 2**32, 5 << 30, tib - 1, tib, tib + 1, tib + 512, 2 * tib - 512]
    children = {b"%d" % size: regular(size) for size in sizes}
    children[b"last"] = regular(512, (BLOCKS - 1) * 512, "two")
    children[b"end"] = regular(tib, (BLOCKS * 512) - tib, "two")
    agree(folder(children), tmp_path, devices)


def test_xattrs(tmp_path: Path, devices: list[Path]) -> None:
    children: dict[bytes, Node] = {}
    for size in [0, 1, 400, 435, 436, 437, 511, 512, 513, 4095, 4096, 65534, 65535]:
        node = children[b"own%d" % size] = regular(1)
        node.xattrs = {b"user.x": bytes([size % 251]) * size}
        node = children[b"shared%d" % size] = regular(1)
        node.xattrs = {b"user.common": b"c" * size, b"trusted.y": b"%d" % size}
        children[b"twin%d" % size] = twin = folder({b"f": regular()})
        twin.xattrs = dict(node.xattrs)
    node = children[b"special"] = regular(1, mode=0o755)
    node.xattrs = {b"security.capability": CAPABILITY, b"system.posix_acl_access": ACL}
    node = children[b"default"] = folder({})
    node.xattrs = {b"system.posix_acl_default": ACL, b"system.posix_acl_access": ACL}
    node = children[b"many"] = regular()
    node.xattrs = {b"user.%d" % number: b"v" * (number % 700) for number in range(600)}
    node = children[b"large"] = regular()
    node.xattrs = {b"user.%d" % number: bytes([number]) * 65535 for number in range(16)}
    node = children[b"long"] = regular()
    node.xattrs = {b"user." + b"n" * 250: b"1", b"trusted." + b"\xff" * 247: b"2"}
    node = children[b"device"] = device_node(stat.S_IFBLK, 4095, 2**20 - 1)
    node.xattrs = {b"trusted.x": b"1", b"security.selinux": b"l"}
    agree(folder(children), tmp_path, devices)


def test_attributes_at_their_limits(tmp_path: Path, devices: list[Path]) -> None:
    children: dict[bytes, Node] = {}
    for number, (seconds, nanoseconds) in enumerate(
        [(0, 0), (-1, 999_999_999), (-(2**63), 0), (2**63 - 1, 999_999_999), (2**31, 1), (2**32, 1), (-(2**31) - 1, 5)]
    ):
        node = children[b"t%d" % number] = regular()
        node.mtime, node.mtime_ns = seconds, nanoseconds
        node.uid, node.gid = 2**32 - 2, 2**31 + number
        node.mode = stat.S_IFREG | 0o7777
    for number, (major, minor) in enumerate([(0, 1), (1, 3), (255, 255), (256, 256), (4095, 2**20 - 1)]):
        children[b"c%d" % number] = device_node(stat.S_IFCHR, major, minor)
        children[b"b%d" % number] = device_node(stat.S_IFBLK, major, minor)
    children[b"zero"] = device_node(stat.S_IFCHR, 0, 0)  # a whiteout, in the tree of one layer
    agree(folder(children), tmp_path, devices)


def test_a_deep_tree(tmp_path: Path, devices: list[Path]) -> None:
    root = here = folder({})
    for _ in range(2000):
        deeper = folder({})
        assert here.children is not None
        here.children[b"d"] = deeper
        here = deeper
    agree(root, tmp_path, devices)


def test_the_root_has_an_inode_number(tmp_path: Path) -> None:
    image = write_tree(folder({b"f": regular()}), [], bytes(16))
    with mounted(image, tmp_path, []) as mount:
        assert os.stat(mount).st_ino == Tree(image).root != 0
        listed = subprocess.run(
            ["ls", "-a", mount.replace(b"self", b"%d" % os.getpid()) + b"/."], check=True, capture_output=True
        ).stdout
        assert listed.split() == [b".", b"..", b"f"]


def test_many_devices(tmp_path: Path) -> None:
    count = 499
    keys = [Device(number, b"%064d" % number, 2) for number in range(count)]
    root = folder({b"%d" % number: regular(4, 512) for number in range(count)})
    assert root.children is not None
    paths = []
    for number in range(count):
        root.children[b"%d" % number].device = number
        path = tmp_path / f"{number}.tar"
        path.write_bytes(bytes(512) + (b"%04d" % number).ljust(512, b"\0"))
        paths.append(path)
    with mounted(write_tree(root, keys, bytes(16)), tmp_path, paths) as mount:
        for number in range(0, count, 50):
            assert Path(os.fsdecode(mount + b"/%d" % number)).read_bytes() == b"%04d" % number


@pytest.mark.parametrize("named", [0, 2])
def test_files_that_the_image_carries(tmp_path: Path, devices: list[Path], named: int) -> None:
    sizes = [1, 511, 512, 513, 4095, 4096, 4097, 65_536]
    content = {(512 * number, size): os.urandom(size) for number, size in enumerate(sizes)}
    children = {b"%d" % size: regular(size, offset, device="small") for offset, size in content}
    children[b"link"] = children[b"513"]
    children[b"511"].xattrs = {b"user.a": b"b", b"user.large": bytes(600)}
    children[b"large"] = folder({b"n%05d" % number: regular() for number in range(500)})
    if named:
        children[b"named"] = regular(1000, 512)
    image = write_tree(folder(children), DEVICES[:named], bytes(16), [Carried("small", 0, content)])
    with mounted(image, tmp_path, devices[:named]) as mount:
        for (_, size), data in content.items():
            path = Path(os.fsdecode(mount + b"/%d" % size))
            assert path.read_bytes() == data
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                assert mapped[:] == data
        if named:
            with devices[0].open("rb") as file:
                assert Path(os.fsdecode(mount + b"/named")).read_bytes() == os.pread(file.fileno(), 1000, 512)
        assert {path: replace(facts, data=None) for path, facts in facts_of_image(image).items()} == facts_of_mount(
            mount
        )


def test_fsck_accepts_files_that_the_image_carries(tmp_path: Path) -> None:
    path = tmp_path / "tree.erofs"
    content = {(512, 700): bytes(700)}
    path.write_bytes(
        write_tree(folder({b"f": regular(700, 512, device="small")}), [], bytes(16), [Carried("small", 3, content)])
    )
    fsck(path, [])


def fsck(path: Path, devices: list[Path]) -> None:
    name, sums = _fsck()
    if not sums:
        image = bytearray(path.read_bytes())
        image[_SUM_FLAG] &= 0xFE
        path.write_bytes(image)
    command = [name, *(f"--device={device}" for device in devices), str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "No errors found" in output or not output.strip(), output


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=25)
@given(root=trees())
def test_fsck_accepts_generated_trees(root: Node, tmp_path: Path, devices: list[Path]) -> None:
    path = tmp_path / "tree.erofs"
    path.write_bytes(write(root))
    fsck(path, devices)


def test_fsck_accepts_large_directories_and_xattrs(tmp_path: Path, devices: list[Path]) -> None:
    path = tmp_path / "tree.erofs"
    big = folder({b"%d" % number * 9: regular(number, 512) for number in range(20_000)})
    for number, node in enumerate((big.children or {}).values()):
        if number % 100 == 0:
            node.xattrs = {b"user.a": b"x" * number, b"user.shared": b"y"}
    path.write_bytes(write(folder({b"big": big, b"empty": folder({}), b"link": symlink(b"t" * 4095)})))
    fsck(path, devices)
