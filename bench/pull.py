"""pull: an image from a registry on this machine into an empty store, durable, beside the peers and our own load.

Each run starts on a new file system; the registry is Debian's docker-registry, its files in the page cache, reached
with plain HTTP and with TLS. Then: a pull with nothing new, a hundred small layers against ten large ones of the same
bytes, and the memory of six layers at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench.corpus import CorpusImage, image
from bench.load import layerfs_command, store_environment
from bench.measure import Report, Sample, command, fresh_filesystem, interleave, settle
from bench.peers import containerd, podman, sample_with_daemon, versions
from bench.registry import Certificates, Registry, make_certificates, registry_server

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
    return {**store_environment(work), "XDG_CONFIG_HOME": f"{work}/none", "CONTAINERS_REGISTRIES_CONF": f"{work}/none"}


def _load(found: CorpusImage) -> Variant:
    return lambda work: command(
        [layerfs_command(), "load", "--quiet", "--input", found.oci_archive], env=store_environment(work)
    )


def _podman(name: str, *options: str) -> Variant:
    def pull(work: Path) -> Sample:
        sample = command([*podman(work), "pull", "--quiet", *options, name])
        subprocess.run(["umount", "--quiet", f"{work}/root/overlay"], check=False)
        return sample

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
            sample = variant(root)
            start = time.perf_counter()
            settle()
            return replace(sample, extra={"sync": time.perf_counter() - start})

    return one


def _made_up(directory: Path, layers: int) -> Path:
    """Write an OCI layout with so many layers, together :data:`_SIZE` bytes of files that compress by a half."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    descriptors, diff_ids = [], []
    for number in range(layers):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            left = _SIZE // layers
            while left > 0:
                size = min(left, 100_000)
                half = hashlib.shake_128(f"{layers} {number} {left}".encode()).digest(size // 2)
                member = tarfile.TarInfo(f"{number}/{left}")
                member.size = 2 * len(half)
                tar.addfile(member, io.BytesIO(half.hex().encode()))
                left -= size
        diff_ids.append(f"sha256:{hashlib.sha256(raw.getvalue()).hexdigest()}")
        packed = blob(gzip.compress(raw.getvalue(), 1, mtime=0))
        descriptors.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **packed})
    config = blob(
        json.dumps(
            {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        ).encode()
    )
    manifest = blob(
        json.dumps(
            {
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config}, "layers": descriptors,
            }
        ).encode()
    )  # fmt: skip
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json", **manifest,
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }  # fmt: skip
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench pull", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--image", default="python-app")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--on", help="only the variants whose names hold one of these words, comma separated")
    parser.add_argument("--only", help="empty, again, layers or memory: only this table")
    options = parser.parse_args(arguments)
    found = image(options.image)
    report = Report("pull", {**vars(options), "versions": dict(versions())})
    with tempfile.TemporaryDirectory(prefix="bench-pull-") as scratch:
        work = Path(scratch)
        layouts = {"app": found.oci}
        if options.only in (None, "layers", "memory"):
            layouts |= {f"layers-{count}": _made_up(work / f"made-{count}", count) for count in (10, 100)}
        with _registries(work, layouts) as (plain, tls, certificates):
            trusted = str(certificates.authority.parent / "trusted")
            os.makedirs(trusted)
            shutil.copy(certificates.authority, f"{trusted}/ca.crt")
            if options.only in (None, "empty"):
                _empty(found, plain, tls, certificates, trusted, options, report)
            if options.only in (None, "again"):
                _again(plain, tls, trusted, options.rounds, report)
            if options.only in (None, "layers"):
                variants = {
                    f"{count} layers": _measured(_layerfs(plain.name(f"layers-{count}"), "--tls-verify=false"))
                    for count in (10, 100)
                }
                samples, failed = interleave(variants, options.rounds)
                report.table(f"{_SIZE >> 20} MiB of files", samples, base="10 layers", failed=failed)
            if options.only in (None, "memory"):
                variants = {
                    f"{jobs} at a time": _measured(
                        _layerfs(plain.name("layers-10"), "--tls-verify=false", "--jobs", str(jobs))
                    )
                    for jobs in (1, 3, 6)
                }
                samples, failed = interleave(variants, options.rounds)
                report.table("memory: 10 layers", samples, base="3 at a time", failed=failed)
    report.write()


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
    if options.on:
        variants = {key: one for key, one in variants.items() if any(word in key for word in options.on.split(","))}
    samples, failed = interleave({key: _measured(one) for key, one in variants.items()}, options.rounds)
    report.table(f"{found.name}: pull into an empty store", samples, base="layerfs pull", failed=failed)


def _hosts(tls: Registry, certificates: Certificates) -> str:
    """Write what makes ctr speak TLS to a registry on this machine."""
    directory = certificates.authority.parent / "hosts"
    (directory / tls.address).mkdir(parents=True)
    (directory / tls.address / "hosts.toml").write_text(
        f'server = "https://{tls.address}"\n[host."https://{tls.address}"]\n  ca = "{certificates.authority}"\n'
    )
    return str(directory)


def _again(plain: Registry, tls: Registry, trusted: str, rounds: int, report: Report) -> None:
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
        )
        report.table("app: pull again", samples, base="layerfs --version", failed=failed)
