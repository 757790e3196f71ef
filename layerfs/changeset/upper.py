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
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from layerfs.changeset.base_tree import BaseTree
from layerfs.changeset.change import Change, ChangeKind, Step
from layerfs.changeset.entry import Entry, TreeEntry, UpperEntry, attributes_of, read_xattrs, same_content
from layerfs.errors import IntegrityError
from layerfs.formats.whiteout import is_whiteout_device, mark_prefix
from layerfs.linux.directory_stack import DirectoryStack
from layerfs.linux.process import may_give_away
from layerfs.linux.whiteout_xattr import has_whiteout_xattr
from layerfs.store.snapshot import keeps_owners, refuse_other_owners

__all__ = ["compare_upper", "walk_upper"]


def compare_upper(
    upper: str | os.PathLike[str], lower: BaseTree | None, *, userxattr: bool = False, dressed: bool = True
) -> Iterator[Change]:
    """Yield what an upper directory changes of the tree below it.

    Args:
        upper: the upper directory of an overlay, mounted or not.
        lower: the merged tree of the image below; None if there is nothing below.
        userxattr: whether the overlay keeps its marks in ``user.overlay.*``. Must be as it was mounted: in the other
            kind of mount these are xattrs that any process of the container may have set.
        dressed: as for :func:`walk_upper`.

    Returns:
        Changes, lazily, each path once: a directory before what is below it, the entries of one directory in order of
        their bytes. (A sort of whole paths would put ``a-b`` between ``a`` and ``a/b``.)

    Raises:
        OSError: ENOENT or EACCES for the upper directory, EIO, ESTALE if a directory was moved while it was read.

    Blocking: reads directories of the upper and inodes of the lower tree, never the content of files.
    """
    for step in walk_upper(upper, lower, userxattr=userxattr, dressed=dressed):
        assert step.kind is not None
        yield Change(step.kind, step.shown_path)


def walk_upper(
    upper: str | os.PathLike[str],
    lower: BaseTree | None,
    *,
    userxattr: bool = False,
    exact: bool = False,
    whole: bool = False,
    before: BaseTree | None = None,
    dressed: bool = True,
) -> Iterator[Step]:
    """Yield the same with both states of every path.

    Args:
        upper: as for :func:`compare_upper`.
        lower: as for :func:`compare_upper`; with ``exact`` or ``whole`` its files must be readable.
        userxattr: as for :func:`compare_upper`.
        exact: also yield what a layer has to repeat to give the very same tree, see :class:`Step`, the root included;
            and for an opaque directory all that is in it. Reads files whose attributes are as they were.
        whole: yield all that the container shows as added, as if there were nothing before.
        before: compare with this tree instead of ``lower``; both are then walked as a whole.
        dressed: whether the upper directory itself has the attributes of the root; if not, the lower root still does.

    Returns:
        Steps in the order of :func:`compare_upper`; each is good until the next one is taken.

    Raises:
        OSError: as :func:`compare_upper`.
    """
    try:
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise IntegrityError(f"the writable layer {os.fspath(upper)} is missing") from error
    try:
        refuse_other_owners(upper)
        with DirectoryStack(fd) as stack:
            prefix = mark_prefix(userxattr=userxattr)
            overridden = userxattr and (keeps_owners(upper) or not may_give_away())
            yield from _Comparison(
                lower, stack, prefix, before, exact=exact, whole=whole, dressed=dressed, overridden=overridden
            ).run()
    finally:
        os.close(fd)


#: What the upper has of each name; a whiteout has no status.
_Statuses = dict[bytes, os.stat_result | None]


@dataclass(slots=True)
class _Frame:
    """A directory under way.

    ``base`` is the lower directory at the same path, whose content is the old state; ``origin`` the lower directory
    that shows through, which is the same one unless the upper is opaque or redirected. ``step`` is what tells of the
    directory when something below it changed; None once it was told, and for the root.
    """

    path: bytes
    names: Iterator[bytes]
    entries: _Statuses
    base: int | None
    origin: int | None
    in_upper: bool
    step: Step | None


@dataclass(slots=True)
class _State:
    """The new state of one path: in the upper, or shining through from the lower tree, or both for a directory."""

    name: bytes
    status: os.stat_result | None
    lower: int | None


