"""Detached file systems of the kernel: an EROFS image, and an overlay, known only by a descriptor.

What it is: the two recipes, with the fall-backs of older kernels. It is not where mounts get their target, their error
messages or their locks; that is :mod:`layerfs.mount.overlay`, the only importer. Everything here raises OSError.

What an upper directory looks like is fixed here: ``index``, ``metacopy`` and ``redirect_dir`` are off, whatever the
kernel's defaults, so that it is a plain changeset, which the FUSE backend and ``diff`` read, and which can be mounted
again over a rebuilt image.

Source: Linux Documentation/filesystems/overlayfs.rst and fs/overlayfs/params.c, fs/erofs/super.c.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from layerfs.linux import mount_api
from layerfs.linux.mount_api import MAX_STRING, MountAttribute
from layerfs.linux.mountinfo import mount_id, read_mounts
from layerfs.linux.private_namespace import run_in_private_namespace
from layerfs.linux.probe import feature
from layerfs.mount.option import MountOptions

__all__ = ["DetachedOverlay", "ErofsImage", "open_directories"]

#: Devices from which on a thread to look at them takes less time than it saves.
_MANY = 32

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
#: The attributes that mount(2) has too; their MS_* bits have the values of MOUNT_ATTR_* for these four.
_LEGACY_FLAGS = int(MountAttribute.RDONLY | MountAttribute.NOSUID | MountAttribute.NODEV | MountAttribute.NOEXEC)


@dataclass(frozen=True, slots=True)
class ErofsImage:
    """An EROFS image and the files of its device table.

    Attributes:
        path: the image, absolute.
        devices: the files, absolute, in the order of the slots.
        check: looks at the files while the kernel opens them; what it raises ends the mount.
    """

    path: str
    devices: tuple[str, ...]
    check: Callable[[], None]

    def mount(self, attributes: MountAttribute) -> int:
        """Make a detached mount of the image.

        Args:
            attributes: attributes of the mount.

        Returns:
            A descriptor of its root that the caller closes.

        Raises:
            OSError: ENOTBLK where the kernel mounts block devices only, or nothing from this file system, EINVAL or
                EUCLEAN for what is no such image, ENOENT with the name of the missing file.
            Exception: what ``check`` raises.

        Blocking: opens every file, reads the superblock.
        """
        with contextlib.ExitStack() as stack:
            context = mount_api.fsopen("erofs")
            stack.callback(os.close, context)
            mount_api.fsconfig_string(context, "source", _short(self.path, stack))
            mount_api.fsconfig_strings(context, "device", _all_short(self.devices, stack))
            mount_api.fsconfig_flag(context, "ro")
            try:
                with _beside(self.check) if len(self.devices) >= _MANY else _before(self.check):
                    mount_api.fsconfig_create(context)
            except OSError as err:
                # The kernel says "no such file", but not which of 500.
                for path in (self.path, *self.devices):
                    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                if err.errno == errno.ENOTBLK:
                    kind = _filesystem_type(self.path)
                    raise OSError(errno.ENOTBLK, f"the kernel mounts no EROFS image that lies on {kind}") from None
                raise
            return mount_api.fsmount(context, attributes)

    def as_lower(self, place: int | None) -> list[int]:
        """Open the image as the only lower of a :class:`DetachedOverlay`.

        Args:
            place: descriptor of a directory to attach it to, or None to leave it detached.

        Returns:
            One descriptor, which the caller closes.

        Raises:
            OSError: as :meth:`mount`.
        """
        return _attached(self.mount(MountAttribute.RDONLY), place)


@dataclass(frozen=True, slots=True)
class DetachedOverlay:
    """An overlay that is to be made.

    Attributes:
        lowers: opens the lower directories, top first; given a descriptor of a directory, it attaches there what is
            no part of the mount namespace yet.
        upper: absolute path of the upper directory, or None.
        work: absolute path of the work directory, or None.
        options: what it is to be like.
        attributes: attributes of the mount.
        target: absolute path of the directory that it will cover; only used as a place inside private namespaces.
    """

    lowers: Callable[[int | None], list[int]]
    upper: str | None
    work: str | None
    options: MountOptions
    attributes: MountAttribute
    target: str

    def mount(self) -> int:
        """Make the overlay.

        Returns:
            A descriptor of its root that the caller closes.

        Raises:
            OSError: with what the kernel said; EINVAL for an upper directory on a file system that cannot be one.

        Blocking: reads the roots of the layers; kernels before 6.15 cost a private mount namespace more.
        """
        if feature("overlay-lower-fd").usable:
            try:
                with _closing(self.lowers(None)) as lowers:
                    return self._mount(lowers, by_descriptor=True)
            except OSError as err:
                # Before Linux 6.15 a lower must be attached somewhere.
                if err.errno != errno.EINVAL:
                    raise
        return run_in_private_namespace(self._mount_in_namespace)

    def _mount_in_namespace(self) -> int:
        """Return the detached overlay, made where attached lowers are seen by no one."""
        place = os.open(self.target, _DIRECTORY)
        try:
            with _closing(self.lowers(place)) as lowers:
                try:
                    return self._mount(lowers, by_descriptor=False)
                except OSError as err:
                    if err.errno != errno.EINVAL:
                        raise
                    try:
                        return self._mount_legacy(lowers)
                    except OSError:
                        # The new API's message explains more.
                        raise err from None
        finally:
            os.close(place)

    def _mount(self, lowers: Sequence[int], *, by_descriptor: bool) -> int:
        """Make the overlay through a context."""
        with contextlib.ExitStack() as stack:
            context = mount_api.fsopen("overlay")
            stack.callback(os.close, context)
            mount_api.fsconfig_string(context, "source", self.options.source)
            for lower in lowers:
                if by_descriptor:
                    mount_api.fsconfig_fd(context, "lowerdir+", lower)
                else:
                    mount_api.fsconfig_string(context, "lowerdir+", f"/proc/self/fd/{lower}")
            for key, path in (("upperdir", self.upper), ("workdir", self.work)):
                if path is None:
                    continue
                if by_descriptor:
                    # No limit on the length and nothing to escape; the mount table shows the path all the same.
                    fd = os.open(path, _DIRECTORY)
                    stack.callback(os.close, fd)
                    mount_api.fsconfig_fd(context, key, fd)
                else:
                    mount_api.fsconfig_string(context, key, _escape(path))
            for key, value in self._features():
                if value is None:
                    mount_api.fsconfig_flag(context, key)
                else:
                    mount_api.fsconfig_string(context, key, value)
            mount_api.fsconfig_create(context)
            return mount_api.fsmount(context, self.attributes)

    def _mount_legacy(self, lowers: Sequence[int]) -> int:
        """Make the overlay by mount(2) in this private namespace, and take a detached copy of it."""
        words = ["lowerdir=" + ":".join(f"/proc/self/fd/{lower}" for lower in lowers)]
        words += [
            f"{key}={_escape(path)}"
            for key, path in (("upperdir", self.upper), ("workdir", self.work))
            if path is not None
        ]
        words += [key if value is None else f"{key}={value}" for key, value in self._features()]
        flags = int(self.attributes) & _LEGACY_FLAGS
        mount_api.legacy_mount(self.options.source, self.target, "overlay", flags, ",".join(words))
        return mount_api.clone_tree(self.target)

    def _features(self) -> list[tuple[str, str | None]]:
        """Return the options that fix the format of the upper directory."""
        found: list[tuple[str, str | None]] = [
            ("index", "off"),
            ("metacopy", "off"),
            # Not "off": that would still follow a redirect that somebody wrote into a directory.
            ("redirect_dir", "nofollow"),
        ]
        if self.upper is not None:
            # With xino lower files get inode numbers above 2^62, and programs of 32-bit images that were built
            # without large-file support fail with EOVERFLOW in stat.
            found.append(("xino", "off"))
        if self.options.userxattr:
            found.append(("userxattr", None))
        return found


def open_directories(
    paths: Sequence[str], place: int | None, *, root_on_top: bool, prepare_root: Callable[[int], None] | None
) -> list[int]:
    """Open directories as the lowers of a :class:`DetachedOverlay`.

    Args:
        paths: the directories, top first.
        place: where to attach an additional file system, or None to leave it detached.
        root_on_top: add an empty file system on top, whose root is the root of the mount. overlayfs wants two lowers
            when there is no upper directory, and the topmost decides what the root looks like.
        prepare_root: given a descriptor of that root, sets its attributes; None copies those of the first directory.

    Returns:
        Descriptors, top first, which the caller closes.

    Raises:
        OSError: ENOENT, ENOTDIR, EACCES with the path concerned; EMFILE.
    """
    with contextlib.ExitStack() as stack:
        fds = []
        for path in paths:
            fds.append(os.open(path, _DIRECTORY))
            stack.callback(os.close, fds[-1])
        if root_on_top:
            fds[:0] = _attached(_mount_root(prepare_root or functools.partial(_copy_root, paths[0])), place)
        stack.pop_all()
    return fds


def _attached(fd: int, place: int | None) -> list[int]:
    """Attach a detached mount if a place is given, and return its descriptor in a list; close it on failure."""
    if place is not None:
        try:
            mount_api.move_mount(fd, place)
        except OSError:
            os.close(fd)
            raise
    return [fd]


def _mount_root(prepare: Callable[[int], None]) -> int:
    """Return a descriptor of a detached file system that is empty but for the attributes of its root."""
    context = mount_api.fsopen("tmpfs")
    try:
        mount_api.fsconfig_create(context)
        mount = mount_api.fsmount(context)
    finally:
        os.close(context)
    try:
        # The descriptor of a mount is of the O_PATH kind, through which no attributes are set.
        root = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        try:
            prepare(root)
        finally:
            os.close(root)
    except BaseException:
        os.close(mount)
        raise
    return mount


def _copy_root(source: str, fd: int) -> None:
    """Give a directory the owner, mode and times of another."""
    status = os.stat(source)
    os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def _closing(fds: list[int]) -> Iterator[list[int]]:
    """Close descriptors at the end."""
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def _before(work: Callable[[], None]) -> Iterator[None]:
    """Do something before the block."""
    work()
    yield


@contextlib.contextmanager
def _beside(work: Callable[[], None]) -> Iterator[None]:
    """Do something during the block, in another thread; what it raises is raised at the block's end."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run, name="layerfs-check", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        if errors:
            raise errors[0]


def _all_short(paths: Sequence[str], stack: contextlib.ExitStack) -> Sequence[bytes]:
    """Return names of files as :func:`_short` does."""
    if not paths:
        return ()
    # One conversion for all: one each would be a twentieth of a mount of 499 layers.
    names = os.fsencode("\0".join(paths)).split(b"\0")
    if max(map(len, names)) > MAX_STRING:
        return [os.fsencode(_short(path, stack)) for path in paths]
    return names


def _filesystem_type(path: str) -> str:
    """Return the type of the file system that a file lies on."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return next((entry.fstype for entry in read_mounts(numbers=(mount_id(fd),))), "this file system")
    finally:
        os.close(fd)


def _short(path: str, stack: contextlib.ExitStack) -> str:
    """Return a name of a file that fits into an option; a long path is reached through a descriptor."""
    if len(os.fsencode(path)) <= MAX_STRING:
        return path
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"


def _escape(path: str) -> str:
    r"""Escape what overlayfs takes for separators in an option."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
