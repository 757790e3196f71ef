"""Applying a layer to a container: its writable layer then shows what the layer says, in overlayfs's own form.

The tar goes through the store's own ingest first, which checks and understands all of it: nothing is changed before it
is known to be a layer that stays inside its root. Then what the layer hides is hidden, and what it has is made,
relative to held descriptors, following no symlink on the host. A path that runs through a symlink of the container
means where that leads inside the container.

Directories that only get or lose entries keep their time, as if the layer had been there from the beginning.

Source: OCI image-spec v1.1 layer.md, "Applying Changesets"; Linux Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from layerfs.changeset.build import building, ingest_layer, not_empty, tree_of
from layerfs.changeset.entry import IGNORED_XATTRS, read_xattrs
from layerfs.errors import FormatError, LayerfsError, StoreError, UnsupportedFormat, quoted
from layerfs.formats.tree import MAX_SYMLINKS, Node
from layerfs.formats.whiteout import (
    LINK_XATTR,
    OVERRIDE_XATTR,
    format_override,
    is_private_xattr,
    is_whiteout_device,
    mark_prefix,
    usable_mode,
)
from layerfs.linux.process import may_give_away
from layerfs.linux.safe_path import remove_tree
from layerfs.linux.sparse import write_sparse
from layerfs.linux.whiteout_xattr import has_whiteout_xattr, make_whiteout_xattr
from layerfs.store.gc import collect
from layerfs.store.handle import StoreHandle
from layerfs.store.layer_writer import LayerKey
from layerfs.store.snapshot import keeps_owners
from layerfs.store.view import ImageTree

__all__ = ["apply_tar"]

_READ = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

#: The names from the root down to a path.
Parts = tuple[bytes, ...]


def apply_tar(
    handle: StoreHandle,
    pieces: Iterable[bytes],
    upper: str,
    lower: ImageTree,
    *,
    userxattr: bool = False,
    check: Callable[[], None] | None = None,
) -> None:
    """Change a writable layer as an OCI layer says.

    Args:
        handle: the store, in which the tar is kept meanwhile.
        pieces: of the uncompressed tar.
        upper: the directory of the writable layer, not mounted.
        lower: the image's tree.
        userxattr: whether overlayfs's marks are in ``user.overlay.*``.
        check: polled; what it raises ends the work.

    Raises:
        FormatError: no tar, or it leaves its root: nothing was changed; or it does not fit the container.
        UnsupportedFormat: the container has directories that were renamed without being copied, or the layer owners
            that this user namespace lacks.
        StoreError: ENOSPC and the like.
    """
    try:
        with building(handle, check=check) as ingest:
            layer = ingest_layer(ingest, not_empty(pieces)).layer
            ingest.flush()
            root = tree_of(handle, layer, ingest.keys.get)
            fd = os.open(upper, _DIRECTORY)
            try:
                gives = may_give_away() and not (userxattr and keeps_owners(upper))
                _Applying(handle, fd, lower, mark_prefix(userxattr=userxattr), check, gives=gives).run(root)
            finally:
                os.close(fd)
    except OSError as error:
        raise StoreError(f"cannot apply the layer: {error.strerror}", root=handle.layout.root) from error
    with contextlib.suppress(OSError, LayerfsError):  # the container is changed; what stays goes another time
        collect(handle)


class _Applying:
    """One run of :func:`apply_tar`."""

    def __init__(
        self,
        handle: StoreHandle,
        upper: int,
        lower: ImageTree,
        prefix: bytes,
        check: Callable[[], None] | None,
        *,
        gives: bool,
    ) -> None:
        self._handle = handle
        self._upper = upper
        self._lower = lower
        self._prefix = prefix
        self._check = check
        self._gives = gives
        self._made: dict[Node, Parts] = {}  # the first path of each file that was made
        self._times: dict[Parts, int] = {}  # what directories shall have in the end
        self._data: dict[LayerKey, int] = {}

    def run(self, root: Node) -> None:
        """Hide what the layer hides, make what it has, give directories their times."""
        operations = list(self._flat(root))
        self._check_links(operations)
        self._check_owners(operations)
        try:
            for path, node in operations:
                self._poll()
                if node.is_whiteout:
                    self._hide(path)
                elif node.children is not None and node.is_opaque:
                    self._empty(path)
            for path, node in operations:
                self._poll()
                if node.children is not None:
                    self._make_directory(path, node)
                elif not node.is_whiteout:
                    self._make(path, node)
            for path in sorted(self._times, key=len, reverse=True):
                with self._directory(path) as fd:
                    os.utime(fd, ns=(self._times[path], self._times[path]))
        finally:
            while self._data:
                os.close(self._data.popitem()[1])

    def _check_links(self, operations: Sequence[tuple[Parts, Node]]) -> None:
        """Refuse hard links to what the container has not, or will not have, before anything is changed.

        Raises:
            FormatError: there is one.
        """
        hidden = {path for path, node in operations if node.is_whiteout or node.is_opaque}
        for path, node in operations:
            if node.xattrs is None or LINK_XATTR not in node.xattrs:
                continue
            text = node.xattrs[LINK_XATTR]
            parts = tuple(part for part in text.split(b"/") if part and part != b".")
            target = (*self._followed(parts[:-1]), parts[-1])
            status, nid = self._look(target)
            mode = status.st_mode if status is not None else None if nid is None else self._lower.inode(nid).mode
            gone = any(target[:depth] in hidden for depth in range(1, len(target) + 1))
            if mode is None or stat.S_ISDIR(mode) or gone:
                name = quoted(b"/".join(path))
                raise FormatError(f"{name} is a hard link to {quoted(text)}, which is no file of the container")

    def _check_owners(self, operations: Sequence[tuple[Parts, Node]]) -> None:
        """Refuse owners that this user namespace does not have, before anything is changed.

        Raises:
            UnsupportedFormat: there is one.
        """
        if not self._gives:
            return
        owners = {(node.uid, node.gid): path for path, node in operations if not node.is_whiteout}
        for (uid, gid), path in owners.items():
            if not may_give_away(uid, gid):
                raise UnsupportedFormat(
                    f"{quoted(b'/'.join(path))} belongs to {uid}:{gid}, whom this user namespace does not have"
                )

    def _poll(self) -> None:
        if self._check is not None:
            self._check()

    def _flat(self, root: Node) -> Iterator[tuple[Parts, Node]]:
        """Yield every node with where it goes in the container, directories first."""
        stack: list[tuple[Parts, Node]] = [((), root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            assert node.children is not None
            for name, child in sorted(node.children.items()):
                place = (*path, name)
                if child.children is None:
                    yield place, child
                else:
                    stack.append((self._followed(place) if child.is_implicit else place, child))

    def _followed(self, path: Parts) -> Parts:
        """Return where a directory's path leads in the container."""
        trail: Parts = ()
        todo = list(path[::-1])
        budget = MAX_SYMLINKS
        while todo:
            name = todo.pop()
            if name == b"..":
                trail = trail[:-1]
                continue
            target = self._link_target((*trail, name))
            if target is None:
                trail = (*trail, name)
                continue
            budget -= 1
            if budget < 0:
                raise FormatError(f"more than {MAX_SYMLINKS} symlinks in {quoted(b'/'.join(path))}")
            if target.startswith(b"/"):
                trail = ()
            todo += [part for part in target.split(b"/")[::-1] if part and part != b"."]
        return trail

    def _link_target(self, path: Parts) -> bytes | None:
        status, nid = self._look(path)
        if status is not None:
            if not stat.S_ISLNK(status.st_mode):
                return None
            with self._directory(path[:-1]) as fd:
                return os.readlink(path[-1], dir_fd=fd)
        if nid is not None and stat.S_ISLNK(self._lower.inode(nid).mode):
            return self._lower.readlink(nid)
        return None

    def _look(self, path: Parts) -> tuple[os.stat_result | None, int | None]:
        """Return what the container shows at a path: status in the upper, and the lower inode that shows (through)."""
        fd: int | None = os.dup(self._upper)
        nid: int | None = self._lower.root
        status: os.stat_result | None = os.fstat(self._upper)
        try:
            for name in path:
                if status is not None and not stat.S_ISDIR(status.st_mode):
                    return None, None
                through = self._child(nid, name)
                status = None
                if fd is not None:
                    try:
                        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        os.close(fd)
                        fd = None
                if status is None:
                    nid = through
                    continue
                assert fd is not None
                if self._is_whiteout(name, fd, status):
                    return None, None
                nid = None
                if stat.S_ISDIR(status.st_mode):
                    inner = os.open(name, _DIRECTORY, dir_fd=fd)
                    os.close(fd)
                    fd = inner
                    nid = through if not self._is_opaque(fd) else None
                    if nid is not None and not stat.S_ISDIR(self._lower.inode(nid).mode):
                        nid = None
        finally:
            if fd is not None:
                os.close(fd)
        return status, nid

    def _child(self, nid: int | None, name: bytes) -> int | None:
        if nid is None or not stat.S_ISDIR(self._lower.inode(nid).mode):
            return None
        return self._lower.lookup(nid, name)

    def _is_opaque(self, fd: int) -> bool:
        marks = read_xattrs(fd)
        if self._prefix + b"redirect" in marks:
            raise UnsupportedFormat("the container has directories that were renamed without being copied")
        return marks.get(self._prefix + b"opaque") == b"y"

    def _is_whiteout(self, name: bytes, fd: int, status: os.stat_result) -> bool:
        """Whether an entry of the upper hides a name: a device, or a file that a directory with such admits."""
        if is_whiteout_device(status.st_mode, status.st_rdev):
            return True
        if status.st_size or not stat.S_ISREG(status.st_mode) or read_xattrs(fd).get(self._prefix + b"opaque") != b"x":
            return False
        return has_whiteout_xattr(name, fd, self._prefix)

    def _make_whiteout(self, name: bytes, fd: int) -> None:
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=fd)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP}:
                raise
            # The store lies on an overlay, which takes no such device. Marks of a directory: it is not opaque, or
            # nothing below it would have to be hidden.
            os.setxattr(fd, self._prefix + b"opaque", b"x")
            make_whiteout_xattr(name, fd, self._prefix)

    @contextmanager
    def _directory(self, path: Parts) -> Iterator[int]:
        """Open a directory of the upper; what the container shows but the upper lacks is copied up, the rest made."""
        fd = os.dup(self._upper)
        try:
            self._times.setdefault((), os.fstat(fd).st_mtime_ns)
            for depth, name in enumerate(path, 1):
                here = path[:depth]
                try:
                    inner = os.open(name, _DIRECTORY, dir_fd=fd)
                except (FileNotFoundError, NotADirectoryError):
                    inner = self._new_directory(fd, here)
                os.close(fd)
                fd = inner
                self._times.setdefault(here, os.fstat(fd).st_mtime_ns)
            yield fd
        finally:
            os.close(fd)

    def _new_directory(self, fd: int, path: Parts) -> int:
        """Make a directory in the upper, with the attributes of the lower one if that shows there."""
        _, nid = self._look(path)
        _, parent = self._look(path[:-1])
        hidden = self._child(parent, path[-1])
        remove_tree(path[-1], dir_fd=fd, missing_ok=True)
        os.mkdir(path[-1], 0o755, dir_fd=fd)
        inner = os.open(path[-1], _DIRECTORY, dir_fd=fd)
        if nid is not None and stat.S_ISDIR(self._lower.inode(nid).mode):
            inode = self._lower.inode(nid)
            self._dress(inner, inode.mode, inode.uid, inode.gid, self._lower.xattrs(nid))
            os.utime(inner, ns=(0, inode.mtime * 1_000_000_000 + inode.mtime_ns))
        else:
            self._dress(inner, 0o40755, 0, 0, {})
            if hidden is not None:
                os.setxattr(inner, self._prefix + b"opaque", b"y")
        return inner

    def _hide(self, path: Parts) -> None:
        status, nid = self._look(path)
        if status is None and nid is None:
            return
        _, parent = self._look(path[:-1])
        below = self._child(parent, path[-1])
        with self._directory(path[:-1]) as fd:
            if status is not None:
                remove_tree(path[-1], dir_fd=fd)
            if below is not None:
                self._make_whiteout(path[-1], fd)

    def _empty(self, path: Parts) -> None:
        """Hide all that is in a directory."""
        status, nid = self._look(path)
        is_directory = (status is not None and stat.S_ISDIR(status.st_mode)) or (
            status is None and nid is not None and stat.S_ISDIR(self._lower.inode(nid).mode)
        )
        if not is_directory:
            return  # what replaces it hides it
        with self._directory(path) as fd:
            for name in os.listdir(fd):
                remove_tree(name, dir_fd=fd)
            if not path:  # the mark means nothing at the root
                for hidden, _, _ in self._lower.tree.scan(self._lower.root):
                    self._make_whiteout(hidden, fd)
            elif nid is not None:
                os.setxattr(fd, self._prefix + b"opaque", b"y")

    def _make_directory(self, path: Parts, node: Node) -> None:
        with self._directory(path) as fd:
            if not node.is_implicit:
                if path:
                    self._is_opaque(fd)  # refuses a redirect
                for name in read_xattrs(fd):
                    if not name.startswith(self._prefix) and name not in IGNORED_XATTRS:
                        os.removexattr(fd, name)
                self._dress(fd, node.mode, node.uid, node.gid, node.xattrs or {})
                self._times[path] = node.mtime * 1_000_000_000 + node.mtime_ns

    def _make(self, path: Parts, node: Node) -> None:
        """Make what is no directory, in place of whatever is there."""
        if node.xattrs is not None and LINK_XATTR in node.xattrs:
            self._link(path, self._copied_up(node.xattrs[LINK_XATTR]))
            return
        earlier = self._made.get(node)
        if earlier is not None:
            self._link(path, earlier)
            return
        self._made[node] = path
        with self._directory(path[:-1]) as fd:
            name = path[-1]
            remove_tree(name, dir_fd=fd, missing_ok=True)
            times = (0, node.mtime * 1_000_000_000 + node.mtime_ns)
            if stat.S_ISREG(node.mode):
                file = os.open(name, _NEW_FILE, 0o600, dir_fd=fd)
                try:
                    write_sparse(file, self._content(node), node.size)
                    self._dress(file, node.mode, node.uid, node.gid, node.xattrs or {})
                    os.utime(file, ns=times)
                finally:
                    os.close(file)
                return
            if node.target is not None:
                os.symlink(node.target, name, dir_fd=fd)
            else:
                os.mknod(name, stat.S_IFMT(node.mode) | 0o600, node.rdev, dir_fd=fd)
            if self._gives:
                os.chown(name, node.uid, node.gid, dir_fd=fd, follow_symlinks=False)
            for key, value in (node.xattrs or {}).items():
                os.setxattr(b"/proc/self/fd/%d/%b" % (fd, name), key, value, follow_symlinks=False)
            if node.target is None:
                os.chmod(name, stat.S_IMODE(node.mode), dir_fd=fd)
            os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)

    def _link(self, path: Parts, target: Parts) -> None:
        with self._directory(target[:-1]) as source, self._directory(path[:-1]) as fd:
            if path == target:
                return
            remove_tree(path[-1], dir_fd=fd, missing_ok=True)
            os.link(target[-1], path[-1], src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)

    def _copied_up(self, text: bytes) -> Parts:
        """Return the path of a file of the container that a hard link leads to, in the upper from now on."""
        parts = tuple(part for part in text.split(b"/") if part and part != b".")
        path = (*self._followed(parts[:-1]), parts[-1])
        status, nid = self._look(path)
        if status is None and nid is not None and not stat.S_ISDIR(self._lower.inode(nid).mode):
            inode = self._lower.inode(nid)
            node = Node(inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_ns, self._lower.xattrs(nid) or None)
            node.rdev, node.size = inode.rdev, inode.size
            node.target = self._lower.readlink(nid) if stat.S_ISLNK(inode.mode) else None
            node.device = nid
            self._make(path, node)
        elif status is None or stat.S_ISDIR(status.st_mode):
            raise FormatError(f"{quoted(text)}, the target of a hard link, is no file of the container")
        return path

    def _content(self, node: Node) -> Iterator[bytes]:
        """Yield the bytes of a file: of the layer, or of the image when it is copied up."""
        if isinstance(node.device, int):
            yield from self._lower.pieces(node.device)
            return
        if not isinstance(node.device, LayerKey):
            return
        fd = self._data.get(node.device)
        if fd is None:
            path = self._handle.layout.layer_tar(node.device.known)
            fd = self._data[node.device] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        position, end = node.offset, node.offset + node.size
        while position < end:
            piece = os.pread(fd, min(_READ, end - position), position)
            if not piece:
                raise FormatError("the layer is cut short")
            yield piece
            position += len(piece)

    def _dress(self, fd: int, mode: int, uid: int, gid: int, xattrs: Mapping[bytes, bytes]) -> None:
        """Give a file or directory its owner, xattrs and mode."""
        # The owner first: changing it clears set-user-ID bits and file capabilities.
        if self._gives:
            os.fchown(fd, uid, gid)
        for name, value in xattrs.items():
            if not is_private_xattr(name):
                os.setxattr(fd, name, value)
        if self._gives:
            os.fchmod(fd, stat.S_IMODE(mode))
            return
        # Kept beside the file, which stays usable for its real owner: as the union does it.
        os.fchmod(fd, usable_mode(mode))
        os.setxattr(fd, OVERRIDE_XATTR, format_override(uid, gid, mode))
