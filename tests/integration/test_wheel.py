"""The wheel: what it brings into a site-packages, and that it installs without a compiler."""

from __future__ import annotations

import email
import email.message
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from layerfs.linux.mount_api import umount

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", target, ROOT], check=True)
    (built,) = target.glob("layerfs-*.whl")
    return built


def _metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_only_our_two_packages_land_in_site_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"layerfs", "layerfs_cli"}
    assert {"layerfs/py.typed", "layerfs_cli/py.typed"} <= set(names)
    others = {name for name in names if ".dist-info/" not in name and not name.endswith((".py", "py.typed"))}
    assert others == {"layerfs_cli/report_page.html"}


def test_it_is_pure_and_pyfuse3_is_an_extra(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    requirements = _metadata(wheel).get_all("Requires-Dist") or []
    fuse = [line for line in requirements if line.startswith("pyfuse3")]
    assert len(fuse) == 1
    assert "extra == 'fuse'" in fuse[0].replace('"', "'")
    assert _metadata(wheel)["License-Expression"] == "Apache-2.0"


@pytest.mark.slow
def test_it_installs_from_wheels_alone_and_starts(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", wheel], check=True)
    # From an empty directory, so that nothing of this checkout is imported.
    empty = tmp_path / "empty"
    empty.mkdir()
    subprocess.run([python, "-c", "import layerfs, layerfs.errors"], check=True, cwd=empty)
    shown = subprocess.run(
        [python.with_name("layerfs"), "--version"], check=True, cwd=empty, stdout=subprocess.PIPE, text=True
    )
    assert _metadata(wheel)["Version"] in shown.stdout
    # pyfuse3 is not there, and only who asks for it misses it.
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower/file").write_text("served\n")
    command = [str(python.with_name("layerfs-fuse")), "-o", f"lowerdir={tmp_path}/lower"]
    refused = subprocess.run(
        [*command, "-o", "pyfuse3", empty], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "layerfs-fuse: error: pyfuse3 cannot be used (apt install libfuse3-dev pkg-config "
    )
    if os.geteuid() == 0:
        subprocess.run([*command, empty], check=True, cwd=tmp_path)
        try:
            assert (empty / "file").read_text() == "served\n"
        finally:
            umount(empty)
