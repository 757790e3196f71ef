"""Which names hide what, and which xattrs are commands."""

from __future__ import annotations

import os
import stat

import pytest

from layerfs.errors import UnsafePath
from layerfs.formats.whiteout import hidden_name, is_private_xattr, is_whiteout_device


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        (b"file", None),
        (b"wh.file", None),
        (b".whfile", None),
        (b"x.wh.file", None),
        (b".WH.file", None),
        (b".wh.file", b"file"),
        (b".wh..file", b".file"),
        (b".wh....", b"..."),
        (b".wh.\xff", b"\xff"),
        (b".wh..wh..opq", b""),
        # AUFS's own: they hide nothing and are nothing
        (b".wh..wh.aufs", b".wh..wh.aufs"),
        (b".wh..wh.plnk", b".wh..wh.plnk"),
        (b".wh..wh..opq2", b".wh..wh..opq2"),
        (b".wh..wh.", b".wh..wh."),
    ],
)
def test_hidden_name(name: bytes, hidden: bytes | None) -> None:
    assert hidden_name(name) == hidden


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh..."])
def test_whiteouts_of_no_file_are_refused(name: bytes) -> None:
    with pytest.raises(UnsafePath):
        hidden_name(name)


@pytest.mark.parametrize(
    ("name", "private"),
    [
        (b"trusted.overlay.opaque", True),
        (b"trusted.overlay.redirect", True),
        (b"trusted.overlay.overlay.opaque", True),
        (b"user.overlay.whiteout", True),
        (b"user.fuseoverlayfs.opaque", True),
        (b"user.containers.override_stat", True),
        (b"user.rootlesscontainers", True),
        (b"trusted.layerfs.implicit", True),
        (b"trusted.layerfs.link", True),
        (b"trusted.overlayfs", False),
        (b"user.overlays.x", False),
        (b"user.containers.other", False),
        (b"security.capability", False),
        (b"user.x", False),
    ],
)
def test_private_xattrs(name: bytes, private: bool) -> None:
    assert is_private_xattr(name) is private


@pytest.mark.parametrize(
    ("mode", "rdev", "whiteout"),
    [
        (stat.S_IFCHR, 0, True),
        (stat.S_IFCHR | 0o666, 0, True),
        (stat.S_IFCHR | 0o666, os.makedev(1, 3), False),
        (stat.S_IFBLK, 0, False),
        (stat.S_IFREG, 0, False),
    ],
)
def test_whiteout_devices(mode: int, rdev: int, whiteout: bool) -> None:
    assert is_whiteout_device(mode, rdev) is whiteout
