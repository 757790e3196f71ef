"""Whether an overlay writes to a directory, wherever it is mounted: the kernel knows, also of what nobody can see.

Source: Linux fs/overlayfs/super.c, ovl_get_upper (an upper directory that is in use is EBUSY with ``index=on``) and
ovl_get_workdir (a work directory on another file system is EINVAL); the first is called before the second.
"""

from __future__ import annotations

import errno
import os

from layerfs.linux.mount_api import fsconfig_create, fsconfig_string, fsmount, fsopen

__all__ = ["is_upper_in_use"]


def is_upper_in_use(upper: str | os.PathLike[str]) -> bool | None:
    """Return whether some overlay has this upper directory, in any namespace, lazily unmounted ones included.

    An overlay that cannot be made is asked for, and nothing is written. The kernel's log gets a line.

    Args:
        upper: the directory.

    Returns:
        None where the kernel does not tell: without CAP_SYS_ADMIN, before Linux 5.2, or of a directory on a file system
        that overlays do not write to.
    """
    opened: list[int] = []
    try:
        opened.append(elsewhere := fsopen("tmpfs"))
        fsconfig_create(elsewhere)
        opened.append(work := fsmount(elsewhere))
        opened.append(directory := os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        opened.append(overlay := fsopen("overlay"))
        fsconfig_string(overlay, "index", "on")
        fsconfig_string(overlay, "lowerdir", "/")
        # By descriptors: a path may be longer than an option.
        fsconfig_string(overlay, "upperdir", f"/proc/self/fd/{directory}")
        fsconfig_string(overlay, "workdir", f"/proc/self/fd/{work}")
        try:
            fsconfig_create(overlay)
        except OSError as error:
            return {errno.EBUSY: True, errno.EINVAL: False}.get(error.errno or 0)
    except OSError:
        return None
    finally:
        for fd in opened:
            os.close(fd)
    return None
