"""Small images made by hand, good and bad ones, as archives and layouts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(*members: tuple[str, bytes | None], links: dict[str, str] | None = None) -> bytes:
    """A layer's tar: names with content, or None for a directory; bytes that are no UTF-8 as surrogates."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mtime = 1_600_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return raw.getvalue()


BASE = layer(
    ("etc", None),
    ("etc/hostname", b"base\n"),
    ("etc/motd", b"welcome\n" * 1000),
    ("bin", None),
    ("bin/sh", b"#!"),
    links={"etc/link": "hostname"},
)
TOP = layer(
    ("etc", None), ("etc/.wh.motd", b""), ("etc/hostname", b"top\n"), ("srv", None), ("srv/caf\udce9\x1b[31m", b"x")
)


@dataclass
class Built:
    """An image; each field may be spoilt before it is written."""

    layers: Sequence[bytes] = (BASE, TOP)
    name: str = "example.org/team/app:1.0"
    media_type: str = LAYER_TYPE
    label: str = "one"
    missing: bool = False
    change_descriptor: Callable[[dict[str, Any]], None] | None = None
    change_diff_ids: Callable[[list[str]], None] | None = None
    platform: dict[str, str] = field(default_factory=lambda: {"architecture": "amd64", "os": "linux"})

    def config(self) -> bytes:
        diff_ids = [digest(data) for data in self.layers]
        if self.change_diff_ids is not None:
            self.change_diff_ids(diff_ids)
        document = {
            **self.platform,
            "created": "2020-09-13T12:26:40.5Z",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "Labels": {"kind": self.label}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [
                {"created": "2020-09-13T12:26:40Z", "created_by": "ADD base\x1b[2J"},
                {"created_by": "ENV PATH", "empty_layer": True},
                *({"created_by": f"RUN step {number}"} for number in range(1, len(self.layers))),
            ],
        }
        return json.dumps(document).encode()

    @property
    def id(self) -> str:
        return digest(self.config())

    def docker_archive(self, path: Path) -> Path:
        """Write what docker save writes."""
        config = self.config()
        names = [f"{digest(data)[7:]}/layer.tar" for data in self.layers]
        listing = [{"Config": f"{digest(config)[7:]}.json", "RepoTags": [self.name], "Layers": names}]
        with tarfile.open(path, "w") as tar:
            for name, data in zip(names, self.layers, strict=True):
                if not self.missing or data is not self.layers[-1]:
                    _add(tar, name, data)
            _add(tar, f"{digest(config)[7:]}.json", config)
            _add(tar, "manifest.json", json.dumps(listing).encode())
        return path

    def layout(self, path: Path) -> Path:
        """Write an OCI layout directory."""
        blobs = path / "blobs" / "sha256"
        blobs.mkdir(parents=True)

        def store(data: bytes) -> dict[str, Any]:
            (blobs / digest(data)[7:]).write_bytes(data)
            return {"digest": digest(data), "size": len(data)}

        layers = [{"mediaType": self.media_type, **store(gzip.compress(data, mtime=0))} for data in self.layers]
        if self.change_descriptor is not None:
            self.change_descriptor(layers[-1])
        if self.missing:
            (blobs / layers[-1]["digest"][7:]).unlink()
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **store(self.config())},
            "layers": layers,
        }
        entry = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            **store(json.dumps(manifest).encode()),
            "annotations": {"org.opencontainers.image.ref.name": self.name},
        }
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return path


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
