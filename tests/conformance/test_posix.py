"""What any file system must do: checks that take a directory and nothing else.

They run on the machine's own file system too, which is the oracle of the checks themselves, and on overlayfs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.linux.inode_flags import EXTENDED, FLAGS, read_flags
from layerfs.linux.mount_api import umount
from layerfs.linux.process import wait_for_end
from layerfs.linux.rename import EXCHANGE, NOREPLACE, rename
from layerfs.linux.sparse import allocate
from tests.union_oracle import (
    APPEND,
    AT_FDCWD,
    IMMUTABLE,
    NOATIME,
    NODUMP,
    USER,
    acting_as,
    errno_of,
    inode_flags,
    make_image,
    mount_fuse,
    mount_kernel,
    set_inode_flags,
)

pytestmark = [pytest.mark.needs_root]

KINDS = [
    "host",
    pytest.param("overlayfs", marks=pytest.mark.needs_overlay),
    pytest.param("union", marks=pytest.mark.needs_fuse),
    pytest.param("union over an image", marks=pytest.mark.needs_fuse),
    pytest.param("union through pyfuse3", marks=pytest.mark.needs_fuse),
]


@pytest.fixture(scope="module", params=KINDS)
def mounted(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of one kind; its lower holds ``lower/0`` to ``lower/99`` and a tree."""
    folder = Path(tempfile.mkdtemp(prefix="layerfs-conformance-"))
    folder.chmod(0o755)
    paths = {name: folder / name for name in ("lower", "upper", "work", "mnt")}
    for path in paths.values():
        path.mkdir()
        path.chmod(0o777)
    for number in range(100):
        (paths["lower"] / f"{number}").write_text(f"lower {number}")
    with open(paths["lower"] / "sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"data")
    os.utime(paths["lower"] / "73", ns=(10**9, 2 * 10**9))
    pid = None
    if request.param == "host":
        shutil.copytree(paths["lower"], paths["mnt"], dirs_exist_ok=True)
    elif request.param == "overlayfs":
        mount_kernel([paths["lower"]], paths["upper"], paths["work"], paths["mnt"])
    else:
        tree: str | None = None
        devices: tuple[str, ...] = ()
        if "image" in request.param:
            tree, devices = make_image(paths["lower"], folder / "store")
        pid = mount_fuse(
            [paths["lower"]], upper=paths["upper"], work=paths["work"], target=paths["mnt"], tree=tree, devices=devices,
            pyfuse3="pyfuse3" in request.param,
        )  # fmt: skip
    try:
        yield paths["mnt"]
    finally:
        if request.param != "host":
            umount(paths["mnt"])
        if pid is not None:
            assert wait_for_end(pid, 10)
        shutil.rmtree(folder)


@pytest.fixture
def place(mounted: Path, request: pytest.FixtureRequest) -> Path:
    """A new directory that everybody may write to."""
    path = mounted / f"p-{abs(hash(request.node.name))}"
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.mark.parametrize("length", [255, 256])
def test_the_longest_name(place: Path, length: int) -> None:
    name = place / ("n" * length)
    expected = 0 if length <= 255 else errno.ENAMETOOLONG
    assert errno_of(lambda: name.write_text("x")) == expected
    assert errno_of(name.mkdir) == (expected or errno.EEXIST)
    assert errno_of(name.stat) == expected
    (place / "o").symlink_to("x")
    assert errno_of(lambda: (place / "o").rename(name)) == expected


def test_a_path_of_almost_path_max(place: Path) -> None:
    names = []
    length = len(os.fsencode(place))
    while length + 201 < 4090:
        names.append("d" * 200)
        length += 201
    deep = place.joinpath(*names)
    deep.mkdir(parents=True)
    (deep / "f").write_text("deep")
    os.link(deep / "f", deep / "g")
    (deep / "g").rename(place / "shallow")
    assert (place / "shallow").stat().st_nlink == 2
    shutil.rmtree(place / names[0])


def test_an_unlinked_file_lives_on(place: Path) -> None:
    for name in (place / "new", place.parent / "1"):
        name.write_text("text")
        fd = os.open(name, os.O_RDWR)
        name.unlink()
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"T", 0)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 3)
        assert os.pread(fd, 10, 0) == b"Tex"
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        os.close(fd)
        assert not name.exists()


