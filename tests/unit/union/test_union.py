"""What the union shows, and what it leaves on disk."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    EISDIR,
    EMFILE,
    ENAMETOOLONG,
    ENODATA,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    EROFS,
    ESTALE,
    EXDEV,
)
from pathlib import Path

import pytest

from layerfs.formats.whiteout import USER_PREFIX, usable_mode
from layerfs.linux.rename import EXCHANGE, NOREPLACE
from layerfs.union import write_back
from layerfs.union.change import Changes
from layerfs.union.node import ROOT
from layerfs.union.stack import StackLower
from layerfs.union.union import Union
from layerfs.union.upper import Upper
from tests.unit.union.conftest import FILES, Caller, Make, Work, failing

ALL = ["a", "empty", "link", "one", "opaque", "top"]


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def test_layers_are_merged(work: Work) -> None:
    assert work.names("/") == ALL
    assert work.names("a") == ["b", "f", "two"]
    assert work.names("opaque") == []
    assert work.find("gone") is None
    assert work.find("opaque/hidden") is None
    for path, content in FILES.items():
        assert work.read(path) == content
        assert work.at(path).size == len(content)
    assert work.union.readlink(work.at("link").ino) == b"a/f"
    assert os.listdir(work.upper) == []


def test_readdir_and_lookup_agree_on_inodes(work: Work) -> None:
    for path in ("/", "a", "a/b"):
        for name, attributes in work.entries(path):
            if name not in {".", ".."}:
                assert work.at(f"{path}/{name}") == attributes
    work.write("a/f", b"J")
    work.create("a", "new")
    for name, attributes in work.entries("a"):
        if name not in {".", ".."}:
            assert work.at(f"a/{name}") == attributes


def test_copy_up_keeps_everything_but_the_place(work: Work) -> None:
    before = work.at("top")
    parent = work.at("/")
    work.union.setattr(before.ino, Changes(mode=0o600))
    after = work.at("top")
    assert after.ino == before.ino
    assert (after.size, after.mtime_ns, after.nlink) == (before.size, before.mtime_ns, 1)
    assert stat.S_IMODE(after.mode) == 0o600
    assert work.at("/").mtime_ns == parent.mtime_ns
    assert work.read("top") == FILES["top"]
    assert (work.upper / "top").read_bytes() == FILES["top"]


def test_copies_take_nothing_after_the_work_directory_and_no_umask(tmp_path: Path) -> None:
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for path in (lower, upper, work):
        path.mkdir()
    modes = {"d": 0o1777, "s": 0o2751, "f": 0o666, "x": 0o4755, "r": 0o444}
    for name, mode in modes.items():
        place = lower / name
        place.mkdir() if name in "ds" else place.write_bytes(b"content")
        place.chmod(mode)
    work.chmod(0o2777)
    acl = shutil.which("setfacl")
    if acl is not None:
        subprocess.run([acl, "-d", "-m", "u:1:rwx,m:rwx", str(work)], check=True)
    top = Upper(str(upper), str(work), USER_PREFIX)
    union = Union(StackLower([str(lower)], USER_PREFIX), top, raw_umask=True)
    try:
        # One that makes a file with a umask comes before.
        union.create(ROOT, b"new", 0o666, Caller(os.geteuid(), os.getegid(), 0o077))
        for name in modes:
            found = union.lookup(ROOT, name.encode())
            assert found is not None
            union.setattr(found.ino, Changes(mtime_ns=1))
    finally:
        union.close()
    for name, mode in modes.items():
        found_mode = (upper / name).stat().st_mode
        # Who may not give files away has the mode beside them.
        assert stat.S_IMODE(found_mode) == (mode if top.override is None else usable_mode(found_mode & ~0o777 | mode))
        assert (upper / name).stat().st_gid == (lower / name).stat().st_gid
        assert not [key for key in os.listxattr(upper / name) if "acl" in key]


def test_numbers_stay_after_everything_was_forgotten(work: Work) -> None:
    work.write("a/f", b"J")
    numbers = {path: work.at(path).ino for path in ("a", "a/f", "a/b", "top")}
    looked = dict.fromkeys(numbers.values(), 10)
    work.union.forget(looked.items())
    for _ in range(3):
        work.union.forget([(number, 10) for number in numbers.values()])
    assert work.union.living == 1
    assert {path: work.at(path).ino for path in numbers} == numbers


def test_reading_goes_on_with_what_is_written(work: Work) -> None:
    reader = work.at("a/f").ino
    assert work.union.read(reader, 0, 100) == b"hello"
    work.write("a/f", b"J")
    assert work.union.read(reader, 0, 100) == b"Jello"
    assert work.union.read(reader, 5, 100) == b""
    buffer = memoryview(bytearray(100))
    assert work.union.read_into(reader, 1, buffer) == 4
    assert bytes(buffer[:4]) == b"ello"


def test_hard_links_stay_one_file(make: Make) -> None:
    work = make()
    one = work.at("one")
    assert one.nlink == 2
    assert work.at("a/two").ino == one.ino
    work.write("one", b"L")
    assert work.read("a/two") == b"Linked"
    assert work.at("a/two").ino == work.at("one").ino == one.ino
    assert work.at("a/two").nlink == 2
    assert (work.upper / "one").stat().st_ino == (work.upper / "a/two").stat().st_ino
    again = make()
    assert again.read("a/two") == b"Linked"
    assert again.at("a/two").ino == again.at("one").ino
    again.union.unlink(ROOT, b"one")
    assert again.at("a/two").nlink == 1


def test_a_link_removed_below_is_counted(work: Work) -> None:
    work.union.unlink(work.at("a").ino, b"two")
    assert work.at("one").nlink == 1
    assert work.find("a/two") is None
    assert is_whiteout(work.upper / "a/two")


def test_a_link_replaced_below_is_counted(work: Work) -> None:
    work.union.rename(ROOT, b"empty", ROOT, b"one", 0)
    assert work.at("a/two").nlink == 1
    assert work.read("one") == b""


def test_what_is_removed_stays_open(work: Work) -> None:
    for path in ("a/f", "top"):
        found = work.at(path)
        directory, _, name = path.rpartition("/")
        work.union.unlink(work.at(directory or "/").ino, name.encode())
        assert work.find(path) is None
        assert work.union.getattr(found.ino).nlink == 0
        assert work.union.read(found.ino, 0, 5) == FILES[path][:5]
        # And even copied up after its name is gone.
        changed = work.union.setattr(found.ino, Changes(mode=0o640))
        assert (changed.ino, stat.S_IMODE(changed.mode), changed.nlink) == (found.ino, 0o640, 0)
        work.union.forget([(found.ino, 100)])
        with failing(ESTALE):
            work.union.getattr(found.ino)
    assert work.unfinished() == []


def test_a_new_file_never_gets_the_number_of_a_living_one(work: Work) -> None:
    first = work.create("/", "n", b"1")
    work.union.unlink(ROOT, b"n")
    second = work.create("/", "n", b"2")
    assert first.ino != second.ino
    assert work.union.getattr(first.ino).nlink == 0
    assert work.read("n") == b"2"


def test_whiteouts_are_replaced_in_one_step(work: Work) -> None:
    work.union.unlink(ROOT, b"top")
    assert is_whiteout(work.upper / "top")
    assert work.find("top") is None
    work.create("/", "top", b"new")
    assert work.read("top") == b"new"
    assert stat.S_ISREG((work.upper / "top").lstat().st_mode)
    work.union.unlink(ROOT, b"top")
    work.union.mkdir(ROOT, b"top", 0o755, work.caller)
    assert work.names("top") == []
    work.union.rmdir(ROOT, b"top")
    work.union.symlink(ROOT, b"top", b"elsewhere", work.caller)
    assert work.union.readlink(work.at("top").ino) == b"elsewhere"
    assert work.unfinished() == []


def test_a_directory_made_again_is_empty(make: Make) -> None:
    work = make()
    a = work.at("a").ino
    with failing(ENOTEMPTY):
        work.union.rmdir(ROOT, b"a")
    for name in (b"f", b"two"):
        work.union.unlink(a, name)
    work.union.unlink(work.at("a/b").ino, b"deep")
    work.union.rmdir(a, b"b")
    work.union.rmdir(ROOT, b"a")
    assert is_whiteout(work.upper / "a")
    work.union.mkdir(ROOT, b"a", 0o755, work.caller)
    assert work.names("a") == []
    assert os.getxattr(work.upper / "a", "user.overlay.opaque") == b"y"
    again = make()
    assert again.names("a") == []
    assert again.names("/") == ALL


def test_rename(make: Make) -> None:
    work = make()
    top = work.at("top").ino
    work.union.rename(ROOT, b"top", work.at("a").ino, b"moved", 0)
    assert work.at("a/moved").ino == top
    assert work.find("top") is None
    assert is_whiteout(work.upper / "top")
    work.union.rename(work.at("a").ino, b"moved", ROOT, b"empty", 0)
    assert work.read("empty") == FILES["top"]
    with failing(EEXIST):
        work.union.rename(ROOT, b"empty", ROOT, b"one", NOREPLACE)
    work.union.rename(ROOT, b"empty", ROOT, b"one", EXCHANGE)
    assert (work.read("one"), work.read("empty")) == (FILES["top"], b"linked")
    with failing(ENOENT):
        work.union.rename(ROOT, b"empty", ROOT, b"nothing", EXCHANGE)
    with failing(EINVAL):
        work.union.rename(ROOT, b"empty", ROOT, b"nothing", 4)
    again = make()
    assert again.names("/") == [name for name in ALL if name != "top"]
    assert again.read("one") == FILES["top"]


def test_directories_of_layers_do_not_move_but_new_ones_do(make: Make) -> None:
    work = make()
    with failing(EXDEV):
        work.union.rename(ROOT, b"a", ROOT, b"z", 0)
    with failing(EISDIR):
        work.union.rename(ROOT, b"top", ROOT, b"a", 0)
    work.union.mkdir(ROOT, b"new", 0o755, work.caller)
    work.create("new", "inside", b"i")
    with failing(ENOTDIR):
        work.union.rename(ROOT, b"new", ROOT, b"top", 0)
    with failing(ENOTEMPTY):
        work.union.rename(ROOT, b"new", ROOT, b"a", 0)
    # Onto a directory that shows nothing, but hides something.
    work.union.rename(ROOT, b"new", ROOT, b"opaque", 0)
    assert work.names("opaque") == ["inside"]
    again = make()
    assert again.names("opaque") == ["inside"]
    assert again.read("opaque/inside") == b"i"


def test_errors(work: Work) -> None:
    union = work.union
    with failing(ENAMETOOLONG):
        union.lookup(ROOT, b"n" * 256)
    with failing(ENAMETOOLONG):
        work.create("/", "n" * 256)
    with failing(EEXIST):
        work.create("/", "top")
    with failing(EEXIST):
        union.mkdir(ROOT, b"a", 0o755, work.caller)
    with failing(EISDIR):
        union.unlink(ROOT, b"a")
    with failing(ENOTDIR):
        union.rmdir(ROOT, b"top")
    with failing(ENOENT):
        union.unlink(ROOT, b"nothing")
    with failing(EPERM):
        union.mknod(ROOT, b"w", stat.S_IFCHR, 0, work.caller)
    with failing(EPERM):
        union.link(work.at("a").ino, ROOT, b"dir-link")
    with failing(ESTALE):
        union.getattr(123_456_789)
    with failing(EINVAL):
        union.readlink(work.at("top").ino)
    made = union.mkdir(ROOT, b"soon-gone", 0o755, work.caller)
    union.rmdir(ROOT, b"soon-gone")
    with failing(ENOENT):
        union.create(made.ino, b"x", 0o644, work.caller)
    assert not list(union.readdir(made.ino, 0))


def test_names_of_255_bytes_and_deep_paths(work: Work) -> None:
    name = "d" * 255
    at = ROOT
    for _ in range(40):  # far beyond PATH_MAX
        at = work.union.mkdir(at, name.encode(), 0o755, work.caller).ino
    found = work.union.create(at, b"leaf", 0o644, work.caller)
    work.union.write(found.ino, 0, b"deep")
    assert work.union.lookup(at, b"leaf") == work.union.getattr(found.ino)


def test_xattrs(work: Work) -> None:
    union, top = work.union, work.at("top").ino
    with failing(ENODATA):
        union.getxattr(top, b"user.color")
    union.setxattr(top, b"user.color", b"blue")
    assert union.getxattr(top, b"user.color") == b"blue"
    assert b"user.color" in union.listxattr(top, lambda: True)
    union.removexattr(top, b"user.color")
    with failing(ENODATA):
        union.removexattr(top, b"user.color")
    # The marks of the union are out of reach; an overlay inside may have its own.
    union.setxattr(work.at("a").ino, b"user.overlay.opaque", b"y")
    assert union.getxattr(work.at("a").ino, b"user.overlay.opaque") == b"y"
    assert work.names("a") == ["b", "f", "two"]
    assert os.getxattr(work.upper / "a", "user.overlay.overlay.opaque") == b"y"
    assert union.listxattr(work.at("opaque").ino, lambda: True) == []


def test_truncating_copies_no_content(work: Work) -> None:
    work.write("top", b"new", truncate=True)
    assert work.read("top") == b"new"
    work.union.setattr(work.at("a/f").ino, Changes(size=2))
    assert work.read("a/f") == b"he"
    work.union.setattr(work.at("a/f").ino, Changes(size=4))
    assert work.read("a/f") == b"he\0\0"


def test_times(work: Work) -> None:
    top = work.at("top")
    changed = work.union.setattr(top.ino, Changes(mtime_ns=1_234_567_890_123_456_789))
    assert (changed.mtime_ns, changed.atime_ns) == (1_234_567_890_123_456_789, top.atime_ns)
    link = work.union.setattr(work.at("link").ino, Changes(atime_ns=5, mtime_ns=7))
    assert (link.atime_ns, link.mtime_ns) == (5, 7)


def test_a_failed_copy_up_leaves_the_file_where_it_was(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("layerfs.union.copy_up._dress", full)
        with failing(28):
            work.union.write(work.at("top").ino, 0, b"x")
        with failing(28):
            work.union.setattr(work.at("link").ino, Changes(mtime_ns=1))
        with failing(28):
            work.union.setattr(work.at("a").ino, Changes(mtime_ns=1))
    assert os.listdir(work.upper) == []
    assert work.unfinished() == []
    assert work.read("top") == FILES["top"]


def test_without_an_upper_nothing_can_be_written(tmp_path: Path, make: Make) -> None:
    work = make()
    union = Union(work.union._lower, None, prefix=USER_PREFIX)
    ino = union.lookup(ROOT, b"top")
    assert ino is not None
    for attempt in (
        lambda: union.write(ino.ino, 0, b"x"),
        lambda: union.create(ROOT, b"n", 0o644, work.caller),
        lambda: union.mkdir(ROOT, b"n", 0o644, work.caller),
        lambda: union.unlink(ROOT, b"top"),
        lambda: union.rename(ROOT, b"top", ROOT, b"n", 0),
        lambda: union.setattr(ino.ino, Changes(mode=0)),
        lambda: union.setxattr(ino.ino, b"user.x", b""),
    ):
        with failing(EROFS):
            attempt()
    assert union.read(ino.ino, 0, 10) == FILES["top"][:10]
    union._nodes.close()  # the lower is the other one's


def test_one_work_directory_serves_one_union(work: Work, tmp_path: Path) -> None:
    with failing(EBUSY):
        Upper(str(tmp_path / "upper"), str(tmp_path / "work"), USER_PREFIX)


def test_a_link_put_into_the_upper_by_somebody_else_leads_nowhere(work: Work, tmp_path: Path) -> None:
    # Nobody may write to a mounted upper; who does it anyway must not get more than that.
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    union = work.union
    made = union.mkdir(ROOT, b"made", 0o755, work.caller)
    file = work.create("made", "file", b"mine")
    leaf = work.create("/", "leaf", b"mine")
    (work.upper / "made").rename(tmp_path / "away")
    (work.upper / "made").symlink_to(secret)
    (work.upper / "leaf").unlink()
    (work.upper / "leaf").symlink_to(secret / "file")
    assert union._upper is not None
    for node in union._open:
        node.close_content()
    while union._upper._fds:
        os.close(union._upper._fds.popitem()[1])
    for attempt in (
        lambda: union.create(made.ino, b"new", 0o644, work.caller),
        lambda: union.write(file.ino, 0, b"x"),
        lambda: union.unlink(made.ino, b"file"),
        lambda: union.write(leaf.ino, 0, b"x"),
        lambda: union.setattr(leaf.ino, Changes(mode=0o777)),
        lambda: union.setattr(leaf.ino, Changes(size=0)),
    ):
        with pytest.raises(OSError, match=r"."):
            attempt()
    assert (secret / "file").read_text() == "secret"
    assert stat.S_IMODE((secret / "file").stat().st_mode) & 0o111 == 0
    assert os.listdir(secret) == ["file"]


def test_a_file_that_could_not_be_held_keeps_its_name(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    made = work.create("/", "made", b"mine")

    def none_left(_name: bytes, _fd: int) -> int:
        raise OSError(EMFILE, os.strerror(EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("layerfs.union.move.open_inode", none_left)
        with failing(EMFILE):
            work.union.unlink(ROOT, b"made")
    assert work.read("made") == b"mine"
    # And whatever has neither a name nor a descriptor is never taken for the root.
    node = work.union._nodes[made.ino]
    node.close_content()
    work.union._nodes.unname(node, work.union._nodes[ROOT], b"made")
    mode = work.upper.stat().st_mode
    for attempt in (
        lambda: work.union.setattr(made.ino, Changes(mode=0o777)),
        lambda: work.union.setattr(made.ino, Changes(mtime_ns=0)),
        lambda: work.union.setxattr(made.ino, b"user.x", b""),
    ):
        with failing(ESTALE):
            attempt()
    assert work.upper.stat().st_mode == mode


def test_fsync_tells_that_a_copy_could_not_be_written(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel told it to whoever waited for the copy, and tells it only once."""
    union, (one, other) = work.union, (work.at(path).ino for path in ("one", "a/f"))
    for ino in (one, other):
        union.setattr(ino, Changes(mode=0o600))
    broken = os.stat(work.upper / "one").st_ino

    def fail(fd: int) -> None:
        if os.fstat(fd).st_ino == broken:
            raise OSError(EIO, os.strerror(EIO))

    monkeypatch.setattr(write_back, "await_writeback", fail)
    union.close_spare()
    union.fsync(other, data_only=True)
    with failing(EIO):
        union.fsync(one, data_only=False)
    union.fsync(one, data_only=False)


