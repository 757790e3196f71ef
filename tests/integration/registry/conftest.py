"""Registries that tests share, and images that skopeo has put there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.registry import Certificates, Registry, make_certificates, registry_server
from layerfs.api import Store
from layerfs.registry.access import Access
from tests.cli.conftest import Shell
from tests.image_builder import TestImage, layer, noise, oci, write_layout
from tests.integration.conftest import require

IMAGE = TestImage(
    [
        layer({"etc/": b"", "etc/base": noise(400_000, "base"), "old": b"old"}),
        layer({f"many/{number}": noise(9000, number) for number in range(80)}),
        layer({".wh.old": b"", "top": noise(1_500_000, "top")}),
    ],
    ["app"],
)

#: For registries with plain HTTP.
PLAIN = Access(verify_tls=False, retry_delay=0.05)


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    require("docker-registry", "skopeo", "openssl", "htpasswd")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with the image as ``app``."""
    return write_layout(tmp_path_factory.mktemp("layout") / "oci", oci(IMAGE))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with registry_server(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", sync=False) as opened:
        yield opened


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def request_stack() -> Iterator[ExitStack]:
    """What is entered here is left at the end of the test."""
    with ExitStack() as stack:
        yield stack


def skopeo(*words: str | Path) -> str:
    """Run skopeo, which trusts any image here; return what it prints."""
    done = subprocess.run(["skopeo", "--insecure-policy", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def put(layout: Path, name: str, *options: str | Path) -> None:
    """Let skopeo copy the image to a registry."""
    skopeo("copy", "--quiet", "--dest-tls-verify=false", *options, f"oci:{layout}:app", f"docker://{name}")
