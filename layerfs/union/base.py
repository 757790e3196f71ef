"""What all parts of the union stand on: its inodes, what a name means, and copying up.

Invariant: what a name means is looked up each time, in the upper directory and then in the lower tree; only inodes that
are in use are kept.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import OrderedDict, deque
from errno import EDQUOT, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOSPC, EPERM, EROFS
from typing import Protocol

from layerfs.formats.whiteout import TRUSTED_PREFIX
from layerfs.linux.memory import return_memory
from layerfs.union.attribute import Attributes
from layerfs.union.copy_up import copy_inode
from layerfs.union.limit import descriptor_share
from layerfs.union.lower import LowerTree, Reference
from layerfs.union.mark import descriptor_path, open_inode
from layerfs.union.node import ROOT, Content, Node, NodeTable
from layerfs.union.owner import OwnerMap
from layerfs.union.upper import Upper
from layerfs.union.write_back import WriteBack

__all__ = ["NO_ROOM", "Caller", "UnionPart"]

_INODE = os.O_PATH | os.O_CLOEXEC
_NAME_MAX = 255
#: What an upper answers that can take no more; EMLINK: no more links to this file.
NO_ROOM = frozenset({ENOSPC, EDQUOT, EMLINK})


class Caller(Protocol):
    """Who asks."""

    @property
    def uid(self) -> int:
        """Its user."""

    @property
    def gid(self) -> int:
        """Its group."""

    @property
    def umask(self) -> int:
        """The bits that new files do not get."""


class UnionPart:
    """A lower tree with an upper directory on top; a part of :class:`layerfs.union.union.Union`.

    Not thread-safe: whoever serves requests does it one after the other.
    """

    def __init__(
        self,
        lower: LowerTree,
        upper: Upper | None,
        *,
        owners: OwnerMap | None = None,
        raw_umask: bool = False,
        static_nlink: bool = False,
        prefix: bytes | None = None,
        sync: bool = True,
    ) -> None:
        """Put the two together.

        Args:
            lower: the tree below.
            upper: what takes the changes; None makes the union read-only.
            owners: how owners are mapped.
            raw_umask: whether modes of new files come without the umask applied.
            static_nlink: show one link for every directory.
            prefix: of the xattrs that are marks; None is the upper's.
            sync: False answers every fsync at once.
        """
        self._lower = lower
        self._upper = upper
        self._owners = owners
        self._raw_umask = raw_umask
        self._umask: int | None = None
        self._late = WriteBack() if sync and upper is not None else None
        self._static_nlink = static_nlink
        self._alters = owners is not None or static_nlink
        self._prefix = prefix or (upper.prefix if upper is not None else TRUSTED_PREFIX)
        self._name_max = upper.name_max if upper is not None else _NAME_MAX
        self._base = lower.limit
        #: Lower directories that were listed, each with what its listing takes, in this order; and all that together.
        self._listings: deque[tuple[Node, int]] = deque()
        self._listed = 0
        #: The most inodes that lived at a time since memory was last given back.
        self._most = 0
        #: Files whose bytes have a descriptor of their own, in the order in which they were opened.
        self._open: OrderedDict[Node, None] = OrderedDict()
        #: How many of them are kept; opening one again costs two system calls.
        self._kept = descriptor_share()
        #: Numbers of files of the upper that are known by another one: those that were copied up.
        self._born: dict[int, int] = {}
        #: And of files of the lower tree whose own one is that of a copy that is gone.
        self._parted: dict[int, int] = {}
        root = Node(ROOT, stat.S_IFDIR, lower.root, upper=upper is not None)
        self._nodes = NodeTable(root, upper.release if upper is not None else lambda _node: None, lower)
        if upper is not None:
            root.marked = upper.opaque_mark(b".", upper.root) == b"x"

    def close(self) -> None:
        """Close everything that is open."""
        if self._late is not None:
            self._late.close()
        self._nodes.close()
        self._lower.close()
        if self._upper is not None:
            self._upper.close()

    def close_spare(self) -> None:
        """Close every descriptor that is only kept to be at hand, for one who has run out of them."""
        while self._open:
            self._open.popitem()[0].close_content()
        if self._late is not None:
            self._late.finish()
        self._lower.close_directories()
        if self._upper is not None:
            self._upper.close_directories()

    def _let_go(self) -> None:
        """Give back what is only kept to be found sooner, now that the kernel has forgotten most inodes."""
        self._most = len(self._nodes)
        while self._listings:
            node, _ = self._listings.popleft()
            if not node.upper:  # the listing of an upper directory alone knows the places in it
                node.listing = None
        self._listed = 0
        self._lower.forget_directories()
        return_memory()

    @property
    def living(self) -> int:
        """How many inodes are in use."""
        return len(self._nodes)

    def _find(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result | None] | None:
        """Return the inode that a name means, or None; and its status, if the upper was asked for that.

        It lives only if the caller keeps it.
        """
        if len(name) > self._name_max:
            raise OSError(ENAMETOOLONG, os.strerror(ENAMETOOLONG))
        below = None
        if parent.upper and self._upper is not None:
            status, hidden = self._upper.find(parent, name)
            if hidden:
                return None
            if status is not None:
                return self._find_upper(parent, name, status), status
        if parent.lower is not None:
            below = self._lower.lookup(parent.lower, name)
        return None if below is None else (self._lower_node(parent, name, below), None)

    def _lower_node(self, parent: Node, name: bytes, reference: Reference) -> Node:
        """Return the node of a name that only the lower tree has."""
        below = self._lower.number(reference)
        number = self._parted.get(below, below)
        node = self._nodes.get(number)
        if node is not None and node.upper and node.is_gone and not node.is_directory:
            # The copy went before this name found room to be linked to it: as in the kernel they are two files now.
            number = self._parted[below] = self._nodes.spare_number()
            node = None
        if node is None:
            node = Node(number, self._lower.kind(reference), reference, upper=False)
            self._nodes.add(node, parent, name)
        elif node.upper and not node.is_directory:
            # Who looks is not kept from it by an upper that is full: the file is there, by another name.
            with contextlib.suppress(OSError):
                self._relink(node, parent, name)
                if node.others is not None:
                    self._link_others(node, node.others)
        else:
            # Also one that seemed gone: names that nobody had met were not counted.
            self._nodes.name(node, parent, name)
        return node

    def _relink(self, node: Node, parent: Node, name: bytes) -> None:
        """Give a file that was copied up a name that the lower tree has for it and nobody had met."""
        if self._upper is None or node.is_gone:
            return
        self._copy_up(parent)
        place, first = self._upper.place(node)
        above = self._upper.directory(parent)
        times = os.fstat(above)
        os.link(first, name, src_dir_fd=place, dst_dir_fd=above, follow_symlinks=False)
        self._upper.restore_times(above, times)
        self._nodes.name(node, parent, name)

    def _find_upper(self, parent: Node, name: bytes, status: os.stat_result) -> Node:
        """Return the node of a name that the upper has."""
        kind = stat.S_IFMT(status.st_mode)
        below, mark = None, b""
        if kind == stat.S_IFDIR and parent.lower is not None:
            below = self._lower.lookup(parent.lower, name)
            if below is not None and self._lower.kind(below) != stat.S_IFDIR:
                below = None
        if kind == stat.S_IFDIR and self._upper is not None:
            # Even with nothing below: a redirect to another place may stand there.
            mark = self._upper.opaque_mark(name, self._upper.directory(parent))
            if mark == b"y":
                below = None
        number = self._number(status) if below is None else self._lower.number(below)
        node = self._nodes.get(number)
        if node is not None and node.is_gone:
            if node.fd >= 0 and os.fstat(node.fd).st_ino == status.st_ino:
                # The names of it that were known are gone, and this is another one.
                os.close(node.fd)
                node.fd = -1
            else:
                # A file that is gone still has this number: its place on disk was used again.
                number = self._born[status.st_ino] = self._nodes.spare_number()
                node = None
        if node is None:
            node = Node(number, kind, below, upper=True)
            node.marked = mark == b"x"
            self._nodes.add(node, parent, name)
        else:
            self._nodes.name(node, parent, name)
        return node

    def _number(self, status: os.stat_result) -> int:
        """Return the number of an inode of the upper."""
        number = self._born.get(status.st_ino) if self._born else None
        if number is not None:
            return number
        number = self._base + status.st_ino
        return number if number > ROOT else 1 << 61

    def _lookup(self, parent: Node, name: bytes) -> Node:
        """As :meth:`_find`, but a name that means nothing is ENOENT."""
        found = self._find(parent, name)
        if found is None:
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT))
        return found[0]

    def _attributes(self, node: Node, status: os.stat_result | None = None) -> Attributes:
        """Return what stat says of a node; ``status`` is that of its inode in the upper, if it is at hand."""
        if node.upper and self._upper is not None:
            # Directories that consist of several ones: nobody has counted their links.
            nlink = None if node.lower is None else 0 if node.is_gone else 1
            found = self._upper.attributes(node, status, nlink)
        else:
            found = self._lower.attributes(node.lower)
            if found.ino != node.ino:
                found = found._replace(ino=node.ino)
            if node.is_gone:
                found = found._replace(nlink=0)
            elif node.is_directory and self._lower.is_merged(node.lower):
                found = found._replace(nlink=1)
        return self._show(found) if self._alters else found

    def _show(self, found: Attributes) -> Attributes:
        """Return attributes as the mount shows them."""
        if self._owners is not None:
            uid, gid = self._owners.shown(found.uid, found.gid)
            found = found._replace(uid=uid, gid=gid)
        if self._static_nlink and stat.S_ISDIR(found.mode):
            found = found._replace(nlink=1)
        return found

    def _writable(self) -> Upper:
        """Return the upper.

        Raises:
            OSError: EROFS.
        """
        if self._upper is None:
            raise OSError(EROFS, os.strerror(EROFS))
        return self._upper

    def _lower_has(self, parent: Node, name: bytes) -> bool:
        """Whether the lower tree has something that a name of the upper must hide."""
        return parent.lower is not None and self._lower.lookup(parent.lower, name) is not None

    def _copy_up(self, node: Node, *, data: bool = True) -> None:
        """Bring an inode into the upper, and every directory above it first.

        Args:
            node: the inode; nothing happens if it is there.
            data: False leaves a regular file empty.

        Raises:
            OSError: EROFS, ENOSPC, EIO, EEXIST if somebody else has put something in its place; the inode is where it
                was then.
        """
        if node.upper:
            return
        upper = self._writable()
        parent = node.parent
        if parent is not None and not parent.upper:
            above = []
            while parent is not None and not parent.upper:
                above.append(parent)
                parent = parent.parent
            for directory in reversed(above):
                self._copy_one(directory, upper, data=True)
        self._copy_one(node, upper, data=data)

    def _copy_one(self, node: Node, upper: Upper, *, data: bool) -> None:
        """Copy one inode up; the directory above it is there."""
        if self._umask != 0:
            self._use_umask(0)
        copy, fd, links = copy_inode(self._lower, node.lower, upper, data=data)
        parent = node.parent
        times = None
        try:
            if parent is not None:
                times = upper.place_copy(copy, fd, parent, node.name)
            else:  # its name is gone: the copy needs none
                node.fd = open_inode(copy, upper.work) if copy else os.open(descriptor_path(fd), _INODE)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            if copy:
                upper.drop_copy(copy)
            raise
        if times is not None:
            upper.restore_times(*times)
        elif copy:
            with contextlib.suppress(OSError):  # what cannot be removed now, the next mount removes
                upper.drop_copy(copy)
        self._copied(node, upper, fd, links)

    def _use_umask(self, mask: int) -> None:
        """Set the umask of this process, which serves one request after the other."""
        if mask != self._umask:
            os.umask(mask)
            self._umask = mask

    def _copied(self, node: Node, upper: Upper, fd: int, links: int) -> None:
        """Note that an inode lies in the upper now, and go on with its descriptor; it has so many names below."""
        node.upper = True
        named = node.parent is not None
        if node.kind == stat.S_IFDIR:
            if named:
                upper.hold(node, fd)
                upper.removable.add(node.ino)  # a copy is not append-only
            else:
                os.close(fd)
            return
        reference, node.lower = node.lower, None
        status = os.fstat(fd) if fd >= 0 else upper.status(node)
        if named:  # nobody finds it by a name otherwise, and its place on disk is used again
            self._born[status.st_ino] = node.ino
        if node.content is not None:
            node.close_content()
        if fd >= 0:
            if named and status.st_size and self._late is not None:
                self._late.add(node.ino, fd)
            self._keep(node, Content(fd, 0, None, owned=True, writable=True))
        if links > 1 and named:
            self._link_others(node, reference)

    def _keep(self, node: Node, content: Content) -> None:
        """Keep a file open, and close the one that was opened longest ago if there are too many."""
        node.content = content
        if content.owned:
            opened = self._open
            opened[node] = None
            opened.move_to_end(node)
            if len(opened) > self._kept:
                opened.popitem(last=False)[0].close_content()

    def _link_others(self, node: Node, reference: Reference) -> None:
        """Let the other names of a file follow it into the upper, so that it stays one file.

        Those that find no room are tried again when they are met, and before the file loses a name. Until then the
        node does not die, for by such a name it would be taken for the lower file, without what was written to it.
        """
        pinned, node.others = node.others is not None, None
        linked = False
        try:
            for path in self._lower.paths(reference):
                self._link_other(node, self._lower.number(reference), path)
            linked = True
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        finally:
            if not linked:
                node.others = reference
            node.pins += (not linked) - pinned

    def _link_other(self, node: Node, number: int, path: list[bytes]) -> None:
        """Let one name follow, if it still shows the lower tree's file of this number."""
        directory = self._nodes[ROOT]
        try:
            for name in path[:-1]:
                try:
                    found = self._find(directory, name)
                except OSError as error:
                    if error.errno not in {EPERM, ELOOP}:
                        raise
                    return  # nobody can go there
                if found is None:
                    return
                directory = found[0]
                if not directory.is_directory:
                    return
            below = None if directory.lower is None else self._lower.lookup(directory.lower, path[-1])
            if below is None or self._lower.number(below) != number:
                return
            if directory.upper and self._upper is not None and self._upper.find(directory, path[-1])[0] is not None:
                return
            self._relink(node, directory, path[-1])
        finally:
            self._nodes.drop(directory)
