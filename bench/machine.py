"""What a measurement was taken on: the machine, its tools and their versions, and how busy it was with other things."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

__all__ = ["Busy", "cpu_seconds", "describe"]

_HERE = Path(__file__).parent

#: How each tool tells its version.
_ASKED = {
    "podman": "--version", "buildah": "--version", "ctr": "--version", "umoci": "--version", "skopeo": "--version",
    "runc": "--version", "fuse-overlayfs": "--version", "unionfs": "--version", "mkfs.erofs": "--version",
    "docker-registry": "--version", "tar": "--version", "gzip": "--version", "igzip": "--version",
    "openssl": "version", "sha256sum": "--version",
}  # fmt: skip

#: Shares of all CPUs that others use, or that the host takes away, from which on a machine counts as busy.
_OTHERS, _STOLEN = 0.1, 0.03


def describe(place: Path) -> dict[str, object]:
    """Return what is to be known of this machine; ``place`` is where files are written."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory": memory,
        "filesystem": _filesystem(place),
        "layerfs": _revision(),
        "versions": _versions(),
    }


def cpu_seconds() -> float:
    """Return the CPU time that everything on this machine has taken so far, in ticks of mostly 10 ms."""
    user, nice, system, _, _, irq, softirq, _ = _ticks()
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class Busy:
    """How much of the machine others used: right before the first run, and taken away by the host during all."""

    def __init__(self) -> None:
        """Look for half a second, in which this program does nothing."""
        first = _ticks()
        time.sleep(0.5)
        self._start = _ticks()
        self._others = _share(first, self._start, busy=True)

    def before(self) -> str:
        """Say how busy it was before the first run, if it was."""
        return f"others use {self._others:.0%} of its CPUs" if self._others > _OTHERS else ""

    def during(self) -> dict[str, float | bool]:
        """Return the shares, and whether they are too much to trust absolute times."""
        stolen = _share(self._start, _ticks(), busy=False)
        return {"others": self._others, "stolen": stolen, "busy": self._others > _OTHERS or stolen > _STOLEN}


def _ticks() -> list[int]:
    """Return the ticks of all CPUs: user, nice, system, idle, iowait, irq, softirq, steal."""
    return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def _share(before: list[int], after: list[int], *, busy: bool) -> float:
    spent = [late - early for early, late in zip(before, after, strict=True)]
    user, nice, system, _, _, irq, softirq, steal = spent
    return (user + nice + system + irq + softirq if busy else steal) / (sum(spent) or 1)


def _versions() -> dict[str, str]:
    found = {}
    for tool, option in _ASKED.items():
        if shutil.which(tool):
            done = subprocess.run([tool, option], check=False, capture_output=True, text=True)
            lines = [line.strip() for line in (done.stdout or done.stderr).splitlines()]
            found[tool] = next((line for line in lines if tool in line.lower()), "version unknown")
    return found


def _revision() -> str:
    done = subprocess.run(["git", "-C", _HERE, "describe", "--always", "--dirty", "--tags"], check=False,
                          capture_output=True, text=True)  # fmt: skip
    return done.stdout.strip() or "not a checkout"


def _filesystem(place: Path) -> str:
    while not place.exists():  # nothing was made there yet
        place = place.parent
    device = os.stat(place).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
