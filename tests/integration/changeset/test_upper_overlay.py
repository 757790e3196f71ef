"""Real overlays, changed at random: what the upper says against a comparison of both whole trees."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.changeset.upper import compare_upper
from layerfs.linux import probe
from layerfs.linux.mount_api import legacy_mount, umount
from layerfs.linux.safe_path import remove_tree
from tests.unit.changeset.lower import HostTree

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_overlay,
    pytest.mark.skipif(
        not (probe.feature("privilege").usable and probe.feature("overlay").usable),
        reason=f"overlay: {probe.feature('overlay').reason}",
    ),
]

Entry = tuple[tuple[object, ...], dict[str, bytes]]


def _snapshot(top: Path) -> dict[str, Entry]:
    """Return what is compared of every path of a tree, and its xattrs."""
    found: dict[str, Entry] = {}
    stack = [""]
    while stack:
        prefix = stack.pop()
        for name in os.listdir(f"{top}{prefix}"):
            path = f"{prefix}/{name}"
            status = os.lstat(f"{top}{path}")
            key: tuple[object, ...] = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
            key += (status.st_mtime_ns,)
            if stat.S_ISDIR(status.st_mode):
                stack.append(path)
            else:
                key += (status.st_size,)
            xattrs = {
                name: os.getxattr(f"{top}{path}", name, follow_symlinks=False)
                for name in os.listxattr(f"{top}{path}", follow_symlinks=False)
            }
            found[path] = (key, xattrs)
    return found


def _expected(old: dict[str, Entry], new: dict[str, Entry]) -> set[tuple[str, str]]:
    """Compare two snapshots by docker's rules, written the other way round than the product: over whole trees."""

    def directory(tree: dict[str, Entry], path: str) -> bool:
        return path in tree and stat.S_ISDIR(int(str(tree[path][0][0])))

    changes = {path: "A" for path in new if path not in old}
    changes |= {path: "C" for path in new if path in old and old[path] != new[path]}
    for path in old:
        parent = os.path.dirname(path)
        if path not in new and (parent == "/" or directory(new, parent)):
            changes[path] = "D"
    for path in list(changes):
        parent = os.path.dirname(path)
        while parent != "/":
            changes.setdefault(parent, "C")
            parent = os.path.dirname(parent)
    return {(kind, path) for path, kind in changes.items()}


def _fill(top: Path, rng: random.Random) -> None:
    """Make a tree with every kind of entry."""
    directories = [top]
    for number in range(60):
        parent = rng.choice(directories)
        path = parent / f"{'abcdef'[number % 6]}{number}"
        kind = rng.randrange(8)
        if kind < 3:
            path.mkdir()
            directories.append(path)
        elif kind < 6:
            path.write_bytes(rng.randbytes(rng.randrange(3) * 2000))
            os.chmod(path, rng.choice([0o644, 0o4755, 0o600]))
            os.utime(path, ns=(0, rng.randrange(2**60)))
        elif kind == 6:
            path.symlink_to("a0")
        else:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 1 + rng.randrange(9)))


def _remove(path: Path) -> None:
    remove_tree(path)


def _chmod(path: Path) -> None:
    if not path.is_symlink():
        os.chmod(path, 0o700)


def _chown(path: Path) -> None:
    os.lchown(path, 1, 2)


def _open_for_writing(path: Path) -> None:
    if path.is_file() and not path.is_symlink():
        path.open("ab").close()


def _write(path: Path) -> None:
    if path.is_file() and not path.is_symlink():
        path.write_text(f"changed {path.stat().st_size}")


