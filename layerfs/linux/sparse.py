"""Sparse files: punching holes, copying ranges inside the kernel, and seeing what is really allocated.

Offsets and lengths are bytes. What looks for data moves the file offset: :func:`data_segments`, :func:`copy_data`,
:func:`is_zero`; nothing else uses it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Iterator

from layerfs.linux.syscall import declare_libc

__all__ = [
    "allocate",
    "copy_data",
    "copy_range",
    "data_segments",
    "is_same",
    "is_zero",
    "punch_hole",
    "write_sparse",
]

#: Do not change the file's size (linux/falloc.h).
_FALLOC_FL_KEEP_SIZE = 1
#: Deallocate the range (linux/falloc.h).
_FALLOC_FL_PUNCH_HOLE = 2
#: One round of a copy: long enough to be cheap, short enough that ``check`` is polled several times a second.
_COPY_STEP = 64 << 20
#: Bytes looked at at a time.
_COMPARED = 1 << 20
_PAGE = 4096
#: Buffer of the fall-back that copies through user space. For larger writes the page cache takes larger blocks of
#: memory, which a virtual machine may have given back to its host: 31 MB in pieces of 1 MiB take 30 ms, or 110 then; in
#: these 30 to 40, as in those of 64 KiB. Where memory is at hand those of 64 KiB cost a quarter more: 12.8 for 9.6 ms.
_COPY_BUFFER = 128 << 10
#: What copy_file_range answers where only the fall-back can help: other file systems, other kinds of file.
_NO_COPY_FILE_RANGE = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EIO})

_fallocate = declare_libc("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def write_sparse(fd: int, pieces: Iterable[bytes], size: int) -> None:
    """Write a new file from its beginning; pieces that are all zeros stay holes.

    Args:
        fd: an empty regular file, open for writing.
        pieces: of what it is to hold.
        size: how many bytes these are together.

    Raises:
        OSError: ENOSPC, EIO.
    """
    position = 0
    for piece in pieces:
        if not piece[:4096].strip(b"\0") and not piece.strip(b"\0"):
            position += len(piece)
            continue
        view = memoryview(piece)
        while view:
            written = os.pwrite(fd, view, position)
            position += written
            view = view[written:]
    os.ftruncate(fd, size)


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Reserve or give back space of a file, as fallocate(2) does.

    Args:
        fd: a regular file, open for writing.
        mode: 0 or FALLOC_FL_* of linux/falloc.h.
        offset: first byte of the range.
        length: bytes, at least one.

    Raises:
        OSError: EOPNOTSUPP where the file system does not know the mode, ENOSPC, EINVAL, EFBIG.
    """
    _fallocate(fd, mode, offset, length)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a range back to the file system; it then reads as zeros.

    Blocks that lie wholly inside the range are freed, bytes of partial blocks at its ends are zeroed. The size stays.

    Args:
        fd: a regular file, open for writing.
        offset: first byte of the range.
        length: bytes; 0 does nothing.

    Raises:
        OSError: EOPNOTSUPP where the file system has no holes, ENOSPC, EIO, EBADF.

    Atomicity: none; after a crash any part of the range may still hold its old bytes.
    """
    if length:
        _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)


def copy_range(
    source_fd: int,
    source_offset: int,
    destination_fd: int,
    destination_offset: int,
    length: int,
    *,
    check: Callable[[], None] | None = None,
) -> None:
    """Copy a range from one file to another, as a reflink or inside the kernel where that is possible.

    Args:
        source_fd: a file open for reading.
        source_offset: first byte to copy.
        destination_fd: a file open for writing, not for appending.
        destination_offset: where the first byte goes.
        length: bytes to copy. Holes of the source may become allocated zeros; :func:`copy_data` keeps them.
        check: called between rounds; what it raises stops the copy.

    Raises:
        OSError: EIO if the source ends before ``length`` bytes, ENOSPC, EBADF.

    Blocking: disk reads and writes; polls ``check``.
    Atomicity: none; a crash leaves a part of the range copied.
    """
    # At another place within a page nothing can be a reflink, and the kernel copies parts of pages one by one.
    shifted = bool((source_offset ^ destination_offset) & (_PAGE - 1))
    buffer = None
    done = 0
    while done < length:
        if check is not None:
            check()
        step = min(length - done, _COPY_STEP)
        copied = 0
        try:
            if not shifted:
                copied = os.copy_file_range(
                    source_fd, destination_fd, step, source_offset + done, destination_offset + done
                )
        except OSError as err:
            if err.errno not in _NO_COPY_FILE_RANGE:
                raise
        if copied == 0:
            # Also some special files answer 0 although they have bytes (linux commit 868f9f2f8e00), so the
            # fall-back decides whether this is the end of the source.
            buffer = buffer or memoryview(bytearray(min(length, _COPY_BUFFER)))
            copied = _copy_buffered(
                source_fd, source_offset + done, destination_fd, destination_offset + done, buffer[:step]
            )
        done += copied


def copy_data(
    source_fd: int,
    source_offset: int,
    destination_fd: int,
    destination_offset: int,
    length: int,
    *,
    check: Callable[[], None] | None = None,
) -> None:
    """Copy only the data segments of a range, so that holes of the source stay holes.

    Args:
        source_fd: a file open for reading; its file offset is moved.
        source_offset: first byte to copy.
        destination_fd: a file open for writing that has no data in the destination range; its size is not changed by
            a hole at the end.
        destination_offset: where the first byte goes.
        length: bytes.
        check: called between rounds; what it raises stops the copy.

    Raises:
        OSError: as :func:`copy_range`.

    Blocking: disk reads and writes; polls ``check``.
    """
    if os.fstat(source_fd).st_size < source_offset + length:
        raise OSError(errno.EIO, "source ends inside the range to copy")
    for start, end in data_segments(source_fd, source_offset, source_offset + length):
        copy_range(
            source_fd,
            start,
            destination_fd,
            destination_offset + start - source_offset,
            end - start,
            check=check,
        )


def data_segments(fd: int, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that are not holes.

    Args:
        fd: a regular file, open for reading. Its file offset is moved, so no one else may rely on it meanwhile.
        start: first byte to look at.
        end: byte after the last to look at; None means the end of the file.

    Returns:
        Pairs (first byte, byte after the last), ascending, clipped to the range; lazily. A file system that knows
        no holes gives one segment.

    Raises:
        OSError: EBADF, ESPIPE for what cannot seek.
    """
    stop = os.fstat(fd).st_size if end is None else min(end, os.fstat(fd).st_size)
    position = start
    while position < stop:
        try:
            first = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:
                return
            if err.errno != errno.EINVAL:
                raise
            yield position, stop
            return
        if first >= stop:
            return
        position = min(os.lseek(fd, first, os.SEEK_HOLE), stop)
        yield first, position


