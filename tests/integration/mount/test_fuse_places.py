"""Upper and lower directories at places that overlayfs takes: inside of each other, on odd file systems, full."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import LayerfsError
from layerfs.linux.mount_api import umount
from layerfs.linux.mountinfo import find_mount
from layerfs.mount.fuse.specification import FuseSpecification
from tests.image_builder import entry, layer
from tests.integration.mount.test_fuse_program import served

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

Disk = Callable[..., Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a file system below the test's directory; unmounted at the end."""
    mounted: list[Path] = []

    def run(kind: str, options: str) -> Path:
        target = tmp_path / f"disk{len(mounted)}"
        target.mkdir()
        subprocess.run(["mount", "-t", kind, "-o", options, "none", target], check=True)
        mounted.append(target)
        return target

    yield run
    for target in reversed(mounted):
        with contextlib.suppress(OSError):
            umount(target, lazy=True)


def pair(place: Path) -> tuple[Path, Path]:
    """Make an upper and a work directory."""
    upper, work = place / "upper", place / "work"
    upper.mkdir(parents=True)
    work.mkdir()
    return upper, work


def below(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_a_layer_that_contains_what_is_written(tmp_path: Path) -> None:
    root = tmp_path / "root"
    upper, work = pair(root / "tmp")
    (root / "etc").mkdir()
    (root / "etc/conf").write_text("conf")
    with served(tmp_path / "mnt", f"lowerdir={root},upperdir={upper},workdir={work}") as target:
        (target / "etc/new").write_text("new")
        (target / "etc/conf").write_text("changed")
        before = below(upper)
        for name in ("upper", "work"):
            with pytest.raises(OSError) as caught:
                os.listdir(target / "tmp" / name)
            assert caught.value.errno == errno.ELOOP
        assert sorted(os.listdir(target / "tmp")) == ["upper", "work"]
        subprocess.run(["find", target], check=False, capture_output=True)
        assert below(upper) == before
        (target / "made/sub").mkdir(parents=True)
        subprocess.run(["find", "../../tmp"], check=False, capture_output=True, cwd=target / "made/sub")
        where = subprocess.run(["/bin/pwd"], check=True, capture_output=True, text=True, cwd=target / "made/sub").stdout
        assert where.strip() == str(target / "made/sub")


@pytest.mark.parametrize("order", [("linked", "file"), ("file", "linked")], ids=["upper first", "lower first"])
def test_a_file_that_a_layer_and_the_upper_directory_share(tmp_path: Path, order: tuple[str, str]) -> None:
    lower, (upper, work) = tmp_path / "lower", pair(tmp_path)
    lower.mkdir()
    (lower / "file").write_text("bytes")
    os.link(lower / "file", upper / "linked")
    with served(tmp_path / "mnt", f"lowerdir={lower},upperdir={upper},workdir={work}") as target:
        assert [(target / name).read_text() for name in order] == ["bytes", "bytes"]
        assert (target / "linked").stat().st_ino != (target / "file").stat().st_ino
        assert sorted(os.listdir(target)) == ["file", "linked"]
        (target / "file").write_text("changed")
        assert [(target / name).read_text() for name in ("linked", "file")] == ["bytes", "changed"]
        (target / "file").unlink()
        assert os.listdir(target) == ["linked"]
    assert (lower / "file").read_text() == "bytes"


def test_links_of_a_layer_in_the_upper_directory_that_it_contains(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    upper, work = pair(lower)
    (lower / "dir").mkdir()
    (lower / "dir/file").write_text("bytes")
    os.link(lower / "dir/file", lower / "dir/other")
    os.link(lower / "dir/file", upper / "known")
    with served(tmp_path / "mnt", f"lowerdir={lower},upperdir={upper},workdir={work}") as target:
        (target / "dir/other").unlink()
        assert os.listdir(target / "dir") == ["file"]


def test_looking_at_links_writes_nothing_where_there_is_no_room(tmp_path: Path, disk: Disk) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "file").write_text("data")
    for number in range(20):
        (lower / f"d{number}").mkdir()
        os.link(lower / "file", lower / f"d{number}/file")
    full = disk("tmpfs", "size=4m")
    upper, work = pair(full)
    with served(tmp_path / "mnt", f"lowerdir={lower},upperdir={upper},workdir={work}") as target:
        subprocess.run(["mount", "-o", "remount,nr_inodes=14", full], check=True)
        (target / "file").chmod(0o600)
        for number in range(20):
            assert os.listdir(target / f"d{number}") == ["file"]
            assert (target / f"d{number}/file").read_text() == "data"
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", full], check=True)
        (target / "d19/file").rename(target / "d19/moved")
        assert (target / "d19/moved").stat().st_mode & 0o777 == 0o600


def test_removing_a_link_needs_no_room_for_its_bytes(tmp_path: Path, disk: Disk) -> None:
    lower, outside = tmp_path / "lower", tmp_path / "outside"
    lower.mkdir()
    for name in ("inside", "elsewhere"):
        (lower / name).write_bytes(b"x" * (8 << 20))
    os.link(lower / "inside", lower / "other")
    os.link(lower / "elsewhere", outside)
    upper, work = pair(disk("tmpfs", "size=4m"))
    with served(tmp_path / "mnt", f"lowerdir={lower},upperdir={upper},workdir={work}") as target:
        (target / "inside").unlink()
        (target / "elsewhere").unlink()
        assert os.listdir(target) == ["other"]


def test_removed_directories_take_no_room(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "lower").mkdir()
    upper, work = pair(disk("tmpfs", "nr_inodes=100"))
    with served(tmp_path / "mnt", f"lowerdir={tmp_path}/lower,upperdir={upper},workdir={work}") as target:
        for _ in range(200):
            (target / "a").mkdir()
            (target / "a/f").touch()
            (target / "a/f").unlink()
            (target / "a").rmdir()


@pytest.mark.needs_overlay
def test_an_upper_directory_on_an_overlay(tmp_path: Path, disk: Disk) -> None:
    for name in ("low", "up", "wk", "lower/dir"):
        (tmp_path / name).mkdir(parents=True)
    overlay = disk("overlay", f"lowerdir={tmp_path}/low,upperdir={tmp_path}/up,workdir={tmp_path}/wk")
    upper, work = pair(overlay)
    for name in ("gone", "old", "dir/inner", "dir/other"):
        (tmp_path / "lower" / name).write_text(name)
    for _ in range(2):  # what was removed is so in the next mount, too
        with served(tmp_path / "mnt", f"lowerdir={tmp_path}/lower,upperdir={upper},workdir={work}") as target:
            if (target / "gone").exists():
                (target / "gone").unlink()
                (target / "old").rename(target / "new")
                (target / "dir/inner").unlink()
                subprocess.run(["rm", "-r", target / "dir"], check=True)
                (target / "dir").mkdir()
                (target / "gone").write_text("again")
                assert (target / "gone").read_text() == "again"
                (target / "gone").unlink()
            assert below(target) == ["dir", "new"]
            assert (target / "new").read_text() == "old"


@pytest.mark.needs_overlay
def test_a_rename_out_of_an_opaque_directory_on_an_overlay(tmp_path: Path, disk: Disk) -> None:
    for name in ("low", "up", "wk", "lower/dir"):
        (tmp_path / name).mkdir(parents=True)
    overlay = disk("overlay", f"lowerdir={tmp_path}/low,upperdir={tmp_path}/up,workdir={tmp_path}/wk")
    upper, work = pair(overlay)
    for name in ("dir/f", "dir/g", "t"):
        (tmp_path / "lower" / name).write_text(name)
    for _ in range(2):
        with served(tmp_path / "mnt", f"lowerdir={tmp_path}/lower,upperdir={upper},workdir={work}") as target:
            if (target / "dir/f").exists():
                subprocess.run(["rm", "-r", target / "dir"], check=True)
                (target / "dir").mkdir()
                (target / "dir/new").write_text("new")
                (target / "t").unlink()
                (target / "dir/new").rename(target / "t")
            assert below(target) == ["dir", "t"]
            assert (target / "t").read_text() == "new"


@pytest.mark.needs_overlay
def test_layers_are_applied_to_a_container_on_an_overlay(tmp_path: Path, disk: Disk) -> None:
    for name in ("low", "up", "wk", "mnt", "tree/dir"):
        (tmp_path / name).mkdir(parents=True)
    overlay = disk("overlay", f"lowerdir={tmp_path}/low,upperdir={tmp_path}/up,workdir={tmp_path}/wk")
    for name in ("gone", "dir/inner", "dir/linked"):
        (tmp_path / "tree" / name).write_text(name)
    os.link(tmp_path / "tree/gone", tmp_path / "tree/stays")
    with Store.open(overlay / "store", sync=False) as store:
        store.import_tree(tmp_path / "tree", "i:1")
        store.mount("i:1", tmp_path / "mnt", name="box", backend="fuse")
        (tmp_path / "mnt/dir/inner").unlink()  # a whiteout of the union's own
        store.umount("box")
        store.apply("box", [layer({".wh.gone": b"", "dir/.wh.linked": b"", "new": b"new"})])
        assert {(change.kind, change.path) for change in store.diff("box")} == {
            ("D", b"/gone"), ("D", b"/dir/inner"), ("D", b"/dir/linked"), ("C", b"/dir"), ("A", b"/new"),
        }  # fmt: skip
        with pytest.raises(LayerfsError, match="is no file of the container"):  # hidden by a whiteout
            store.apply("box", [layer([entry("again", kind=b"1", link="dir/inner")])])
        store.mount("i:1", tmp_path / "mnt", name="box", backend="fuse")
        assert below(tmp_path / "mnt") == ["dir", "new", "stays"]
        store.umount("box")


def test_a_target_inside_of_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower/file").write_text("x")
    upper, work = pair(tmp_path)
    (upper / "mnt").mkdir()
    with served(upper / "mnt", f"lowerdir={tmp_path}/lower,upperdir={upper},workdir={work}") as target:
        listed = subprocess.run(["ls", target, target / "mnt"], check=False, capture_output=True, text=True, timeout=20)
        assert listed.stdout.split() == [f"{target}:", "file", "mnt", f"{target}/mnt:"]


@pytest.mark.needs_overlay
@pytest.mark.parametrize(("name", "given"), [("dirs/upper", "dirs/upper"), ("up,per", r"{}/up\,per")])
def test_an_upper_directory_that_the_kernel_has_by_another_text(tmp_path: Path, name: str, given: str) -> None:
    for directory in ("lower", "work", "mnt", "kernel", name):
        (tmp_path / directory).mkdir(parents=True)
    options = f"lowerdir={tmp_path}/lower,upperdir={given.format(tmp_path)},workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", tmp_path / "kernel"], check=True, cwd=tmp_path)
    try:
        escaped = str(tmp_path / name).replace(",", r"\,")
        refused = f"lowerdir={tmp_path}/lower,upperdir={escaped},workdir={tmp_path}/work"
        with pytest.raises(OSError, match="mounted by the kernel"), served(tmp_path / "mnt", refused):
            pass
    finally:
        umount(tmp_path / "kernel")


