"""An image's merged tree with its files' contents: looking into an image without mounting it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from errno import EINVAL, EISDIR
from itertools import islice
from types import TracebackType
from typing import Self

from layerfs.errors import IntegrityError
from layerfs.formats.erofs.reader import DIRECTORY_TYPE, Inode, Tree
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, image_layers, merged_tree
from layerfs.store.layer import device_paths, device_tag

__all__ = ["ImageTree"]

_READ = 1 << 20

#: Layers opened at once; others when they are first read from, so that several trees do not take all descriptors.
_OPENED = 16


class ImageTree:
    """The files of an image, read-only. Thread-safe; a context manager that closes the layers it opened.

    Inode numbers are the kernel's own for the same image, when it is mounted read-only.

    Attributes:
        tree: the merged tree: names, inodes, links and xattrs.
    """

    def __init__(self, handle: StoreHandle, image: ImageRecord | Tree) -> None:
        """Map the image's merged tree, and open what only lends to it: that may go while the image stays.

        Args:
            handle: the store.
            image: the image, or a merged tree of layers of the store that no image has yet.

        Raises:
            IntegrityError: it is missing and cannot be made again.
        """
        self._files: dict[int, int] = {}
        with handle.trees_kept():
            self.tree: Tree = image if isinstance(image, Tree) else merged_tree(handle, image)
            self._paths = device_paths(handle, self.tree)
            layers = [] if isinstance(image, Tree) else image_layers(handle, image)
            own = {device_tag(layer.diff_id) for layer in layers}
            lenders = (device for device, slot in enumerate(self.tree.devices) if own and slot.tag not in own)
            for device in islice(lenders, _OPENED):
                # One that is missing is told when somebody reads from it.
                with contextlib.suppress(FileNotFoundError):
                    self._files[device] = os.open(self._paths[device], os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        """Return the tree itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the layers."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        """Close it, if nobody has."""
        if hasattr(self, "_files"):  # not one that was never made
            self.close()

    @property
    def root(self) -> int:
        """The inode number of the root directory."""
        return self.tree.root

    def resolve(self, path: bytes, *, follow: bool = True) -> int:
        """Return the inode number at a path; see :meth:`layerfs.formats.erofs.reader.Tree.resolve`."""
        return self.tree.resolve(path, follow=follow)

    def lookup(self, nid: int, name: bytes) -> int | None:
        """Return the inode number of a name in a directory, or None.

        Raises:
            OSError: ENOTDIR.
        """
        return self.tree.lookup(nid, name)

    def readdir(self, nid: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield (name, inode number, file type) of a directory in byte order, without ``.`` and ``..``.

        Raises:
            OSError: ENOTDIR.
        """
        return self.tree.readdir(nid)

    def inode(self, nid: int) -> Inode:
        """Return the attributes of an inode."""
        return self.tree.inode(nid)

    def readlink(self, nid: int) -> bytes:
        """Return the target of a symlink.

        Raises:
            OSError: EINVAL for anything else.
        """
        return self.tree.readlink(nid)

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """Return the extended attributes by full name."""
        return self.tree.xattrs(nid)

    def read(self, nid: int, offset: int = 0, size: int | None = None) -> bytes:
        """Return bytes of a regular file.

        Args:
            nid: its inode number.
            offset: first byte; beyond the end nothing is returned.
            size: at most so many; None means to the end.

        Raises:
            OSError: EISDIR for a directory, EINVAL for what has no bytes and for numbers below 0, EIO from the disk.
            IntegrityError: the layer is missing or cut short.
        """
        inode = self.tree.inode(nid)
        # What lies before a file in the layer's tar is other files.
        if not stat.S_ISREG(inode.mode) or offset < 0 or (size is not None and size < 0):
            number = EISDIR if stat.S_ISDIR(inode.mode) else EINVAL
            raise OSError(number, os.strerror(number))
        found = self.tree.file_data(inode)
        wanted = max(0, inode.size - offset) if size is None else min(size, max(0, inode.size - offset))
        if found is None or not wanted:
            return b""
        device, start = found
        if device == len(self._paths):
            return bytes(self.tree.carried(start + offset, wanted))
        fd = self._open(device)
        data = os.pread(fd, wanted, start + offset)
        while len(data) < wanted:
            more = os.pread(fd, wanted - len(data), start + offset + len(data))
            if not more:
                raise IntegrityError(f"{self._paths[device]} is cut short at byte {start + offset + len(data)}")
            data += more
        return data

    def place(self, nid: int) -> tuple[str, int] | None:
        """Return where a regular file's bytes lie: path of a layer file and offset; None where there is no such place.

        An empty file has none, nor one whose bytes the tree carries itself.
        """
        found = self.tree.data(nid)
        return (self._paths[found[0]], found[1]) if found is not None and found[0] < len(self._paths) else None

    def pieces(self, nid: int) -> Iterator[bytes]:
        """Yield a regular file's bytes in pieces of at most a mebibyte. Raises as :meth:`read`."""
        position = 0
        while piece := self.read(nid, position, _READ):
            yield piece
            position += len(piece)

    def walk(self, nid: int | None = None, path: bytes = b"") -> Iterator[tuple[bytes, int, int]]:
        """Yield (path, inode number, file type) of everything below a directory, parents first, names in byte order.

        Args:
            nid: where to start; None is the root.
            path: what the paths begin with.
        """
        stack = [(path, self.root if nid is None else nid)]
        while stack:
            prefix, directory = stack.pop()
            below = []
            for name, child, kind in self.tree.readdir(directory):
                full = prefix + b"/" + name
                yield full, child, kind
                if kind == DIRECTORY_TYPE:
                    below.append((full, child))
            stack += reversed(below)

    def _open(self, device: int) -> int:
        fd = self._files.get(device)
        if fd is None:
            try:
                fd = os.open(self._paths[device], os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise IntegrityError(f"layer file {self._paths[device]} is missing") from error
            other = self._files.setdefault(device, fd)
            if other != fd:  # another thread was quicker
                os.close(fd)
                fd = other
        return fd
