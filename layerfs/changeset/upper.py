r"""What a container has changed, read from its upper directory alone.

The cost is that of the upper directory, not of the image: the lower tree is asked only for the names that the upper
has. (It is listed where the upper hides or moves a whole directory.) The container may be mounted and running
meanwhile; what vanishes while it is looked at counts as not there.

The rules are docker's, so that the answer is the same for the same changes:

- A path that is only in the container is ``A``, and so is everything below it.
- A path that the container removed is ``D``; what was below it is not listed.
- Two directories differ in mode, owner or xattrs; all else differs in these, type, size, device number or mtime. A
  file that was opened for writing and not written is copied up, but is no change.
- Every directory above a change is ``C``, except those that are ``A``, and except the root, which is never listed. A
  directory whose mtime alone differs is not listed.
- A directory in place of something else, or something else in place of a directory, is ``C``; below it everything
  is ``A``, or nothing.

Two differences, on purpose: docker compares no xattr but ``security.capability``, and takes two times of the same
second for equal when one has no nanoseconds; a commit made from that would lose changes.

overlayfs's own forms are understood: whiteouts as 0/0 device or as xattr, opaque directories, and redirects: a
directory that was renamed is ``D`` at the old path and ``A``, with everything in it, at the new one. A file with
``metacopy`` has its attributes in the upper and so needs no more.

Source: moby pkg/archive (changes of directories); Linux Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from layerfs.changeset.change import Change, ChangeKind
from layerfs.changeset.lower import LowerInode, LowerTree
from layerfs.linux.directory_stack import DirectoryStack

__all__ = ["compare_upper"]

#: Labels of the host's security policy; they say where a file lies, not what it is.
_IGNORED_XATTRS = frozenset({b"security.selinux", b"security.evm", b"security.ima"})
#: What listing or reading xattrs answers where there are none to have.
_NO_XATTRS = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT})


def compare_upper(
    upper: str | os.PathLike[str], lower: LowerTree | None, *, userxattr: bool = False
) -> Iterator[Change]:
    """Yield what an upper directory changes of the tree below it.

    Args:
        upper: the upper directory of an overlay, mounted or not.
        lower: the merged tree of the image below; None if there is nothing below.
        userxattr: whether the overlay keeps its marks in ``user.overlay.*``. Must be as it was mounted: in the other
            kind of mount these are xattrs that any process of the container may have set.

    Returns:
        Changes, lazily, each path once: a directory before what is below it, the entries of one directory in order of
        their bytes. (A sort of whole paths would put ``a-b`` between ``a`` and ``a/b``.)

    Raises:
        OSError: ENOENT or EACCES for the upper directory, EIO, ESTALE if a directory was moved while it was read.

    Blocking: reads directories of the upper and inodes of the lower tree, never the content of files.
    """
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with DirectoryStack(fd) as stack:
            yield from _Comparison(lower, stack, b"user.overlay." if userxattr else b"trusted.overlay.").run()
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Upper:
    """What the upper has of one name; a whiteout has no status."""

    status: os.stat_result | None


@dataclass(slots=True)
class _Frame:
    """A directory under way.

    ``base`` is the lower directory at the same path, whose content is the old state; ``origin`` the lower directory
    that shows through, which is the same one unless the upper is opaque or redirected.
    """

    path: bytes
    names: Iterator[bytes]
    entries: dict[bytes, _Upper]
    base: int | None
    origin: int | None
    in_upper: bool
    announced: bool


@dataclass(slots=True)
class _State:
    """The new state of one path: in the upper, or shining through from the lower tree, or both for a directory."""

    name: bytes
    status: os.stat_result | None
    lower: int | None


class _Comparison:
    """One run of :func:`compare_upper`."""

    def __init__(self, lower: LowerTree | None, stack: DirectoryStack, prefix: bytes) -> None:
        self._lower = lower
        self._stack = stack
        self._prefix = prefix
        self._frames: list[_Frame] = []

    def run(self) -> Iterator[Change]:
        """Walk both trees."""
        root = None if self._lower is None else self._lower.root
        self._frames.append(self._open_frame(b"", base=root, origin=root, in_upper=True, announced=True))
        while self._frames:
            frame = self._frames[-1]
            name = next(frame.names, None)
            if name is None:
                self._frames.pop()
                if frame.in_upper and self._frames:
                    self._stack.pop()
                continue
            yield from self._visit(frame, name)

    def _visit(self, frame: _Frame, name: bytes) -> Iterator[Change]:
        """Compare one name, and go down into it if it is a directory that may hold changes."""
        path = frame.path + b"/" + name
        old = self._child(frame.base, name)
        new = self._new_state(frame, name)
        if new is None:
            if old is not None:
                yield from self._announce("D", path)
            return
        mode = new.status.st_mode if new.status is not None else self._mode(new.lower)
        directory = stat.S_ISDIR(mode)
        if old is None:
            yield from self._announce("A", path)
        elif new.status is None and new.lower == old:
            return
        elif not (directory and stat.S_ISDIR(self._mode(old))) and self._differs(new, old):
            yield from self._announce("C", path)
        if directory:
            yield from self._enter(frame, new, path, old)

    def _enter(self, frame: _Frame, new: _State, path: bytes, old: int | None) -> Iterator[Change]:
        """Open the frame of a directory; its own difference is told first."""
        replaced = old is not None and not stat.S_ISDIR(self._mode(old))
        base = None if replaced else old
        in_upper = new.status is not None
        if in_upper:
            try:
                self._stack.push(new.name)
            except (FileNotFoundError, NotADirectoryError):
                return
        announced = old is None or replaced
        if not announced and base is not None and self._directory_differs(new, base):
            yield from self._announce("C", path)
            announced = True
        origin = self._origin(frame, new) if in_upper else new.lower
        self._frames.append(self._open_frame(path, base=base, origin=origin, in_upper=in_upper, announced=announced))

    def _open_frame(
        self, path: bytes, *, base: int | None, origin: int | None, in_upper: bool, announced: bool
    ) -> _Frame:
        """Read a directory; the current directory of the stack is it, if the upper has it."""
        entries = self._read_upper() if in_upper else {}
        names: Iterable[bytes] = entries
        if base != origin:
            # Something of the lower tree is hidden as a whole, or shows through in another place.
            names = {*entries, *self._names(base), *self._names(origin)}
        return _Frame(path, iter(sorted(names)), entries, base, origin, in_upper, announced)

    def _announce(self, kind: ChangeKind, path: bytes) -> Iterator[Change]:
        """Yield a change, and before it the directories above that were not told yet."""
        for frame in self._frames:
            if not frame.announced:
                frame.announced = True
                yield Change("C", frame.path)
        yield Change(kind, path)

    def _new_state(self, frame: _Frame, name: bytes) -> _State | None:
        """Return what the container shows under a name, or None if nothing."""
        entry = frame.entries.get(name)
        through = self._child(frame.origin, name)
        if entry is None:
            return None if through is None else _State(name, None, through)
        if entry.status is None:
            return None
        return _State(name, entry.status, through)

    def _origin(self, frame: _Frame, new: _State) -> int | None:
        """Return the lower directory that shows through the current directory of the stack."""
        marks = self._xattrs_of(self._stack.fd)
        redirect = marks.get(self._prefix + b"redirect")
        if redirect is not None:
            start = frame.origin
            if redirect.startswith(b"/"):
                start = None if self._lower is None else self._lower.root
            for part in redirect.split(b"/"):
                start = self._child(start, part) if part else start
            found = start
        elif marks.get(self._prefix + b"opaque") == b"y":
            found = None
        else:
            found = new.lower
        return found if found is not None and stat.S_ISDIR(self._mode(found)) else None

    def _read_upper(self) -> dict[bytes, _Upper]:
        """Read the current directory of the stack."""
        fd = self._stack.fd
        entries: dict[bytes, _Upper] = {}
        marked: bool | None = None
        with os.scandir(fd) as listing:
            names = [os.fsencode(entry.name) for entry in listing]
        for name in names:
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            hidden = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
            if not hidden and stat.S_ISREG(status.st_mode) and status.st_size == 0:
                # The other form of a whiteout counts only in a directory that announces it.
                if marked is None:
                    marked = self._xattrs_of(fd).get(self._prefix + b"opaque") == b"x"
                hidden = marked and self._prefix + b"whiteout" in self._xattrs_of(_below(fd, name))
            entries[name] = _Upper(None if hidden else status)
        return entries

    def _differs(self, new: _State, old: int) -> bool:
        """Whether something differs from the lower inode at its path; not both are directories."""
        if self._lower is None:
            return True
        before = self._lower.inode(old)
        after = self._attributes(new)
        if after != _attributes(before):
            return True
        return self._content_xattrs(new) != _content_xattrs(self._lower.xattrs(old), None)

    def _directory_differs(self, new: _State, old: int) -> bool:
        """Whether a directory differs in what belongs to itself; the upper's is the current one of the stack."""
        if self._lower is None:
            return True
        before = self._lower.inode(old)
        after = self._attributes(new)
        if after[:3] != (before.mode, before.uid, before.gid):
            return True
        if new.status is None:
            now = _content_xattrs(self._lower.xattrs(new.lower if new.lower is not None else old), None)
        else:
            now = _content_xattrs(self._xattrs_of(self._stack.fd), self._prefix)
        return now != _content_xattrs(self._lower.xattrs(old), None)

    def _attributes(self, new: _State) -> tuple[int, ...]:
        """Return what is compared of the new state."""
        if new.status is not None:
            status = new.status
            device = status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0
            seconds, rest = divmod(status.st_mtime_ns, 1_000_000_000)
            return status.st_mode, status.st_uid, status.st_gid, device, status.st_size, seconds, rest
        if self._lower is None or new.lower is None:
            raise AssertionError("a path that is in neither tree has no state")
        return _attributes(self._lower.inode(new.lower))

    def _content_xattrs(self, new: _State) -> dict[bytes, bytes]:
        """Return the xattrs of the new state that are no marks."""
        if new.status is not None:
            return _content_xattrs(self._xattrs_of(_below(self._stack.fd, new.name)), self._prefix)
        if self._lower is None or new.lower is None:
            return {}
        return _content_xattrs(self._lower.xattrs(new.lower), None)

    def _xattrs_of(self, where: int | bytes) -> dict[bytes, bytes]:
        """Read all xattrs of a descriptor or of a path, whose last component is not followed."""
        found: dict[bytes, bytes] = {}
        follow = isinstance(where, int)
        try:
            names = os.listxattr(where, follow_symlinks=follow)
        except OSError as err:
            if err.errno in _NO_XATTRS:
                return found
            raise
        for name in names:
            try:
                found[os.fsencode(name)] = os.getxattr(where, name, follow_symlinks=follow)
            except OSError as err:
                if err.errno not in _NO_XATTRS:
                    raise
        return found

    def _child(self, directory: int | None, name: bytes) -> int | None:
        """Look up a name in a lower directory; what is none has no entries."""
        if self._lower is None or directory is None:
            return None
        with contextlib.suppress(NotADirectoryError):
            return self._lower.lookup(directory, name)
        return None

    def _names(self, directory: int | None) -> Iterator[bytes]:
        """List a lower directory."""
        if self._lower is not None and directory is not None:
            for name, _, _ in self._lower.readdir(directory):
                if name not in {b".", b".."}:
                    yield name

    def _mode(self, nid: int | None) -> int:
        """Return type and permission bits of a lower inode."""
        return 0 if self._lower is None or nid is None else self._lower.inode(nid).mode


def _attributes(inode: LowerInode) -> tuple[int, ...]:
    """Return what is compared of a lower inode."""
    device = inode.rdev if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode) else 0
    return inode.mode, inode.uid, inode.gid, device, inode.size, inode.mtime, inode.mtime_ns


def _content_xattrs(xattrs: dict[bytes, bytes], prefix: bytes | None) -> dict[bytes, bytes]:
    """Return the xattrs that belong to the content: without overlayfs's marks and the host's labels."""
    return {
        name: value
        for name, value in xattrs.items()
        if name not in _IGNORED_XATTRS and not (prefix is not None and name.startswith(prefix))
    }


def _below(fd: int, name: bytes) -> bytes:
    """Return a path of an entry of an open directory, for the xattr calls, which take no directory descriptor."""
    return b"/proc/self/fd/%d/%b" % (fd, name)