class _Comparison:
    """One run of :func:`walk_upper`."""

    def __init__(
        self,
        lower: BaseTree | None,
        stack: DirectoryStack,
        prefix: bytes,
        before: BaseTree | None,
        *,
        exact: bool,
        whole: bool,
        dressed: bool,
        overridden: bool,
    ) -> None:
        self._lower = lower
        self._before = lower if before is None else before
        self._apart = before is not None
        self._stack = stack
        self._prefix = prefix
        self._exact = exact
        self._whole = whole
        self._dressed = dressed
        self._overridden = overridden
        self._frames: list[_Frame] = []

    def run(self) -> Iterator[Step]:
        """Walk both trees."""
        root = None if self._lower is None else self._lower.root
        base = None if self._whole or self._before is None else self._before.root
        yield from self._root(base, root)
        self._frames.append(self._open_frame(b"", base=base, origin=root, in_upper=True, step=None))
        while self._frames:
            frame = self._frames[-1]
            name = next(frame.names, None)
            if name is None:
                self._frames.pop()
                if frame.in_upper and self._frames:
                    self._stack.pop()
                continue
            yield from self._visit(frame, name)

    def _root(self, base: int | None, root: int | None) -> Iterator[Step]:
        """Yield the root, if it differs; in its time alone it does with every new name in it, which no list shows."""
        # Always made: it keeps the xattrs, which are read while the stack stands here.
        upper = self._current(os.fstat(self._stack.fd))
        new: Entry = upper if self._dressed or root is None else self._tree_entry(root)
        old = None if base is None else self._old_entry(base)
        if old is not None and (attributes_of(old) != attributes_of(new) or old.xattrs() != new.xattrs()):
            yield Step("C", b"", old, new)
        elif self._whole or (
            self._exact and (old is None or attributes_of(old, time=True) != attributes_of(new, time=True))
        ):
            yield Step(None, b"", old, new)

    def _visit(self, frame: _Frame, name: bytes) -> Iterator[Step]:
        """Compare one name, and go down into it if it is a directory that may hold changes."""
        path = frame.path + b"/" + name
        before = _child(self._before, frame.base, name)
        state = self._new_state(frame, name)
        if state is None:
            if before is not None:
                yield from self._announce(Step("D", path, self._old_entry(before), None))
            return
        if state.status is None and state.lower == before and not self._apart:
            return
        mode = state.status.st_mode if state.status is not None else self._mode(state.lower)
        if stat.S_ISDIR(mode):
            yield from self._enter(frame, state, path, before)
            return
        new = self._entry(frame, state)
        if before is None:
            yield from self._announce(Step("A", path, None, new))
            return
        old = self._old_entry(before)
        kind: ChangeKind | None = None
        if attributes_of(old) != attributes_of(new) or old.xattrs() != new.xattrs():
            kind = "C"
        elif not self._exact or (old.links == new.links == 1 and same_content(old, new)):
            return
        yield from self._announce(Step(kind, path, old, new))

    def _enter(self, frame: _Frame, state: _State, path: bytes, before: int | None) -> Iterator[Step]:
        """Open the frame of a directory; its own difference is told first."""
        in_upper = state.status is not None
        if state.status is not None:
            try:
                self._stack.push(state.name)
            except (FileNotFoundError, NotADirectoryError):
                return
            new: Entry = self._current(state.status)
        else:
            assert state.lower is not None
            new = self._tree_entry(state.lower)
        old = None if before is None else self._old_entry(before)
        base = before if old is not None and stat.S_ISDIR(old.mode) else None
        origin = self._origin(frame, state) if in_upper else state.lower
        opaque = self._exact and base is not None and in_upper and origin is None
        if opaque:
            base = None  # what it has is added anew, behind the mark that hides the rest
        kind: ChangeKind | None = None
        if old is None:
            kind = "A"
        elif attributes_of(old, time=True) != attributes_of(new, time=True) or old.xattrs() != new.xattrs():
            kind = "C"
        step: Step | None = Step(kind or "C", path, old, new, opaque)
        if kind is not None or opaque:
            assert step is not None
            yield from self._announce(step)
            step = None
        self._frames.append(self._open_frame(path, base=base, origin=origin, in_upper=in_upper, step=step))

    def _open_frame(
        self, path: bytes, *, base: int | None, origin: int | None, in_upper: bool, step: Step | None
    ) -> _Frame:
        """Read a directory; the current directory of the stack is it, if the upper has it."""
        entries = self._read_upper() if in_upper else {}
        names: Iterable[bytes] = entries
        if base != origin or self._apart:
            # Something of the lower tree is hidden as a whole, or shows through in another place.
            names = {*entries, *_names(self._before, base), *_names(self._lower, origin)}
        return _Frame(path, iter(sorted(names)), entries, base, origin, in_upper, step)

    def _announce(self, step: Step) -> Iterator[Step]:
        """Yield a step, and before it the directories above that were not told yet."""
        for frame in self._frames:
            if frame.step is not None:
                above, frame.step = frame.step, None
                yield above
        yield step

    def _new_state(self, frame: _Frame, name: bytes) -> _State | None:
        """Return what the container shows under a name, or None if nothing."""
        through = _child(self._lower, frame.origin, name)
        if name not in frame.entries:
            return None if through is None else _State(name, None, through)
        status = frame.entries[name]
        return None if status is None else _State(name, status, through)

    def _entry(self, frame: _Frame, state: _State) -> Entry:
        """Return the new state of what is no directory."""
        if state.status is None:
            assert state.lower is not None
            return self._tree_entry(state.lower)
        entry = self._upper_entry(state.name, state.status, None)
        if stat.S_ISREG(entry.mode) and (self._exact or self._whole) and self._prefix + b"metacopy" in entry.marks():
            place = self._redirected(frame, entry.marks(), state.lower)
            through = None if place is None else self._tree_entry(place)
            return self._upper_entry(state.name, state.status, through)
        return entry

    def _upper_entry(self, name: bytes, status: os.stat_result, through: Entry | None) -> UpperEntry:
        return UpperEntry(self._stack.fd, name, status, self._prefix, through, overridden=self._overridden)

    def _current(self, status: os.stat_result) -> UpperEntry:
        """Return the current directory of the stack; its xattrs are read now, for it may be told of much later."""
        entry = self._upper_entry(b".", status, None)
        entry.marks()
        return entry

    def _origin(self, frame: _Frame, state: _State) -> int | None:
        """Return the lower directory that shows through the current directory of the stack."""
        marks = read_xattrs(self._stack.fd)
        if marks.get(self._prefix + b"opaque") == b"y" and self._prefix + b"redirect" not in marks:
            return None
        found = self._redirected(frame, marks, state.lower)
        return found if found is not None and stat.S_ISDIR(self._mode(found)) else None

    def _redirected(self, frame: _Frame, marks: dict[bytes, bytes], through: int | None) -> int | None:
        """Return the lower inode that an entry with these marks stands on."""
        redirect = marks.get(self._prefix + b"redirect")
        if redirect is None:
            return through
        start = frame.origin
        if redirect.startswith(b"/"):
            start = None if self._lower is None else self._lower.root
        for part in redirect.split(b"/"):
            start = _child(self._lower, start, part) if part else start
        return start

    def _read_upper(self) -> _Statuses:
        """Read the current directory of the stack."""
        fd = self._stack.fd
        entries: _Statuses = {}
        marked: bool | None = None
        with os.scandir(fd) as listing:
            names = [os.fsencode(entry.name) for entry in listing]
        for name in names:
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            hidden = is_whiteout_device(status.st_mode, status.st_rdev)
            if not hidden and stat.S_ISREG(status.st_mode) and status.st_size == 0:
                # The other form of a whiteout counts only in a directory that announces it.
                if marked is None:
                    marked = read_xattrs(fd).get(self._prefix + b"opaque") == b"x"
                hidden = marked and has_whiteout_xattr(name, fd, self._prefix)
            entries[name] = None if hidden else status
        return entries

    def _tree_entry(self, nid: int) -> TreeEntry:
        assert self._lower is not None
        return TreeEntry(self._lower, nid)

    def _old_entry(self, nid: int) -> TreeEntry:
        assert self._before is not None
        return TreeEntry(self._before, nid)

    def _mode(self, nid: int | None) -> int:
        """Return type and permission bits of a lower inode."""
        return 0 if self._lower is None or nid is None else self._lower.inode(nid).mode


def _child(tree: BaseTree | None, directory: int | None, name: bytes) -> int | None:
    """Look up a name in a lower directory; what is none has no entries."""
    if tree is None or directory is None:
        return None
    with contextlib.suppress(NotADirectoryError):
        return tree.lookup(directory, name)
    return None


def _names(tree: BaseTree | None, directory: int | None) -> Iterator[bytes]:
    """List a lower directory."""
    if tree is not None and directory is not None:
        for name, _, _ in tree.readdir(directory):
            if name not in {b".", b".."}:
                yield name
