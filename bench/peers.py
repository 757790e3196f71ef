"""Other tools doing the job, each with the settings that work on a bare machine, and the floors below them all.

Every function returns a variant: a callable that runs the tool once in ``work``, an empty directory, and measures it.
Peers do not make what they write durable; where a variant's ``sync`` is asked for, the time of flushing the file system
afterwards is kept beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.corpus import CorpusImage
from bench.measure import Sample, command, shell

__all__ = ["FORMS", "ImportVariant", "containerd", "floors", "importers", "podman", "sample_with_daemon", "with_daemon"]

#: Imports ``image`` into the empty directory ``work`` and returns what that took.
ImportVariant = Callable[[CorpusImage, Path], Sample]


#: How an archive holds its layers, and which archive of an image that is.
FORMS: dict[str, Callable[[CorpusImage], Path]] = {
    "gzip": lambda image: image.oci_archive,
    "zstd": lambda image: image.zstd_archive(),
    "docker-archive": lambda image: image.docker_archive,
}


def floors(form: str) -> dict[str, ImportVariant]:
    """What cannot be undercut by a tool that inflates and digests in one thread."""
    if form == "gzip":
        return {
            "gzip, sha256sum": lambda image, _work: shell(f"{_inflate('gzip', image)} | sha256sum"),
            "igzip, openssl sha256": lambda image, _work: shell(f"{_inflate('igzip', image)} | openssl dgst -sha256"),
        }
    if form == "zstd":
        return {"zstd, openssl sha256": lambda image, _work: shell(f"{_inflate_zstd(image)} | openssl dgst -sha256")}
    return {
        "openssl sha256": lambda image, _work: shell(f"openssl dgst -sha256 {shlex.quote(str(image.docker_archive))}")
    }


def importers(form: str, *, unpack: bool = True) -> dict[str, ImportVariant]:
    """Tools that unpack the image's layers into directories, and tar alone, which checks nothing.

    Args:
        form: of :data:`FORMS`.
        unpack: whether those too that take long.
    """
    tar: dict[str, ImportVariant] = {}
    if form == "gzip":
        tar = {
            "gzip, tar -x": lambda image, work: _untar("gzip", image, work),
            "igzip, tar -x": lambda image, work: _untar("igzip", image, work),
        }
    if not unpack:
        return tar
    found = {
        **tar,
        "podman load": lambda image, work: _podman_load(FORMS[form](image), work),
        "ctr image import": lambda image, work: _containerd_import(image, FORMS[form](image), work),
    }
    if form == "gzip":
        found["umoci unpack"] = lambda image, work: command(
            ["umoci", "unpack", "--image", f"{image.oci}:latest", work / "bundle"]
        )
        found["mkfs.erofs --tar"] = _mkfs_erofs
    return found


@contextlib.contextmanager
def podman(work: Path, program: str = "podman") -> Iterator[list[str]]:
    """The podman command, or buildah, with all of its state in ``work`` on the kernel's overlay; leaves no mount."""
    try:
        yield [program, "--root", f"{work}/root", "--runroot", f"{work}/run", "--storage-driver", "overlay"]
    finally:
        subprocess.run(["umount", "--quiet", f"{work}/root/overlay"], check=False)


@contextlib.contextmanager
def containerd(work: Path) -> Iterator[tuple[list[str], int]]:
    """A containerd of our own, its state in ``work``: yields the ctr command that talks to it, and its pid."""
    socket = work / "containerd.sock"
    config = work / "containerd.toml"
    config.write_text(
        f'version = 2\nroot = "{work}/root"\nstate = "{work}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\n  address = "{socket}"\n'
    )
    with (work / "log").open("wb") as log:
        daemon = subprocess.Popen(["containerd", "--config", config], stdout=log, stderr=log)
    try:
        ctr = ["ctr", "--address", str(socket)]
        for _ in range(200):
            if subprocess.run([*ctr, "version"], check=False, capture_output=True).returncode == 0:
                break
            if daemon.poll() is not None:
                raise RuntimeError("containerd ended: " + (work / "log").read_text()[-1000:])
            time.sleep(0.05)
        yield ctr, daemon.pid
    finally:
        daemon.terminate()
        daemon.wait(20)


def _podman_load(archive: Path, work: Path) -> Sample:
    with podman(work) as tool:
        return command([*tool, "load", "--quiet", "--input", archive])


def _mkfs_erofs(image: CorpusImage, work: Path) -> Sample:
    """One EROFS image with data for each layer; nothing is checked, stacked or shared."""
    known = subprocess.run(["mkfs.erofs", "--help"], check=False, capture_output=True, text=True)
    if "--tar" not in known.stdout + known.stderr:
        raise RuntimeError("this mkfs.erofs is too old: reading a tar came with 1.7")
    lines = [
        f"gzip -dc < {shlex.quote(str(layer))} | mkfs.erofs --quiet --tar=f {work}/{number}.erofs"
        for number, layer in enumerate(image.layers())
    ]
    return shell("\n".join(lines))


def _containerd_import(image: CorpusImage, archive: Path, work: Path) -> Sample:
    with containerd(work) as (ctr, pid):
        name = f"localhost/{image.name}"
        sample = sample_with_daemon([*ctr, "images", "import", "--base-name", name, archive], pid)
        # A name that does not fit imports nothing, quickly, and is no error to ctr.
        unpacked = subprocess.run([*ctr, "snapshots", "ls"], check=True, capture_output=True, text=True)
        if len(unpacked.stdout.splitlines()) <= len(image.layers()):
            raise RuntimeError("ctr image import unpacked nothing")
        return sample


def sample_with_daemon(words: Sequence[str | Path], pid: int) -> Sample:
    """Measure a command together with the daemon that does its work."""
    return with_daemon(lambda: command(words), pid)


def with_daemon(job: Callable[[], Sample], pid: int) -> Sample:
    """Add what a daemon, and children that it waited for, spent meanwhile, and the largest it ever was."""
    before = _cpu_of(pid)
    sample = job()
    return replace(sample, cpu=sample.cpu + _cpu_of(pid) - before, peak=_peak_of(pid))


def _inflate(program: str, image: CorpusImage) -> str:
    return "{ " + "".join(f"{program} -dc < {shlex.quote(str(layer))}; " for layer in image.layers()) + "}"


def _inflate_zstd(image: CorpusImage) -> str:
    archive = image.zstd_archive()
    with tarfile.open(archive) as tar:

        def document(name: str) -> dict[str, Any]:
            member = tar.extractfile(name)
            assert member is not None
            found: dict[str, Any] = json.load(member)
            return found

        manifest = document(_blob(document("index.json")["manifests"][0]["digest"]))
        layers = [_blob(layer["digest"]) for layer in manifest["layers"]]
    return f"tar -xOf {shlex.quote(str(archive))} {shlex.join(layers)} | zstd -dc"


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _untar(program: str, image: CorpusImage, work: Path) -> Sample:
    lines = [
        f"{program} -dc < {shlex.quote(str(layer))} | tar --xattrs --xattrs-include='*' -xpf - -C {work}"
        for layer in image.layers()
    ]
    return shell("\n".join(lines))


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _peak_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
