"""Extended attributes as archives carry them: which of them a tree may have, and whether their values are sound.

A tree is mounted, so what would be an error of ``setxattr`` when other tools unpack a layer has to be found here: the
kernel answers EINVAL to every access of a file whose ACL it cannot parse, even to root.

Sources: xattr(7); Linux include/uapi/linux/{limits,xattr,posix_acl_xattr,capability}.h, fs/posix_acl.c
(posix_acl_valid), security/commoncap.c (cap_convert_nscap).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Mapping

from layerfs.errors import FormatError, LimitExceeded, quoted
from layerfs.formats.whiteout import is_private_xattr

__all__ = [
    "ACCESS_ACL",
    "ACL_NAMES",
    "MAX_XATTR_NAME",
    "MAX_XATTR_VALUE",
    "accepted_xattrs",
    "acl_of_owner",
    "limited_acl",
    "mapped_acl",
    "mode_of_acl",
]

#: The longest name, namespace included: XATTR_NAME_MAX.
MAX_XATTR_NAME = 255

#: The longest value. The kernel takes one byte more (XATTR_SIZE_MAX), which EROFS has no number for.
MAX_XATTR_VALUE = 0xFFFF

_NAMESPACES = (b"user.", b"trusted.", b"security.")
ACCESS_ACL = b"system.posix_acl_access"
_DEFAULT_ACL = b"system.posix_acl_default"
ACL_NAMES = frozenset((ACCESS_ACL, _DEFAULT_ACL))

#: Bytes of all names of a file, each with a NUL: XATTR_LIST_MAX.
_MAX_LIST = 65536

_ACL_VERSION = 2
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32

#: Revision (the top byte of the first word) to size: what the kernel lets anyone set.
_CAPABILITY_SIZES = {2: 20, 3: 24}


def accepted_xattrs(xattrs: Mapping[bytes, bytes], kind: int, file: bytes) -> dict[bytes, bytes] | None:
    """Return the xattrs that a file of an archive gets in its tree, or None when none are left.

    Left out are names that a mount reads as commands, and namespaces that Linux does not have (macOS writes
    ``com.apple.*``), which every other tool passes over too. So is what this kind of file cannot have: the kernel lists
    it and answers an error to who asks for it, and so to each copy of the file, those of overlayfs included. An empty
    ACL is no ACL.

    Args:
        xattrs: full names and values as the archive has them.
        kind: the type bits of the file's mode.
        file: the name of the file, for messages.

    Raises:
        FormatError: a name with a NUL, an ACL or a capability that the kernel would refuse to set.
        LimitExceeded: a name or value too long, or more names than the kernel lists.
    """
    kept = {}
    for name, value in xattrs.items():
        acl = name in ACL_NAMES
        if (
            not _may_have(kind, name)
            or is_private_xattr(name)
            or not (acl or name.startswith(_NAMESPACES))
            or name in _NAMESPACES
        ):
            continue
        if b"\0" in name:
            raise FormatError(f"{quoted(file)} has the xattr {quoted(name, 80)}, with a NUL in its name")
        if len(name) > MAX_XATTR_NAME or len(value) > MAX_XATTR_VALUE:
            raise LimitExceeded(f"{quoted(file)} has an xattr {quoted(name, 80)} of {len(name)}+{len(value)} bytes")
        if acl:
            if len(value) == 4 and value[0] == _ACL_VERSION:
                continue
            if not _is_acl(value):
                raise FormatError(f"{quoted(file)} has a malformed {name.decode()}")
        elif name == b"security.capability" and (len(value) < 4 or len(value) != _CAPABILITY_SIZES.get(value[3])):
            raise FormatError(f"{quoted(file)} has a malformed security.capability")
        kept[name] = value
    if sum(map(len, kept)) + len(kept) > _MAX_LIST:
        raise LimitExceeded(f"{quoted(file)} has xattrs whose names take more than {_MAX_LIST} bytes")
    return kept or None


def _may_have(kind: int, name: bytes) -> bool:
    """Return whether files of a type have xattrs of this name (xattr(7), "User extended attributes"; acl(5))."""
    if name.startswith(b"user."):
        return kind in (stat.S_IFREG, stat.S_IFDIR)
    if name in ACL_NAMES:
        return kind == stat.S_IFDIR or (kind != stat.S_IFLNK and name != _DEFAULT_ACL)
    return True


def mode_of_acl(value: bytes) -> tuple[int, bool] | None:
    """Return the permission bits that an access ACL means, and whether it says more than these; None if it is none.

    Source: Linux fs/posix_acl.c, posix_acl_equiv_mode.
    """
    if not _is_acl(value):
        return None
    found = {tag: permissions for tag, permissions, _ in _ACL_ENTRY.iter_unpack(value[4:])}
    group = found.get(_MASK, found[_GROUP_OBJ])
    return found[_USER_OBJ] << 6 | group << 3 | found[_OTHER], len(value) > 4 + 3 * _ACL_ENTRY.size


def acl_of_owner(value: bytes, mode: int) -> bytes:
    """Return an access ACL with the permissions of the owner as a mode has them."""
    entries = list(_ACL_ENTRY.iter_unpack(value[4:]))
    return value[:4] + b"".join(
        _ACL_ENTRY.pack(tag, mode >> 6 & 7 if tag == _USER_OBJ else permissions, identity)
        for tag, permissions, identity in entries
    )


def mapped_acl(value: bytes, user: Callable[[int], int | None], group: Callable[[int], int | None]) -> bytes:
    """Return an ACL with the users and groups that it names as two functions map them; what is no ACL stays.

    An entry for whom a function returns None is left out.
    """
    if not _is_acl(value):
        return value
    maps = {_USER: user, _GROUP: group}
    found = []
    for tag, permissions, identity in _ACL_ENTRY.iter_unpack(value[4:]):
        mapped = maps[tag](identity) if tag in maps else identity
        if mapped is not None:
            found.append(_ACL_ENTRY.pack(tag, permissions, mapped))
    return value[:4] + b"".join(found)


def limited_acl(value: bytes, is_user: Callable[[int], bool], is_group: Callable[[int], bool]) -> bytes:
    """Return an ACL without the users and groups that two functions do not know; what is no ACL stays.

    Nobody gains anything: the mask stays, and where one of them had less than those among whom he is now, they have as
    little. IDs may be -1, as a user namespace shows those that it does not have.
    """
    if not _is_acl(value, nobody=True):
        return value
    known = {_USER: is_user, _GROUP: is_group}
    kept, for_groups, for_others = [], 7, 7
    for tag, permissions, identity in _ACL_ENTRY.iter_unpack(value[4:]):
        if tag not in known or known[tag](identity):
            kept.append((tag, permissions, identity))
            continue
        for_others &= permissions
        if tag == _USER:  # who may be in any group
            for_groups &= permissions
    most = {_GROUP_OBJ: for_groups, _GROUP: for_groups, _OTHER: for_others}
    return value[:4] + b"".join(
        _ACL_ENTRY.pack(tag, permissions & most.get(tag, 7), identity) for tag, permissions, identity in kept
    )


def _is_acl(value: bytes, *, nobody: bool = False) -> bool:
    """Return whether this is an ACL: known tags in their order, each needed one once, IDs that exist or ``nobody``."""
    if len(value) < 4 or value[:4] != struct.pack("<I", _ACL_VERSION) or (len(value) - 4) % _ACL_ENTRY.size:
        return False
    tags = []
    for tag, permissions, identity in _ACL_ENTRY.iter_unpack(value[4:]):
        if permissions > 7 or (tag in (_USER, _GROUP) and identity == 0xFFFFFFFF and not nobody):
            return False
        tags.append(tag)
    named = _USER in tags or _GROUP in tags
    single = [tags.count(tag) for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)]
    known = tags.count(_USER) + tags.count(_GROUP) + tags.count(_MASK) + 3 == len(tags)
    # The tags' values ascend in the order that is demanded.
    return tags == sorted(tags) and single == [1, 1, 1] and known and tags.count(_MASK) in ((1,) if named else (0, 1))
