"""Two mounts of the same lowers, side by side: the union through FUSE, and overlayfs in the kernel.

Each sequence of operations works in a top directory of its own, all of them copies of one template, so that two mounts
serve thousands of sequences.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from layerfs.api import Store
from layerfs.formats.erofs.reader import Tree
from layerfs.linux.inode_flags import FLAGS, read_flags, write_flags
from layerfs.linux.mount_api import umount
from layerfs.linux.process import wait_for_end
from layerfs.linux.rename import rename
from layerfs.mount.fuse.specification import FuseSpecification
from layerfs.mount.fuse.start import start_fuse
from layerfs.store.layer import device_paths

OLD = 1_000_000_000
#: Times from here on are "now", whatever they are exactly.
RECENT = 1_700_000_000 * 1_000_000_000
USER = 1000
AT_FDCWD = -100
#: Inode flags (linux/fs.h, FS_*_FL), and those that only whoever has a capability may set.
NODUMP, NOATIME, APPEND, IMMUTABLE = 0x40, 0x80, 0x20, 0x10
SETTABLE = NODUMP | NOATIME | APPEND | IMMUTABLE


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return a POSIX ACL as its xattr has it: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ANY = 0xFFFFFFFF
ACCESS_ACL = acl((1, 6, ANY), (2, 4, 33), (4, 4, ANY), (0x10, 6, ANY), (0x20, 0, ANY))
DEFAULT_ACL = acl((1, 7, ANY), (2, 7, 33), (4, 5, ANY), (0x10, 7, ANY), (0x20, 1, ANY))


def make_template(layers: list[Path], name: str, *, links: bool) -> None:
    """Make a top directory in each layer, the topmost first: what overlayfs has to merge is in it."""
    top, middle, bottom = (layer / name for layer in layers)
    for layer in (top, middle, bottom):
        layer.mkdir()
        layer.chmod(0o777)
    for layer, path, text in (
        (bottom, "f0", "bottom zero"), (bottom, "f1", "bottom one"), (bottom, "d0/f0", "in d0"),
        (bottom, "d0/f1", "also in d0"), (bottom, "d0/d1/f0", "deep"), (bottom, "d1/f0", "hidden by opaque"),
        (middle, "f1", "middle one, longer"), (middle, "d0/f2", "middle in d0"), (middle, "d1/f1", "in opaque"),
        (top, "d0/d1/f1", "top in d1"), (bottom, "d2/f0", "whited out"),
    ):  # fmt: skip
        path_ = layer / path
        path_.parent.mkdir(parents=True, exist_ok=True)
        path_.write_text(text)
    (bottom / "l0").symlink_to("f0")
    (bottom / "l1").symlink_to("nowhere")
    (bottom / "d0/l0").symlink_to("../f1")
    os.mkfifo(bottom / "p0")
    os.mknod(bottom / "c0", stat.S_IFCHR | 0o644, os.makedev(1, 3))
    os.setxattr(middle / "d1", "trusted.overlay.opaque", b"y")
    os.mknod(middle / "d2", stat.S_IFCHR, 0)
    os.mknod(top / "d0/f1", stat.S_IFCHR, 0)
    os.setxattr(bottom / "f0", "user.color", b"blue")
    os.setxattr(bottom / "d0", "user.color", b"red")
    with open(bottom / "big", "wb") as file:
        file.write(b"x" * 5000)
        file.seek(300_000)
        file.write(b"end")
    if links:
        os.link(bottom / "f0", bottom / "h0")
        os.link(bottom / "f0", bottom / "d0/h1")
    (bottom / "f0").chmod(0o4755)
    (bottom / "d0").chmod(0o2775)
    os.chown(bottom / "d0", USER, 100)
    os.chmod(bottom / "d0", 0o2775)
    os.chown(bottom / "d0/f0", USER, USER)
    for layer in (top, middle, bottom):
        for directory, _, names in os.walk(layer, topdown=False):
            for one in names:
                os.utime(os.path.join(directory, one), (OLD, OLD), follow_symlinks=False)
            os.utime(directory, (OLD, OLD))


class Pair:
    """The two mounts; ``sides`` are their roots, the union first.

    With ``image`` that one lies over an image of what the lowers show together, instead of over themselves.
    """

    def __init__(
        self, *, sequences: int, links: bool = False, lowers: int = 3, pyfuse3: bool = False, image: bool = False
    ) -> None:
        # Not below pytest's own directory, which other users cannot enter.
        self.folder = folder = Path(tempfile.mkdtemp(prefix="layerfs-oracle-"))
        folder.chmod(0o755)
        self.links = links
        self.pyfuse3 = pyfuse3
        self.image = image
        self.layers = [folder / f"lower{number}" for number in range(lowers)]
        self.uppers = (folder / "upper-fuse", folder / "upper-kernel")
        self.sides = (folder / "fuse", folder / "kernel")
        self.works = (folder / "work-fuse", folder / "work-kernel")
        for path in (*self.layers, *self.uppers, *self.sides, *self.works):
            path.mkdir()
            path.chmod(0o755)
        self._pid = 0
        self._sequences = sequences
        self._made = 0
        self._free: list[str] = []
        self._make()
        self.mount()

    def take(self) -> str:
        """Return the name of a top directory that nobody has used; both are mounted anew when there is none left."""
        if not self._free:
            self.unmount()
            self._make()
            self.mount()
        return self._free.pop()

    def _make(self) -> None:
        for number in range(self._made, self._made + self._sequences):
            self._free.append(f"s{number}")
            make_template(self.layers, self._free[-1], links=self.links)
        self._made += self._sequences

    def mount(self) -> None:
        """Mount both."""
        if self.image:
            mount_layers(self.layers, self.sides[1])
            try:
                self._image = make_image(self.sides[1], self.folder / "store")
            finally:
                umount(self.sides[1])
        self._pid = self.mount_union(self.uppers[0], self.works[0])
        mount_kernel(self.layers, self.uppers[1], self.works[1], self.sides[1], index=self.links)

    def mount_union(self, upper: Path, work: Path) -> int:
        """Mount the union with these directories, and return the pid."""
        lower: Any = {"tree": self._image[0], "devices": self._image[1]} if self.image else {"layers": self.layers}
        return mount_fuse(upper=upper, work=work, target=self.sides[0], pyfuse3=self.pyfuse3, **lower)

    def describe_lower(self) -> dict[str, Any]:
        """Return what the lowers show by themselves."""
        mount_layers(self.layers, self.sides[1])
        try:
            return describe_tree(self.sides[1])
        finally:
            umount(self.sides[1])

    def unmount(self) -> None:
        """Unmount both."""
        for side in self.sides:
            umount(side)
        assert wait_for_end(self._pid, 10)

    def remove(self) -> None:
        """Remove everything."""
        for side in self.sides:
            with contextlib.suppress(OSError):
                umount(side, lazy=True)
        shutil.rmtree(self.folder)


def make_image(source: Path, root: Path) -> tuple[str, tuple[str, ...]]:
    """Make an image of what a directory shows, in a store; return its tree and the files of its layers."""
    with Store.open(root, runroot=root.with_suffix(".run")) as store:
        tree = store._handle.layout.merged_tree(store.import_tree(source).chain_id)
        with open(tree, "rb") as file:
            return tree, tuple(device_paths(store._handle, Tree(file.read())))


def mount_fuse(
    layers: list[Path] | None = None, *, upper: Path, work: Path, target: Path, tree: str | None = None,
    devices: tuple[str, ...] = (), pyfuse3: bool = False,
) -> int:  # fmt: skip
    """Mount the union and return the pid."""
    wanted = FuseSpecification(
        target=str(target), lowers=tuple(map(str, layers or ())), tree=tree, devices=devices, upper=str(upper),
        work=str(work), nosuid=False, nodev=False, allow_other=True, pyfuse3=pyfuse3,
    )  # fmt: skip
    return start_fuse(wanted, log=str(target) + ".log")[1]


def mount_layers(layers: list[Path], target: Path) -> None:
    """Mount overlayfs of lowers alone."""
    options = f"lowerdir={':'.join(map(str, layers))}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, target], check=True)


def mount_kernel(layers: list[Path], upper: Path, work: Path, target: Path, *, index: bool = False) -> None:
    """Mount overlayfs as layerfs does."""
    options = (
        f"lowerdir={':'.join(map(str, layers))},upperdir={upper},workdir={work},redirect_dir=nofollow,metacopy=off,"
        f"xino=off,index={'on' if index else 'off'}"
    )
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, target], check=True)


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Be somebody else for a while, as far as file systems are concerned."""
    if not uid:
        yield
        return
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextlib.contextmanager
def opened(path: Path | bytes) -> Iterator[int]:
    """Open a file, directory or device, and no link, for reading."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def inode_flags(path: Path | bytes) -> int:
    """Of the flags of an inode those that programs can set."""
    with opened(path) as fd:
        return int.from_bytes(read_flags(fd, FLAGS), sys.byteorder) & SETTABLE


def set_inode_flags(path: Path | bytes, flags: int) -> None:
    with opened(path) as fd:
        others = int.from_bytes(read_flags(fd, FLAGS), sys.byteorder) & ~SETTABLE
        write_flags(fd, FLAGS, (others | flags).to_bytes(4, sys.byteorder))


def errno_of(function: Callable[[], object]) -> int:
    """Return the errno that a call fails with, or 0."""
    try:
        function()
    except OSError as error:
        return error.errno or 0
    return 0


class Actor:
    """Does operations on one side, below its top directory, and says what came of them."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.files: dict[int, int] = {}

    def path(self, name: str) -> bytes:
        return self.root + b"/" + name.encode()

    def close(self) -> None:
        while self.files:
            os.close(self.files.popitem()[1])

    def do(self, uid: int, what: str, *arguments: Any) -> Any:
        """Do an operation as a user; return its result, or the name of its errno."""
        function: Callable[..., Any] = getattr(self, what)
        with acting_as(uid):
            try:
                return function(*arguments)
            except OSError as error:
                return errno.errorcode[error.errno or 0]

    def stat(self, name: str) -> Any:
        return describe(os.lstat(self.path(name)))

    def listing(self, name: str) -> Any:
        return sorted(os.listdir(self.path(name)))

    def read(self, name: str) -> Any:
        fd = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.read(fd, 1 << 20)
        finally:
            os.close(fd)

    def readlink(self, name: str) -> Any:
        return os.readlink(self.path(name))

    def write(self, name: str, flags: int, offset: int, data: bytes) -> Any:
        fd = os.open(self.path(name), flags | os.O_WRONLY | os.O_NONBLOCK, 0o666)
        try:
            return os.write(fd, data) if flags & os.O_APPEND else os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def truncate(self, name: str, size: int) -> Any:
        return os.truncate(self.path(name), size)

    def chmod(self, name: str, mode: int) -> Any:
        return os.chmod(self.path(name), mode)

    def chown(self, name: str, uid: int, gid: int) -> Any:
        return os.chown(self.path(name), uid, gid, follow_symlinks=False)

    def flags(self, name: str) -> Any:
        return inode_flags(self.path(name))

    def set_flags(self, name: str, flags: int) -> Any:
        set_inode_flags(self.path(name), flags)

    def utime(self, name: str, when: int) -> Any:
        return os.utime(self.path(name), ns=(when, when + 7), follow_symlinks=False)

    def mkdir(self, name: str, mode: int) -> Any:
        return os.mkdir(self.path(name), mode)

    def rmdir(self, name: str) -> Any:
        return os.rmdir(self.path(name))

    def unlink(self, name: str) -> Any:
        return os.unlink(self.path(name))

    def symlink(self, target: str, name: str) -> Any:
        return os.symlink(target, self.path(name))

    def mknod(self, name: str, mode: int, device: int) -> Any:
        return os.mknod(self.path(name), mode, device)

    def link(self, old: str, new: str) -> Any:
        return os.link(self.path(old), self.path(new), follow_symlinks=False)

    def rename(self, old: str, new: str, flags: int) -> Any:
        return rename(AT_FDCWD, self.path(old), AT_FDCWD, self.path(new), flags)

    def setxattr(self, name: str, key: str, value: bytes, flags: int) -> Any:
        return os.setxattr(self.path(name), key, value, flags, follow_symlinks=False)

    def removexattr(self, name: str, key: str) -> Any:
        return os.removexattr(self.path(name), key, follow_symlinks=False)

    def xattrs(self, name: str) -> Any:
        path = self.path(name)
        keys = sorted(os.listxattr(path, follow_symlinks=False))
        return [(key, os.getxattr(path, key, follow_symlinks=False)) for key in keys]

    def access(self, name: str, mode: int) -> Any:
        return os.access(self.path(name), mode, effective_ids=True)

    def open(self, slot: int, name: str, flags: int) -> Any:
        self.release(slot)
        self.files[slot] = os.open(self.path(name), flags | os.O_NONBLOCK, 0o640)
        return None

    def release(self, slot: int) -> Any:
        fd = self.files.pop(slot, None)
        return None if fd is None else os.close(fd)

    def fread(self, slot: int) -> Any:
        return os.pread(self._file(slot), 1 << 20, 0)

    def fwrite(self, slot: int, offset: int, data: bytes) -> Any:
        return os.pwrite(self._file(slot), data, offset)

    def fstat(self, slot: int) -> Any:
        return describe(os.fstat(self._file(slot)))

    def ftruncate(self, slot: int, size: int) -> Any:
        return os.ftruncate(self._file(slot), size)

    def fchmod(self, slot: int, mode: int) -> Any:
        return os.fchmod(self._file(slot), mode)

    def fsync(self, slot: int) -> Any:
        return os.fsync(self._file(slot))

    def _file(self, slot: int) -> int:
        if slot not in self.files:
            raise OSError(errno.EBADF, "nothing is open")
        return self.files[slot]


