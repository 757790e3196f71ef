"""One store in several containers, its copies, and mounts that others have made of its mounts."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from layerfs.api import Store
from layerfs.errors import BackendUnavailable, Conflict, MountError, NotFound, StoreError
from layerfs.linux.mount_api import umount
from layerfs.linux.upper_use import is_upper_in_use
from tests.image_builder import TestImage, entry, layer, oci, outer, pipe

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_fuse]

IMAGE = TestImage([layer({"etc/": b"", "etc/one": b"1"})], ["app:1"])

_CODE = """
import json, sys
from layerfs.api import Store
from layerfs.errors import LayerfsError

root, run, *words = sys.argv[1:]
with Store.open(root, runroot=run, sync=False) as store:
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            match name:
                case "mount":
                    backend, target, box = arguments
                    answer = store.mount("app:1", target, name=box, backend=backend).target
                case "mount_image":
                    answer = store.mount("app:1", *arguments, read_only=True).target
                case "forget":
                    answer = store.umount(*arguments, lazy=True).target
                case "mounts":
                    answer = [mount.target for mount in store.mounts()]
                case "umount":
                    answer = store.umount(*arguments).target
                case "remove":
                    answer = store.remove_container(arguments[0], force=arguments[1]).name
        except LayerfsError as error:
            answer = {type(error).__name__: str(error)}
        print(json.dumps(answer), flush=True)
"""


class _Guest:
    """A process that works with a store in namespaces of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, *words: str | bool) -> object:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        answer: object = json.loads(self.process.stdout.readline())
        return answer

    def refused(self, *words: str | bool) -> str:
        """Have something refused as a Conflict; return what is said."""
        answer = self(*words)
        assert isinstance(answer, Mapping)
        assert list(answer) == ["Conflict"], answer
        return str(answer["Conflict"])


