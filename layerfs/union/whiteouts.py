"""The whiteouts of an upper directory: links to one of them, as those of overlayfs.

An inode for each would use up what a small file system has of them, and on one that is in use making it takes 50 to 90
µs, where a link takes 6.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from layerfs.linux.whiteout_xattr import make_whiteout_xattr

__all__ = ["Whiteouts"]

#: What says that the kept one can have no more links: there are too many, it is gone, or there are no links here.
_NO_LINK = frozenset({errno.EMLINK, errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV})


class Whiteouts:
    """Makes whiteouts.

    Attributes:
        plain: whether they are devices; else empty files with an xattr, as in nested overlays.
    """

    def __init__(self, work: int, prefix: bytes, temporary: Callable[[], bytes]) -> None:
        """Find out which kind the file system takes: one that is itself an overlay takes no devices.

        Args:
            work: descriptor of the work directory, where one is kept that others are links to.
            prefix: of the xattrs that are marks.
            temporary: returns a new name there.

        Raises:
            OSError: ENOSPC, EROFS and the like.
        """
        self._work = work
        self._prefix = prefix
        self._temporary = temporary
        self._kept = b""
        self.plain = True
        name = temporary()
        try:
            self._make(name, work)
            os.stat(name, dir_fd=work, follow_symlinks=False)
        except FileNotFoundError as error:  # fuse-overlayfs: it has whiteouts of its own, and nobody sees them
            raise OSError(errno.EOPNOTSUPP, "the file system of the upper directory keeps no whiteouts") from error
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
                raise
            self.plain = False
        else:
            os.unlink(name, dir_fd=work)

    def make(self, name: bytes, dir_fd: int) -> None:
        """Make a whiteout; nobody needs a privilege for it since Linux 5.8.

        Raises:
            OSError: EEXIST, ENOENT for a directory that is gone, ENOSPC, EDQUOT.
        """
        if self._kept:
            try:
                os.link(self._kept, name, src_dir_fd=self._work, dst_dir_fd=dir_fd, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
            else:
                return
        self._make(name, dir_fd)
        kept = self._temporary()
        with contextlib.suppress(OSError):  # there are no links, or no room for this one: the next one tries again
            os.link(name, kept, src_dir_fd=dir_fd, dst_dir_fd=self._work, follow_symlinks=False)
            self.drop()
            self._kept = kept

    def drop(self) -> None:
        """Remove the one that is kept."""
        if self._kept:
            with contextlib.suppress(OSError):
                os.unlink(self._kept, dir_fd=self._work)
            self._kept = b""

    def _make(self, name: bytes, dir_fd: int) -> None:
        if self.plain:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
        else:
            make_whiteout_xattr(name, dir_fd, self._prefix)
