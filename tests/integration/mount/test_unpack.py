"""Unpacked trees: every attribute, every failure, and the same view as the kernel's EROFS mount."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.errors import MountError
from layerfs.formats.erofs.reader import Tree
from layerfs.formats.erofs.writer import Device, write_tree
from layerfs.formats.merge import apply_layer, empty_tree
from layerfs.formats.tree import Node, directory, hard_link_marker, whiteout
from layerfs.linux import probe
from layerfs.linux.mount_api import umount
from layerfs.linux.safe_path import remove_tree
from layerfs.mount import unpack as module
from layerfs.mount.overlay import mount_directories, mount_merged
from layerfs.mount.unmount import unmount
from layerfs.mount.unpack import apply_attributes, is_stackable, sweep_staging, unpack

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(not probe.feature("trusted-xattrs").usable, reason=probe.feature("trusted-xattrs").reason),
]

CAPABILITY = bytes.fromhex("0100000200040000") + bytes(12)
BIG = 4 << 20


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A device: 512 bytes of zeros, a small file, and a large one that is mostly hole."""
    path = tmp_path / "layer.tar"
    with path.open("wb") as file:
        file.seek(512)
        file.write(b"hello\n".ljust(512, b"\0"))
        file.seek(1024 + BIG - 512)
        file.write(b"end".ljust(512, b"\0"))
    return path


def _node(kind: int, mode: int, **fields: object) -> Node:
    node = Node(kind | mode, 1000, 2000, 1_234_567_890, 987_654_321)
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _file(mode: int = 0o644, *, size: int = 6, offset: int = 512, **fields: object) -> Node:
    return _node(stat.S_IFREG, mode, device="d", offset=offset, size=size, **fields)


def _directory(**children: Node) -> Node:
    node = _node(stat.S_IFDIR, 0o2750)
    node.children = {os.fsencode(name): child for name, child in children.items()}
    return node