def is_zero(fd: int, offset: int, length: int) -> bool:
    """Return whether a range of a file reads as zeros; holes are not read, and behind the end there is nothing.

    Raises:
        OSError: as :func:`data_segments`, EIO.
    """
    return all(
        not os.pread(fd, min(_COMPARED, end - position), position).strip(b"\0")
        for start, end in data_segments(fd, offset, offset + length)
        for position in range(start, end, _COMPARED)
    )


def is_same(fd: int, offset: int, other: int, length: int) -> bool:
    """Return whether two ranges of a file have the same bytes.

    Raises:
        OSError: EIO.
    """
    for position in range(0, length, _COMPARED):
        size = min(_COMPARED, length - position)
        if os.pread(fd, size, offset + position) != os.pread(fd, size, other + position):
            return False
    return True


def _copy_buffered(
    source_fd: int, source_offset: int, destination_fd: int, destination_offset: int, buffer: memoryview
) -> int:
    """Copy up to a buffer of bytes through it and return how many; the end of the source is EIO."""
    size = os.preadv(source_fd, [buffer], source_offset)
    if not size:
        raise OSError(errno.EIO, f"source ends at byte {source_offset}, inside the range to copy")
    written = 0
    while written < size:
        written += os.pwrite(destination_fd, buffer[written:size], destination_offset + written)
    return size