@contextmanager
def _guest(root: Path, run: Path, *, processes: bool = True) -> Iterator[_Guest]:
    """Start one, as in a container: with its own mounts and, unless told otherwise, its own processes."""
    words = ["unshare", "--mount", "--propagation", "private", *(["--pid", "--fork", "--mount-proc"] * processes)]
    words += [sys.executable, "-c", _CODE, os.fspath(root), os.fspath(run)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _Guest(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()  # so it ends, and with it its namespaces and mounts
            process.wait(20)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    for name in ("target", "other"):
        (tmp_path / name).mkdir()
    with Store.open(tmp_path / "store", sync=False) as store:
        store.load(pipe(outer(oci(IMAGE))))
    yield tmp_path / "store"
    for name in ("target", "other", "merged"):
        with suppress(OSError):  # until nothing is mounted there: a bind mount does not look like one
            while True:
                umount(tmp_path / name, lazy=True)


@pytest.mark.parametrize("backend", ["overlay", "fuse"])
@pytest.mark.parametrize("shared", [True, False], ids=["one run root", "two run roots"])
def test_a_container_that_the_host_has_mounted_stays(root: Path, tmp_path: Path, backend: str, *, shared: bool) -> None:
    target = tmp_path / "target"
    with Store.open(root, sync=False) as store:
        store.mount("app:1", target, name="box", backend=backend)
        (target / "precious").write_text("x")
        with _guest(root, root / "run" if shared else tmp_path / "run2") as guest:
            for words in (("remove", "box", False), ("remove", "box", True), ("mount", backend, str(target), "box")):
                assert "box is" in guest.refused(*words)
            assert guest("mounts") == ([str(target)] if shared else [])
        assert [mount.target for mount in store.mounts()] == [str(target)]
        assert (target / "precious").read_text() == "x"
        store.umount("box")
        with _guest(root, root / "run") as guest:
            assert guest("mounts") == []
            assert guest("remove", "box", False) == "box"


@pytest.mark.parametrize("backend", ["overlay", "fuse"])
def test_containers_that_share_a_store_do_not_take_each_others_mounts(root: Path, tmp_path: Path, backend: str) -> None:
    target, run = str(tmp_path / "target"), root / "run"
    with _guest(root, run) as second:
        with _guest(root, run) as first:
            assert first("mount", backend, target, "box") == target
            assert "another PID namespace" in second.refused("remove", "box", True)
            assert "another PID namespace" in second.refused("mount", backend, target, "box")
            assert second("mounts") == [target]
            assert first("umount", "box") == target
            assert second("mount", backend, target, "box") == target
            assert second("umount", "box") == target
            assert first("mount", backend, target, "box") == target
        # It has ended with its mount, and could not say so.
        assert second("remove", "box", False) == "box"
        assert second("mounts") == []


def test_a_mount_of_another_mount_namespace_is_told_as_one(root: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    with Store.open(root, sync=False) as store, _guest(root, root / "run", processes=False) as guest:
        guest("mount", "overlay", target, "box")
        for attempt in (lambda: store.umount("box"), lambda: store.remove_container("box", force=True)):
            with pytest.raises(MountError, match="in another mount namespace, that of process") as caught:
                attempt()
            assert f"--target {guest.process.pid} umount {target}" in (caught.value.hint or "")
        store.mount("app:1", target, name="here")  # where nothing is mounted
        store.umount("here")
        assert guest("umount", "box") == target
        store.remove_container("box", force=True)


@pytest.mark.parametrize("backend", ["overlay", "fuse"])
def test_a_copy_of_a_store_has_no_mounts(root: Path, tmp_path: Path, backend: str) -> None:
    with Store.open(root, sync=False) as store:
        store.mount("app:1", tmp_path / "target", name="box", backend=backend)
        subprocess.run(["cp", "-a", root, tmp_path / "copy"], check=True)
        with Store.open(tmp_path / "copy", sync=False) as copy:
            assert copy.mounts() == []
            with pytest.raises(NotFound):
                copy.umount("box")
            copy.remove_container("box", force=True)
        assert (tmp_path / "target/etc/one").read_bytes() == b"1"
    shutil.rmtree(tmp_path / "copy")
    os.rename(root, tmp_path / "moved")
    with Store.open(tmp_path / "moved", sync=False) as store:
        assert store.umount("box").target == str(tmp_path / "target")


def test_a_copy_in_the_place_of_a_store_has_no_mounts(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with Store.open(root, sync=False) as store:
        store.mount("app:1", target, name="box")
    os.rename(root, tmp_path / "old")
    subprocess.run(["cp", "-a", tmp_path / "old", root], check=True)
    with Store.open(root, sync=False) as store:
        assert store.mounts() == []
        store.remove_container("box", force=True)
    assert (target / "etc/one").read_bytes() == b"1"
    with Store.open(tmp_path / "old", sync=False) as store:
        assert store.umount("box").target == str(target)


def test_a_mount_in_a_namespace_without_processes_is_in_use(root: Path, tmp_path: Path) -> None:
    (place := tmp_path / "namespaces").mkdir()
    subprocess.run(["mount", "--bind", "--make-private", place, place], check=True)
    (place / "kept").touch()
    code = "import sys; from layerfs.api import Store\nwith Store.open(sys.argv[1], sync=False) as store: "
    code += "store.mount('app:1', sys.argv[2], name='box')"
    words = ["unshare", f"--mount={place}/kept", "--propagation", "private", sys.executable, "-c", code]
    subprocess.run([*words, root, tmp_path / "target"], check=True)
    try:
        with Store.open(root, sync=False) as store, pytest.raises(Conflict, match="cannot look"):
            store.remove_container("box", force=True)
    finally:
        umount(place / "kept")
        umount(place)
    with Store.open(root, sync=False) as store:
        store.remove_container("box")


def test_what_a_killed_container_has_left_can_be_forgotten(root: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    with _guest(root, root / "run") as second:
        with _guest(root, root / "run") as first:
            assert first("mount_image", target) == target
        assert second("mounts") == [target]
        answer = second("umount", target)
        assert isinstance(answer, Mapping)
        assert "in another mount namespace" in answer["MountError"]
        assert second("forget", target) == target
        assert second("mounts") == []


def test_a_bind_mount_is_not_taken_for_the_mount(root: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "target", tmp_path / "other"
    with Store.open(root, sync=False) as store:
        store.mount("app:1", target, name="box")
        for source in (target / "etc", target):
            subprocess.run(["mount", "--bind", source, other], check=True)
            assert [mount.target for mount in Store.mounts(store)] == [str(target)]
            with Store.open(root, sync=False) as again:  # which looks for what nobody recorded
                assert [mount.target for mount in again.mounts()] == [str(target)]
            umount(other)
        assert store.umount("box").target == str(target)


def test_who_may_not_look_is_told_nothing(root: Path, tmp_path: Path) -> None:
    words = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c"]
    code = "import sys; from layerfs.linux.upper_use import is_upper_in_use; print(is_upper_in_use(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([*words, code, "/tmp"], env=environment, check=False, capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"an ordinary user cannot read this Python: {ran.stderr[-200:]}")
    assert ran.stdout == "None\n"
    assert is_upper_in_use(tmp_path) is False
    assert is_upper_in_use(root / "nothing") is None


def _without(capabilities: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of layerfs as root of a container that lacks capabilities."""
    program = [sys.executable, "-c", "from layerfs_cli.main import main; main()", *(os.fspath(word) for word in words)]
    return subprocess.run(
        ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", *program],
        check=False, capture_output=True, text=True,
    )  # fmt: skip


def test_root_of_a_container_is_told_what_the_container_lacks(root: Path, tmp_path: Path) -> None:
    ran = _without("-sys_admin", "--root", root, "mount", "app:1", tmp_path / "target")
    assert ran.returncode == 8, ran.stderr
    assert ran.stderr.endswith("a container has it with --cap-add SYS_ADMIN --device /dev/fuse\n")


def test_a_store_on_an_overlay(root: Path, tmp_path: Path) -> None:
    """As in a container without a volume: overlays take no upper directory, and no whiteouts, of an overlay."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = ",".join(f"{key}dir={tmp_path / key}" for key in ("lower", "upper", "work"))
    subprocess.run(["mount", "-t", "overlay", "none", tmp_path / "merged", "-o", options], check=True)
    shutil.copytree(root, tmp_path / "merged/store")
    shutil.rmtree(tmp_path / "merged/store")
    above = layer([entry("etc", kind=b"5"), entry("etc/.wh.one"), entry("etc/two", b"2")])
    with Store.open(tmp_path / "merged/store", sync=False) as store:
        store.load(pipe(outer(oci(TestImage([*IMAGE.layers, above], ["app:1"])))))
        with pytest.raises(BackendUnavailable, match="lies on overlay") as caught:
            store.mount("app:1", tmp_path / "target", backend="overlay", lower="dirs")
        assert caught.value.hint == "use --backend fuse"
        assert store.containers() == []
        assert not list((tmp_path / "merged/store/unpacked/sha256").iterdir())
        store.mount("app:1", tmp_path / "target", backend="overlay", lower="dirs", read_only=True)
        assert os.listdir(tmp_path / "target/etc") == ["two"]
        store.umount(tmp_path / "target")
        assert store.mount("app:1", tmp_path / "target").backend == "fuse"
        store.umount(tmp_path / "target")


def test_a_run_root_of_somebody_else_is_told_before_a_container_is_made(root: Path, tmp_path: Path) -> None:
    with Store.open(root, sync=False) as store:
        store.mount("app:1", tmp_path / "target", name="first")
        store.umount("first")
    words: list[str | Path] = ["--root", root, "mount", "--name", "box", "app:1", tmp_path / "target"]
    os.chmod(root / "run/mounts", 0)
    ran = _without("-dac_override,-dac_read_search", *words)
    os.chmod(root / "run/mounts", 0o700)
    assert ran.returncode == 7, ran.stderr
    assert "cannot look into the run root" in ran.stderr
    assert "--runroot" in ran.stderr
    with Store.open(root, sync=False) as store:
        assert [box.name for box in store.containers()] == ["first"]


def test_a_store_that_is_written_to_is_read_through_a_read_only_mount(root: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "--bind", root, tmp_path / "other"], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", tmp_path / "other"], check=True)
    with Store.open(root, sync=False) as writer:
        writer.tag("app:1", "app:2")
        assert (root / "store.db-wal").stat().st_size
        with Store.open(tmp_path / "other", runroot=tmp_path / "run") as reader:
            assert len(reader.images()[0].names) == 2


def test_what_the_kernel_says_of_a_place_that_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    status = os.stat

    def broken(path: str, **options: Any) -> os.stat_result:
        if os.fspath(path) == os.fspath(root):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return status(path, **options)

    monkeypatch.setattr(os, "stat", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        Store.open(root)


def test_a_path_that_is_too_long_for_the_database(tmp_path: Path) -> None:
    place = tmp_path.joinpath(*["d" * 100] * 5)
    place.mkdir(parents=True)
    with pytest.raises(StoreError, match="SQLite takes"):
        Store.open(place / "store")
