"""What tests need of the machine, and what happens when it is not there.

A test says what it needs with a marker (``needs_root``, ``needs_userns``, ``needs_fuse``, ``needs_overlay``). Where
the machine lacks it the test is skipped with the reason; with ``--expect=root,overlay`` a lack of those is a failure,
so that a run that should be able to mount cannot pass by skipping.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Machines that run the tests are shared and slow at times: no example has a deadline. A long search for bad inputs is
# `pytest tests/property --hypothesis-profile=deep`.
settings.register_profile("quick", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", settings.get_profile("quick"), max_examples=5000)
settings.load_profile("quick")

# Tests look at modes; who has another umask is to see the same.
os.umask(0o022)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--expect", default="", help="capabilities that must be there: root,userns,fuse,overlay")
    parser.addoption("--large", action="store_true", help="also tests that take minutes on the image of a gigabyte")


@cache
def _lacks_root() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    if not shutil.which("unshare"):
        return "unshare is not installed"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True, text=True
    )
    return None if tried.returncode == 0 else f"root may not mount here: {tried.stderr.strip()}"


@cache
def _lacks_userns() -> str | None:
    if not shutil.which("unshare"):
        return "unshare is not installed"
    tried = subprocess.run(
        ["unshare", "--user", "--map-root-user", "true"], check=False, capture_output=True, text=True
    )
    return None if tried.returncode == 0 else f"no user namespaces here: {tried.stderr.strip()}"


@cache
def _lacks_fuse() -> str | None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return None


@cache
def _lacks_overlay() -> str | None:
    if (reason := _lacks_root()) is not None:
        return reason
    with tempfile.TemporaryDirectory() as folder:
        for name in ("lower", "upper", "work", "target"):
            (Path(folder) / name).mkdir()
        command = ["mount", "-t", "overlay", "overlay", "-o", "lowerdir=lower,upperdir=upper,workdir=work", "target"]
        tried = subprocess.run(
            ["unshare", "--mount", *command], check=False, capture_output=True, text=True, cwd=folder
        )  # fmt: skip
    return None if tried.returncode == 0 else f"no overlayfs in {tempfile.gettempdir()}: {tried.stderr.strip():.200}"


_CAPABILITIES: dict[str, Callable[[], str | None]] = {
    "needs_root": _lacks_root,
    "needs_userns": _lacks_userns,
    "needs_fuse": _lacks_fuse,
    "needs_overlay": _lacks_overlay,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    expected = {f"needs_{word}" for word in item.config.getoption("--expect").split(",") if word}
    for marker, lacks in _CAPABILITIES.items():
        if item.get_closest_marker(marker) and (reason := lacks()) is not None:
            if marker in expected:
                pytest.fail(f"{marker} was expected to work: {reason}", pytrace=False)
            pytest.skip(reason)
