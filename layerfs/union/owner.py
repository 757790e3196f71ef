"""Owners as they are stored and owners as they are shown, where a mount maps between the two."""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import EINVAL

from layerfs.formats.xattr import mapped_acl

__all__ = ["OwnerMap", "Range"]

#: What is shown for an owner that no range has: the kernel's overflow id.
_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Range:
    """``count`` ids: ``shown`` and following in the mount are ``stored`` and following on disk."""

    shown: int
    stored: int
    count: int


@dataclass(frozen=True, slots=True)
class OwnerMap:
    """How owners are mapped.

    Attributes:
        users: ranges of owners; none means that they are as they are.
        groups: ranges of groups.
        uid: shown for every file, whoever owns it; None shows the owner.
        gid: the same of groups.
    """

    users: tuple[Range, ...] = ()
    groups: tuple[Range, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        """Return what the mount shows."""
        return (
            _somebody(_shown(uid, self.users)) if self.uid is None else self.uid,
            _somebody(_shown(gid, self.groups)) if self.gid is None else self.gid,
        )

    def stored(self, uid: int, gid: int) -> tuple[int, int]:
        """Return what is kept on disk; where all is shown as one owner, that one stands for the image's root."""
        return (
            (0 if uid == self.uid else uid) if self.uid is not None else _somebody(_stored(uid, self.users)),
            (0 if gid == self.gid else gid) if self.gid is not None else _somebody(_stored(gid, self.groups)),
        )

    def shown_acl(self, value: bytes) -> bytes:
        """Return an ACL as the mount shows it, without those whom no range has.

        Where all is shown as one owner, ACLs name whom they name.
        """
        return mapped_acl(value, lambda uid: _shown(uid, self.users), lambda gid: _shown(gid, self.groups))

    def stored_acl(self, value: bytes) -> bytes:
        """Return an ACL as it is kept on disk.

        Raises:
            OSError: EINVAL for one that no range has, as in a user namespace.
        """

        def stored(number: int, ranges: tuple[Range, ...]) -> int:
            found = _stored(number, ranges)
            if found is None:
                raise OSError(EINVAL, os.strerror(EINVAL))
            return found

        return mapped_acl(value, lambda uid: stored(uid, self.users), lambda gid: stored(gid, self.groups))


def _shown(number: int, ranges: tuple[Range, ...]) -> int | None:
    """Return what an id is in the mount; None for one that no range has."""
    for entry in ranges:
        if entry.stored <= number < entry.stored + entry.count:
            return number - entry.stored + entry.shown
    return None if ranges else number


def _stored(number: int, ranges: tuple[Range, ...]) -> int | None:
    """Return what an id is on disk; None for one that no range has, which would be another one's, seen from here."""
    for entry in ranges:
        if entry.shown <= number < entry.shown + entry.count:
            return number - entry.shown + entry.stored
    return None if ranges and number >= 0 else number


def _somebody(number: int | None) -> int:
    return _NOBODY if number is None else number
