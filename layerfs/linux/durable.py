"""Making files and directories survive a power cut, and visible only when they are complete.

What it is: the order "data, fsync, rename, fsync of the directory", written once. What it is not: a policy about what
must be durable; what takes ``sync`` keeps its atomicity with ``sync=False``, but not its durability.

A failed fsync is final: the kernel may have dropped the dirty pages, so it is reported and never tried again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat

from layerfs.linux.rename import NOREPLACE, rename
from layerfs.linux.syscall import AT_FDCWD, declare_libc

__all__ = [
    "await_writeback",
    "drop_written",
    "fsync_directory",
    "fsync_file",
    "make_directories",
    "publish",
    "start_writeback",
    "sync_filesystem",
    "write_all",
    "write_document",
]

StrPath = str | os.PathLike[str]

#: Start writing dirty pages of the range that are not yet being written; does not wait (linux/fs.h).
_SYNC_FILE_RANGE_WRITE = 2
#: And wait: for what is being written already, and for what this call starts (linux/fs.h).
_SYNC_FILE_RANGE_WRITE_AND_WAIT = 7

#: What a kernel, a file system or a filter answers that has no sync_file_range.
_UNKNOWN = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

_sync_file_range = declare_libc("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

_syncfs = declare_libc("syncfs", ctypes.c_int)


def fsync_directory(directory: StrPath, *, sync: bool = True) -> None:
    """Make the entries of a directory durable.

    Args:
        directory: its path.
        sync: False does nothing.

    Raises:
        OSError: EIO or ENOSPC if the device failed, ENOTDIR, ENOENT. A directory that may not be read is passed over.

    Blocking: waits for the device.
    """
    if not sync:
        return
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return  # one that may be written to and not read
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(directory: StrPath, *, sync: bool = True) -> None:
    """Make a directory and those above it that are missing, durably.

    Args:
        directory: its path; it may be there.
        sync: False skips the fsyncs.

    Raises:
        OSError: EEXIST if something else is there, ENOTDIR, EACCES, ENOSPC, EIO.

    Blocking: waits for the device, once per directory that it makes.
    """
    path = os.path.realpath(directory)
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
        if os.path.exists(path) and not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    for made in reversed(missing):
        try:
            os.mkdir(made)
        except FileExistsError:  # perhaps another process was faster
            if not os.path.isdir(made):
                raise
        fsync_directory(os.path.dirname(made), sync=sync)


def fsync_file(path: StrPath) -> None:
    """Make the bytes and the metadata of a regular file durable; its name is made so by its directory.

    Args:
        path: the file; a symbolic link is refused.

    Raises:
        OSError: ELOOP for a symbolic link, EIO or ENOSPC if the device failed.

    Blocking: waits for the device.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(source: StrPath, destination: StrPath, *, replace: bool = False, sync: bool = True) -> None:
    """Give a finished file, or a directory of finished files, its final name.

    Args:
        source: a regular file, or a flat directory whose regular files are all written; on the same file system.
        destination: the final name. Its directory exists.
        replace: True replaces an existing destination (a directory only if it is empty), False refuses it.
        sync: False skips every fsync.

    Raises:
        OSError: EEXIST if the destination exists and ``replace`` is False (an empty directory may be replaced all the
            same, on a file system that knows no better), EXDEV on another file system, EIO or ENOSPC if the device
            failed.

    Blocking: waits for the device: one fsync per file, one per directory concerned.
    Atomicity: after a crash the destination is absent (or the old one) or complete, never partial. When the function
        has returned with ``sync``, the destination is there after a power cut.
    """
    if sync:
        if stat.S_ISDIR(os.lstat(source).st_mode):
            with os.scandir(source) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        fsync_file(entry.path)
            fsync_directory(source)
        else:
            fsync_file(source)
    if replace:
        os.rename(source, destination)
    else:
        _rename_new(source, destination)
    if sync:
        to_parent = os.path.dirname(os.path.abspath(destination))
        from_parent = os.path.dirname(os.path.abspath(source))
        fsync_directory(to_parent)
        # The old name must go too: a sweep that met it after a crash on a file system without ordered
        # metadata would delete the published files through it.
        if from_parent != to_parent:
            fsync_directory(from_parent)


