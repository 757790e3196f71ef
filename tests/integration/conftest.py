"""Real images, and the trees that other tools make of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.corpus import CorpusImage, image
from bench.peers import podman
from tests.power_cut import Disk


def require(*commands: str) -> None:
    """Skip the test unless every command is installed; ``make test`` installs them all."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="session", params=["demo", "python-app"])
def real_image(request: pytest.FixtureRequest) -> CorpusImage:
    """An image of Debian packages, made once by mmdebstrap with umoci (demo) or buildah (python-app).

    The other tools, which make the large one and take it apart for comparison, need a quarter of an hour for it; demo
    has every kind of entry as well.
    """
    if request.param != "demo" and not request.config.getoption("--large"):
        pytest.skip("takes minutes: make test-large")
    require("mmdebstrap", "umoci", "skopeo", "buildah")
    return image(request.param)


@pytest.fixture(scope="session")
def umoci_tree(real_image: CorpusImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What ``umoci unpack`` makes of the image."""
    bundle = tmp_path_factory.mktemp("umoci") / "bundle"
    subprocess.run(
        ["umoci", "unpack", "--image", f"{real_image.oci}:latest", bundle], check=True, stdout=subprocess.DEVNULL
    )
    yield bundle / "rootfs"
    shutil.rmtree(bundle)


@pytest.fixture(scope="session")
def podman_tree(real_image: CorpusImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What podman mounts of the image, kept in a storage of its own."""
    require("podman")
    storage = tmp_path_factory.mktemp("podman")
    with podman(storage) as command:
        loaded = subprocess.run(
            [*command, "load", "--quiet", "--input", real_image.docker_archive],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        name = loaded.stdout.split()[-1]
        mounted = subprocess.run([*command, "image", "mount", name], check=True, stdout=subprocess.PIPE, text=True)
        try:
            yield Path(mounted.stdout.strip())
        finally:
            subprocess.run([*command, "image", "umount", "--all"], check=False, stdout=subprocess.DEVNULL)
    shutil.rmtree(storage)


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A new one, ext4 and XFS in turn."""
    if shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"mkfs.{request.param} is not installed")
    made = Disk(tmp_path, request.param)
    yield made
    made.close()
