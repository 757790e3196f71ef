"""Reaching paths that somebody else has made, without leaving the directory they belong to.

Everything is relative to a held directory descriptor. Where symbolic links are followed, ``..`` and absolute ones mean
what they mean in a container.

Invariant: no function here follows a symbolic link out of its directory, however the tree changes meanwhile.

Source: openat2(2); Linux fs/namei.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable

from layerfs.linux import inode_flags
from layerfs.linux.syscall import declare_syscall

__all__ = ["make_private", "open_in_root", "private_opener", "remove_tree"]

_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10

#: How often a resolution that raced with a rename is tried again; the kernel asks for it by EAGAIN.
_RACE_RETRIES = 32
#: Directories held open at once while a tree is removed. Far below the usual limit of 1024 descriptors.
_REMOVE_DEPTH = 64

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_openat2 = declare_syscall(437, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)


def open_in_root(root_fd: int, path: bytes, flags: int = os.O_RDONLY, *, cross_mounts: bool = False) -> int:
    """Open a path as a process would whose root directory is ``root_fd``.

    Args:
        root_fd: the directory that ``/`` and leading ``..`` mean.
        path: absolute or relative, inside that root; symbolic links are followed within it.
        flags: as for open(2); O_CLOEXEC is added.
        cross_mounts: whether other mounts inside the root may be entered.

    Returns:
        A descriptor that the caller closes.

    Raises:
        OSError: ENOENT, ENOTDIR, ELOOP, EACCES, EXDEV for a refused mount; ENOSYS on a kernel before 5.6.

    Blocking: opening a fifo blocks unless ``flags`` has O_NONBLOCK.
    """
    resolve = _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS | (0 if cross_mounts else _RESOLVE_NO_XDEV)
    return _open(root_fd, path, flags, resolve)


def make_private(path: str) -> None:
    """Make a directory that is its owner's alone, and those above it where they are missing; one that is there stays.

    ``os.makedirs`` would give its mode to the last one only, and to the others what the umask leaves.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_private(os.path.dirname(path))
        make_private(path)


def private_opener(path: str, flags: int) -> int:
    """Open a new file that is its owner's alone, as the opener of :func:`open`; a link there is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def remove_tree(
    path: str | bytes | os.PathLike[str],
    *,
    dir_fd: int | None = None,
    missing_ok: bool = False,
    unprotect: bool = False,
    check: Callable[[], None] | None = None,
) -> None:
    """Remove a file, or a directory with all that is below it, of any depth.

    At most 64 directories are held open. A directory that lies deeper is first renamed up to the top of the tree, so
    neither the depth nor the path length nor the number of descriptors is a limit. Directories without permission are
    given it first, where the caller owns them.

    Args:
        path: what to remove; a symbolic link is removed, not followed.
        dir_fd: directory that a relative ``path`` starts from.
        missing_ok: whether it is fine that nothing is there.
        unprotect: whether what chattr has made append-only or immutable in a directory goes, too.
        check: called once per directory; what it raises stops the work.

    Raises:
        OSError: EBUSY for a mount point inside (other mounts are never entered), EACCES, EPERM, EROFS, EIO; ENOENT.

    Blocking: disk; polls ``check``.
    Atomicity: none; a failure leaves a part, and the call can be repeated.
    """
    try:
        status = os.lstat(path) if dir_fd is None else os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        if missing_ok:
            return
        raise
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path, dir_fd=dir_fd)
        return
    top = _open_to_remove(path, dir_fd, None)
    try:
        _empty(top, check, unprotect=unprotect)
    finally:
        os.close(top)
    os.rmdir(path, dir_fd=dir_fd)


def _open(directory_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """Call openat2, again when the tree changed under it."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    for attempt in range(_RACE_RETRIES):
        try:
            return _openat2(directory_fd, path, ctypes.byref(how), ctypes.sizeof(how))
        except OSError as err:
            if err.errno == errno.ENOSYS:
                raise OSError(errno.ENOSYS, "openat2 is missing (Linux before 5.6, or a filter hides it)") from None
            if err.errno != errno.EAGAIN or attempt == _RACE_RETRIES - 1:
                raise OSError(err.errno, err.strerror, os.fsdecode(path)) from None
    raise AssertionError("unreachable")