def _make_again(path: Path) -> None:
    """Remove a directory and make it again under the same name, which is an opaque directory."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
        path.mkdir()
        (path / "own").write_text("")


def _swap_type(path: Path) -> None:
    directory = path.is_dir() and not path.is_symlink()
    remove_tree(path)
    if directory:
        path.write_text("was a directory")
    else:
        path.mkdir()


def _mark(path: Path) -> None:
    if path.is_file() and not path.is_symlink():
        os.setxattr(path, "user.mark", b"1")


def _rename(path: Path, new: Path) -> None:
    try:
        path.rename(new)
    except OSError as err:
        # Into itself, or a lower directory without redirects.
        if err.errno not in {errno.EINVAL, errno.EXDEV}:
            raise


_CHANGES = (_remove, _remove, _chmod, _chown, _open_for_writing, _write, _make_again, _swap_type, _mark)


def _change(top: Path, rng: random.Random, number: int) -> None:
    """Do one random thing to the mounted tree."""
    paths = [top / path.lstrip("/") for path in sorted(_snapshot(top))]
    directories = [top, *(path for path in paths if path.is_dir() and not path.is_symlink())]
    new = rng.choice(directories) / f"n{number}"
    kind = rng.randrange(len(_CHANGES) + 4)
    if not paths or kind == len(_CHANGES):
        new.mkdir()
    elif kind == len(_CHANGES) + 1:
        new.write_text(str(number))
    elif kind > len(_CHANGES):
        _rename(rng.choice(paths), new)
    else:
        _CHANGES[kind](rng.choice(paths))


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    yield tmp_path
    remove_tree(tmp_path / "upper")
    remove_tree(tmp_path / "work")


@pytest.mark.needs_overlay
@pytest.mark.parametrize("options", ["", ",redirect_dir=on", ",metacopy=on,redirect_dir=on", ",userxattr"])
@pytest.mark.parametrize("seed", range(12))
def test_random_changes(scratch: Path, seed: int, options: str) -> None:
    rng = random.Random(seed)
    _fill(scratch / "lower", rng)
    old = _snapshot(scratch / "lower")
    tree = HostTree(scratch / "lower")
    text = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work{options}"
    legacy_mount("overlay", scratch / "merged", "overlay", 0, text)
    try:
        for number in range(40):
            _change(scratch / "merged", rng, number)
            if number % 10 == 9:
                new = _snapshot(scratch / "merged")
                found = list(compare_upper(scratch / "upper", tree, userxattr="userxattr" in options))
                lines = [(change.kind, os.fsdecode(change.path)) for change in found]
                assert set(lines) == _expected(old, new)
                assert len(set(lines)) == len(lines)
                order = [change.path.split(b"/") for change in found]
                assert order == sorted(order)
    finally:
        umount(scratch / "merged")
    # What is read from an unmounted upper is the same.
    assert [
        (change.kind, os.fsdecode(change.path))
        for change in compare_upper(scratch / "upper", tree, userxattr="userxattr" in options)
    ] == lines


@pytest.mark.needs_overlay
def test_the_work_of_a_package_manager(scratch: Path) -> None:
    """The lines that podman prints for such a session; /tmp has another time."""
    for path in ("etc/apt", "root", "usr/bin", "tmp"):
        (scratch / "lower" / path).mkdir(parents=True)
    (scratch / "lower" / "etc" / "passwd").write_text("root:x:0:0\n")
    (scratch / "lower" / "usr" / "bin" / "old").write_text("")
    text = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
    legacy_mount("overlay", scratch / "merged", "overlay", 0, text)
    merged = scratch / "merged"
    try:
        (merged / "root" / ".bash_history").write_text("ls")
        with (merged / "etc" / "passwd").open("a") as file:
            file.write("user\n")
        (merged / "usr" / "bin" / "old").unlink()
        shutil.copy2(merged / "etc" / "passwd", merged / "etc" / "passwd-")
        (merged / "tmp" / "x").write_text("")
        (merged / "tmp" / "x").unlink()
    finally:
        umount(merged)
    lines = [f"{c.kind} {c.path.decode()}" for c in compare_upper(scratch / "upper", HostTree(scratch / "lower"))]
    assert lines == [
        "C /etc",
        "C /etc/passwd",
        "A /etc/passwd-",
        "C /root",
        "A /root/.bash_history",
        "C /tmp",
        "C /usr",
        "C /usr/bin",
        "D /usr/bin/old",
    ]