@pytest.mark.parametrize("lowers", ["A:A/sub", "A/sub:A", "A:A"])
def test_layers_that_overlap_are_refused(tmp_path: Path, lowers: str) -> None:
    (tmp_path / "A/sub").mkdir(parents=True)
    text = ":".join(str(tmp_path / name) for name in lowers.split(":"))
    with pytest.raises(OSError, match="overlap"), served(tmp_path / "mnt", f"lowerdir={text}"):
        pass


def test_a_rename_that_fails_brings_nothing_back(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "lower/dir").mkdir(parents=True)
    (tmp_path / "lower/dir/removed").write_text("x")
    upper, work = pair(disk("tmpfs", "size=4m"))
    with served(tmp_path / "mnt", f"lowerdir={tmp_path}/lower,upperdir={upper},workdir={work}") as target:
        (target / "dir/removed").unlink()
        (target / "new").mkdir()
        assert os.listdir(target / "dir") == []
        subprocess.run(["chattr", "+i", upper], check=True)
        try:
            with pytest.raises(PermissionError):
                os.rename(target / "new", target / "dir")
        finally:
            subprocess.run(["chattr", "-i", upper], check=True)
        assert not (target / "dir/removed").exists()
        os.rename(target / "new", target / "dir")
        assert os.listdir(target) == ["dir"]


