"""Upper directories made by hand, each a table of what must be said about it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from layerfs.changeset.change import Change
from layerfs.changeset.upper import compare_upper
from layerfs.errors import IntegrityError
from layerfs.linux import probe
from layerfs.linux.safe_path import remove_tree
from tests.unit.changeset.lower import HostTree

pytestmark = pytest.mark.skipif(
    not probe.feature("privilege").usable, reason="trusted xattrs and whiteouts need CAP_SYS_ADMIN"
)


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    top = tmp_path / "lower"
    (top / "etc" / "deep" / "er").mkdir(parents=True)
    (top / "etc" / "passwd").write_text("root\n")
    (top / "etc" / "deep" / "er" / "file").write_text("x")
    (top / "bin").mkdir()
    (top / "bin" / "sh").write_text("sh")
    (top / "link").symlink_to("etc")
    return top


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    top = tmp_path / "upper"
    top.mkdir()
    return top


def changes(upper: Path, lower: Path | None, *, userxattr: bool = False) -> str:
    """Return the changes as text, one space between them."""
    tree = None if lower is None else HostTree(lower)
    found = list(compare_upper(upper, tree, userxattr=userxattr))
    assert len({change.path for change in found}) == len(found)
    return " ".join(f"{change.kind} {os.fsdecode(change.path)}" for change in found)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def same_time(path: Path, other: Path) -> None:
    """Give a path another one's time, as a copy-up does."""
    os.utime(path, ns=(0, os.lstat(other).st_mtime_ns))


def test_an_empty_upper_changes_nothing(upper: Path, lower: Path) -> None:
    assert changes(upper, lower) == ""
    assert changes(upper, None) == ""


def test_the_root_differs_in_all_but_its_time(upper: Path, lower: Path) -> None:
    os.utime(upper, ns=(1, 1))
    assert changes(upper, lower) == ""
    os.chmod(upper, 0o700)
    assert changes(upper, lower) == "C /"
    assert changes(upper, None) == ""
    assert list(compare_upper(upper, HostTree(lower), dressed=False)) == []


def test_without_a_lower_all_is_added_in_tree_order(upper: Path) -> None:
    for name in ("a", "a-b", "a.c"):
        (upper / name).mkdir()
    (upper / "a" / "z").write_text("")
    assert changes(upper, None) == "A /a A /a/z A /a-b A /a.c"


def test_added_and_deleted_list_the_directories_above(upper: Path, lower: Path) -> None:
    (upper / "etc" / "deep" / "er").mkdir(parents=True)
    (upper / "etc" / "deep" / "er" / "new").write_text("")
    whiteout(upper / "etc" / "passwd")
    whiteout(upper / "bin")
    whiteout(upper / "absent")
    assert changes(upper, lower) == "D /bin C /etc C /etc/deep C /etc/deep/er A /etc/deep/er/new D /etc/passwd"


def test_a_copied_up_file_is_a_change_only_if_it_differs(upper: Path, lower: Path) -> None:
    (upper / "etc").mkdir()
    copy = upper / "etc" / "passwd"
    copy.write_text("root\n")
    original = os.lstat(lower / "etc" / "passwd")
    os.utime(copy, ns=(0, original.st_mtime_ns))
    same_time(upper / "etc", lower / "etc")
    assert changes(upper, lower) == ""
    for change in (
        lambda: os.chmod(copy, 0o600),
        lambda: os.chown(copy, 1, 0),
        lambda: os.utime(copy, ns=(0, original.st_mtime_ns + 1)),
        lambda: copy.write_text("toor!"),
        lambda: os.setxattr(copy, "user.x", b"1"),
        lambda: os.setxattr(copy, "security.capability", bytes.fromhex("0100000200040000") + bytes(12)),
    ):
        copy.unlink()
        copy.write_text("root\n")
        os.utime(copy, ns=(0, original.st_mtime_ns))
        change()
        assert changes(upper, lower) == "C /etc C /etc/passwd"


def test_a_directory_differs_in_mode_owner_time_and_xattrs(upper: Path, lower: Path) -> None:
    """In its time too, as with docker and podman: a copy-up keeps it."""
    (upper / "etc").mkdir()
    assert changes(upper, lower) == "C /etc"
    same_time(upper / "etc", lower / "etc")
    os.setxattr(upper / "etc", "trusted.overlay.origin", b"x")
    assert changes(upper, lower) == ""
    os.setxattr(upper / "etc", "user.x", b"1")
    assert changes(upper, lower) == "C /etc"
    os.removexattr(upper / "etc", "user.x")
    os.chmod(upper / "etc", 0o1777)
    assert changes(upper, lower) == "C /etc"


