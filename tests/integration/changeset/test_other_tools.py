"""What is saved and committed here, other tools take and see as we do; what they make of a change is the same."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.corpus import CorpusImage
from bench.peers import containerd, podman
from layerfs.api import Image, Store
from tests.image_builder import TestImage, docker_old, entry, layer, outer
from tests.integration.conftest import require
from tests.integration.tree_compare import Entry, describe, differences, implicit_directories

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay]

_REF_NAME = "org.opencontainers.image.ref.name"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", runroot=tmp_path / "run", sync=False) as opened:
        yield opened


@contextmanager
def _mounted(store: Store, what: Image | None, target: Path, *, name: str | None = None) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    mount = store.mount(what, target, name=name, read_only=name is None)
    try:
        yield target
    finally:
        store.umount(mount.id)


def _run(*words: str | Path) -> str:
    done = subprocess.run([os.fspath(word) for word in words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def _in_containerd(archive: Path, name: str, work: Path) -> dict[bytes, Entry]:
    """Return what a containerd with its state in ``work`` shows of an image, which it has forgotten then."""
    (target := work / "target").mkdir(parents=True, exist_ok=True)
    with containerd(work) as (ctr, _):
        _run(*ctr, "images", "import", archive)
        _run(*ctr, "images", "mount", name, target)
        try:
            return describe(target)
        finally:
            _run("umount", target)
            _run(*ctr, "snapshots", "rm", target)
            _run(*ctr, "images", "rm", "--sync", name)


def _change(top: Path) -> None:
    """Do to a root file system what programs do, in ways that are known to go wrong."""
    etc, opt = top / "etc", top / "opt"
    (etc / "new file").write_text("new\n")
    os.utime(etc / "new file", ns=(0, 1_500_000_000_123_456_789))
    with (etc / "passwd").open("a") as file:
        file.write("app:x:1000:1000::/:/bin/sh\n")
    os.chmod(etc / "shadow", 0o600)
    os.chown(etc / "hostname" if (etc / "hostname").exists() else etc / "issue", 1000, 1001)
    (etc / "motd").unlink()
    shutil.rmtree(top / "usr/share/doc", ignore_errors=True)
    (top / "usr/share/doc").mkdir(exist_ok=True)
    (top / "usr/share/doc/only").write_text("only\n")
    (etc / "issue.net").unlink()
    (etc / "issue.net").mkdir()
    (etc / "issue.net/inside").write_text("a directory now\n")
    shutil.rmtree(etc / "cron.daily")
    (etc / "cron.daily").write_text("a file now\n")
    opt.mkdir(exist_ok=True)
    (opt / "one").write_bytes(os.urandom(9000))
    os.link(opt / "one", opt / "two")
    (opt / "deep/er/est").mkdir(parents=True)
    os.chmod(opt / "deep", 0o2770)
    (opt / "link").symlink_to("../etc/new file")
    os.mkfifo(opt / "fifo", 0o640)
    os.mknod(opt / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(opt / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 1))
    shutil.copy2(top / "bin/sh", opt / "capable")
    os.setxattr(opt / "one", "user.note", b"kept\0whole")
    _run("setcap", "cap_net_bind_service+ep", opt / "capable")
    (top / "tmp/gone").write_text("")
    (top / "tmp/gone").unlink()
    with (etc / "group").open("a"):
        pass  # copied up, and not changed
    (etc / "ld.so.conf").write_bytes((etc / "ld.so.conf").read_bytes())


def _without_sockets(tree: dict[bytes, Entry]) -> dict[bytes, Entry]:
    return {path: entry for path, entry in tree.items() if entry.type != "socket"}


def test_a_docker_archive_has_the_same_layers_and_image(
    store: Store, real_image: CorpusImage, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    require("skopeo", "podman")
    (loaded,) = store.load(real_image.docker_archive)
    saved = tmp_path / "saved.tar"
    store.save([loaded], saved)
    with tarfile.open(real_image.docker_archive) as theirs, tarfile.open(saved) as ours:
        listed = [json.load(tar.extractfile("manifest.json"))[0] for tar in (theirs, ours)]  # type: ignore[arg-type]
        assert listed[0]["RepoTags"] == listed[1]["RepoTags"]
        for one, other in zip(listed[0]["Layers"], listed[1]["Layers"], strict=True):
            left, right = theirs.extractfile(one), ours.extractfile(other)
            assert left is not None
            assert right is not None
            while piece := left.read(1 << 20):
                assert piece == right.read(1 << 20)
            assert not right.read(1)
    assert (
        f"sha256:{loaded.id.hex}"
        == json.loads(_run("skopeo", "inspect", "--raw", f"docker-archive:{saved}"))["config"]["digest"]
    )
    place = tmp_path_factory.mktemp("podman")  # podman takes no long paths
    with podman(place) as storage:
        try:
            name = _run(*storage, "load", "--quiet", "--input", saved).split()[-1]
            assert name == f"localhost/{real_image.name}:latest"
            assert _run(*storage, "image", "inspect", "--format", "{{.Id}}", name).strip() == loaded.id.hex
            seen = describe(Path(_run(*storage, "image", "mount", name).strip()))
        finally:
            subprocess.run([*storage, "image", "umount", "--all"], check=False, stdout=subprocess.DEVNULL)
    shutil.rmtree(place)
    with _mounted(store, loaded, tmp_path / "ours") as mounted:
        expected = describe(mounted)
    # podman makes directories that no entry describes anew, with the time of day, and the root with a mode of its own.
    for path in implicit_directories(real_image.layers()):
        seen[path] = replace(seen[path], mtime_ns=expected[path].mtime_ns)
    seen[b"."] = replace(seen[b"."], mode=expected[b"."].mode)
    assert differences(expected, seen) == []


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not-kept"])
def test_an_oci_archive_is_taken_by_skopeo_and_umoci(
    store: Store, real_image: CorpusImage, umoci_tree: Path, tmp_path: Path, kept: bool
) -> None:
    (loaded,) = store.load(real_image.oci_archive, keep_blobs=kept)
    saved, layout = tmp_path / "saved.tar", tmp_path / "layout"
    (image,) = store.save([loaded], saved, form="oci-archive")
    if kept:
        assert image.manifest == loaded.manifest_digest
        assert _run("skopeo", "inspect", "--raw", f"oci-archive:{saved}") == _run(
            "skopeo", "inspect", "--raw", f"oci-archive:{real_image.oci_archive}"
        )
    if kept:
        _run("skopeo", "copy", "--quiet", f"oci-archive:{saved}", f"oci:{layout}:latest")
    else:
        # skopeo would compress the layers first, for minutes; it reads the archive all the same.
        assert json.loads(_run("skopeo", "inspect", f"oci-archive:{saved}"))["Digest"] == str(image.manifest)
        store.save([loaded], layout, form="oci")
        name = json.loads((layout / "index.json").read_bytes())["manifests"][0]["annotations"][_REF_NAME]
        _run("umoci", "tag", "--image", f"{layout}:{name}", "latest")
    _run("umoci", "unpack", "--image", f"{layout}:latest", tmp_path / "bundle")
    assert differences(describe(umoci_tree), describe(tmp_path / "bundle/rootfs")) == []


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_compressed_layout_is_the_same_image(
    store: Store, real_image: CorpusImage, tmp_path: Path, compression: str
) -> None:
    if compression == "gzip" and real_image.name != "demo":
        pytest.skip("zlib takes a minute for it, and demo shows the same")
    (loaded,) = store.load(real_image.oci)
    (image,) = store.save([loaded], tmp_path / "layout", form="oci", compression=compression)
    assert store.save([loaded], tmp_path / "layout", form="oci", compression=compression) == [image]
    name = loaded.names[0] if loaded.names else ""
    found = json.loads(_run("skopeo", "inspect", "--raw", f"oci:{tmp_path}/layout{':' + name if name else ''}"))
    assert found["config"]["digest"] == str(loaded.id)
    kinds = {layer["mediaType"].rpartition(".")[2] for layer in found["layers"]}
    assert kinds == {{"none": "tar", "gzip": "tar+gzip", "zstd": "tar+zstd"}[compression]}
    with Store.open(tmp_path / "other", sync=False) as other:
        (again,) = other.load(tmp_path / "layout")
        assert (again.id, again.chain_id) == (loaded.id, loaded.chain_id)


def test_containerd_sees_the_same_tree(store: Store, real_image: CorpusImage, tmp_path: Path) -> None:
    require("ctr", "containerd")
    (loaded,) = store.load(real_image.docker_archive)
    with _mounted(store, loaded, tmp_path / "ours") as ours:
        expected = describe(ours)
    work = tmp_path / "containerd"
    for form in ("docker-archive", "oci-archive"):
        store.save([loaded], tmp_path / "saved.tar", form=form)
        theirs = _in_containerd(tmp_path / "saved.tar", f"localhost/{real_image.name}:latest", work)
        # containerd makes directories that a layer only passes through anew, and the root if no layer has one.
        for path, seen in theirs.items():
            if seen.type == "directory":
                theirs[path] = replace(seen, mtime_ns=expected[path].mtime_ns)
        assert differences(expected, theirs) == []


def test_links_that_differ_from_their_file_are_what_podman_and_containerd_make_of_them(
    store: Store, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    require("podman", "ctr", "containerd")
    tar = layer([
        entry("su", b"data", mode=0o4755, uid=1, gid=1, mtime=1000, xattrs={"user.a": b"1"}),
        entry("plain", kind=b"1", link="su", mode=0o600, uid=2, gid=3, mtime=2000, xattrs={"user.b": b"2"}),
        entry("kept", b"data", mode=0o755, uid=1, gid=1, mtime=1000, xattrs={"user.a": b"1"}),
        entry("nothing", kind=b"1", link="kept", mode=0, mtime=0),
    ])  # fmt: skip
    name = "localhost/links:latest"
    archive = tmp_path / "image.tar"
    archive.write_bytes(outer(docker_old(TestImage([tar], names=[name]))))
    (loaded,) = store.load(archive)
    with _mounted(store, loaded, tmp_path / "ours") as top:
        ours = describe(top)
    del ours[b"."]  # podman gives the root a mode of its own
    assert (ours[b"su"].mode, ours[b"su"].uid, ours[b"nothing"].mode) == (0o600, 2, 0)
    with podman(tmp_path_factory.mktemp("podman")) as storage:
        try:
            _run(*storage, "load", "--quiet", "--input", archive)
            theirs = describe(Path(_run(*storage, "image", "mount", name).strip()))
        finally:
            subprocess.run([*storage, "image", "umount", "--all"], check=False, stdout=subprocess.DEVNULL)
    assert differences(ours, {path: seen for path, seen in theirs.items() if path != b"."}) == []
    theirs = _in_containerd(archive, name, tmp_path / "containerd")
    assert differences(ours, {path: seen for path, seen in theirs.items() if path != b"."}) == []


def test_umoci_unpacks_a_commit_to_what_the_container_shows(
    store: Store, real_image: CorpusImage, tmp_path: Path
) -> None:
    (loaded,) = store.load(real_image.oci_archive)
    with _mounted(store, loaded, tmp_path / "mnt", name="box") as top:
        _change(top)
        image = store.commit("box", "localhost/committed")
        shown = describe(top)
    with _mounted(store, image, tmp_path / "ours") as ours:
        assert differences(_without_sockets(shown), describe(ours)) == []
    store.save(["localhost/committed"], tmp_path / "layout", form="oci")
    _run("umoci", "unpack", "--image", f"{tmp_path}/layout:localhost/committed:latest", tmp_path / "bundle")
    assert differences(_without_sockets(shown), describe(tmp_path / "bundle/rootfs")) == []


def test_buildah_commits_the_same_entries(store: Store, tmp_path: Path) -> None:
    require("buildah")
    from bench.corpus import image

    demo = image("demo")
    (loaded,) = store.load(demo.oci_archive)
    with _mounted(store, loaded, tmp_path / "mnt", name="box") as top:
        _change(top)
    committed = store.commit("box", "localhost/committed")
    ours = _entries(b"".join(store.read_layer(store.layers(committed)[-1].diff_id)))
    storage = tmp_path / "buildah"
    buildah = ["buildah", "--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver", "overlay"]
    container = _run(*buildah, "from", f"oci-archive:{demo.oci_archive}").strip()
    _change(Path(_run(*buildah, "mount", container).strip()))
    _run(*buildah, "umount", container)
    _run(*buildah, "commit", "--disable-compression", "--quiet", container, f"oci:{tmp_path}/layout:latest")
    _run(*buildah, "rm", container)
    subprocess.run(["umount", "--quiet", storage / "root/overlay"], check=False)
    index = json.loads((tmp_path / "layout/index.json").read_bytes())
    blobs = tmp_path / "layout/blobs/sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    theirs = _entries((blobs / manifest["layers"][-1]["digest"][7:]).read_bytes())
    # What was only opened for writing is in theirs, though it is as it was; and what is in our layer to repeat the
    # times of directories, to the root, is not.
    assert theirs.pop("etc/group")[0] == tarfile.REGTYPE
    extra = {name for name in ours if name not in theirs}
    assert all(ours.pop(name)[0] == tarfile.DIRTYPE for name in extra)
    assert extra <= {"", ".", "tmp", "dev", "proc", "run", "sys"}
    for name in ("dev", "proc", "run", "sys", "run/.containerenv", "run/secrets"):
        if name not in ours:
            theirs.pop(name, None)
    assert theirs.pop("etc/issue.net/.wh..wh..opq"), "a directory in place of a file hides nothing: a needless mark"
    assert ours == theirs


def _entries(raw: bytes) -> dict[str, tuple[Any, ...]]:
    """Return what a layer says of every path, but for the times of directories and whiteouts."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(raw), errors="surrogateescape") as tar:
        for info in tar:
            xattrs = {key: value for key, value in info.pax_headers.items() if key.startswith("SCHILY.xattr.")}
            if info.islnk():
                xattrs = {}  # those of the inode; some writers repeat them
            name = info.name.removeprefix("./")
            whiteout = name.rpartition("/")[2].startswith(".wh.")
            mode = None if whiteout else stat.S_IMODE(info.mode)
            fixed = name == "etc/new file"
            found[name] = (
                info.type, mode, info.uid, info.gid, info.size, info.linkname, info.devmajor, info.devminor, xattrs,
                int(info.mtime) if fixed else None,
            )  # fmt: skip
    return found
