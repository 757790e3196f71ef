"""podman and buildah from Debian with ``layerfs-fuse`` as their mount program, beside fuse-overlayfs."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.corpus import CorpusImage
from bench.peers import podman
from bench.start import LIMITS
from layerfs.api import Store
from layerfs.changeset.entry import Entry
from tests.integration.conftest import require

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.slow]

OURS = str(Path(sys.executable).with_name("layerfs-fuse"))
#: What a build does: installs a package, moves, links, removes and rewrites files of the layers below.
BUILD = """
set -e
dpkg -i /made.deb >/dev/null; rm /made.deb
test "$(made)" = made; test -u /usr/bin/made
mkdir -p /srv/deep/er
cp -a /usr/share/doc /srv/doc
rm -rf /usr/share/doc; mkdir /usr/share/doc
ln /bin/sh /srv/sh; mv /srv/sh /srv/deep/sh
sed -i s/root:x/root:y/ /etc/passwd; sed -i s/root:y/root:x/ /etc/passwd
tar -C /srv -cf /srv/doc.tar doc; mkdir /srv/again; tar -C /srv/again -xf /srv/doc.tar; rm /srv/doc.tar
rm -rf /srv/doc /var/cache/* /var/log/*
chown -R 33:33 /srv/again; chmod 2775 /srv/again
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path, as podman wants it."""
    path = Path(tempfile.mkdtemp(prefix="layerfs-mp-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A Debian package with one set-user-ID program."""
    root = tmp_path / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/made").write_text("#!/bin/sh\necho made\n")
    (root / "usr/bin/made").chmod(0o4755)
    text = "Package: made\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: made\n"
    (root / "DEBIAN/control").write_text(text)
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, tmp_path / "made.deb"], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return tmp_path / "made.deb"


def _output(*command: object) -> str:
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _facts(entry: Entry | None) -> object:
    """Return everything but the time: fuse-overlayfs gives directories that it copies up a new one."""
    if entry is None:
        return None
    content = b"".join(entry.pieces()) if stat.S_ISREG(entry.mode) else b""
    target = entry.target() if stat.S_ISLNK(entry.mode) else b""
    return oct(entry.mode), entry.uid, entry.gid, entry.size, entry.xattrs(), target, content


def _build(program: str, place: Path, image: CorpusImage, package: Path) -> Path:
    """Build an image from another one; return it as an archive."""
    archive = place / "built.tar"
    with podman(place, "buildah") as base:
        tool = [*base, "--storage-opt", f"overlay.mount_program={program}"]
        container = _output(*tool, "from", "--quiet", *LIMITS, f"oci-archive:{image.oci_archive}")
        _output(*tool, "copy", container, package, "/made.deb")
        _output(*tool, "run", "--isolation=chroot", container, "sh", "-c", BUILD)
        _output(*tool, "commit", "--quiet", container, f"oci-archive:{archive}:localhost/built")
        _output(*tool, "rm", container)
        _output(*tool, "rmi", "--all")
    return archive


def test_a_build_gives_the_same_image(real_image: CorpusImage, place: Path, package: Path) -> None:
    require("buildah", "fuse-overlayfs", "dpkg-deb")
    if real_image.name != "demo":
        pytest.skip(
            "fuse-overlayfs 1.10 shows /usr/share/doc/README of a lower layer after rm -rf and mkdir of its parent"
        )
    found = {}
    with Store.open(place / "store", runroot=place / "run") as store:
        for program in (OURS, "/usr/bin/fuse-overlayfs"):
            work = place / Path(program).name
            work.mkdir()
            (found[program],) = store.load(_build(program, work, real_image, package))
        ours, theirs = found.values()
        different = [step.path for step in store.steps(ours, theirs) if _facts(step.old) != _facts(step.new)]
        assert different == []
        (base,) = store.load(real_image.oci_archive)
        changed = {step.path for step in store.steps(base, ours)}
    assert {b"/usr/bin/made", b"/srv/deep/sh", b"/srv/again/doc", b"/etc/passwd"} <= changed


def test_podman_runs_what_it_serves(real_image: CorpusImage, place: Path) -> None:
    require("podman", "runc")
    with podman(place) as base:
        tool = [*base, "--storage-opt", f"overlay.mount_program={OURS}"]
        name = _output(*tool, "load", "--quiet", "--input", real_image.docker_archive).split()[-1]
        options = ["--rm", "--network=none", "--log-driver=none", *LIMITS]
        code = "echo changed > /etc/new && rm /etc/passwd && cat /etc/new && test ! -e /etc/passwd && df -T /"
        said = _output(*tool, "--cgroup-manager=cgroupfs", "--runtime=runc", "run", *options, name, "sh", "-c", code)
        assert said.startswith("changed\n")
        assert "fuse.layerfs" in said
        _output(*tool, "rmi", "--all")