def _tree(root: Node) -> Tree:
    return Tree(write_tree(root, [Device("d", b"d", (1024 + BIG) // 512)], bytes(range(16))))


def _opener(path: Path) -> Callable[[int], int]:
    return lambda _index: os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _everything() -> Node:
    linked = _file(0o4755, xattrs={b"security.capability": CAPABILITY, b"user.note": b"\0\xff"})
    pipe = _node(stat.S_IFIFO, 0o620)
    inner = _directory(again=linked, pipe2=pipe)
    inner.xattrs = {b"user.dir": b"1", b"trusted.other": b"2"}
    root = _directory(
        linked=linked,
        inner=inner,
        empty=_node(stat.S_IFREG, 0o000),
        big=_file(0o600, size=BIG, offset=1024),
        link=_node(stat.S_IFLNK, 0o777, target=b"../" * 50 + b"etc/passwd"),
        null=_node(stat.S_IFCHR, 0o666, rdev=os.makedev(1, 3)),
        disk=_node(stat.S_IFBLK, 0o660, rdev=os.makedev(259, 70000)),
        pipe=pipe,
        socket=_node(stat.S_IFSOCK, 0o755),
        gone=whiteout(),
    )
    opaque = _directory()
    opaque.xattrs = {b"trusted.overlay.opaque": b"y"}
    assert root.children is not None
    root.children[b"opaque"] = opaque
    root.children[b"\xff\n" + b"x" * 253] = _file(0o644)
    return root


@pytest.mark.needs_overlay  # the file system takes whiteouts
def test_everything_is_kept(tmp_path: Path, data: Path) -> None:
    tree = _tree(_everything())
    assert is_stackable([tree])
    unpack(tree, _opener(data), tmp_path / "out")
    todo = [(tree.root, os.fsencode(tmp_path / "out"))]
    seen = 0
    while todo:
        nid, path = todo.pop()
        seen += 1
        inode, status = tree.inode(nid), os.lstat(path)
        times = inode.mtime * 10**9 + inode.mtime_ns
        assert (status.st_mode, status.st_uid, status.st_gid) == (inode.mode, inode.uid, inode.gid), path
        assert status.st_mtime_ns == times, path
        names = os.listxattr(path, follow_symlinks=False)
        assert {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names} == tree.xattrs(nid)
        if stat.S_ISDIR(inode.mode):
            assert sorted(os.listdir(path)) == [name for name, _, _ in tree.readdir(nid)]
            todo += [(child, path + b"/" + name) for name, child, _ in tree.readdir(nid)]
            continue
        assert (status.st_nlink, status.st_rdev) == (inode.nlink, inode.rdev), path
        if stat.S_ISLNK(inode.mode):
            assert os.readlink(path) == tree.readlink(nid)
        elif stat.S_ISREG(inode.mode):
            place = tree.data(nid)
            expected = b"" if place is None else data.read_bytes()[place[1] : place[1] + inode.size]
            assert Path(os.fsdecode(path)).read_bytes() == expected
    assert seen == 15
    out = tmp_path / "out"
    assert (out / "linked").stat().st_ino == (out / "inner" / "again").stat().st_ino
    assert (out / "pipe").stat().st_ino == (out / "inner" / "pipe2").stat().st_ino
    with (out / "big").open("rb") as file:
        assert os.fstat(file.fileno()).st_blocks * 512 <= 16384
    assert sorted(os.listdir(tmp_path)) == ["layer.tar", "out"]


def test_a_tree_of_2000_levels(tmp_path: Path, data: Path) -> None:
    root = _file()
    for _ in range(2000):
        root = _directory(d=root)
    tree = _tree(root)
    assert is_stackable([tree])
    unpack(tree, _opener(data), tmp_path / "out", sync=False)
    remove_tree(tmp_path / "out")


def test_a_finished_directory_is_left_alone_and_a_race_is_no_error(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = _tree(_directory(f=_file()))
    (tmp_path / "out").mkdir()
    unpack(tree, _opener(data), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
    (tmp_path / "out").rmdir()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            unpack(tree, _opener(data), tmp_path / "out", sync=False)
        except BaseException as err:  # noqa: BLE001 - looked at below
            errors.append(err)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "out" / "f").read_bytes() == b"hello\n"
    assert sorted(os.listdir(tmp_path)) == ["layer.tar", "out"]


@pytest.mark.parametrize("when", ["check", "space", "device", "short"])
def test_a_failure_leaves_nothing(tmp_path: Path, data: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = _tree(_directory(a=_file(), b=_file(size=BIG, offset=1024)))
    check, opener = None, _opener(data)
    expected: type[BaseException] = MountError
    if when == "check":

        def stop() -> None:
            raise KeyboardInterrupt

        check, expected = stop, KeyboardInterrupt
    elif when == "space":

        def full(*_arguments: object, **_options: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(module, "copy_data", full)
    elif when == "device":

        def missing(_index: int) -> int:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "layer.tar")

        opener = missing
    else:
        os.truncate(data, 2048)
    with pytest.raises(expected) as caught:
        unpack(tree, opener, tmp_path / "out", check=check)
    if isinstance(caught.value, MountError):
        assert str(caught.value).startswith("cannot unpack /a: " if when == "device" else "cannot unpack /b: ")
        assert caught.value.errno in {errno.ENOSPC, errno.ENOENT, errno.EIO}
    assert os.listdir(tmp_path) == ["layer.tar"]


def test_a_full_disk_is_called_so(tmp_path: Path, data: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk], check=True)
    try:
        tree = _tree(_directory(**{str(number): _file(size=20_000, offset=1024) for number in range(10)}))
        with pytest.raises(MountError, match="No space left on device") as caught:
            unpack(tree, _opener(data), disk / "out")
        assert caught.value.errno == errno.ENOSPC
        assert not os.listdir(disk)
    finally:
        umount(disk, lazy=True)


def test_leftovers_are_swept_unless_they_are_in_use(tmp_path: Path) -> None:
    for name in (".unpack-dead", ".unpack-busy", "other"):
        (tmp_path / name / "tree").mkdir(parents=True)
    fd = os.open(tmp_path / ".unpack-busy", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    sweep_staging(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".unpack-busy", "other"]
    os.close(fd)


def test_layers_that_need_the_layers_below_are_told(tmp_path: Path, data: Path) -> None:
    implicit = directory(implicit=True)
    implicit.children = {b"f": _file()}
    link = hard_link_marker(b"etc/passwd")
    for child in (implicit, link):
        tree = _tree(_directory(x=_directory(y=child)))
        assert not is_stackable([tree])
        with pytest.raises(ValueError, match="/x/y"):
            unpack(tree, _opener(data), tmp_path / "out")
    root = directory(implicit=True)
    root.children = {b"f": _file()}
    tree = _tree(root)
    assert is_stackable([tree])
    unpack(tree, _opener(data), tmp_path / "out")
    assert os.listxattr(tmp_path / "out") == []
    assert sorted(os.listdir(tmp_path)) == ["layer.tar", "out"]


def _view(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Return all that a user of a mount can see."""
    found: dict[bytes, tuple[object, ...]] = {}
    todo = [(b"", os.fsencode(top))]
    while todo:
        name, path = todo.pop()
        status = os.lstat(path)
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            todo += [(name + b"/" + child, path + b"/" + child) for child in os.listdir(path)]
        elif stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        names = os.listxattr(path, follow_symlinks=False)
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev,
            content,
            None if stat.S_ISDIR(status.st_mode) else status.st_nlink,
            {key: os.getxattr(path, key, follow_symlinks=False) for key in names},
        )
    return found


@pytest.mark.needs_overlay
@pytest.mark.skipif(not probe.feature("erofs-file").usable, reason=probe.feature("erofs-file").reason)
@pytest.mark.parametrize("writable", [False, True])
def test_a_stack_of_directories_shows_what_the_merged_image_shows(tmp_path: Path, data: Path, writable: bool) -> None:
    bottom = _everything()
    assert bottom.children is not None
    bottom.children[b"dir"] = _directory(old=_file(), hidden=_file())
    bottom.children[b"swap"] = _directory(x=_file())
    middle = directory(implicit=True)
    opaque = _directory(new=_file(0o600))
    opaque.xattrs = {b"trusted.overlay.opaque": b"y"}
    middle.children = {b"dir": opaque, b"null": whiteout(), b"swap": _file(), b"absent": whiteout()}
    top = directory(implicit=True)
    top.children = {b"dir": _directory(top=_file()), b"null": _file()}
    merged = empty_tree()
    layers: list[Path] = []
    for number, layer in enumerate((bottom, middle, top)):
        tree = _tree(layer)
        assert is_stackable([tree])
        unpack(tree, _opener(data), tmp_path / f"layer{number}", sync=False)
        layers.insert(0, tmp_path / f"layer{number}")
        apply_layer(merged, layer)
    image = write_tree(merged, [Device("d", b"d", (1024 + BIG) // 512)], bytes(range(16)))
    (tmp_path / "tree.erofs").write_bytes(image)
    whole = Tree(image)
    views = []
    for lower in ("erofs", "dirs"):
        folders = [tmp_path / f"{kind}-{lower}" for kind in ("target", "upper", "work")]
        for folder in folders:
            folder.mkdir()
        target, upper, work = folders
        fd = os.open(upper, os.O_RDONLY)
        apply_attributes(fd, whole, whole.root)
        os.close(fd)
        above = (upper, work) if writable else (None, None)
        if lower == "erofs":
            mount_merged(tmp_path / "tree.erofs", [data], target, read_only=not writable, upper=above[0], work=above[1])
        else:
            mount_directories(
                layers,
                target,
                read_only=not writable,
                prepare_root=lambda root: apply_attributes(root, whole, whole.root),
                upper=above[0],
                work=above[1],
            )
        try:
            views.append(_view(target))
        finally:
            unmount(target)
    assert views[0] == views[1]
    assert b"/dir/new" in views[0]
    assert b"/dir/old" not in views[0]