def test_a_removed_directory_takes_nothing_more(place: Path) -> None:
    (place / "d").mkdir()
    fd = os.open(place / "d", os.O_RDONLY | os.O_DIRECTORY)
    (place / "d").rmdir()
    assert errno_of(lambda: os.mkdir("x", dir_fd=fd)) == errno.ENOENT
    assert os.listdir(fd) == []
    os.close(fd)


def test_links_are_counted(place: Path) -> None:
    (place / "a").write_text("")
    for number in range(10):
        os.link(place / "a", place / f"l{number}")
    assert (place / "l3").stat().st_nlink == 11
    assert len({(place / f"l{number}").stat().st_ino for number in range(10)}) == 1
    for number in range(9):
        (place / f"l{number}").unlink()
    (place / "a").rename(place / "l9")  # two names of one file: nothing happens
    assert sorted(os.listdir(place)) == ["a", "l9"]
    assert (place / "a").stat().st_nlink == 2


def test_renaming(place: Path) -> None:
    (place / "f").write_text("f")
    (place / "g").write_text("g")
    (place / "d/e").mkdir(parents=True)
    (place / "empty").mkdir()
    assert errno_of(lambda: os.rename(place / "d", place / "d/e/x")) == errno.EINVAL
    assert errno_of(lambda: os.rename(place / "f", place / "d")) == errno.EISDIR
    assert errno_of(lambda: os.rename(place / "d", place / "f")) == errno.ENOTDIR
    assert errno_of(lambda: os.rename(place / "empty", place / "d")) in {errno.ENOTEMPTY, errno.EEXIST}
    at = os.fsencode
    no_replace = errno_of(lambda: rename(AT_FDCWD, at(place / "f"), AT_FDCWD, at(place / "g"), NOREPLACE))
    assert no_replace == errno.EEXIST
    rename(AT_FDCWD, at(place / "f"), AT_FDCWD, at(place / "d"), EXCHANGE)
    assert (place / "d").read_text() == "f"
    assert os.listdir(place / "f") == ["e"]
    (place / "f").rename(place / "empty")
    assert os.listdir(place / "empty") == ["e"]
    assert (place / "empty/e/..").stat().st_ino == (place / "empty").stat().st_ino


def test_times(place: Path) -> None:
    (place / "f").write_text("")
    os.utime(place / "f", ns=(1_111_111_111_222_222_222, 1_333_333_333_444_444_444))
    assert (place / "f").stat().st_mtime_ns == 1_333_333_333_444_444_444
    before = (place / "f").stat()
    os.chmod(place / "f", 0o600)
    after = (place / "f").stat()
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_ctime_ns >= before.st_ctime_ns
    os.utime(place, ns=(1, 1))
    (place / "new").write_text("")
    assert place.stat().st_mtime_ns > 1
    os.utime(place, ns=(1, 1))
    (place / "new").unlink()
    assert place.stat().st_mtime_ns > 1


def test_permissions(place: Path) -> None:
    (place / "secret").write_text("s")
    (place / "secret").chmod(0o600)
    (place / "sticky").mkdir()
    (place / "sticky").chmod(0o1777)
    (place / "sticky/root").write_text("")
    with acting_as(USER):
        assert errno_of((place / "secret").read_text) == errno.EACCES
        assert errno_of(lambda: os.chmod(place / "secret", 0o777)) == errno.EPERM
        assert errno_of(lambda: os.chown(place / "secret", USER, USER)) == errno.EPERM
        assert errno_of((place / "sticky/root").unlink) == errno.EPERM
        assert errno_of(lambda: (place.parent / "not-mine").write_text("")) in {0, errno.EACCES}
        (place / "mine").write_text("m")
        assert (place / "mine").stat().st_uid == USER
        os.chmod(place / "mine", 0o4755)
        with open(place / "mine", "a") as file:
            file.write("x")
        assert stat.S_IMODE((place / "mine").stat().st_mode) == 0o755