def test_types_that_change(upper: Path, lower: Path) -> None:
    (upper / "bin").write_text("file now")
    (upper / "etc").symlink_to("bin")
    (upper / "link").mkdir()
    (upper / "link" / "x").write_text("")
    assert changes(upper, lower) == "C /bin C /etc C /link A /link/x"


def test_an_opaque_directory_deletes_what_it_does_not_add_again(upper: Path, lower: Path) -> None:
    (upper / "etc" / "deep").mkdir(parents=True)
    (upper / "etc" / "deep" / "new").write_text("")
    os.setxattr(upper / "etc", "trusted.overlay.opaque", b"y")
    assert changes(upper, lower) == "C /etc C /etc/deep D /etc/deep/er A /etc/deep/new D /etc/passwd"


def test_the_marks_of_the_other_kind_of_mount_are_only_xattrs(upper: Path, lower: Path) -> None:
    (upper / "etc").mkdir()
    os.setxattr(upper / "etc", "user.overlay.opaque", b"y")
    assert changes(upper, lower) == "C /etc"
    assert changes(upper, lower, userxattr=True) == "C /etc D /etc/deep D /etc/passwd"


def test_whiteouts_in_xattr_form(upper: Path, lower: Path) -> None:
    (upper / "etc").mkdir()
    (upper / "etc" / "passwd").write_text("")
    os.setxattr(upper / "etc" / "passwd", "trusted.overlay.whiteout", b"y")
    assert changes(upper, lower) == "C /etc C /etc/passwd"
    os.setxattr(upper / "etc", "trusted.overlay.opaque", b"x")
    assert changes(upper, lower) == "C /etc D /etc/passwd"


@pytest.mark.parametrize("redirect", [b"/etc/deep", b"/etc//deep/"])
def test_an_absolute_redirect_is_a_move(upper: Path, lower: Path, redirect: bytes) -> None:
    (upper / "etc").mkdir()
    whiteout(upper / "etc" / "deep")
    (upper / "moved").mkdir()
    (upper / "moved" / "own").write_text("")
    os.setxattr(upper / "moved", "trusted.overlay.redirect", redirect)
    assert changes(upper, lower) == ("C /etc D /etc/deep A /moved A /moved/er A /moved/er/file A /moved/own")


def test_a_relative_redirect_and_a_swap(upper: Path, lower: Path) -> None:
    (upper / "etc").mkdir()
    os.setxattr(upper / "etc", "trusted.overlay.redirect", b"bin")
    (upper / "bin").mkdir()
    os.setxattr(upper / "bin", "trusted.overlay.redirect", b"etc")
    assert changes(upper, lower) == (
        "C /bin A /bin/deep A /bin/deep/er A /bin/deep/er/file A /bin/passwd D /bin/sh "
        "C /etc D /etc/deep D /etc/passwd A /etc/sh"
    )


def test_an_unchanged_lower_directory_is_never_listed(upper: Path, lower: Path) -> None:
    (upper / "etc").mkdir()
    (upper / "etc" / "new").write_text("")
    tree = HostTree(lower)
    assert list(compare_upper(upper, tree)) == [Change("C", b"/etc"), Change("A", b"/etc/new")]
    assert tree.listed == 0


def test_names_of_any_bytes(upper: Path) -> None:
    name = bytes(value for value in range(1, 256) if value != ord("/"))
    os.close(os.open(os.fsencode(upper) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert list(compare_upper(upper, None)) == [Change("A", b"/" + name)]


def test_a_deep_upper(upper: Path) -> None:
    fd = os.open(upper, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=fd)
        deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    found = list(compare_upper(upper, None))
    assert len(found) == 2000
    assert found[-1].path == b"/d" * 2000
    assert len(os.listdir("/proc/self/fd")) == before
    # The fixture's own removal recurses.
    remove_tree(upper)


def test_an_abandoned_comparison_closes_its_descriptors(upper: Path) -> None:
    (upper / "a" / "b").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    comparison = compare_upper(upper, None)
    next(comparison)
    next(comparison)
    comparison.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_missing_upper(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"none is missing"):
        list(compare_upper(tmp_path / "none", None))