def write_document(path: StrPath, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Replace a small file by ``data`` at once.

    Args:
        path: the final name; its directory exists.
        data: the whole new content.
        mode: permission bits of the file, not reduced by the umask.
        sync: False skips the fsyncs.

    Raises:
        OSError: ENOSPC, EDQUOT, EIO, EACCES; the old file is then untouched and nothing is left beside it.

    Blocking: waits for the device: two fsyncs.
    Atomicity: readers and crashes see the old content or the new, never a mixture and never an empty file.
    """
    final = os.path.abspath(path)
    directory, name = os.path.split(final)
    # A leading dot and a random suffix: a leftover of a crash is recognisable and never collides.
    temporary = os.path.join(directory, f".{name}.{os.urandom(6).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(fd, mode)
            write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_directory(directory, sync=sync)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it where the file stands: one write(2) may take less, and none takes more than 2 GiB.

    Raises:
        OSError: ENOSPC, EDQUOT, EIO; a part may have been written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def start_writeback(fd: int, *, sync: bool = True) -> None:
    """Ask the kernel to begin writing a file's dirty pages, so that a later fsync has little left to wait for.

    Args:
        fd: a regular file, open for writing.
        sync: False does nothing, because no fsync will follow.

    Raises:
        OSError: EIO or ENOSPC if an earlier write failed.

    Blocking: may wait while the device's queue is full; does not wait for the data. Promises no durability.
    """
    if not sync:
        return
    try:
        _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)
    except OSError as err:
        # It is only a hint: a kernel or file system that does not know it is no reason to fail.
        if err.errno not in _UNKNOWN:
            raise


def await_writeback(fd: int) -> None:
    """Write all dirty pages of a file and wait for them: fdatasync without the metadata, and without its commit.

    Args:
        fd: a regular file.

    Raises:
        OSError: EIO or ENOSPC. It is told once: no fsync through this descriptor tells it again, nor one through a
            descriptor that is opened later (Linux Documentation/core-api/errseq_t).

    Blocking: waits for the device.
    """
    try:
        _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE_AND_WAIT)
    except OSError as err:
        if err.errno not in _UNKNOWN:
            raise
        os.fdatasync(fd)


def drop_written(fd: int, end: int) -> None:
    """Let go of the cached pages of a file that have reached the disk; the others stay, and nothing is lost.

    Args:
        fd: a regular file.
        end: byte after the last that may go.
    """
    # Again from the start each time: what was still being written the last time goes now. The kernel looks only at
    # pages that are there.
    os.posix_fadvise(fd, 0, end, os.POSIX_FADV_DONTNEED)


def sync_filesystem(fd: int, *, sync: bool = True) -> None:
    """Make everything written to a file system durable: for trees of many files, where an fsync each is ruinous.

    Args:
        fd: anything on the file system.
        sync: False does nothing.

    Raises:
        OSError: EIO or ENOSPC if the device failed since ``fd`` was opened (Linux 5.8; before, errors are lost).

    Blocking: waits for all dirty data of the file system, other programs' included.
    """
    if sync:
        _syncfs(fd)


def _rename_new(source: StrPath, destination: StrPath) -> None:
    """Rename, refusing an existing destination even when another process makes it at the same moment."""
    old, new = os.fsencode(source), os.fsencode(destination)
    try:
        rename(AT_FDCWD, old, AT_FDCWD, new, NOREPLACE)
    except OSError as err:
        if err.errno in {errno.EINVAL, errno.ENOSYS}:
            # A file system without RENAME_NOREPLACE. rename(2) itself refuses a directory with something in it, and a
            # link refuses any existing file, so both stay safe against a race. (An empty directory is replaced.)
            if stat.S_ISDIR(os.lstat(source).st_mode):
                _rename_directory(source, destination)
            else:
                os.link(source, destination, follow_symlinks=False)
                os.unlink(source)
            return
        raise OSError(err.errno, err.strerror, os.fsdecode(old), None, os.fsdecode(new)) from None


def _rename_directory(source: StrPath, destination: StrPath) -> None:
    try:
        os.rename(source, destination)
    except OSError as err:
        if err.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), destination) from None
        raise