def _empty(top: int, check: Callable[[], None] | None, *, unprotect: bool) -> None:
    """Remove everything below a directory, keeping the directory."""
    device = os.fstat(top).st_dev
    # One frame per open directory: its descriptor and the names of the subdirectories that are still to do.
    frames: list[tuple[int, list[bytes]]] = [(top, _unlink_files(top, unprotect=unprotect))]
    lifted = 0
    try:
        while frames:
            fd, directories = frames[-1]
            if not directories:
                frames.pop()
                if not frames:
                    # What was renamed up to the top meanwhile is found by listing it again.
                    if again := _unlink_files(top, unprotect=unprotect):
                        frames.append((top, again))
                    continue
                os.close(fd)
                parent, siblings = frames[-1]
                os.rmdir(siblings.pop(), dir_fd=parent)
                continue
            if check is not None:
                check()
            name = directories[-1]
            if len(frames) >= _REMOVE_DEPTH:
                lifted += 1
                if unprotect:
                    _unprotect(name, fd)
                directories.pop()
                _lift(fd, name, top, lifted)
                continue
            child = _open_to_remove(name, fd, device)
            try:
                frames.append((child, _unlink_files(child, unprotect=unprotect)))
            except BaseException:
                os.close(child)
                raise
    finally:
        for fd, _ in frames:
            if fd != top:
                os.close(fd)


def _lift(fd: int, name: bytes, top: int, number: int) -> None:
    """Rename a deep directory to a free name at the top of the tree."""
    while True:
        new = b".layerfs-removing-%d-%d" % (os.getpid(), number)
        try:
            os.mkdir(new, 0o700, dir_fd=top)
        except FileExistsError:
            number += 1_000_000
            continue
        try:
            try:
                os.rename(name, new, src_dir_fd=fd, dst_dir_fd=top)
            except PermissionError:
                _open_up(name, fd)  # it gets another parent, which is a change of the directory itself
                os.rename(name, new, src_dir_fd=fd, dst_dir_fd=top)
        except BaseException:
            os.rmdir(new, dir_fd=top)
            raise
        return


def _unlink_files(fd: int, *, unprotect: bool) -> list[bytes]:
    """Unlink all of a directory that is no directory, and return the names of its subdirectories."""
    if unprotect:
        inode_flags.unprotect(fd)
    directories: list[bytes] = []
    files: list[bytes] = []
    # The listing is complete before the first unlink, because readdir may skip entries of a shrinking directory.
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            (directories if entry.is_dir(follow_symlinks=False) else files).append(name)
    if (files or directories) and not os.access(b".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
        os.fchmod(fd, 0o700)
    for name in files:
        try:
            os.unlink(name, dir_fd=fd)
        except PermissionError as err:
            if not unprotect or err.errno != errno.EPERM:
                raise
            _unprotect(name, fd)
            os.unlink(name, dir_fd=fd)
    return directories


def _unprotect(name: bytes, parent: int) -> None:
    """Take the flags that forbid removal from a regular file or directory; links and devices have none."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_IFMT(os.fstat(handle).st_mode) in {stat.S_IFREG, stat.S_IFDIR}:
            fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                inode_flags.unprotect(fd)
            finally:
                os.close(fd)
    finally:
        os.close(handle)


def _open_up(name: str | bytes | os.PathLike[str], parent: int | None) -> None:
    """Give the owner of a directory all permission."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)
    finally:
        os.close(handle)


def _open_to_remove(name: str | bytes | os.PathLike[str], parent: int | None, device: int | None) -> int:
    """Open a directory that is to be removed; another file system mounted there is EBUSY."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        _open_up(name, parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    if device is not None and os.fstat(fd).st_dev != device:
        os.close(fd)
        raise OSError(errno.EBUSY, "another file system is mounted inside the tree", os.fsdecode(name))
    return fd
