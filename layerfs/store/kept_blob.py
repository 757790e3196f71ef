"""Compressed layer blobs that a load was asked to keep, so that an image can go out again as it came in.

A layer's tar is kept in any case and says all there is; but no program can compress it again to the very bytes that a
manifest names. A kept blob lies in ``blobs/`` under its digest, beside the documents, and is collected with the last
image whose manifest names it. Blobs that are no different from the tar are never kept: the store has those already.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import BinaryIO

from layerfs.errors import DigestMismatch, FormatError, StoreError
from layerfs.formats.digest import Digest, new_hash
from layerfs.formats.oci import Descriptor, Manifest
from layerfs.linux.durable import publish, write_all
from layerfs.linux.safe_path import private_opener
from layerfs.store.handle import StoreHandle

__all__ = ["KeptBlobs", "has_blob", "manifest_blobs", "verify_blob"]

_READ = 1 << 20


class KeptBlobs:
    """The blobs of one load: written by the thread that reads them, given their place when images are made of them."""

    def __init__(self, handle: StoreHandle, directory: str) -> None:
        """Start without blobs.

        Args:
            handle: the store.
            directory: the load's own directory.
        """
        self._handle = handle
        self._directory = directory
        self._files: dict[str, BinaryIO] = {}
        self._done: dict[Digest, str] = {}
        self._count = 0

    def begin(self, member: str) -> Callable[[bytes], object]:
        """Start a blob; return what takes its bytes in order.

        Raises:
            OSError: ENOSPC, EIO; so does what is returned.
        """
        self._count += 1
        path = os.path.join(self._directory, f"blob-{self._count}")
        file = self._files[member] = open(path, "xb", buffering=0, opener=private_opener)  # noqa: SIM115 - see close
        return lambda data: write_all(file.fileno(), data)

    def end(self, member: str, digest: Digest) -> None:
        """End a blob, if this member was begun: all its bytes were taken, and this is what they digest to."""
        file = self._files.pop(member, None)
        if file is not None:
            file.close()
            self._done[digest] = os.fspath(file.name)

    def publish(self, blobs: Iterable[Descriptor]) -> None:
        """Give those of these blobs their place that this load has read, durably.

        Raises:
            OSError: ENOSPC, EIO.
        """
        for blob in blobs:
            path = self._done.pop(blob.digest, None)
            if path is not None:
                publish(path, self._handle.layout.blob(blob.digest), replace=True, sync=self._handle.sync)

    def close(self) -> None:
        """Close the files of blobs that were not ended."""
        while self._files:
            self._files.popitem()[1].close()


def has_blob(handle: StoreHandle, blob: Descriptor) -> bool:
    """Return whether the store keeps a blob, as far as its size tells."""
    try:
        return os.stat(handle.layout.blob(blob.digest)).st_size == blob.size
    except FileNotFoundError:
        return False


def manifest_blobs(handle: StoreHandle, manifest: Digest) -> tuple[Descriptor, ...] | None:
    """Return the layer blobs that a manifest of the store names; None when the document is damaged or missing."""
    try:
        return Manifest.parse(handle.read_blob(manifest), algorithm=manifest.algorithm).layers
    except (StoreError, FormatError):
        return None


def verify_blob(handle: StoreHandle, digest: Digest, *, check: Callable[[], None] | None = None) -> None:
    """Read a kept blob and compare it with its digest.

    Raises:
        DigestMismatch: it is not what it was.
        OSError: ENOENT, EIO.
    """
    hasher, size = new_hash(digest.algorithm), 0
    with open(handle.layout.blob(digest), "rb", buffering=0) as file:
        while data := file.read(_READ):
            if check is not None:
                check()
            hasher.update(data)
            size += len(data)
    actual = Digest(digest.algorithm, hasher.hexdigest())
    if actual != digest:
        raise DigestMismatch("kept blob", expected=str(digest), actual=str(actual), size=size)
