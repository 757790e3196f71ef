"""Images made by code, in every form that archives have: docker's old and new one, OCI archives and layouts.

Nothing here uses layerfs, so that a mistake in it cannot hide itself. Everything is deterministic.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

END = bytes(1024)

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPES = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}


def noise(size: int, seed: int | str = 0) -> bytes:
    """Return bytes that no compression makes smaller, always the same for a seed."""
    return hashlib.shake_128(f"{seed}".encode()).digest(size)


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def compress(data: bytes, codec: str) -> bytes:
    if codec == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if codec == "zstd":
        return zstandard.compress(data)
    return data


def _octal(number: int, width: int) -> bytes:
    if 0 <= number < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, number)
    if number < 0:
        return (number + (1 << (8 * width))).to_bytes(width, "big")
    return (number | 1 << (8 * width - 1)).to_bytes(width, "big")


def header(
    name: bytes, kind: bytes, size: int, link: bytes = b"", mode: int = 0o644, uid: int = 0, gid: int = 0,
    mtime: int = 1_700_000_000, major: int = 0, minor: int = 0,
) -> bytes:  # fmt: skip
    """Return one header block; nothing is checked, hostile values included."""
    block = bytearray(512)
    block[0 : min(100, len(name))] = name[:100]
    block[100:108] = _octal(mode, 8)
    block[108:116] = _octal(uid, 8)
    block[116:124] = _octal(gid, 8)
    block[124:136] = _octal(size, 12)
    block[136:148] = _octal(mtime, 12)
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + min(100, len(link))] = link[:100]
    block[257:265] = b"ustar\00000"
    block[329:337] = _octal(major, 8)
    block[337:345] = _octal(minor, 8)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = len(body)
    while len(b"%d" % size) + len(body) != size:
        size = len(b"%d" % size) + len(body)
    return b"%d" % size + body


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def entry(
    name: str | bytes, data: bytes = b"", *, kind: bytes = b"0", link: str | bytes = b"", mode: int | None = None,
    uid: int = 0, gid: int = 0, mtime: int = 1_700_000_000, major: int = 0, minor: int = 0,
    xattrs: Mapping[str, bytes] | None = None, pax: Mapping[str, bytes] | None = None, size: int | None = None,
) -> bytes:  # fmt: skip
    """Return one member of a tar: extension headers, header, data, padding."""
    raw = name.encode() if isinstance(name, str) else name
    target = link.encode() if isinstance(link, str) else link
    records = {key.encode(): value for key, value in (pax or {}).items()}
    records |= {f"SCHILY.xattr.{key}".encode(): value for key, value in (xattrs or {}).items()}
    if len(raw) > 100:
        records[b"path"] = raw
    if len(target) > 100:
        records[b"linkpath"] = target
    before = b""
    if records:
        payload = b"".join(_record(key, value) for key, value in records.items())
        before = header(b"PaxHeaders/x", b"x", len(payload)) + _padded(payload)
    if mode is None:
        mode = 0o755 if kind == b"5" else 0o644
    announced = len(data) if size is None else size
    return before + header(raw, kind, announced, target, mode, uid, gid, mtime, major, minor) + _padded(data)


def layer(files: Mapping[str, bytes] | Iterable[bytes], *, end: bool = True) -> bytes:
    """Return a layer tar: of files by name (a name ending in ``/`` is a directory), or of ready-made members."""
    if isinstance(files, Mapping):
        parts = [
            entry(name.rstrip("/"), kind=b"5") if name.endswith("/") else entry(name, data)
            for name, data in files.items()
        ]
    else:
        parts = list(files)
    return b"".join(parts) + (END if end else b"")


@dataclass(frozen=True)
class TestImage:
    """What an archive holds of one image: layer tars bottom first, its names, and how it is written."""

    __test__ = False

    layers: Sequence[bytes]
    names: Sequence[str] = ()
    codec: str = "gzip"
    algorithm: str = "sha256"
    architecture: str = "amd64"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def diff_ids(self) -> list[str]:
        return [digest(tar, self.algorithm) for tar in self.layers]

    @property
    def config(self) -> bytes:
        document = {
            "architecture": self.architecture, "os": "linux", "config": {}, "created": "2024-05-06T07:08:09.123456789Z",
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
            "history": [{"created_by": f"step {number}"} for number in range(len(self.layers))], **self.extra,
        }  # fmt: skip
        return json.dumps(document).encode()

    @property
    def id(self) -> str:
        return digest(self.config, self.algorithm)

    @cached_property
    def blobs(self) -> list[bytes]:
        return [compress(tar, self.codec) for tar in self.layers]

    @cached_property
    def manifest(self) -> bytes:
        document = {
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": self.id, "size": len(self.config)},
            "layers": [
                {"mediaType": LAYER_TYPES[self.codec], "digest": digest(blob, self.algorithm), "size": len(blob)}
                for blob in self.blobs
            ],
        }  # fmt: skip
        return json.dumps(document).encode()

    def using(self, **changes: Any) -> TestImage:
        return replace(self, **changes)


@dataclass(frozen=True)
class Link:
    """An outer member that is a link."""

    target: str
    hard: bool = False


#: The members of an outer archive, in order.
Members = dict[str, "bytes | Link"]


def blob_path(name: str) -> str:
    algorithm, _, value = name.partition(":")
    return f"blobs/{algorithm}/{value}"


def docker_old(*images: TestImage) -> Members:
    """Return what docker save wrote before version 25: VERSION, json and layer.tar per layer, equal layers as links."""
    members: Members = {}
    listed = []
    seen: dict[str, str] = {}
    for image in images:
        paths = []
        for number, (tar, diff_id) in enumerate(zip(image.layers, image.diff_ids, strict=True)):
            folder = hashlib.sha256(f"{image.id} {number}".encode()).hexdigest()
            members[f"{folder}/VERSION"] = b"1.0"
            members[f"{folder}/json"] = json.dumps({"id": folder}).encode()
            path = f"{folder}/layer.tar"
            members[path] = Link(f"../{seen[diff_id]}") if diff_id in seen else compress(tar, image.codec)
            seen.setdefault(diff_id, path)
            paths.append(path)
        config = f"{image.id.partition(':')[2]}.json"
        members[config] = image.config
        listed.append({"Config": config, "RepoTags": list(image.names) or None, "Layers": paths})
    members["manifest.json"] = json.dumps(listed).encode()
    members["repositories"] = b"{}"
    return members


def docker_new(*images: TestImage) -> Members:
    """Return what docker save writes since version 25: an OCI layout with a manifest.json beside it."""
    members = oci(*images)
    members["manifest.json"] = json.dumps(
        [
            {
                "Config": blob_path(image.id),
                "RepoTags": list(image.names) or None,
                "Layers": [blob_path(digest(blob, image.algorithm)) for blob in image.blobs],
            }
            for image in images
        ]
    ).encode()
    return members


def oci(*images: TestImage, nested: bool = False) -> Members:
    """Return an OCI layout; ``nested`` puts the images into one index of several platforms below index.json."""
    members: Members = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    entries = []
    for image in images:
        for blob in [*image.blobs, image.config, image.manifest]:
            members[blob_path(digest(blob, image.algorithm))] = blob
        descriptor: dict[str, Any] = {
            "mediaType": MANIFEST_TYPE,
            "digest": digest(image.manifest, image.algorithm),
            "size": len(image.manifest),
            "platform": {"os": "linux", "architecture": image.architecture},
        }
        for name in image.names or [""]:
            annotations = {"org.opencontainers.image.ref.name": name} if name else {}
            entries.append(descriptor | {"annotations": annotations})
    if nested:
        for descriptor in entries:
            name = descriptor.pop("annotations").get("org.opencontainers.image.ref.name")
        index = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}).encode()
        members[blob_path(digest(index))] = index
        annotations = {"org.opencontainers.image.ref.name": name} if name else {}
        entries = [{"mediaType": INDEX_TYPE, "digest": digest(index), "size": len(index), "annotations": annotations}]
    members["index.json"] = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}).encode()
    return members


def outer(members: Members, order: Callable[[list[str]], Iterable[str]] = list, codec: str = "none") -> bytes:
    """Return the members as one tar.

    Args:
        members: from one of the above.
        order: puts their names in order.
        codec: what the whole archive is compressed with.
    """
    parts = []
    for name in order(list(members)):
        content = members[name]
        if isinstance(content, Link):
            target = content.target.removeprefix("../") if content.hard else content.target
            parts.append(entry(name, kind=b"1" if content.hard else b"2", link=target))
        else:
            parts.append(entry(name, content))
    return compress(b"".join(parts) + END, codec)


class _Pipe(io.RawIOBase):
    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._at, self._step = data, 0, step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._data[self._at : self._at + min(self._step, len(buffer))]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def pipe(data: bytes, step: int = 10_007) -> BinaryIO:
    """Return a stream that cannot seek and gives at most ``step`` bytes at a time."""
    return cast(BinaryIO, _Pipe(data, step))


def document(members: Members, name: str) -> bytes:
    """Return the bytes of a member that is no link."""
    content = members[name]
    assert isinstance(content, bytes)
    return content


def write_layout(folder: Path, members: Members) -> Path:
    """Write the members as files below a directory."""
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            path.write_bytes(content)
    return folder
