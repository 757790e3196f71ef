"""A registry in this process that does what it is told to do wrong: the reading half of the protocol, with faults.

A fault is a function that gets each request before it is answered; it may answer itself (and return True), change the
handler's mind, or do nothing. Everything that was asked is recorded, with the ``Authorization`` that came with it.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.image_builder import INDEX_TYPE, MANIFEST_TYPE, TestImage, digest

__all__ = ["Asked", "Fault", "FaultyRegistry", "Handler", "serving"]

_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags|referrers)/(?P<what>[^?]*)(?P<query>\?.*)?")


@dataclass(frozen=True)
class Asked:
    """One request: method, path, and the headers that matter."""

    method: str
    path: str
    authorization: str | None
    range: str | None


Fault = Callable[["Handler"], bool]


@dataclass
class FaultyRegistry:
    """What it has, what it does wrong, what it was asked for.

    ``sent`` counts the bytes of blobs that were handed to the network.
    """

    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    fault: Fault | None = None
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    address: str = ""

    def add(self, image: TestImage, tag: str = "latest") -> None:
        """Put an image under a tag."""
        for blob in [*image.blobs, image.config]:
            self.blobs[digest(blob, image.algorithm)] = blob
        self.add_manifest(image.manifest, MANIFEST_TYPE, tag)

    def add_index(self, images: Mapping[str, TestImage], tag: str = "latest") -> None:
        """Put an index of images by architecture under a tag."""
        entries = []
        for architecture, image in images.items():
            self.add(image, f"only-{architecture}")
            entries.append(
                {
                    "mediaType": MANIFEST_TYPE, "digest": digest(image.manifest), "size": len(image.manifest),
                    "platform": {"os": "linux", "architecture": architecture},
                }
            )  # fmt: skip
        raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}).encode()
        self.add_manifest(raw, INDEX_TYPE, tag)

    def add_manifest(self, raw: bytes, media_type: str, tag: str) -> None:
        """Put any document under a tag and under its digest."""
        for name in (tag, digest(raw)):
            self.manifests[name] = (raw, media_type)

    def count(self, kind: str) -> int:
        """Return how many requests had this in their path."""
        return sum(kind in request.path for request in self.asked)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    registry: FaultyRegistry

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_PATCH(self) -> None:
        self._handle()

    def body(self) -> bytes:
        """Read what came with the request."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    @property
    def kind(self) -> str:
        """``manifests``, ``blobs``, ``tags``, ``referrers``, or the empty text for anything else."""
        match = _PATH.fullmatch(self.path)
        return match["kind"] if match else ""

    @property
    def what(self) -> str:
        match = _PATH.fullmatch(self.path)
        return match["what"] if match else ""

    @property
    def start(self) -> int:
        """The first byte that a range asks for."""
        wanted = self.headers.get("Range")
        return int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer; a ``Content-Length`` of one's own wins."""
        sent = {"Content-Length": str(len(body)), **(headers or {})}
        self.send_response(status)
        for name, value in sent.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.write(body)

    def write(self, body: bytes) -> None:
        """Send bytes, counted."""
        for start in range(0, len(body), 1 << 16):
            piece = body[start : start + (1 << 16)]
            self.wfile.write(piece)
            if self.kind == "blobs":
                self.registry.sent += len(piece)

    def reset(self) -> None:
        """End the connection with a reset."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.connection.close()

    def good(self) -> None:
        """Answer as a good registry does."""
        if self.kind == "manifests" and self.what in self.registry.manifests:
            raw, media_type = self.registry.manifests[self.what]
            self.answer(200, raw, {"Content-Type": media_type, "Docker-Content-Digest": digest(raw)})
        elif self.kind == "blobs" and self.what in self.registry.blobs:
            blob = self.registry.blobs[self.what]
            if self.start:
                place = f"bytes {self.start}-{len(blob) - 1}/{len(blob)}"
                self.answer(206, blob[self.start :], {"Content-Range": place})
            else:
                self.answer(200, blob, {"Content-Type": "application/octet-stream"})
        else:
            body = json.dumps({"errors": [{"code": "NAME_UNKNOWN", "message": "not here"}]}).encode()
            self.answer(404, body, {"Content-Type": "application/json"})

    def _handle(self) -> None:
        registry = self.registry
        registry.asked.append(
            Asked(self.command, self.path, self.headers.get("Authorization"), self.headers.get("Range"))
        )
        try:
            if registry.fault is None or not registry.fault(self):
                self.good()
        except OSError:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Say nothing: broken connections are the point."""


class _Abrupt(_Server):
    """Resets connections that begin with TLS, instead of answering nonsense."""

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - of the base class
        if request.recv(1, socket.MSG_PEEK) != b"\x16":
            return True
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        request.close()
        return False


@contextmanager
def serving(
    registry: FaultyRegistry, *, tls: tuple[Path, Path] | None = None, abrupt: bool = False
) -> Iterator[FaultyRegistry]:
    """Run a registry on a free port of this machine; ``tls`` are certificate and key, ``abrupt`` resets TLS."""
    server = (_Abrupt if abrupt else _Server)(("127.0.0.1", 0), type("Bound", (Handler,), {"registry": registry}))
    if tls is not None:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    registry.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