def describe(status: os.stat_result) -> tuple[Any, ...]:
    """Return what two stats of one file have in common on any mount."""
    directory = stat.S_ISDIR(status.st_mode)
    when = tuple("now" if time > RECENT else time for time in (status.st_mtime_ns,))
    size = 0 if directory else status.st_size
    return (oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, size, when)


def is_uncounted(one: Any, other: Any) -> bool:
    """Whether these are stats of a directory, of which one says that nobody has counted its links."""
    if not (isinstance(one, tuple) and isinstance(other, tuple)):
        return False
    return one[0].startswith("0o4") and other[0].startswith("0o4") and 1 in {one[1], other[1]}


def is_counted_on(mine: Any, kernels: Any) -> bool:
    """Whether all that differs is that overlayfs goes on counting the link of a file of a layer that was removed.

    That is what the layer says, and can only be seen through a descriptor.
    """
    if not (isinstance(mine, tuple) and isinstance(kernels, tuple)):
        return False
    return (mine[1], kernels[1]) == (0, 1) and mine == (kernels[0], 0, *kernels[2:])


def describe_tree(root: Path, *, marks: bool = False) -> dict[str, Any]:
    """Return everything below a directory that can be compared; with ``marks`` of an upper directory itself."""
    found: dict[str, Any] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            facts: list[Any] = list(describe(status))
            if stat.S_ISDIR(status.st_mode):
                facts[1] = 0
            if stat.S_ISREG(status.st_mode):
                facts.append(Path(path).read_bytes())
            if stat.S_ISLNK(status.st_mode):
                facts.append(os.readlink(path))
            keys = os.listxattr(path, follow_symlinks=False)
            own = [key for key in keys if not key.startswith("trusted.overlay.")]
            facts.append([(key, os.getxattr(path, key, follow_symlinks=False)) for key in sorted(own)])
            if marks and status.st_rdev == 0 and stat.S_ISCHR(status.st_mode):
                facts = ["whiteout"]
            found[os.path.relpath(path, root)] = facts
    return found
