"""One image on a registry that does what it should not, and the ways in which it does: what tests of pulls share."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from contextlib import suppress

from layerfs.api import Store
from layerfs.registry.access import Access
from tests.faulty_registry import FaultyRegistry, Handler
from tests.image_builder import MANIFEST_TYPE, TestImage, digest, layer, noise
from tests.store_audit import assert_whole, read_file

IMAGE = TestImage(
    [layer({"big": noise(3_000_000, "big")}), layer({"one": noise(200_000, 1)}), layer({"top": b"top"})], codec="gzip"
)
BIG = digest(IMAGE.blobs[0])
SIZE = len(IMAGE.blobs[0])

#: Zeros without end for their size, cut to that of the layer.
BOMB = gzip.compress(bytes(20_000_000), 1)[:SIZE]

#: Patience small enough for tests.
QUICK = Access(verify_tls=False, retry_delay=0.01, timeout=2.0, attempts=4)

#: What no message may contain.
SECRET = "s3cr3t-pass"
TOKEN = "tok-" + "e" * 40

#: Seconds within which every pull here has to end.
BOUND = 30


def pull(store: Store, registry: FaultyRegistry, access: Access = QUICK, name: str = "team/app") -> None:
    began = time.monotonic()
    try:
        store.pull(f"{registry.address}/{name}", access=access)
    finally:
        assert time.monotonic() - began < BOUND


def recovers(store: Store, registry: FaultyRegistry) -> None:
    """Fail unless the store is as clean as before, and takes the image from a good registry."""
    registry.fault = None
    assert_whole(store)
    pull(store, registry)
    assert read_file(store, f"{registry.address}/team/app", b"/top") == b"top"
    assert_whole(store)


def blob_of(handler: Handler, name: str = BIG) -> bool:
    return handler.kind == "blobs" and handler.what == name


class Times:
    """A fault that happens so many times, then no more."""

    def __init__(self, count: int, fault: Callable[[Handler], bool]) -> None:
        self.left, self.fault = count, fault

    def __call__(self, handler: Handler) -> bool:
        if self.left > 0 and self.fault(handler):
            self.left -= 1
            return True
        return False


def cut_at(position: int, *, reset: bool) -> Callable[[Handler], bool]:
    def fault(handler: Handler) -> bool:
        if not blob_of(handler):
            return False
        blob = IMAGE.blobs[0][handler.start :]
        headers = {"Content-Length": str(len(blob))}
        if handler.start:
            headers["Content-Range"] = f"bytes {handler.start}-{SIZE - 1}/{SIZE}"
        handler.answer(206 if handler.start else 200, blob[: max(0, position - handler.start)], headers)
        handler.wfile.flush()
        if reset:
            handler.reset()
        handler.close_connection = True
        return True

    return fault


def status(number: int, kind: str = "blobs", **headers: str) -> Callable[[Handler], bool]:
    def fault(handler: Handler) -> bool:
        if handler.kind != kind:
            return False
        handler.answer(number, b"{}", {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def ignored_range(handler: Handler) -> bool:
    if not (blob_of(handler) and handler.start):
        return False
    handler.answer(200, IMAGE.blobs[0])
    return True


def wrong_range(handler: Handler) -> bool:
    if not (blob_of(handler) and handler.start):
        return False
    handler.answer(206, IMAGE.blobs[0][5:], {"Content-Range": f"bytes 5-{SIZE - 1}/{SIZE}"})
    return True


def lying_range(handler: Handler) -> bool:
    """Say the right range and send other bytes."""
    if not (blob_of(handler) and handler.start):
        return False
    body = bytes(SIZE - handler.start)
    handler.answer(206, body, {"Content-Range": f"bytes {handler.start}-{SIZE - 1}/{SIZE}"})
    return True


def no_range(handler: Handler) -> bool:
    if not (blob_of(handler) and handler.start):
        return False
    handler.answer(416, b"", {"Content-Range": f"bytes */{SIZE}"})
    return True


def both(*faults: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    return lambda handler: any(fault(handler) for fault in faults)


def no_length(handler: Handler) -> bool:
    if not blob_of(handler):
        return False
    handler.answer(200, IMAGE.blobs[0], {"Content-Length": "", "Connection": "close"})
    handler.close_connection = True
    return True


def drip(handler: Handler) -> bool:
    if not blob_of(handler):
        return False
    handler.answer(200, b"", {"Content-Length": str(SIZE)})
    for byte in IMAGE.blobs[0][:400]:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)
    return True


def drip_header(handler: Handler) -> bool:
    if handler.kind != "manifests":
        return False
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(400):
        handler.wfile.write(b"X-%d: x\r\n" % number)
        handler.wfile.flush()
        time.sleep(0.05)
    return True


def silence(handler: Handler) -> bool:
    if handler.kind != "manifests":
        return False
    time.sleep(8)
    handler.close_connection = True
    return True


def endless(handler: Handler) -> bool:
    if not blob_of(handler):
        return False
    handler.answer(200, b"", {"Content-Length": "", "Connection": "close"})
    handler.close_connection = True
    for _ in range(200):
        handler.wfile.write(bytes(1 << 20))
    return True


def endless_manifest(handler: Handler) -> bool:
    if handler.kind != "manifests":
        return False
    handler.answer(200, b"", {"Content-Length": "", "Content-Type": MANIFEST_TYPE, "Connection": "close"})
    handler.close_connection = True
    for _ in range(200):
        handler.wfile.write(b" " * (1 << 20))
    return True


def body(data: bytes, kind: str = "blobs", **headers: str) -> Callable[[Handler], bool]:
    def fault(handler: Handler) -> bool:
        if handler.kind != kind or (kind == "blobs" and handler.what != BIG):
            return False
        handler.answer(200, data, {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def chunk(size: bytes) -> Callable[[Handler], bool]:
    """Send a blob in chunks of which the first has a size like this."""

    def fault(handler: Handler) -> bool:
        if handler.kind != "blobs" or handler.what not in handler.registry.blobs:
            return False
        handler.answer(200, b"", {"Content-Length": "", "Transfer-Encoding": "chunked", "Connection": "close"})
        with suppress(OSError):
            handler.wfile.write(size + b"\r\n" + bytes(1000))
        handler.close_connection = True
        return True

    return fault


def redirect(place: str, number: int = 307) -> Callable[[Handler], bool]:
    def fault(handler: Handler) -> bool:
        if handler.kind != "blobs":
            return False
        handler.answer(number, b"", {"Location": place})
        return True

    return fault


def manifest_of(**changes: object) -> bytes:
    return json.dumps({**json.loads(IMAGE.manifest), **changes}).encode()


def reset(handler: Handler) -> bool:
    handler.reset()
    return True


def challenge(handler: Handler) -> bool:
    handler.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
    return True


def bomb(handler: Handler) -> bool:
    return body(BOMB)(handler)