def test_dots_behind_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real/x/y").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "real/x/file").write_text("right")
    (tmp_path / "links/file").write_text("wrong")
    (tmp_path / "links/s").symlink_to("../real/x/y")
    with served(tmp_path / "mnt", f"lowerdir={tmp_path}/links/s/..") as target:
        assert (target / "file").read_text() == "right"


def test_paths_that_are_whole_need_no_working_directory(tmp_path: Path) -> None:
    for name in ("lower", "mnt", "gone"):
        (tmp_path / name).mkdir()
    script = 'cd "$1/gone" && rmdir "$1/gone" && exec "$2" -o "lowerdir=$1/lower" "$1/mnt"'
    program = Path(sys.executable).with_name("layerfs-fuse")
    try:
        subprocess.run(["sh", "-c", script, "sh", tmp_path, program], check=True)
        assert (tmp_path / "mnt").is_mount()
    finally:
        umount(tmp_path / "mnt")


def test_two_names_of_a_file_that_the_upper_directory_has_a_link_of(tmp_path: Path) -> None:
    """Each file of the mount is one inode, whoever looks when."""
    lower, (upper, work) = tmp_path / "lower", pair(tmp_path)
    (lower / "dir").mkdir(parents=True)
    (lower / "dir/a").write_text("0123456789")
    os.link(lower / "dir/a", lower / "b")
    os.link(lower / "dir/a", upper / "known")
    with served(tmp_path / "mnt", f"lowerdir={lower},upperdir={upper},workdir={work}") as target:
        with open(target / "known", "rb"), open(target / "dir/a", "r+b", buffering=0) as one:
            os.listdir(target / "dir")
            with open(target / "dir/a", "r+b", buffering=0) as other:
                assert os.fstat(one.fileno()).st_ino == os.fstat(other.fileno()).st_ino
                os.pwrite(one.fileno(), b"AAA", 0)
                os.pwrite(other.fileno(), b"BBB", 5)
        assert [(target / name).read_text() for name in ("dir/a", "b", "known")] == ["AAA34BBB89"] * 2 + ["0123456789"]
        (target / "dir/a").unlink()
        assert (target / "b").read_text() == "AAA34BBB89"
    assert (lower / "b").read_text() == "0123456789"


