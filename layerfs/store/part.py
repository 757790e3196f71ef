"""Received beginnings of blobs: what lets a pull go on where it was killed.

    ROOT/partial/ALG-HEX        the first bytes of the blob of that digest, as received

A part is written by one pull at a time, which holds its lock, and is nothing but a hint: whoever uses it digests it
again, so it is never synced, and a power cut may leave anything in it. It goes when the image that wanted it is there,
and otherwise with the next ``gc`` that finds its lock free.
"""

from __future__ import annotations

import contextlib
import os
from typing import Self

from layerfs.errors import InvalidReference
from layerfs.formats.digest import Digest
from layerfs.linux.durable import publish
from layerfs.linux.lock import FileLock
from layerfs.store.handle import StoreHandle

__all__ = ["Part", "discard_part", "sweep_parts"]


class Part:
    """The beginning of one blob, held by this process.

    Attributes:
        size: bytes that are there.
    """

    def __init__(self, handle: StoreHandle, digest: Digest, lock: FileLock, fd: int) -> None:
        """Wrap a part whose lock is held; use :meth:`claim`."""
        self._handle = handle
        self._digest = digest
        self._lock = lock
        self._fd = fd
        self.size = os.fstat(fd).st_size

    @classmethod
    def claim(cls, handle: StoreHandle, digest: Digest) -> Self | None:
        """Take hold of the part of a blob, made empty if there is none; None while another pull has it.

        Raises:
            OSError: ENOSPC, EIO.
        """
        lock = FileLock(handle.layout.lock(f"part-{digest.algorithm}-{digest.hex}"))
        if not lock.try_acquire():
            return None
        try:
            path = handle.layout.part(digest)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                fd = os.open(path, flags, 0o600)
            except FileNotFoundError:  # a store made before there were parts
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                fd = os.open(path, flags, 0o600)
            return cls(handle, digest, lock, fd)
        except BaseException:
            lock.release(remove=True)
            raise

    def append(self, data: bytes) -> None:
        """Add bytes at the end.

        Raises:
            OSError: ENOSPC, EIO; what was written of them counts.
        """
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, self.size)
            self.size += count
            view = view[count:]

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from an offset. May be called while another thread appends."""
        return os.pread(self._fd, size, offset)

    def clear(self) -> None:
        """Throw away what is there."""
        self.size = 0
        os.ftruncate(self._fd, 0)

    def keep(self) -> None:
        """Make the part, which is the whole blob and was verified, a kept blob of the store, durably.

        Raises:
            OSError: ENOSPC, EIO.
        """
        publish(
            self._handle.layout.part(self._digest), self._handle.layout.blob(self._digest), replace=True,
            sync=self._handle.sync,
        )  # fmt: skip

    def close(self, *, remove: bool) -> None:
        """Let go of it.

        Args:
            remove: also remove it; one that is empty is removed anyway.
        """
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if remove or not self.size:
            with contextlib.suppress(OSError):
                os.unlink(self._handle.layout.part(self._digest))
        self._lock.release(remove=True)


def discard_part(handle: StoreHandle, digest: Digest) -> int:
    """Remove the part of a blob, if there is one and no pull is using it; return the bytes of disk that it took."""
    path = handle.layout.part(digest)
    if not os.path.exists(path):
        return 0
    part = Part.claim(handle, digest)
    if part is None:
        return 0
    try:
        return os.stat(path).st_blocks * 512
    finally:
        part.close(remove=True)


def sweep_parts(handle: StoreHandle) -> int:
    """Remove the parts that no pull is using; return the bytes of disk that they took."""
    freed = 0
    directory = os.path.join(handle.layout.root, "partial")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            try:
                digest = Digest(*name.split("-", 1))
            except (InvalidReference, TypeError):
                continue
            freed += discard_part(handle, digest)
    return freed
