"""The whiteout that needs no device: an empty file with an xattr, in a directory whose opaque mark is ``x``.

Source: Linux fs/overlayfs/namei.c, util.c (``ovl_path_is_whiteout``), since 6.7.
"""

from __future__ import annotations

import os
from errno import ENODATA, ENOTSUP, EPERM

__all__ = ["has_whiteout_xattr", "make_whiteout_xattr"]

_NONE = frozenset({ENODATA, ENOTSUP, EPERM})
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def has_whiteout_xattr(name: bytes, dir_fd: int, prefix: bytes) -> bool:
    """Return whether an empty file has the xattr; whether that counts, its directory says.

    Args:
        name: in the directory.
        dir_fd: of the directory, perhaps opened with O_PATH.
        prefix: of the xattrs that are overlayfs's marks.

    Raises:
        OSError: ENOENT, EIO.
    """
    try:
        os.getxattr(b"/proc/self/fd/%d/%b" % (dir_fd, name), prefix + b"whiteout", follow_symlinks=False)
    except OSError as error:
        if error.errno in _NONE:
            return False
        raise
    return True


def make_whiteout_xattr(name: bytes, dir_fd: int, prefix: bytes) -> None:
    """Make such a file, in a directory that must have got its mark before.

    Args:
        name: that nothing has.
        dir_fd: of the directory, perhaps opened with O_PATH.
        prefix: of the xattrs that are overlayfs's marks.

    Raises:
        OSError: EEXIST, ENOSPC, EPERM; then there is no file.
    """
    fd = os.open(name, _NEW, 0o600, dir_fd=dir_fd)
    try:
        os.setxattr(fd, prefix + b"whiteout", b"y")
    except BaseException:
        os.unlink(name, dir_fd=dir_fd)
        raise
    finally:
        os.close(fd)
