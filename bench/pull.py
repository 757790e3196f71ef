"""pull: an image from a registry on this machine into an empty store, durable, beside the peers and our own load.

Each run starts on a new file system; the registry is Debian's docker-registry, its files in the page cache, reached
with plain HTTP and with TLS. Then: a pull with nothing new, a hundred small layers against ten large ones of the same
bytes, and the memory of six layers at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench.corpus import CorpusImage, image
from bench.fuse_mounts import pinned
from bench.load import layerfs_command, store_environment
from bench.measure import (
    Report,
    Sample,
    bytes_written,
    command,
    common_options,
    fresh_filesystem,
    image_name,
    interleave,
    settle,
)
from bench.peers import containerd, podman, sample_with_daemon
from bench.registry import Certificates, Registry, make_certificates, registry_server
from bench.synthetic import compressible, files_layer, write_image

__all__ = ["main"]

#: Bytes of the files of a made-up image, however many layers it has.
_SIZE = 200 << 20

Variant = Callable[[Path], Sample]


@contextlib.contextmanager
def _registries(work: Path, layouts: dict[str, Path]) -> Iterator[tuple[Registry, Registry, Certificates]]:
    """Two registries over the same files, plain and with TLS, with the images that skopeo has put there."""
    certificates = make_certificates(work / "certificates")
    with (
        registry_server(work / "plain", storage=work / "storage") as plain,
        registry_server(work / "tls", storage=work / "storage", tls=certificates) as tls,
    ):
        for name, layout in layouts.items():
            subprocess.run(
                ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest",
                 f"docker://{plain.name(name)}:latest"], check=True,
            )  # fmt: skip
        yield plain, tls, certificates


def _layerfs(name: str, *options: str) -> Variant:
    def pull(work: Path) -> Sample:
        return command([layerfs_command(), "pull", "--quiet", *options, name], env=_environment(work))

    return pull


def _environment(work: Path) -> dict[str, str]:
    # Without the machine's own configuration, which may name mirrors.
    return {**store_environment(work), "XDG_CONFIG_HOME": f"{work}/none", "CONTAINERS_REGISTRIES_CONF": os.devnull}


def _load(found: CorpusImage) -> Variant:
    return lambda work: command(
        [layerfs_command(), "load", "--quiet", "--input", found.oci_archive], env=store_environment(work)
    )


def _podman(name: str, *options: str) -> Variant:
    def pull(work: Path) -> Sample:
        with podman(work) as tool:
            return command([*tool, "pull", "--quiet", *options, name])

    return pull


def _containerd(name: str, *options: str) -> Variant:
    def pull(work: Path) -> Sample:
        with containerd(work) as (ctr, pid):
            return sample_with_daemon([*ctr, "image", "pull", "--snapshotter", "overlayfs", *options, name], pid)

    return pull


def _measured(variant: Variant) -> Callable[[], Sample]:
    def one() -> Sample:
        with fresh_filesystem() as root:
            settle()
            before = bytes_written(root)
            sample = variant(root)
            start = time.perf_counter()
            settle()
            return replace(
                sample,
                extra={"sync": time.perf_counter() - start, "MB written": (bytes_written(root) - before) / 1e6},
            )

    return one


def _made_up(directory: Path, layers: int) -> Path:
    """Write an OCI layout with so many layers, together :data:`_SIZE` bytes of files that compress by a half."""
    per_layer = _SIZE // layers

    def files(layer: int) -> Iterator[tuple[str, bytes]]:
        for start in range(0, per_layer, 100_000):
            size = min(100_000, per_layer - start)
            yield f"{layer}/{start}", b"".join(compressible(f"{layers} {layer} {start}", size))

    write_image(directory, (files_layer(files(layer)) for layer in range(layers)))
    return directory


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("pull", __doc__, rounds=5)
    parser.add_argument("--image", default="python-app", type=image_name)
    parser.add_argument("--only", choices=("empty", "again", "layers", "memory"), help="only this table")
    options = parser.parse_args(arguments)
    found = image(options.image)
    report = Report("pull", vars(options))
    with tempfile.TemporaryDirectory(prefix="bench-pull-") as scratch:
        work = Path(scratch)
        layouts = {"app": found.oci}
        if options.only in (None, "layers", "memory"):
            layouts |= {f"layers-{count}": _made_up(work / f"made-{count}", count) for count in (10, 100)}
        with _registries(work, layouts) as (plain, tls, certificates):
            trusted = _trusted(certificates)
            if options.only in (None, "empty"):
                _empty(found, plain, tls, certificates, trusted, options, report)
            if options.only in (None, "again"):
                _again("app: pull again", plain, tls, trusted, options.rounds, report)
            if options.only in (None, "layers"):
                variants = {
                    f"layerfs pull, {count} layers": _of_layers(plain, count, "--tls-verify=false")
                    for count in (10, 100)
                }
                samples, failed = interleave(variants, options.rounds, report.on)
                base = "layerfs pull, 10 layers"
                report.table(f"{_SIZE >> 20} MiB of files", samples, base=base, failed=failed)
            if options.only in (None, "memory"):
                variants = {
                    f"layerfs pull, {jobs} at a time": _of_layers(plain, 10, "--tls-verify=false", "--jobs", str(jobs))
                    for jobs in (1, 3, 6)
                }
                samples, failed = interleave(variants, options.rounds, report.on)
                report.table("memory: 10 layers", samples, base="layerfs pull, 3 at a time", failed=failed)
        if options.only in (None, "again"):
            # Waking an idle virtual CPU for each answer costs more than the answer: so all on one CPU as well.
            with pinned(), _registries(work / "pinned", {"app": found.oci}) as (plain, tls, certificates):
                title = "app: pull again, client and registry on one CPU"
                _again(title, plain, tls, _trusted(certificates), options.rounds, report)
    report.write()


def _of_layers(registry: Registry, count: int, *options: str) -> Callable[[], Sample]:
    return _measured(_layerfs(registry.name(f"layers-{count}"), *options))


def _empty(
    found: CorpusImage,
    plain: Registry,
    tls: Registry,
    certificates: Certificates,
    trusted: str,
    options: argparse.Namespace,
    report: Report,
) -> None:
    name, secure = plain.name("app") + ":latest", tls.name("app") + ":latest"
    variants: dict[str, Variant] = {
        "layerfs load, OCI archive": _load(found),
        "layerfs pull": _layerfs(name, "--tls-verify=false"),
        "layerfs pull, TLS": _layerfs(secure, "--cert-dir", trusted),
        "podman pull": _podman(name, "--tls-verify=false"),
        "podman pull, TLS": _podman(secure, "--cert-dir", trusted),
        "ctr image pull": _containerd(name, "--plain-http"),
        "ctr image pull, TLS": _containerd(secure, "--hosts-dir", _hosts(tls, certificates)),
    }
    ready = {key: _measured(one) for key, one in variants.items()}
    samples, failed = interleave(ready, options.rounds, report.on)
    report.table(f"{found.name}: pull into an empty store", samples, base="layerfs pull", failed=failed)


def _hosts(tls: Registry, certificates: Certificates) -> str:
    """Write what makes ctr speak TLS to a registry on this machine."""
    directory = certificates.authority.parent / "hosts"
    (directory / tls.address).mkdir(parents=True)
    (directory / tls.address / "hosts.toml").write_text(
        f'server = "https://{tls.address}"\n[host."https://{tls.address}"]\n  ca = "{certificates.authority}"\n'
    )
    return str(directory)


def _trusted(certificates: Certificates) -> str:
    """Return a directory with the authority, as --cert-dir wants it."""
    directory = certificates.authority.parent / "trusted"
    directory.mkdir()
    shutil.copy(certificates.authority, directory / "ca.crt")
    return str(directory)


def _again(title: str, plain: Registry, tls: Registry, trusted: str, rounds: int, report: Report) -> None:
    with fresh_filesystem() as root:
        first = _layerfs(plain.name("app"), "--tls-verify=false")
        first(root)
        second = _layerfs(tls.name("app"), "--cert-dir", trusted)
        second(root)
        environment = _environment(root)
        samples, failed = interleave(
            {
                "layerfs pull, nothing new": lambda: first(root),
                "layerfs pull, nothing new, TLS": lambda: second(root),
                "layerfs --version": lambda: command([layerfs_command(), "--version"], env=environment),
            },
            max(rounds, 5),
            report.on,
        )
        report.table(title, samples, base="layerfs --version", failed=failed)
