"""Made-up images, written without any tool but the standard library: deep ones, and ones of any size and shape."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from layerfs.formats.platform import Platform

__all__ = ["DeepShape", "compressible", "files_layer", "stack_on", "write_deep", "write_image", "write_images"]

#: 2024-01-01: one time for all members, so that the same shape gives the same bytes.
_MTIME = 1_704_067_200


@dataclass(frozen=True, slots=True)
class DeepShape:
    """How deep and how wide: every layer writes into each of ``directories`` and changes what lower layers wrote.

    Attributes:
        layers: number of layers.
        directories: directories ``/usr/lib/dNN`` that every layer has a file in.
        base_files: files of the lowest layer, spread over the directories.
        file_size: bytes of each file.
    """

    layers: int
    directories: int = 20
    base_files: int = 500
    file_size: int = 2000


def write_deep(layout: Path, shape: DeepShape) -> None:
    """Write an image of ``shape`` as an OCI layout directory, reference ``latest``.

    Each layer adds one file to every directory, replaces one file of an older layer and, from the tenth on, removes
    one by a whiteout; every fiftieth makes one directory opaque.
    """
    write_image(layout, (_layer(number, shape) for number in range(shape.layers)), level=6)


def write_image(layout: Path, layers: Iterable[bytes], *, level: int = 1) -> None:
    """Write an image of uncompressed layer tars, bottom first, as an OCI layout, reference ``latest``.

    Args:
        layout: a new directory.
        layers: the tars; each is let go before the next one is asked for.
        level: of gzip.
    """
    write_images(layout, {"latest": layers}, level=level)


def write_images(layout: Path, images: dict[str, Iterable[bytes]], *, level: int = 1) -> None:
    """Write several images into one OCI layout, by reference; see :func:`write_image`."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}

    entries = [_image(reference, layers, put, level) for reference, layers in images.items()]
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _image(
    reference: str, layers: Iterable[bytes], put: Callable[[bytes, str], dict[str, object]], level: int
) -> dict[str, object]:
    descriptors: list[dict[str, object]] = []
    diff_ids: list[str] = []
    for tar in layers:
        diff_ids.append("sha256:" + hashlib.sha256(tar).hexdigest())
        packed = gzip.compress(tar, compresslevel=level, mtime=0)
        descriptors.append(put(packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
    created = "2024-01-01T00:00:00Z"
    config = {
        "created": created,
        "architecture": Platform.host().architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": created, "created_by": f"layer {number}"} for number in range(len(diff_ids))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": descriptors,
    }
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": reference}
    entry["platform"] = {"architecture": Platform.host().architecture, "os": "linux"}
    return entry


def stack_on(base: Path, layout: Path, own: dict[str, bytes]) -> None:
    """Write an OCI layout of images that each have the layers of one image, and one of their own on top.

    Args:
        base: the layout of that image, its only one.
        layout: a new directory.
        own: by reference, the uncompressed tar of the layer.
    """
    blobs = layout / "blobs" / "sha256"
    shutil.copytree(base / "blobs" / "sha256", blobs)

    def read(digest: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((blobs / digest.partition(":")[2]).read_bytes())
        return found

    def put(data: bytes) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    manifest = read(json.loads((base / "index.json").read_bytes())["manifests"][0]["digest"])
    config = read(manifest["config"]["digest"])
    entries = []
    for reference, tar in own.items():
        packed = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **put(gzip.compress(tar, 1, mtime=0))}
        diff_ids = [*config["rootfs"]["diff_ids"], f"sha256:{hashlib.sha256(tar).hexdigest()}"]
        changed = {**config, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        changed["history"] = [*config.get("history", ()), {"created_by": reference}]
        document = {
            **manifest,
            "config": {**manifest["config"], **put(json.dumps(changed).encode())},
            "layers": [*manifest["layers"], packed],
        }
        entries.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                **put(json.dumps(document).encode()),
                "annotations": {
                    "org.opencontainers.image.ref.name": reference,
                    "io.containerd.image.name": reference,
                },
            }
        )
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def files_layer(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a layer tar with these files, path and contents, and the directories that they are in."""
    buffer = io.BytesIO()
    made: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, data in files:
            for parent in reversed(PurePosixPath(path).parents[:-1]):
                if str(parent) not in made:
                    made.add(str(parent))
                    tar.addfile(_member(str(parent), tarfile.DIRTYPE, 0o755))
            member = _member(path, tarfile.REGTYPE, 0o644)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def compressible(seed: str, size: int) -> Iterator[bytes]:
    """Yield ``size`` bytes, in pieces, that no two seeds share and that compress by a half."""
    number = 0
    while size > 0:
        piece = hashlib.shake_128(f"{seed} {number}".encode()).hexdigest(min(size, 1 << 20) // 2 + 1).encode()[:size]
        yield piece
        size -= len(piece)
        number += 1


def _layer(number: int, shape: DeepShape) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in ("usr", "usr/lib"):
            tar.addfile(_member(path, tarfile.DIRTYPE, 0o755))
        for index in range(shape.directories):
            directory = f"usr/lib/d{index:02}"
            tar.addfile(_member(directory, tarfile.DIRTYPE, 0o755))
            if number >= 50 and number % 50 == index:
                tar.addfile(_member(f"{directory}/.wh..wh..opq", tarfile.REGTYPE, 0o644))
            _add(tar, f"{directory}/layer-{number:03}.txt", number, shape.file_size)
        if number == 0:
            for index in range(shape.base_files):
                _add(tar, f"usr/lib/d{index % shape.directories:02}/base-{index:04}.txt", index, shape.file_size)
        else:
            _add(tar, f"usr/lib/d{number % shape.directories:02}/base-{number % shape.base_files:04}.txt", number, 100)
        if number >= 10:
            victim = f"usr/lib/d{number % shape.directories:02}/.wh.layer-{number - 10:03}.txt"
            tar.addfile(_member(victim, tarfile.REGTYPE, 0o644))
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, path: str, seed: int, size: int) -> None:
    line = f"{path} {seed}\n".encode()
    data = (line * (size // len(line) + 1))[:size]
    member = _member(path, tarfile.REGTYPE, 0o644)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _member(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type = kind
    member.mode = mode
    member.mtime = _MTIME
    return member
