"""Other tools doing the job, each with the settings that work on a bare machine, and the floors below them all.

Every function returns a variant: a callable that runs the tool once in ``work``, an empty directory, and measures it.
Peers do not make what they write durable; where a variant's ``sync`` is asked for, the time of flushing the file system
afterwards is kept beside it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.corpus import CorpusImage
from bench.measure import Sample, command

__all__ = ["ImportVariant", "containerd", "floors", "importers", "podman", "sample_with_daemon", "versions"]

#: Imports ``image`` into the empty directory ``work`` and returns what that took.
ImportVariant = Callable[[CorpusImage, Path], Sample]


def floors() -> dict[str, ImportVariant]:
    """What cannot be undercut by a tool that inflates and digests in one thread, or that only unpacks."""
    return {
        "gzip, sha256sum": lambda image, _work: _shell(f"{_inflate('gzip', image)} | sha256sum"),
        "igzip, openssl sha256": lambda image, _work: _shell(f"{_inflate('igzip', image)} | openssl dgst -sha256"),
    }


def importers() -> dict[str, ImportVariant]:
    """Tools that unpack the image's layers into directories."""
    found: dict[str, ImportVariant] = {
        "gzip, tar -x": lambda image, work: _untar("gzip", image, work),
        "igzip, tar -x": lambda image, work: _untar("igzip", image, work),
        "podman load": _podman_load,
        "umoci unpack": lambda image, work: command([
            "umoci", "unpack", "--image", f"{image.oci}:latest", work / "bundle",
        ]),
        "ctr image import": _containerd_import,
        "mkfs.erofs --tar": _mkfs_erofs,
    }  # fmt: skip
    needs = {"igzip, tar -x": "igzip", "podman load": "podman", "umoci unpack": "umoci", "ctr image import": "ctr"}
    usable = {name: variant for name, variant in found.items() if shutil.which(needs.get(name, "tar"))}
    if not _knows_tar():
        del usable["mkfs.erofs --tar"]
    return usable


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


def versions() -> Mapping[str, str]:
    """What each peer calls itself, for the record."""
    asked = {"podman": "--version", "umoci": "--version", "ctr": "--version", "tar": "--version", "igzip": "--version"}
    found = {}
    for tool, option in asked.items():
        if shutil.which(tool):
            done = subprocess.run([tool, option], check=False, capture_output=True, text=True)
            found[tool] = ((done.stdout or done.stderr).splitlines() or ["?"])[0]
    return found


def _podman_load(image: CorpusImage, work: Path) -> Sample:
    with podman(work) as tool:
        return command([*tool, "load", "--quiet", "--input", image.oci_archive])


def _knows_tar() -> bool:
    """Whether mkfs.erofs is there and new enough (1.7) to read a tar."""
    if not shutil.which("mkfs.erofs"):
        return False
    return "--tar" in subprocess.run(["mkfs.erofs", "--help"], check=False, capture_output=True, text=True).stdout


def _mkfs_erofs(image: CorpusImage, work: Path) -> Sample:
    """One EROFS image with data for each layer; nothing is checked, stacked or shared."""
    lines = [
        f"gzip -dc < {shlex.quote(str(layer))} | mkfs.erofs --quiet --tar=f {work}/{number}.erofs"
        for number, layer in enumerate(image.layers())
    ]
    return _shell("\n".join(lines))


def _containerd_import(image: CorpusImage, work: Path) -> Sample:
    with containerd(work) as (ctr, pid):
        name = f"localhost/{image.name}"
        sample = sample_with_daemon([*ctr, "images", "import", "--base-name", name, image.oci_archive], pid)
        # A name that does not fit imports nothing, quickly, and is no error to ctr.
        unpacked = subprocess.run([*ctr, "snapshots", "ls"], check=True, capture_output=True, text=True)
        if len(unpacked.stdout.splitlines()) <= len(image.layers()):
            raise RuntimeError("ctr image import unpacked nothing")
        return sample


def sample_with_daemon(words: Sequence[str | Path], pid: int) -> Sample:
    """Measure a command together with the daemon that does its work."""
    before = _cpu_of(pid)
    sample = command(words)
    return replace(sample, cpu=sample.cpu + _cpu_of(pid) - before, peak=_peak_of(pid))


def _inflate(program: str, image: CorpusImage) -> str:
    return "{ " + "".join(f"{program} -dc < {shlex.quote(str(layer))}; " for layer in image.layers()) + "}"


def _untar(program: str, image: CorpusImage, work: Path) -> Sample:
    lines = [
        f"{program} -dc < {shlex.quote(str(layer))} | tar --xattrs --xattrs-include='*' -xpf - -C {work}"
        for layer in image.layers()
    ]
    return _shell("\n".join(lines))


def _shell(script: str) -> Sample:
    return command(["bash", "-euo", "pipefail", "-c", script])


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _peak_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