def test_the_mark_of_fuse_overlayfs_means_nothing_where_only_layerfs_writes(tmp_path: Path) -> None:
    for name in ("lower/d", "upper/d", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/d/f").write_text("f")
    os.setxattr(tmp_path / "upper/d", "user.fuseoverlayfs.opaque", b"y")
    for foreign in (True, False):
        upper = Upper(str(tmp_path / "upper"), str(tmp_path / "work"), USER_PREFIX, foreign_marks=foreign)
        union = Union(StackLower([str(tmp_path / "lower")], USER_PREFIX, device=upper.device), upper)
        found = union.lookup(ROOT, b"d")
        assert found is not None
        assert (union.lookup(found.ino, b"f") is None) == foreign
        assert union.listxattr(found.ino, lambda: True) == ([] if foreign else [b"user.fuseoverlayfs.opaque"])
        union.close()


def test_a_work_directory_without_permissions_is_looked_into(tmp_path: Path) -> None:
    """overlayfs makes it so, and leaves in it that what was written may be lost; its owner need not be root."""
    (tmp_path / "upper").mkdir()
    (tmp_path / "work/work/incompat/volatile").mkdir(parents=True)
    for path in (tmp_path / "work/work/incompat", tmp_path / "work/work"):
        path.chmod(0)
    code = "from layerfs.union.upper import Upper; Upper('upper', 'work', b'')"
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*drop, sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert "an overlay with the option volatile was mounted" in done.stderr, done.stderr


def test_a_missing_work_directory_costs_no_descriptors(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with failing(ENOENT):
        Upper(str(tmp_path / "upper"), str(tmp_path / "work"), USER_PREFIX)
    assert len(os.listdir("/proc/self/fd")) == before
