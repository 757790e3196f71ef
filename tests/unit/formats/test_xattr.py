"""Which xattrs of an archive a file gets, and which values the kernel could not live with."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from layerfs.errors import FormatError, LimitExceeded
from layerfs.formats.xattr import MAX_XATTR_NAME, MAX_XATTR_VALUE, accepted_xattrs, limited_acl

ANYONE = 0xFFFFFFFF
Entry = tuple[int, int, int]

MINIMAL: list[Entry] = [(1, 7, ANYONE), (4, 5, ANYONE), (32, 5, ANYONE)]
FULL: list[Entry] = [
    (1, 7, ANYONE),
    (2, 6, 1000),
    (2, 4, 1001),
    (4, 5, ANYONE),
    (8, 4, 50),
    (16, 7, ANYONE),
    (32, 0, ANYONE),
]


def acl(entries: list[Entry], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def capability(revision: int, size: int) -> bytes:
    return struct.pack("<I", revision << 24 | 1).ljust(size, b"\0")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"user.x", b""),
        (b"user.x", bytes(MAX_XATTR_VALUE)),
        (b"user." + b"n" * (MAX_XATTR_NAME - 5), b"1"),
        (b"user.\xff=%\n", b"1"),
        (b"trusted.x", b"1"),
        (b"security.selinux", b"system_u:object_r:x\0"),
        (b"security.capability", capability(2, 20)),
        (b"security.capability", capability(3, 24)),
        (b"system.posix_acl_access", acl(MINIMAL)),
        (b"system.posix_acl_access", acl(FULL)),
        (b"system.posix_acl_default", acl([*MINIMAL[:2], (16, 7, ANYONE), MINIMAL[2]])),
    ],
)
def test_kept(name: bytes, value: bytes) -> None:
    assert accepted_xattrs({name: value}, stat.S_IFDIR, b"f") == {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"trusted.overlay.opaque", b"y"),
        (b"user.overlay.redirect", b"/etc"),
        (b"com.apple.provenance", b"x"),
        (b"system.nfs4_acl", b"x"),
        (b"User.x", b"x"),
        (b"user.", b"x"),
        (b"user", b"x"),
        (b"", b"x"),
        (b"system.posix_acl_access", acl([])),
        (b"system.posix_acl_access\0", b""),
    ],
)
def test_dropped(name: bytes, value: bytes) -> None:
    assert accepted_xattrs({name: value}, stat.S_IFDIR, b"f") is None
    assert accepted_xattrs({name: value, b"user.keep": b"1"}, stat.S_IFDIR, b"f") == {b"user.keep": b"1"}


BAD_ACLS = [
    b"",
    b"\2\0\0",
    acl(MINIMAL, version=1),
    acl(MINIMAL)[:-1],
    acl(MINIMAL)[:-8],
    acl([*MINIMAL, MINIMAL[-1]]),
    acl(MINIMAL[::-1]),
    acl([MINIMAL[0], (2, 7, 5), *MINIMAL[1:]]),  # a named user needs a mask
    acl([(1, 8, ANYONE), *MINIMAL[1:]]),
    acl([(64, 7, ANYONE), *MINIMAL]),
    acl([MINIMAL[0], (2, 7, ANYONE), MINIMAL[1], (16, 7, ANYONE), MINIMAL[2]]),
    acl([*MINIMAL[:2], (16, 7, ANYONE), (16, 7, ANYONE), MINIMAL[2]]),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"user.a\0b", b"x"),
        *[(b"system.posix_acl_access", value) for value in BAD_ACLS],
        (b"system.posix_acl_default", b"x" * 12),
        (b"security.capability", b""),
        (b"security.capability", capability(1, 12)),
        (b"security.capability", capability(2, 24)),
        (b"security.capability", capability(3, 20)),
        (b"security.capability", capability(2, 19)),
    ],
)
def test_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(FormatError, match="'file'"):
        accepted_xattrs({name: value}, stat.S_IFDIR, b"file")


@pytest.mark.parametrize(
    ("name", "value"), [(b"user.x", bytes(MAX_XATTR_VALUE + 1)), (b"user." + b"n" * (MAX_XATTR_NAME - 4), b"")]
)
def test_limits(name: bytes, value: bytes) -> None:
    with pytest.raises(LimitExceeded, match="'file'"):
        accepted_xattrs({name: value}, stat.S_IFDIR, b"file")


@pytest.mark.needs_root
@pytest.mark.parametrize("value", [acl(MINIMAL), acl(FULL), *BAD_ACLS])
def test_the_kernel_is_the_judge_of_acls(tmp_path: Path, value: bytes) -> None:
    (tmp_path / "f").touch()
    try:
        os.setxattr(tmp_path / "f", "system.posix_acl_access", acl(MINIMAL))
    except OSError as error:
        pytest.skip(f"no ACLs here: {error.strerror}")
    try:
        accepted_xattrs({b"system.posix_acl_access": value}, stat.S_IFDIR, b"f")
    except FormatError:
        if value:  # the kernel takes an empty value for the wish to have no ACL
            with pytest.raises(OSError, match=r"\[Errno"):
                os.setxattr(tmp_path / "f", "system.posix_acl_access", value)
    else:
        os.setxattr(tmp_path / "f", "system.posix_acl_access", value)


@pytest.mark.parametrize("name", [b"user.x", b"system.posix_acl_access", b"system.posix_acl_default", b"trusted.x"])
@pytest.mark.parametrize(
    "kind", [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK]
)
@pytest.mark.needs_root
def test_the_kernel_is_the_judge_of_kinds(tmp_path: Path, name: bytes, kind: int) -> None:
    path = tmp_path / "f"
    if kind == stat.S_IFDIR:
        path.mkdir()
    elif kind == stat.S_IFLNK:
        path.symlink_to("nowhere")
    else:
        os.mknod(path, kind | 0o600)
    value = acl(MINIMAL) if b"acl" in name else b"1"
    kept = accepted_xattrs({name: value}, kind, b"f")
    try:
        os.setxattr(path, name, value, follow_symlinks=False)
    except OSError:
        assert kept is None
    else:
        assert kept == {name: value}


def test_an_acl_without_those_who_are_not_known() -> None:
    entries = [*FULL[:2], (2, 4, ANYONE), *FULL[3:]]
    found = limited_acl(acl(entries), {1000}.__contains__, {51}.__contains__)
    # The user had 4, the group too; so the groups, which the user may be in, have no more now, and neither have others.
    assert found == acl([FULL[0], FULL[1], (4, 4, ANYONE), *FULL[5:]])
    found = limited_acl(acl(entries), lambda _: False, lambda _: False)
    assert found == acl([FULL[0], (4, 4, ANYONE), *FULL[5:]]), "the mask stays"
    denied = [(1, 7, ANYONE), (2, 0, 1000), (4, 5, ANYONE), (8, 7, 50), (16, 7, ANYONE), (32, 5, ANYONE)]
    found = limited_acl(acl(denied), lambda _: False, lambda _: True)
    assert found == acl([denied[0], (4, 0, ANYONE), (8, 0, 50), denied[4], (32, 0, ANYONE)])
    denied[1:2] = []
    denied[2] = (8, 1, 50)
    assert limited_acl(acl(denied), lambda _: True, lambda _: False) == acl([*denied[:2], denied[3], (32, 1, ANYONE)])
    for other in (b"", b"no ACL", acl(FULL, version=3), acl(FULL[::-1])):
        assert limited_acl(other, lambda _: False, lambda _: False) == other


def test_no_more_names_than_can_be_listed() -> None:
    most = {b"user.%03d%s" % (number, b"n" * 247): b"" for number in range(256)}
    assert accepted_xattrs(most, stat.S_IFREG, b"f") == most
    with pytest.raises(LimitExceeded, match="'file'"):
        accepted_xattrs(most | {b"user.m": b""}, stat.S_IFREG, b"file")