def test_an_upper_directory_that_becomes_read_only(tmp_path: Path, disk: Disk) -> None:
    """As ext4 does after an error: what is there can still be read."""
    (tmp_path / "lower").mkdir()
    full = disk("tmpfs", "size=4m")
    upper, work = pair(full)
    (upper / "file").write_text("kept")
    with served(tmp_path / "mnt", f"lowerdir={tmp_path}/lower,upperdir={upper},workdir={work}") as target:
        subprocess.run(["mount", "-o", "remount,ro", full], check=True)
        assert (target / "file").read_text() == "kept"


def test_a_server_that_ends_by_an_error_says_why(tmp_path: Path) -> None:
    """Nobody waits for an answer any more, so it goes to the log."""
    program = (
        "import sys\n"
        "from layerfs.mount.fuse import daemon, serve\n"
        "def broken(wanted, ready):\n    ready()\n    raise OSError(5, 'Input/output error')\n"
        "serve.serve = broken\n"
        "sys.exit(daemon.main(sys.argv[1:]))\n"
    )
    source, text = os.pipe()
    answer, ready = os.pipe()
    log = tmp_path / "log"
    command = [sys.executable, "-P", "-c", program, str(source), str(ready), str(log)]
    with subprocess.Popen(command, pass_fds=(source, ready)):
        for fd in (source, ready):
            os.close(fd)
        os.write(text, FuseSpecification(target=str(tmp_path), lowers=(str(tmp_path),)).to_json())
        os.close(text)
        with open(answer, "rb") as answered:
            assert b'"pid"' in answered.read()
    for _ in range(500):
        if log.exists() and "the mount is dead: Input/output error" in log.read_text():
            break
        time.sleep(0.02)
    else:
        pytest.fail(f"the log says {log.read_text()!r}")


def test_whoever_asked_for_a_mount_is_gone(tmp_path: Path) -> None:
    """Then there is none: nobody would know of it."""
    for name in ("lower", "mnt"):
        (tmp_path / name).mkdir()
    wanted = FuseSpecification(target=str(tmp_path / "mnt"), lowers=(str(tmp_path / "lower"),))
    source, text = os.pipe()
    answer, ready = os.pipe()
    os.close(answer)
    command = [sys.executable, "-P", "-m", "layerfs.mount.fuse.daemon", str(source), str(ready)]
    with subprocess.Popen(command, pass_fds=(source, ready), stderr=subprocess.PIPE) as process:
        for fd in (source, ready):
            os.close(fd)
        os.write(text, wanted.to_json())
        os.close(text)
        assert process.stderr is not None
        process.stderr.read()  # to its end, when the server has let go of it, or is gone
    for _ in range(500):
        if find_mount(tmp_path / "mnt") is None:
            break
        time.sleep(0.02)
    else:
        umount(tmp_path / "mnt", lazy=True)
        pytest.fail("it is mounted all the same")
