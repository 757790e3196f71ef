"""Sending to registries that answer strangely: where it goes, how often it is tried, and whose fault it is."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from layerfs.api import Store
from layerfs.errors import LayerfsError, NotFound, RegistryError
from layerfs.formats.auth_file import Credential
from layerfs.formats.digest import Digest
from layerfs.formats.reference import Reference
from layerfs.registry.access import Access
from layerfs.registry.remote import Registries
from layerfs.registry.repository import Repository
from layerfs.registry.upload import Uploader
from tests.faulty_registry import Fault, FaultyRegistry, Handler, serving

QUICK = Access(verify_tls=False, retry_delay=0.01, timeout=2.0, attempts=4)
BLOB = b"bytes of a blob" * 1000
DIGEST = Digest.of(BLOB)


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with serving(FaultyRegistry()) as made:
        yield made


def taking(place: str, status: int = 201, begins: int = 202) -> Fault:
    """Take uploads, and send them to a place."""

    def fault(handler: Handler) -> bool:
        if handler.command == "POST":
            handler.answer(begins, b"", {"Location": place})
        elif handler.command == "PUT":
            blob = handler.body()
            handler.registry.blobs[str(Digest.of(blob))] = blob
            handler.answer(status, b"", {"Docker-Content-Digest": str(Digest.of(blob))})
        else:
            return False
        return True

    return fault


def repository(registries: Registries, registry: FaultyRegistry) -> Repository:
    return registries.write_to(Reference.parse(f"{registry.address}/app:1"))


def put(registry: FaultyRegistry, pieces: Callable[[], Iterator[bytes]] = lambda: iter([BLOB])) -> None:
    with Registries.open(QUICK) as registries:
        Uploader(repository(registries, registry), QUICK, lambda: None).put(DIGEST, len(BLOB), pieces, lambda _: None)


def test_a_blob_that_is_missing_at_the_source(registry: FaultyRegistry) -> None:
    registry.fault = taking("/v2/app/blobs/uploads/1")

    def missing() -> Iterator[bytes]:
        yield from map(_miss, [b""])

    with pytest.raises(NotFound, match="no such blob"):
        put(registry, missing)
    assert [request.method for request in registry.asked].count("PUT") <= 1


def _miss(_: bytes) -> bytes:
    raise NotFound("blob", "sha256:0")


def _fail(_: bytes) -> bytes:
    raise RegistryError("the source", temporary=True)


def test_an_upload(registry: FaultyRegistry) -> None:
    registry.fault = taking("/v2/app/blobs/uploads/1")
    put(registry)
    assert registry.blobs[str(DIGEST)] == BLOB


def test_places_without_tls(registry: FaultyRegistry) -> None:
    with Registries.open(Access()) as registries:
        server = registries.server("registry.example:5000")
        assert server.url("http://registry.example/v2/app/1?a=b") == "https://registry.example:5000/v2/app/1?a=b"
        assert server.url("https://other.example/x") == "https://other.example/x"
        with pytest.raises(RegistryError, match="without TLS"):
            server.url("http://other.example/x")


def test_attempts_do_not_multiply(registry: FaultyRegistry) -> None:
    registry.fault = taking("", begins=503)
    with pytest.raises(RegistryError, match="503"):
        put(registry)
    assert [request.method for request in registry.asked].count("POST") == QUICK.attempts


def test_what_is_sent_breaks_and_not_the_registry(registry: FaultyRegistry) -> None:
    registry.fault = taking("/v2/app/blobs/uploads/1")
    asked = 0

    def broken() -> Iterator[bytes]:
        nonlocal asked
        asked += 1
        yield BLOB[:10]
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output"):
        put(registry, broken)
    assert asked == 1

    def refused() -> Iterator[bytes]:
        nonlocal asked
        asked += 1
        yield from map(_fail, [b""])

    with pytest.raises(RegistryError, match="the source"):
        put(registry, refused)
    assert asked == 2


def test_an_upload_that_is_gone_is_begun_again(registry: FaultyRegistry) -> None:
    good = taking("/v2/app/blobs/uploads/1")
    lost: list[bool] = []

    def fault(handler: Handler) -> bool:
        if handler.command == "PUT" and not lost:
            lost.append(True)
            handler.body()
            handler.answer(404, json.dumps({"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}).encode())
            return True
        return good(handler)

    registry.fault = fault
    put(registry)
    assert registry.blobs[str(DIGEST)] == BLOB


def test_a_repository_that_is_not_there(registry: FaultyRegistry) -> None:
    registry.fault = taking("", begins=404)
    with pytest.raises(NotFound, match="no such repository: app on "):
        put(registry)


def test_giving_up_ends_a_pause(registry: FaultyRegistry) -> None:
    def fault(handler: Handler) -> bool:
        handler.answer(429, b"", {"Retry-After": "30"})
        return True

    registry.fault = fault
    began = time.monotonic()
    with Registries.open(QUICK) as registries:
        timer = threading.Timer(0.3, registries.http.abort)
        timer.start()
        with pytest.raises(LayerfsError, match="given up"):
            repository(registries, registry).manifest("1")
        timer.join()
    assert time.monotonic() - began < 10


def test_a_challenge_with_a_page_behind_it(store: Store, registry: FaultyRegistry) -> None:
    def fault(handler: Handler) -> bool:
        if handler.headers.get("Authorization"):
            return False
        handler.answer(401, b"x" * 100_000, {"WWW-Authenticate": 'Basic realm="x"'})
        return True

    registry.fault = fault
    with pytest.raises(NotFound):
        store.pull(f"{registry.address}/app:1", access=replace(QUICK, credential=Credential("user", "password", None)))


def test_a_scope_that_the_registry_misses_is_asked_for(registry: FaultyRegistry) -> None:
    asked: list[str] = []

    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            asked.append(handler.path)
            handler.answer(200, json.dumps({"token": f"t{len(asked)}"}).encode())
            return True
        if (handler.headers.get("Authorization") or "") == "Bearer t2":
            return False
        error = ',error="insufficient_scope"' if handler.headers.get("Authorization") else ""
        realm = f'Bearer realm="http://{registry.address}/token",scope="repository:app:admin"{error}'
        handler.answer(401, b"", {"WWW-Authenticate": realm})
        return True

    registry.fault = fault
    with Registries.open(QUICK) as registries, pytest.raises(NotFound):
        repository(registries, registry).manifest("1")
    assert "admin" not in asked[0]
    assert "repository%3Aapp%3Aadmin" in asked[1]


def test_a_registry_that_takes_a_part_of_a_chunk(registry: FaultyRegistry) -> None:
    taken = bytearray()

    def fault(handler: Handler) -> bool:
        if handler.command == "POST":
            handler.answer(202, b"", {"Location": "/v2/app/blobs/uploads/1"})
        elif handler.command == "PATCH":
            first, last = map(int, handler.headers["Content-Range"].split("-"))
            body = handler.body()
            assert (first, last - first + 1) == (len(taken), len(body))
            taken.extend(body[: max(2, len(body) // 2)])
            handler.answer(202, b"", {"Location": "/v2/app/blobs/uploads/1", "Range": f"0-{len(taken) - 1}"})
        elif handler.command == "PUT":
            handler.registry.blobs[str(Digest.of(bytes(taken)))] = bytes(taken)
            handler.answer(201, b"")
        else:
            return False
        return True

    registry.fault = fault
    with Registries.open(QUICK) as registries:
        uploader = Uploader(repository(registries, registry), QUICK, lambda: None)
        assert uploader.put_stream([BLOB]) == (DIGEST, len(BLOB))


def test_a_stream_whose_upload_is_gone_at_its_end(registry: FaultyRegistry) -> None:
    def fault(handler: Handler) -> bool:
        if handler.command in {"POST", "PATCH"}:
            handler.body()
            handler.answer(202, b"", {"Location": "/v2/app/blobs/uploads/1"})
        elif handler.command == "PUT":
            handler.answer(404, b"")
        else:
            return False
        return True

    registry.fault = fault
    with Registries.open(QUICK) as registries, pytest.raises(NotFound, match="no such upload"):
        Uploader(repository(registries, registry), QUICK, lambda: None).put_stream([BLOB])
