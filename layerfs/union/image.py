"""An image's merged tree as the lower of a union: names and attributes from the mapped tree, bytes from layer tars.

A stat or a lookup reads mapped memory and makes no system call; a file that is opened for reading costs none either,
because the layer tars stay open.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from errno import EIO

from layerfs.formats.erofs.directory import Directory
from layerfs.formats.erofs.reader import DIRECTORY_TYPE, Tree
from layerfs.union.attribute import Attributes
from layerfs.union.limit import descriptor_share
from layerfs.union.lower import LowerFile

__all__ = ["ImageLower"]

#: Names of decoded directories that are kept, 200 bytes each; decoding one again takes as long as a request.
_KEPT = 100_000
#: Files whose place is remembered: programs and libraries are opened again and again.
_PLACES = 4_096
#: FUSE wants 1 for the root and nothing for 0.
_FIRST = 2

_new = tuple.__new__


class ImageLower:
    """A merged tree and the files of its device table. References are the tree's own inode numbers."""

    def __init__(self, tree: Tree, devices: Sequence[str], file: int) -> None:
        """Keep them, and open the layer tars: they may be removed from the store while they are mounted.

        Args:
            tree: the merged tree.
            devices: paths of the layer tars, in the order of the tree's device table.
            file: a descriptor of the very file that the tree is in, closed by :meth:`close`: another tree may have its
                name by now.
        """
        self._file = file
        self._tree = tree
        self._devices = devices
        self._fds = {len(tree.devices): file}
        # From the end: layers that only lend to the image come last, and can go while it is mounted.
        for device in range(len(devices) - 1, max(-1, len(devices) - 1 - descriptor_share()), -1):
            # Those that are missing are told when somebody reads from them.
            with contextlib.suppress(OSError):
                self._fds[device] = os.open(devices[device], os.O_RDONLY | os.O_CLOEXEC)
        self._links: dict[int, list[list[bytes]]] | None = None
        self._recent: dict[int, dict[bytes, tuple[int, int]]] = {}
        self._kept = 0
        self._looked_into = -1
        self._raw: bytes | None = None  # the last directory that was looked into without decoding it
        self._places: dict[int, LowerFile] = {}
        self.root: int = tree.root
        self.limit: int = tree.limit + _FIRST
        self.shift = _FIRST

    def close(self) -> None:
        """Close the tree's file and the layer tars."""
        self._places.clear()
        while self._fds:
            os.close(self._fds.popitem()[1])

    def close_directories(self) -> None:
        """Do nothing: only the tree's file and layer tars are open, one descriptor each, and nodes go by these."""

    def forget_directories(self) -> None:
        """Drop decoded directories, and where files lie."""
        while self._recent:
            self._tree.drop_names(self._recent.popitem()[0])
        self._kept = 0
        self._places.clear()

    def lookup(self, directory: int, name: bytes) -> int | None:
        """Return the inode number of a name, or None."""
        names = self._recent.get(directory)
        if names is None:
            if directory != self._looked_into:
                self._looked_into, self._raw = directory, self._tree.raw_names(directory)
            if self._raw is not None and name not in self._raw:
                return None
            names = self._names(directory)
        entry = names.get(name)
        return entry[0] if entry else None

    def entries(self, directory: int) -> list[tuple[bytes, int | None]]:
        """Return the names in byte order."""
        return [(name, entry[0]) for name, entry in self._names(directory).items()]

    def rows(self, directory: int) -> Directory:
        """Return the entries by row."""
        return self._tree.directory(directory)

    def _names(self, directory: int) -> dict[bytes, tuple[int, int]]:
        """Return a decoded directory; those that were decoded long ago are dropped."""
        found = self._recent.get(directory)
        if found is None:
            found = self._recent[directory] = self._tree.names(directory)
            self._kept += len(found)
            while self._kept > _KEPT and len(self._recent) > 1:
                oldest = next(iter(self._recent))
                self._kept -= len(self._recent.pop(oldest))
                self._tree.drop_names(oldest)
        return found

    def number(self, reference: int) -> int:
        """Return the inode number."""
        return reference + _FIRST

    def kind(self, reference: int) -> int:
        """Return the type bits."""
        return stat.S_IFMT(self._tree.mode(reference))

    def attributes(self, reference: int) -> Attributes:
        """Return what stat says; images have no atime and no ctime, so both are the mtime."""
        mode, nlink, uid, gid, rdev, size, mtime = self._tree.fields(reference)
        # Past the constructor, which is written in Python: 0.2 of the 1.5 µs of this call, and all lookups come here.
        return _new(
            Attributes, (reference + _FIRST, mode, nlink, uid, gid, rdev, size, (size + 511) >> 9, mtime, mtime, mtime)
        )  # fmt: skip

    def is_merged(self, reference: int) -> bool:  # noqa: ARG002 - of the protocol
        """Return False: the layers were merged when the image was loaded."""
        return False

    def readlink(self, reference: int) -> bytes:
        """Return the target of a symbolic link."""
        return self._tree.readlink(reference)

    def xattrs(self, reference: int) -> dict[bytes, bytes]:
        """Return the extended attributes; a merged tree has none of overlayfs's own."""
        return self._tree.xattrs(reference)

    def open(self, reference: int) -> LowerFile:
        """Return where a file's bytes lie."""
        known = self._places.get(reference)
        if known is not None:
            return known
        if len(self._places) >= _PLACES:
            self._places.clear()
        place = self._places[reference] = self._place(reference)
        return place

    def _place(self, reference: int) -> LowerFile:
        """Find a file's bytes."""
        inode = self._tree.inode(reference)
        if not stat.S_ISREG(inode.mode):
            raise OSError(EIO, "no regular file")
        found = self._tree.file_data(inode)
        if found is None:
            return LowerFile(-1, 0, 0, owned=False)
        device, offset = found
        fd = self._fds.get(device)
        if fd is None:
            try:
                fd = os.open(self._devices[device], os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                # To the program that reads, the file is there: its bytes are lost.
                raise OSError(EIO, f"layer file {self._devices[device]} is missing") from error
            self._fds[device] = fd
        return LowerFile(fd, offset, inode.size, owned=False)

    def statfs(self) -> os.statvfs_result:
        """Return the space of the file system with the tree."""
        return os.fstatvfs(self._file)

    def paths(self, reference: int) -> list[list[bytes]]:
        """Return all paths of a file; the first call for a file with links walks the whole tree, once."""
        if self._links is None:
            self._links = self._find_links()
        return self._links.get(reference, [])

    def _find_links(self) -> dict[int, list[list[bytes]]]:
        """Return the paths of all files that have several."""
        seen: dict[int, list[list[bytes]]] = {}
        todo: list[tuple[int, list[bytes]]] = [(self.root, [])]
        while todo:
            directory, path = todo.pop()
            for name, child, kind in self._tree.readdir(directory):
                if kind == DIRECTORY_TYPE:
                    todo.append((child, [*path, name]))
                elif self._tree.fields(child)[1] > 1:
                    seen.setdefault(child, []).append([*path, name])
        return {child: paths for child, paths in seen.items() if len(paths) > 1}
