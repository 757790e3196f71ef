"""File systems to fill, cut and break, and processes that load."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfs.linux.mount_api import umount

#: Loads everything named on its command line; prints the IDs once the load has returned.
LOAD = """
import sys
from layerfs.api import Store
with Store.open(sys.argv[1]) as store:
    for source in sys.argv[2:]:
        for image in store.load(source):
            print(image.id, flush=True)
"""

Mount = Callable[..., Path]


def load_command(root: Path, *sources: Path) -> list[str]:
    return [sys.executable, "-c", LOAD, str(root), *map(str, sources)]


def wait_until(true: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 60) -> None:
    """Wait for something that a process brings about, or for its end."""
    end = time.monotonic() + seconds
    while not true() and process.poll() is None:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


def is_loading(root: Path) -> bool:
    """Whether a load has begun to lay layers down."""
    return any((root / "ingest").glob("*/1"))


def time_of_load(root: Path, source: Path) -> float:
    """Return the seconds from when a load begins to lay layers down until it has ended; the image stays."""
    process = subprocess.Popen(load_command(root, source), stdout=subprocess.DEVNULL)
    wait_until(lambda: is_loading(root), process)
    began = time.monotonic()
    assert process.wait() == 0
    return time.monotonic() - began


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts something below the test's directory; unmounted at the end."""
    mounted: list[Path] = []

    def run(source: str | Path, kind: str, options: str = "") -> Path:
        target = tmp_path / f"mount{len(mounted)}"
        target.mkdir()
        command = ["mount", "-t", kind, *(["-o", options] if options else []), str(source), str(target)]
        subprocess.run(command, check=True)
        mounted.append(target)
        return target

    yield run
    for target in reversed(mounted):
        if target.is_mount():
            umount(target, lazy=True)  # a test that failed may still hold something in it
