"""How one layer hides names of the layers below: the one place that knows.

In a layer tar an empty file ``.wh.NAME`` hides NAME, and ``.wh..wh..opq`` hides everything below its directory; both
act on lower layers only, wherever they stand in the tar (OCI image-spec v1.1 layer.md, "Whiteouts"). On disk and in
``tree.erofs`` overlayfs's forms are used: a character device 0/0, and the xattr ``trusted.overlay.opaque``
(Linux Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
"""

from __future__ import annotations

import stat

from layerfs.errors import UnsafePath, quoted

__all__ = [
    "AUFS_PREFIX",
    "IMPLICIT_XATTR",
    "LINK_XATTR",
    "OPAQUE_MARKER",
    "OPAQUE_XATTR",
    "OVERRIDE_XATTR",
    "TRUSTED_PREFIX",
    "USER_PREFIX",
    "WHITEOUT_PREFIX",
    "format_override",
    "hidden_name",
    "is_private_xattr",
    "is_whiteout_device",
    "mark_prefix",
    "parse_override",
    "usable_mode",
]

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"

#: Of overlayfs's marks, which are ``PREFIXopaque`` and so on; the other one is for mounts with ``userxattr``.
TRUSTED_PREFIX = b"trusted.overlay."
USER_PREFIX = b"user.overlay."

OPAQUE_XATTR = TRUSTED_PREFIX + b"opaque"

#: Marks, in a layer's own tree, a directory that the layer does not contain but that one of its paths runs through:
#: when layers are merged its attributes come from below.
IMPLICIT_XATTR = b"trusted.layerfs.implicit"

#: Marks, in a layer's own tree, a hard link to a file that only a lower layer has; the value is the target's path.
LINK_XATTR = b"trusted.layerfs.link"

#: AUFS's own bookkeeping names (``.wh..wh.aufs``, ``.wh..wh.plnk``, ``.wh..wh.orph``), found in old layers.
AUFS_PREFIX = b".wh..wh."

#: Names that a file system reads as commands. An archive may not set them in any spelling: they would turn files of
#: the image into redirects, opaque directories or foreign owners once mounted.
_PRIVATE_PREFIXES = (
    TRUSTED_PREFIX, USER_PREFIX, b"user.fuseoverlayfs.", b"security.fuseoverlayfs.", b"trusted.layerfs.",
)  # fmt: skip
#: Owner and mode where a process may not chown: ``UID:GID:MODE``, the mode in octal (containers/storage's form).
OVERRIDE_XATTR = b"user.containers.override_stat"

_PRIVATE_NAMES = frozenset((OVERRIDE_XATTR, b"user.rootlesscontainers"))


def hidden_name(name: bytes) -> bytes | None:
    """Return which lower name a file called ``name`` hides: None when it is no whiteout.

    The empty string stands for "all of the directory" (the opaque marker). AUFS's bookkeeping files hide nothing and
    are no files of the layer either; they yield themselves.

    Raises:
        UnsafePath: a whiteout of nothing, ``.`` or ``..``.
    """
    if not name.startswith(WHITEOUT_PREFIX):
        return None
    if name == OPAQUE_MARKER:
        return b""
    if name.startswith(AUFS_PREFIX):
        return name
    hidden = name[len(WHITEOUT_PREFIX) :]
    if hidden in (b"", b".", b".."):
        raise UnsafePath(f"whiteout {quoted(name)} names no file")
    return hidden


def parse_override(value: bytes) -> tuple[int, int, int] | None:
    """Return owner, group and permission bits of an :data:`OVERRIDE_XATTR`; other programs append more fields to it."""
    parts = value.rstrip(b"\0").split(b":")
    try:
        return int(parts[0]), int(parts[1]), int(parts[2], 8) & 0o7777
    except (ValueError, IndexError):
        return None


def format_override(uid: int, gid: int, mode: int) -> bytes:
    """Return the :data:`OVERRIDE_XATTR` for owner, group and a mode, whose type bits do not count."""
    return b"%d:%d:%o" % (uid, gid, stat.S_IMODE(mode))


def usable_mode(mode: int) -> int:
    """Return the permission bits of a file whose mode is kept beside it: its real owner can go on using it."""
    return stat.S_IMODE(mode) & 0o777 | (0o700 if stat.S_ISDIR(mode) else 0o600)


def mark_prefix(*, userxattr: bool) -> bytes:
    """Return the prefix of the marks of a mount with or without the option ``userxattr``."""
    return USER_PREFIX if userxattr else TRUSTED_PREFIX


def is_private_xattr(name: bytes) -> bool:
    """Return whether an xattr of this name would act as a command on a mount, and so may not come from an archive."""
    return name.startswith(_PRIVATE_PREFIXES) or name in _PRIVATE_NAMES


def is_whiteout_device(mode: int, rdev: int) -> bool:
    """Return whether these attributes are overlayfs's whiteout, a character device 0/0."""
    return rdev == 0 and stat.S_ISCHR(mode)
