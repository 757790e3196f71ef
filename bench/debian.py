"""What images are made of: Debian's base by mmdebstrap, wheels by pip, and a way to run programs inside a tree."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["base_tar", "enter", "python_wheels", "run"]

#: The release that all images are made of; its Python is 3.11.
RELEASE = "bookworm"
PYTHON_VERSION = "3.11"

#: Runs in a mount namespace of its own, so that all it mounts is gone when it ends, killed or not.
_ENTER = r"""
set -e
root=$1 script=$2
shift 2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
[ -e "$root/etc/resolv.conf" ] || : > "$root/etc/resolv.conf"
mount --bind "$(readlink -f /etc/resolv.conf)" "$root/etc/resolv.conf"
while [ $# -gt 0 ]; do mount --bind "$1" "$root$2"; shift 2; done
exec chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/root LANG=C.UTF-8 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore /bin/sh -ec "$script"
"""


def base_tar(cache: Path, say: Callable[[str], None]) -> Path:
    """A minimal Debian as one tar, made once by mmdebstrap from the mirror that apt here uses."""
    final = cache / f"{RELEASE}-minbase.tar"
    if final.exists():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    say(f"==> mmdebstrap --variant=minbase {RELEASE} {final}")
    with tempfile.TemporaryDirectory(prefix=".base-", dir=cache) as scratch:
        made = Path(scratch) / "base.tar"
        run(["mmdebstrap", "--quiet", "--variant=minbase", RELEASE, str(made)])
        made.rename(final)
    return final


def python_wheels(cache: Path, packages: Sequence[str], say: Callable[[str], None]) -> Path:
    """A directory with wheels of ``packages`` and what they need, for the Python inside the images."""
    final = cache / ("wheels-" + "-".join(packages))
    if final.exists():
        return final
    say(f"==> pip download {' '.join(packages)}")
    platforms = [f"--platform=manylinux{version}_{os.uname().machine}" for version in ("2014", "_2_28", "_2_24")]
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=cache) as scratch:
        made = Path(scratch) / "wheels"
        made.mkdir()
        run([
            sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", *platforms,
            f"--python-version={PYTHON_VERSION}", f"--dest={made}", *packages,
        ])  # fmt: skip
        made.rename(final)
    return final


def enter(root: Path, script: str, *, binds: Mapping[str, Path] | None = None) -> None:
    """Run a shell ``script`` inside the tree ``root``, with /proc, /dev, name resolution and ``binds`` mounted.

    Mount points of ``binds`` that the tree lacks are made for the time of the script and removed afterwards.
    """
    made = [root / target.lstrip("/") for target in binds or {} if not (root / target.lstrip("/")).exists()]
    for directory in made:
        directory.mkdir()
    words = [word for target, source in (binds or {}).items() for word in (str(source), target)]
    try:
        run(["unshare", "--mount", "--fork", "--kill-child", "sh", "-c", _ENTER, "enter", str(root), script, *words])
    finally:
        for directory in made:
            directory.rmdir()


def run(command: Sequence[str | Path]) -> None:
    """Run ``command``; when it fails, raise with the end of what it printed."""
    words = [os.fspath(word) for word in command]
    done = subprocess.run(
        words, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        printed = done.stdout.decode(errors="replace")[-4000:]
        raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}\n{printed}")
