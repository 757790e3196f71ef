"""Debian's docker-registry on this machine: plain, with TLS, with passwords, with tokens, as a mirror.

Also what it needs: certificates of an authority of our own, and a small server that gives out tokens. Nothing here uses
layerfs.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["Certificates", "Registry", "TokenServer", "make_certificates", "registry_server", "token_server"]


@dataclass(frozen=True)
class Certificates:
    """An authority, and a server's certificate and key from it, for localhost."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Registry:
    """A running registry: its address, and where it keeps its files and log."""

    address: str
    storage: Path
    log: Path

    def name(self, repository: str) -> str:
        """Return the whole name of a repository."""
        return f"{self.address}/{repository}"


def make_certificates(directory: Path) -> Certificates:
    """Make an authority, and with it a certificate for localhost and 127.0.0.1."""
    directory.mkdir(parents=True, exist_ok=True)
    authority, authority_key = directory / "ca.crt", directory / "ca.key"
    certificate, key, request = directory / "server.pem", directory / "server.key", directory / "server.csr"
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout"]
    subprocess.run(
        [*new, authority_key, "-x509", "-days", "2", "-subj", "/CN=test authority", "-out", authority],
        check=True,
        capture_output=True,
    )
    subprocess.run([*new, key, "-subj", "/CN=localhost", "-out", request], check=True, capture_output=True)
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    subprocess.run(
        [
            "openssl", "x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-CAcreateserial",
            "-days", "2", "-extfile", directory / "names", "-out", certificate,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return Certificates(authority, certificate, key)


@contextmanager
def registry_server(
    directory: Path,
    *,
    tls: Certificates | None = None,
    auth: Mapping[str, Any] | None = None,
    mirror_of: str | None = None,
    storage: Path | None = None,
) -> Iterator[Registry]:
    """Run docker-registry on a free port.

    Args:
        directory: for its configuration, log and, without ``storage``, its files.
        tls: speak TLS with these.
        auth: the ``auth`` member of its configuration.
        mirror_of: URL of a registry to be a pull-through mirror of.
        storage: where its files are.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = storage or directory / "storage"
    document: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(files)}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if tls is not None:
        document["http"]["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    if auth is not None:
        document["auth"] = auth
    if mirror_of is not None:
        document["proxy"] = {"remoteurl": mirror_of}
    config, log = directory / "config.yml", directory / "log"
    config.write_text(json.dumps(document))  # YAML reads JSON
    with log.open("wb") as output:
        # Its own telemetry variables aside, it takes every REGISTRY_ variable as configuration.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=output, stderr=output, env=clean)
    try:
        for _ in range(200):
            if process.poll() is not None:
                raise RuntimeError(f"docker-registry ended: {log.read_text()[-1000:]}")
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield Registry(f"127.0.0.1:{port}", files, log)
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class TokenServer:
    """Gives tokens to those who know the password, and to nobody for reading ``public/``.

    Attributes:
        realm: its URL.
        auth: the ``auth`` member for a registry that believes it.
        asked: the query or form of each request.
    """

    realm: str = ""
    auth: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    lifetime: int = 300
    user: str = "me"
    password: str = "secret-pass"
    refresh: str = "refresh-secret"


@contextmanager
def token_server(directory: Path, certificates: Certificates) -> Iterator[TokenServer]:
    """Run a token server on a free port, with plain HTTP; the certificates' key signs its tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    server = TokenServer()
    chain = certificates.certificate.read_text()
    leaf = "".join(line for line in chain.splitlines() if not line.startswith("-"))

    def sign(claims: Mapping[str, Any]) -> str:
        def encoded(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        head = {"typ": "JWT", "alg": "RS256", "x5c": [leaf]}
        text = f"{encoded(json.dumps(head).encode())}.{encoded(json.dumps(claims).encode())}"
        signed = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", certificates.key], input=text.encode(), check=True,
            capture_output=True,
        ).stdout  # fmt: skip
        return f"{text}.{encoded(signed)}"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            basic = self.headers.get("Authorization", "").removeprefix("Basic ")
            known = basic == base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
            self._answer(urlsplit(self.path).query, known=known, wrong=bool(basic) and not known)

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            known = parse_qs(form).get("refresh_token") == [server.refresh]
            self._answer(form, known=known, wrong=not known)

        def _answer(self, text: str, *, known: bool, wrong: bool) -> None:
            query = parse_qs(text)
            server.asked.append({key: " ".join(values) for key, values in query.items()})
            access = []
            for scope in " ".join(query.get("scope", [])).split():
                kind, name, actions = scope.split(":")
                allowed = actions.split(",") if known else [a for a in actions.split(",") if a == "pull"]
                if known or name.startswith("public/"):
                    access.append({"type": kind, "name": name, "actions": allowed})
            now = int(time.time())
            claims = {
                "iss": "tests", "sub": server.user if known else "", "aud": query["service"][0], "iat": now,
                "nbf": now - 10, "exp": now + server.lifetime, "access": access, "jti": os.urandom(8).hex(),
            }  # fmt: skip
            body = b"{}" if wrong else json.dumps({"token": sign(claims), "expires_in": server.lifetime}).encode()
            self.send_response(401 if wrong else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    server.realm = f"http://127.0.0.1:{running.server_address[1]}/token"
    server.auth = {
        "token": {
            "realm": server.realm, "service": "tests", "issuer": "tests",
            "rootcertbundle": str(certificates.authority),
        }
    }  # fmt: skip
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