def test_set_group_id_is_inherited(place: Path) -> None:
    (place / "d").mkdir()
    os.chown(place / "d", 0, 77)
    (place / "d").chmod(0o2777)
    (place / "d/sub").mkdir()
    with acting_as(USER):
        (place / "d/f").write_text("")
        (place / "d/sub2").mkdir()
    assert stat.S_IMODE((place / "d/sub").stat().st_mode) & 0o2000
    for name in ("sub", "sub2", "f"):
        assert (place / "d" / name).stat().st_gid == 77


def test_exclusive_creation_happens_once(place: Path) -> None:
    won: list[int] = []

    def attempt(number: int) -> None:
        for name in range(50):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(place / f"{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                won.append(number)

    workers = [threading.Thread(target=attempt, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(won) == 50


def test_appending_from_several_writers_loses_nothing(place: Path) -> None:
    def append() -> None:
        fd = os.open(place / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for _ in range(100):
            os.write(fd, b"0123456789\n")
        os.close(fd)

    workers = [threading.Thread(target=append) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (place / "log").read_bytes() == b"0123456789\n" * 400


def test_locks_exclude(place: Path) -> None:
    (place / "f").write_text("")
    with open(place / "f") as one, open(place / "f") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        assert errno_of(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)) == errno.EWOULDBLOCK


def test_devices_fifos_and_sockets(place: Path) -> None:
    for mode, device in ((stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(7, 200)), (stat.S_IFIFO, 0),
                         (stat.S_IFSOCK, 0)):  # fmt: skip
        name = place / f"{mode}"
        os.mknod(name, mode | 0o640, device)
        found = name.lstat()
        assert (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), found.st_rdev) == (mode, 0o640, device)
    with open(place / f"{stat.S_IFCHR}", "wb") as null:
        null.write(b"x")


def test_xattrs(place: Path) -> None:
    (place / "f").write_text("")
    (place / "l").symlink_to("f")
    os.setxattr(place / "f", "user.a", b"1" * 1000)
    assert errno_of(lambda: os.setxattr(place / "f", "user.a", b"", os.XATTR_CREATE)) == errno.EEXIST
    assert errno_of(lambda: os.setxattr(place / "f", "user.b", b"", os.XATTR_REPLACE)) == errno.ENODATA
    assert errno_of(lambda: os.setxattr(place / "l", "user.a", b"", follow_symlinks=False)) == errno.EPERM
    os.setxattr(place / "l", "trusted.a", b"link", follow_symlinks=False)
    assert "trusted.a" not in os.listxattr(place / "f")
    os.removexattr(place / "f", "user.a")
    assert errno_of(lambda: os.getxattr(place / "f", "user.a")) == errno.ENODATA
    with acting_as(USER):
        assert os.listxattr(place / "l", follow_symlinks=False) == []


def test_holes_and_big_offsets(place: Path) -> None:
    with open(place / "f", "wb") as file:
        file.seek(5 << 30)
        file.write(b"end")
    assert (place / "f").stat().st_size == (5 << 30) + 3
    assert (place / "f").stat().st_blocks < 1000
    with open(place / "f", "rb") as again:
        assert again.read(4096) == bytes(4096)
        again.seek(5 << 30)
        assert again.read() == b"end"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_reads_and_writes_by_all_ways(place: Path, seed: int) -> None:
    """Reads, writes, truncations and shared mappings of one file against a copy in memory."""
    chance = random.Random(seed)
    path = place.parent / f"{seed + 10}"  # a file of the lower
    fd, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    model = bytearray(path.read_bytes())
    for step in range(600):
        offset, size = chance.randrange(200_000), chance.randrange(1, 30_000)
        what = chance.choice(["write", "write", "read", "truncate", "map-write", "map-read", "sync"])
        if what == "write":
            data = chance.randbytes(size)
            os.pwrite(fd, data, offset)
            if len(model) < offset:
                model.extend(bytes(offset - len(model)))
            model[offset : offset + size] = data
        elif what == "read":
            assert os.pread(chance.choice([fd, second]), size, offset) == model[offset : offset + size], step
        elif what == "truncate":
            os.ftruncate(fd, offset)
            del model[offset:]
            model.extend(bytes(offset - len(model)))
        elif what.startswith("map") and len(model) > offset + size:
            with mmap.mmap(fd, len(model)) as mapping:
                if what == "map-read":
                    assert mapping[offset : offset + size] == model[offset : offset + size], step
                else:
                    data = chance.randbytes(size)
                    mapping[offset : offset + size] = data
                    model[offset : offset + size] = data
        elif what == "sync":
            os.fsync(fd)
        assert os.fstat(fd).st_size == len(model), step
    os.close(fd)
    os.close(second)
    assert path.read_bytes() == model


def _needs_more_than_pyfuse3(request: pytest.FixtureRequest) -> None:
    if "pyfuse3" in request.node.name:
        pytest.skip("pyfuse3 binds no such request")


def test_space_is_reserved_and_given_back(place: Path, request: pytest.FixtureRequest) -> None:
    _needs_more_than_pyfuse3(request)
    path = place / "sparse"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(fd, b"x" * (1 << 20), 0)
    allocate(fd, 2 | 1, 4096, 1 << 19)  # punch a hole
    assert os.fstat(fd).st_size == 1 << 20
    assert os.pread(fd, 10, 4090) == b"x" * 6 + bytes(4)
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
    assert os.lseek(fd, 4096, os.SEEK_DATA) == 4096 + (1 << 19)
    os.posix_fallocate(fd, 0, 3 << 20)
    assert os.fstat(fd).st_size == 3 << 20
    assert errno_of(lambda: os.lseek(fd, 3 << 20, os.SEEK_DATA)) == errno.ENXIO
    below = os.open(place.parent / "72", os.O_RDONLY)
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        for opened in (fd, below):
            assert errno_of(lambda: os.lseek(opened, -1, whence)) == errno.ENXIO  # noqa: B023 - called at once
    os.close(fd)
    assert os.lseek(below, 0, os.SEEK_DATA) == 0
    assert os.lseek(below, 3, os.SEEK_HOLE) == len("lower 72")
    os.close(below)


def test_bytes_are_copied_without_passing_through_the_program(place: Path, request: pytest.FixtureRequest) -> None:
    _needs_more_than_pyfuse3(request)
    source = os.open(place.parent / "70", os.O_RDONLY)
    target = os.open(place / "copy", os.O_RDWR | os.O_CREAT, 0o644)
    assert os.copy_file_range(source, target, 100, 0, 3) == len("lower 70")
    assert os.pread(target, 100, 0) == bytes(3) + b"lower 70"
    # Within a file of the lower layer, which is copied up by that.
    both = os.open(place.parent / "71", os.O_RDWR)
    assert os.copy_file_range(both, both, 5, 0, 100) == 5
    assert os.pread(both, 200, 0) == b"lower 71".ljust(100, b"\0") + b"lower"
    for fd in (source, target, both):
        os.close(fd)


def test_a_file_without_a_name_can_get_one(place: Path, request: pytest.FixtureRequest) -> None:
    _needs_more_than_pyfuse3(request)
    place.chmod(0o2777)
    os.chown(place, 0, 77)
    place.chmod(0o2777)
    top = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    for name in ("new", "72"):
        with acting_as(USER):
            fd = os.open(place, os.O_RDWR | os.O_TMPFILE, 0o640)
        os.write(fd, b"nameless")
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_uid, status.st_gid) == (0, USER, 77)
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=top, follow_symlinks=True)
        assert os.fstat(fd).st_nlink == 1
        assert (place / name).read_bytes() == b"nameless"
        assert (place / name).stat().st_ino == status.st_ino
        os.close(fd)
    fd = os.open(place, os.O_RDWR | os.O_TMPFILE | os.O_EXCL, 0o640)
    link = f"/proc/self/fd/{fd}"
    assert errno_of(lambda: os.link(link, "x", dst_dir_fd=top, follow_symlinks=True)) == errno.ENOENT
    os.close(fd)
    (place / "new").unlink()
    os.close(top)


def test_what_is_made_later_is_not_older(place: Path) -> None:
    for number in range(100):
        (place / f"a{number}").write_text("")
        os.utime(place / f"a{number}")
        os.close(os.open(place / f"b{number}", os.O_WRONLY | os.O_CREAT))
        assert (place / f"a{number}").stat().st_mtime_ns <= (place / f"b{number}").stat().st_mtime_ns


def _mode_alone(path: Path) -> int:
    """Return the mode bits by a statx that asks for nothing else, as stat(1) makes it."""
    return int(subprocess.run(["stat", "-c", "%a", path], check=True, capture_output=True, text=True).stdout, 8)


def test_writers_outside_the_group_take_its_bit_away(place: Path, request: pytest.FixtureRequest) -> None:
    _needs_more_than_pyfuse3(request)
    changes: list[Callable[[int], object]] = [
        lambda fd: os.write(fd, b"x"), lambda fd: os.ftruncate(fd, 5), lambda fd: allocate(fd, 0, 0, 10),
        lambda fd: os.copy_file_range(fd, fd, 2, 0, 10),
    ]  # fmt: skip
    for number, change in enumerate(changes):
        path = place / f"f{number}"
        for mode in (0o2767, 0o6767, 0o2666):
            path.write_text("some text")
            path.chmod(mode)
            assert _mode_alone(path) == mode
            with acting_as(USER):
                fd = os.open(path, os.O_RDWR)
                change(fd)
                os.close(fd)
            # Asked for the mode alone first: the kernel may answer that from what it had been told before.
            assert _mode_alone(path) == stat.S_IMODE(path.stat().st_mode) == mode & 0o777, (number, oct(mode))


def test_flags_are_shown_set_and_obeyed(place: Path, request: pytest.FixtureRequest) -> None:
    _needs_more_than_pyfuse3(request)
    (place / "f").write_text("some")
    (place / "d").mkdir()
    (place / "link").symlink_to("f")
    assert not inode_flags(place / "f")
    set_inode_flags(place / "f", NODUMP | NOATIME)
    set_inode_flags(place / "d", NOATIME)
    assert (inode_flags(place / "f"), inode_flags(place / "d")) == (NODUMP | NOATIME, NOATIME)
    with acting_as(USER):
        assert inode_flags(place / "f") == NODUMP | NOATIME
        assert errno_of(lambda: set_inode_flags(place / "f", 0)) == errno.EPERM
        (place / "own").write_text("")
        set_inode_flags(place / "own", NODUMP)
        assert errno_of(lambda: set_inode_flags(place / "own", NODUMP | IMMUTABLE)) == errno.EPERM
    assert inode_flags(place / "own") == NODUMP
    try:
        set_inode_flags(place / "f", IMMUTABLE)
        set_inode_flags(place / "own", APPEND)
        set_inode_flags(place / "d", IMMUTABLE)
        assert errno_of(lambda: os.truncate(place / "f", 1)) == errno.EPERM
        assert errno_of(lambda: (place / "f").chmod(0o600)) == errno.EPERM
        assert errno_of((place / "f").unlink) == errno.EPERM
        assert errno_of(lambda: (place / "f").rename(place / "g")) == errno.EPERM
        assert errno_of(lambda: os.link(place / "f", place / "h")) == errno.EPERM
        assert errno_of((place / "d" / "x").touch) == errno.EPERM
        assert errno_of(lambda: os.truncate(place / "own", 0)) == errno.EPERM
        assert errno_of((place / "own").unlink) == errno.EPERM
        with open(place / "own", "ab") as file:
            file.write(b"more")
        assert errno_of(lambda: _overwrite(place / "own")) == errno.EPERM
        assert (place / "own").read_text() == "more"
        assert (place / "f").read_text() == "some"
    finally:
        for name in ("f", "own", "d"):
            set_inode_flags(place / name, 0)
    (place / "f").rename(place / "g")


def test_flags_of_lower_files(mounted: Path, request: pytest.FixtureRequest) -> None:
    _needs_more_than_pyfuse3(request)
    if "host" in request.node.name:
        pytest.skip("nothing is below")
    path, below = mounted / "74", mounted.parent / "lower/74"
    with open(below, "rb") as file:
        before = read_flags(file.fileno(), FLAGS)
    set_inode_flags(path, NODUMP)
    assert inode_flags(path) == NODUMP
    assert path.read_text() == "lower 74"
    with open(below, "rb") as file, open(mounted.parent / "upper/74", "rb") as copy:
        assert read_flags(file.fileno(), FLAGS) == before
        # What the file system keeps of itself there (extents) is left as it was.
        assert int.from_bytes(read_flags(copy.fileno(), FLAGS), sys.byteorder) == (
            int.from_bytes(before, sys.byteorder) | NODUMP
        )
        assert len(read_flags(copy.fileno(), EXTENDED)) == 28


def _overwrite(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, b"X", 0)
    finally:
        os.close(fd)


def test_an_xattr_of_no_known_kind(place: Path) -> None:
    (place / "f").write_text("")
    assert errno_of(lambda: os.getxattr(place / "f", "bogus.name")) == errno.EOPNOTSUPP
    assert errno_of(lambda: os.getxattr(place / "f", "user.none")) == errno.ENODATA


def test_holes_and_atimes_of_lower_files(mounted: Path, request: pytest.FixtureRequest) -> None:
    _needs_more_than_pyfuse3(request)
    if "host" in request.node.name:
        pytest.skip("nothing is below")
    if "image" in request.node.name:
        pytest.skip("a layer's files are all data, and have one time")
    fd = os.open(mounted / "sparse", os.O_RDONLY)
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
    os.close(fd)
    assert (mounted / "73").read_text() == "lower 73"
    below = mounted.parent / "lower/73"
    assert below.stat().st_atime_ns == 10**9


@pytest.mark.parametrize("seed", [1, 2])
def test_a_tree_torn_by_several_processes_can_be_removed(place: Path, seed: int) -> None:
    """Random changes by four at once in one tree, and then nothing may be left over or in the way."""

    def tear(number: int) -> None:
        chance = random.Random(seed * 10 + number)

        def some() -> Path:
            return place.joinpath(*(f"n{chance.randrange(4)}" for _ in range(chance.randint(1, 4))))

        actions: list[Callable[[], object]] = [
            lambda: some().mkdir(), lambda: some().mkdir(), lambda: some().write_bytes(b"x" * 9000),
            lambda: some().unlink(), lambda: some().rmdir(), lambda: some().rename(some()),
            lambda: os.link(some(), some()), lambda: some().symlink_to("n1"), lambda: os.listdir(some()),
            lambda: some().chmod(chance.randrange(0o1000)), lambda: os.truncate(some(), 10),
            lambda: rename(AT_FDCWD, os.fsencode(some()), AT_FDCWD, os.fsencode(some()), EXCHANGE),
        ]  # fmt: skip
        for _ in range(500):
            with contextlib.suppress(OSError, ValueError):
                chance.choice(actions)()

    workers = [threading.Thread(target=tear, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for directory, names, files in os.walk(place):
        for name in [*names, *files]:
            os.lstat(os.path.join(directory, name))
    subprocess.run(["rm", "-rf", place], check=True)
    assert not place.exists()


def test_a_file_leaves_a_group_of_others_without_its_set_group_id_bit(place: Path) -> None:
    path = place / "set-group"
    path.write_text("")
    os.chown(path, USER, 77)
    path.chmod(0o2644)
    subprocess.run(["chgrp", "78", path], check=True, user=USER, group=USER, extra_groups=[78])
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o644, 78)
    path.chmod(0o2644)
    os.chown(path, USER, 79)  # root may keep it
    assert stat.S_IMODE(path.stat().st_mode) == 0o2644
