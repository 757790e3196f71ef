"""Owners as they are stored and owners as they are shown, where a mount maps between the two."""

from __future__ import annotations

from dataclasses import dataclass

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
            _shown(uid, self.users) if self.uid is None else self.uid,
            _shown(gid, self.groups) if self.gid is None else self.gid,
        )

    def stored(self, uid: int, gid: int) -> tuple[int, int]:
        """Return what is kept on disk; where all is shown as one owner, that one stands for the image's root."""
        return (
            (0 if uid == self.uid else uid) if self.uid is not None else _stored(uid, self.users),
            (0 if gid == self.gid else gid) if self.gid is not None else _stored(gid, self.groups),
        )

    def shown_acl(self, value: bytes) -> bytes:
        """Return an ACL as the mount shows it; where all is shown as one owner, ACLs name whom they name."""
        return mapped_acl(value, lambda uid: _shown(uid, self.users), lambda gid: _shown(gid, self.groups))

    def stored_acl(self, value: bytes) -> bytes:
        """Return an ACL as it is kept on disk."""
        return mapped_acl(value, lambda uid: _stored(uid, self.users), lambda gid: _stored(gid, self.groups))


def _shown(number: int, ranges: tuple[Range, ...]) -> int:
    for entry in ranges:
        if entry.stored <= number < entry.stored + entry.count:
            return number - entry.stored + entry.shown
    return _NOBODY if ranges else number


def _stored(number: int, ranges: tuple[Range, ...]) -> int:
    for entry in ranges:
        if entry.shown <= number < entry.shown + entry.count:
            return number - entry.shown + entry.stored
    # One that no range has would be another one's, seen from here.
    return _NOBODY if ranges and number >= 0 else number
