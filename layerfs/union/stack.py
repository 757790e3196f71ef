"""Plain directories in overlayfs form, stacked, as the lower of a union.

Each directory is reached by opening its name in its parent, one component at a time; a bounded number of descriptors
stays open. Where several directories are merged their names are read once and kept while the directory is in use, so a
lookup costs one stat at any depth of the stack, and a missing name costs none, as long as those in use have not more
names than are kept.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Collection, Sequence
from errno import ELOOP, ENOTDIR, EPERM

from layerfs.linux.mount_api import clone_tree
from layerfs.linux.whiteout_xattr import has_whiteout_xattr
from layerfs.union.attribute import Attributes, from_status, overridden
from layerfs.union.limit import descriptor_share
from layerfs.union.lower import LowerFile
from layerfs.union.mark import (
    AUFS_OPAQUE,
    AUFS_WHITEOUT,
    ESCAPE,
    FUSE_OVERLAYFS_OPAQUE,
    is_whiteout,
    open_below,
    open_inode,
    open_quietly,
    read_opaque,
    read_xattrs,
    refuse_metacopy,
)

__all__ = ["StackLower"]

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Names of merged directories that are kept, about 100 bytes each; and directories, however many names they have.
_LISTED = 50_000
_LEAST = 8
#: Bits below the number of the device in an inode number, when the layers lie on several.
_DEVICE_SHIFT = 48


class _Source:
    """One directory of one layer."""

    __slots__ = ("layer", "mark", "name", "parent")

    def __init__(self, layer: int, parent: _Source | None, name: bytes) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        self.mark: bytes = b""


class _Entry:
    """One inode of the merged tree: ``sources`` of a directory, top first; of all else the directory it lies in."""

    __slots__ = ("kind", "name", "number", "sources")

    def __init__(self, kind: int, number: int, sources: tuple[_Source, ...], name: bytes) -> None:
        self.kind = kind
        self.number = number
        self.sources = sources
        self.name = name


class StackLower:
    """Directories, merged by overlayfs's rules. References are entries; two of one inode may differ as objects."""

    def __init__(
        self, layers: Sequence[str | bytes], prefix: bytes, *, device: int | None = None, override: bytes | None = None,
        trapped: Collection[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        """Open the directories.

        Args:
            layers: the directories, top first.
            prefix: of the xattrs that are marks.
            device: st_dev of the upper directory, if there is one.
            override: the xattr that keeps owners and modes, if one does.
            trapped: device and inode number of the upper and the work directory, which may lie in a layer: who looks
                for them there is answered ELOOP, as by overlayfs.

        Raises:
            OSError: ENOENT, ENOTDIR, EACCES with the path concerned.
        """
        self._prefix = prefix
        self._override = override
        self._trapped = frozenset(trapped)
        self._below_upper = device is not None
        self.alone = True
        #: Directories held open; climbing to others costs one open per level.
        self._kept = descriptor_share()
        self._roots: list[int] = []
        self._fds: OrderedDict[_Source, int] = OrderedDict()
        self._listings: OrderedDict[_Entry, dict[bytes, tuple[int, ...]]] = OrderedDict()
        #: How many names these have, and one for each directory.
        self._listed = 0
        self._links: dict[int, dict[int, list[list[bytes]]]] = {}
        try:
            for layer in layers:
                root, alone = _open_alone(layer)
                self._roots.append(root)
                self.alone = self.alone and alone
            sources = self._top_sources()
        except BaseException:
            self.close()
            raise
        devices = {os.fstat(fd).st_dev for fd in self._roots}
        # Real inode numbers can be shown when no two inodes share one.
        self._plain = devices <= {device} if device is not None else len(devices) == 1
        self._devices: dict[int, int] = {}
        #: The layer in which each file with several links was met first.
        self._owners: dict[tuple[int, int], int] = {}
        self._shared = (len(devices) + 2) << _DEVICE_SHIFT
        self.root = _Entry(stat.S_IFDIR, 1, tuple(sources), b"")
        self.limit: int = 0 if self._plain else self._shared + (len(self._roots) << _DEVICE_SHIFT)

    def _top_sources(self) -> list[_Source]:
        """Return what the root is merged of."""
        sources = []
        for number, root in enumerate(self._roots):
            source = _Source(number, None, b"")
            source.mark = read_opaque(root, self._prefix)
            sources.append(source)
            # The kernel merges all roots, whatever their marks; a root that is opaque in the other form hides the rest.
            if not source.mark and self._opaque(root, beneath=True):
                break
        return sources

    def close(self) -> None:
        """Close every directory."""
        self.close_directories()
        while self._roots:
            os.close(self._roots.pop())

    def lookup(self, directory: _Entry, name: bytes) -> _Entry | None:
        """Return the entry of a name, or None."""
        if name.startswith(AUFS_WHITEOUT):
            return None
        if len(directory.sources) == 1:
            return self._resolve(directory.sources, name)
        indexes = self._names(directory).get(name)
        if indexes is None:
            return None
        return self._resolve([directory.sources[index] for index in indexes], name)

    shift = 0

    def rows(self, directory: _Entry) -> None:
        """Return None: file systems number inodes as they like."""

    def entries(self, directory: _Entry) -> list[tuple[bytes, _Entry | None]]:
        """Return names with entries, in the order of the layers' own listings; None is that of what is not shown."""
        found: list[tuple[bytes, _Entry | None]] = []
        for name in list(self._names(directory)):
            try:
                entry = self.lookup(directory, name)
            except OSError as error:
                if error.errno not in {EPERM, ELOOP}:
                    raise
                found.append((name, None))
                continue
            if entry is not None:
                found.append((name, entry))
        return found

    def number(self, reference: _Entry) -> int:
        """Return the inode number; of a merged directory that of the topmost one."""
        return reference.number

    def kind(self, reference: _Entry) -> int:
        """Return the type bits."""
        return reference.kind

    def attributes(self, reference: _Entry) -> Attributes:
        """Return what stat says; of a merged directory about the topmost one."""
        found = from_status(reference.number, self._status(reference))
        if self._override is not None and reference.kind in {stat.S_IFREG, stat.S_IFDIR}:
            return overridden(found, self._raw_xattrs(reference).get(self._override))
        return found

    def is_merged(self, reference: _Entry) -> bool:
        """Whether several directories lie on each other here."""
        return len(reference.sources) > 1

    def readlink(self, reference: _Entry) -> bytes:
        """Return the target of a symbolic link."""
        return os.readlink(reference.name, dir_fd=self._directory(reference.sources[0]))

    def xattrs(self, reference: _Entry) -> dict[bytes, bytes]:
        """Return the extended attributes without the marks; those of an overlay inside this one are none of these."""
        nested = self._prefix + ESCAPE
        return {
            name: value for name, value in self._raw_xattrs(reference).items()
            if (not name.startswith(self._prefix) or name.startswith(nested))
            and name not in (self._override, FUSE_OVERLAYFS_OPAQUE)
        }  # fmt: skip

    def _raw_xattrs(self, reference: _Entry) -> dict[bytes, bytes]:
        if reference.kind == stat.S_IFDIR:
            return read_xattrs(self._directory(reference.sources[0]))
        fd = open_inode(reference.name, self._directory(reference.sources[0]))
        try:
            return read_xattrs(fd)
        finally:
            os.close(fd)

    def open(self, reference: _Entry) -> LowerFile:
        """Open a regular file."""
        fd = open_quietly(reference.name, _FILE, dir_fd=self._directory(reference.sources[0]))
        try:
            status = os.fstat(fd)
            refuse_metacopy(fd, self._prefix)
        except BaseException:
            os.close(fd)
            raise
        return LowerFile(fd, 0, status.st_size, owned=True)

    def statfs(self) -> os.statvfs_result:
        """Return the space of the file system with the topmost layer."""
        return os.fstatvfs(self._roots[0])

    def paths(self, reference: _Entry) -> list[list[bytes]]:
        """Return all paths of a file in its layer; the first call for a layer walks it, once."""
        source = reference.sources[0]
        links = self._links.get(source.layer)
        if links is None:
            links = self._links[source.layer] = _find_links(self._roots[source.layer])
        return links.get(self._status(reference).st_ino, [])

    def _status(self, entry: _Entry) -> os.stat_result:
        """Stat an entry."""
        fd = self._directory(entry.sources[0])
        return os.fstat(fd) if entry.kind == stat.S_IFDIR else os.stat(entry.name, dir_fd=fd, follow_symlinks=False)

    def _resolve(self, sources: Sequence[_Source], name: bytes) -> _Entry | None:
        """Look a name up in directories, top first, and merge what is found."""
        found: list[_Source] = []
        number = 0
        last = len(sources) - 1
        for index, source in enumerate(sources):
            fd = self._directory(source)
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if is_whiteout(status) or self._is_marked(source, name, fd, status):
                break
            if not stat.S_ISDIR(status.st_mode):
                if found:
                    break  # something else lies below a directory: it is hidden
                return _Entry(stat.S_IFMT(status.st_mode), self._number(status, source.layer), (source,), name)
            if self._trapped and (status.st_dev, status.st_ino) in self._trapped:
                raise OSError(ELOOP, os.strerror(ELOOP))
            below = _Source(source.layer, source, name)
            number = number or self._number(status, source.layer)
            found.append(below)
            below.mark = self._opaque(self._directory(below), beneath=index < last)
            if index < last and below.mark == b"y":
                break
        return _Entry(stat.S_IFDIR, number, tuple(found), name) if found else None

    def _opaque(self, fd: int, *, beneath: bool) -> bytes:
        """Return the opaque mark of a directory; the one that is a file only matters with something beneath."""
        mark = read_opaque(fd, self._prefix)
        if not mark and beneath:
            try:
                os.stat(AUFS_OPAQUE, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return b""
            return b"y"
        return mark

    def _is_marked(self, source: _Source, name: bytes, fd: int, status: os.stat_result) -> bool:
        """Whether an entry is a whiteout by xattr, which counts only in directories that say so."""
        if source.mark != b"x" or status.st_size or not stat.S_ISREG(status.st_mode):
            return False
        return has_whiteout_xattr(name, fd, self._prefix)

    def _names(self, directory: _Entry) -> dict[bytes, tuple[int, ...]]:
        """Return the visible names of a directory, each with the sources that may have it, read once."""
        found = self._listings.get(directory)
        if found is not None:
            self._listings.move_to_end(directory)
            return found
        found = {}
        hidden: set[bytes] = set()
        for index, source in enumerate(directory.sources):
            fd = open_quietly(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory(source))
            alone = (index,)
            try:
                with os.scandir(fd) as entries:
                    rows = [(os.fsencode(entry.name), entry) for entry in entries]
                    whiteouts = []
                    for name, entry in rows:
                        if name.startswith(AUFS_WHITEOUT):
                            whiteouts.append(name[len(AUFS_WHITEOUT) :])
                            continue
                        if name in hidden:
                            continue
                        if self._hides(entry, source, name, fd):
                            hidden.add(name)
                        elif name in found:
                            if entry.is_dir(follow_symlinks=False):
                                found[name] += (index,)
                            else:
                                hidden.add(name)
                        else:
                            found[name] = alone
                            if not entry.is_dir(follow_symlinks=False):
                                hidden.add(name)
            finally:
                os.close(fd)
            hidden.update(whiteouts)  # only now: a whiteout hides what lies in lower layers, not beside it
        self._listings[directory] = found
        self._listed += len(found) + 1
        while self._listed > _LISTED and len(self._listings) > _LEAST:
            _, oldest = self._listings.popitem(last=False)
            self._listed -= len(oldest) + 1
        return found

    def _hides(self, entry: os.DirEntry[str], source: _Source, name: bytes, fd: int) -> bool:
        """Whether a directory entry is a whiteout."""
        if entry.is_dir(follow_symlinks=False) or entry.is_symlink():
            return False
        if entry.is_file(follow_symlinks=False):
            return source.mark == b"x" and self._is_marked(source, name, fd, entry.stat(follow_symlinks=False))
        return is_whiteout(entry.stat(follow_symlinks=False))

    def _directory(self, source: _Source) -> int:
        """Return an O_PATH descriptor of a layer's directory, which stays open for a while."""
        if source.parent is None:
            return self._roots[source.layer]
        fd = self._fds.get(source)
        if fd is not None:
            self._fds.move_to_end(source)
            return fd
        missing = [source]
        above = source.parent
        while above.parent is not None and above not in self._fds:
            missing.append(above)
            above = above.parent
        start = self._roots[above.layer] if above.parent is None else self._fds[above]
        fd = self._fds[source] = open_below(start, [step.name for step in reversed(missing)])
        if len(self._fds) > self._kept:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def close_directories(self) -> None:
        """Close what is open only to be at hand."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def forget_directories(self) -> None:
        """Drop the listings of merged directories."""
        self._listings.clear()
        self._listed = 0

    def _number(self, status: os.stat_result, layer: int) -> int:
        """Return the inode number in the union."""
        if status.st_nlink > 1 and len(self._roots) > 1 and not stat.S_ISDIR(status.st_mode):
            # Two layers may have one inode, to save space: in the union these are two files.
            first = self._owners.setdefault((status.st_dev, status.st_ino), layer)
            if first != layer:
                return self._shared + (layer << _DEVICE_SHIFT) | status.st_ino
        if self._plain and self._below_upper and status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            # The upper may have a link of it, made outside: these are two files as well.
            return self._shared + (len(self._roots) << _DEVICE_SHIFT) | status.st_ino
        if self._plain:
            # Some file systems number from 1, which FUSE keeps for the root.
            return status.st_ino if status.st_ino > 1 else 1 << _DEVICE_SHIFT
        device = self._devices.setdefault(status.st_dev, len(self._devices) + 1)
        return device << _DEVICE_SHIFT | status.st_ino


def _open_alone(layer: str | bytes) -> tuple[int, bool]:
    """Open a layer without what is mounted below it: overlayfs does not see that, and it may be the union itself.

    Returns:
        An O_PATH descriptor, and whether that was possible.
    """
    try:
        fd = clone_tree(os.fsdecode(layer))
    except OSError:  # no privilege for it, or a mount that may not be looked behind
        return os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), False
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), layer)
    return fd, True


def _find_links(root: int) -> dict[int, list[list[bytes]]]:
    """Return the paths of all files of a layer that have several, by the layer's own inode number."""
    first: dict[int, list[bytes]] = {}
    found: dict[int, list[list[bytes]]] = {}
    todo: list[list[bytes]] = [[]]
    while todo:
        path = todo.pop()
        above = open_below(root, path)
        try:
            fd = open_quietly(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
        finally:
            if above != root:
                os.close(above)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    full = [*path, os.fsencode(entry.name)]
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(full)
                    elif entry.inode() in first:
                        found.setdefault(entry.inode(), [first[entry.inode()]]).append(full)
                    else:
                        first[entry.inode()] = full
        finally:
            os.close(fd)
    return found
