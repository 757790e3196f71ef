"""Images with many small layers that touch the same directories, written without any tool but the standard library."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DeepShape", "write_deep"]

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
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}

    descriptors: list[dict[str, object]] = []
    diff_ids: list[str] = []
    for number in range(shape.layers):
        tar = _layer(number, shape)
        diff_ids.append("sha256:" + hashlib.sha256(tar).hexdigest())
        packed = gzip.compress(tar, compresslevel=6, mtime=0)
        descriptors.append(put(packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
    created = "2024-01-01T00:00:00Z"
    history = [{"created": created, "created_by": f"layer {number}"} for number in range(shape.layers)]
    config = {
        "created": created,
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": descriptors,
    }
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    entry["platform"] = {"architecture": "amd64", "os": "linux"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


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
