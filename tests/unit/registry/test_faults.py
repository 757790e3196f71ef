"""Registries that do everything wrong: each pull ends well, or with one clear error, soon, and the store unharmed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest

from layerfs.api import Store
from layerfs.errors import (
    Denied,
    DigestMismatch,
    FormatError,
    IntegrityError,
    LayerfsError,
    LimitExceeded,
    NotFound,
    RateLimited,
    RegistryError,
    Unauthorized,
    Unreachable,
)
from tests.faulty_registry import FaultyRegistry, Handler
from tests.image_builder import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE, TestImage, digest, layer, noise
from tests.store_audit import assert_whole
from tests.unit.registry.faults import (
    BIG,
    IMAGE,
    SIZE,
    Times,
    blob_of,
    body,
    bomb,
    both,
    chunk,
    cut_at,
    drip,
    drip_header,
    endless,
    endless_manifest,
    ignored_range,
    lying_range,
    manifest_of,
    no_length,
    no_range,
    pull,
    recovers,
    redirect,
    reset,
    silence,
    status,
    wrong_range,
)

POSITIONS = [0, 1, 511, 512, 1 << 18, (1 << 18) + 1, SIZE // 2, SIZE - 9, SIZE - 1]


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize("position", POSITIONS)
def test_broken_off_once(store: Store, registry: FaultyRegistry, position: int, reset: bool) -> None:
    registry.fault = Times(1, cut_at(position, reset=reset))
    pull(store, registry)
    assert_whole(store)
    # What had come is not asked for again; a reset may destroy what was on its way.
    asked = [request for request in registry.asked if request.path.endswith(BIG)]
    assert len(asked) == 2
    if not reset and position:
        assert asked[1].range == f"bytes={position}-"


@pytest.mark.parametrize(
    "fault",
    [
        both(Times(1, cut_at(SIZE // 2, reset=False)), ignored_range),
        both(Times(1, cut_at(SIZE // 2, reset=False)), wrong_range),
        both(Times(1, cut_at(SIZE // 2, reset=False)), lying_range),
        both(Times(1, cut_at(SIZE // 2, reset=False)), no_range),
        both(Times(3, cut_at(SIZE // 2, reset=True)), ignored_range),
        Times(3, status(500)),
        Times(3, status(503)),
        Times(2, status(503, Retry_After="1")),
        Times(3, status(429)),
        Times(1, status(429, Retry_After="1")),
        Times(1, status(429, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT")),
        Times(3, status(502, "manifests")),
        no_length,
    ],
)
def test_bad_but_not_hopeless(store: Store, registry: FaultyRegistry, fault: Callable[[Handler], bool]) -> None:
    registry.fault = fault
    pull(store, registry)
    recovers(store, registry)


def test_a_connection_that_breaks_again_and_again_makes_progress(store: Store, registry: FaultyRegistry) -> None:
    big = TestImage([layer({"x": noise(12_000_000, "x")})], codec="none")
    registry.add(big, "big")
    blob = big.blobs[0]

    def fault(handler: Handler) -> bool:
        if not blob_of(handler, digest(blob)):
            return False
        rest = blob[handler.start :]
        place = {"Content-Range": f"bytes {handler.start}-{len(blob) - 1}/{len(blob)}"} if handler.start else {}
        handler.answer(206 if handler.start else 200, rest[: 3 << 19], {"Content-Length": str(len(rest)), **place})
        handler.close_connection = True
        return True

    registry.fault = fault
    pull(store, registry, name="team/app:big")
    assert registry.count(digest(blob)) == 8  # more often than there are attempts
    assert_whole(store)


HOPELESS: list[tuple[Callable[[Handler], bool], type[LayerfsError], str]] = [
    (cut_at(1000, reset=False), Unreachable, "broke"),
    (cut_at(1000, reset=True), Unreachable, "reset|broke"),
    (drip, Unreachable, "no answer within|broke"),
    (drip_header, Unreachable, "no answer within|broke"),
    (silence, Unreachable, "no answer|timed out|Remote"),
    (endless, IntegrityError, "sends more than"),
    (endless_manifest, LimitExceeded, "more than"),
    (body(IMAGE.blobs[0][:-1]), IntegrityError, f"has {SIZE - 1} bytes, expected {SIZE}"),
    (body(IMAGE.blobs[0] + b"x"), IntegrityError, f"has {SIZE + 1} bytes, expected {SIZE}"),
    (body(bytes(SIZE)), DigestMismatch, "digest is"),
    (body(IMAGE.blobs[0][:-1] + b"\xff"), LayerfsError, "digest is|damaged"),
    (body(IMAGE.blobs[0][: SIZE // 2] + bytes(SIZE - SIZE // 2)), LayerfsError, "damaged|digest"),
    (bomb, LayerfsError, "expected|damaged|digest|bytes"),
    (status(404), NotFound, "no such blob"),
    (status(403), Denied, "denies"),
    (status(500), RegistryError, "answers 500"),
    (status(418), RegistryError, "answers 418"),
    (status(429), RateLimited, "limits requests"),
    (status(429, Retry_After="86400"), RateLimited, "limits requests"),
    (status(401), Unauthorized, "wants credentials"),
    (status(401, "manifests", WWW_Authenticate='Basic realm="x"'), Unauthorized, "wants credentials"),
    (status(404, "manifests"), NotFound, "no such manifest"),
    (redirect("/v2/loop"), NotFound, "no such"),
    (redirect("ftp://example/x"), RegistryError, "not an http"),
    (redirect("http://[bad/"), RegistryError, "URL"),
    (redirect("http://a b/x"), RegistryError, "URL|host"),
    (redirect("http://127.0.0.1%00/x"), RegistryError, "URL|host"),
    (redirect("http://a..b/x"), RegistryError, "URL|host"),
    (redirect("http://ex\xd7mple/x"), RegistryError, "URL|host"),
    (chunk(b"-1"), Unreachable, "broke"),
    (chunk(b"+5"), Unreachable, "broke"),
    (chunk(b"0x5"), Unreachable, "broke"),
    (chunk(b"1_0"), Unreachable, "broke"),
    (chunk(b"f" * 17), Unreachable, "broke"),
    (chunk(b"5" * 9000), Unreachable, "broke"),
    (chunk(b""), Unreachable, "broke"),
    (body(b"<html>", "manifests", Content_Type="text/html"), RegistryError, "text/html"),
    (body(b"{", "manifests", Content_Type=MANIFEST_TYPE), FormatError, "not JSON"),
    (body(b"[]", "manifests", Content_Type=MANIFEST_TYPE), FormatError, "must be an object"),
    (body(IMAGE.manifest, "manifests", Content_Type=INDEX_TYPE), FormatError, "announced was"),
    (
        body(manifest_of(manifests=[]), "manifests", Content_Type=MANIFEST_TYPE), FormatError,
        "not one of an image index",
    ),
    (body(b" " * 50_000_000, "manifests", Content_Type=MANIFEST_TYPE), LimitExceeded, "more than"),
    (
        body(IMAGE.manifest, "manifests", Content_Type=MANIFEST_TYPE, Docker_Content_Digest="sha256:" + "0" * 64),
        DigestMismatch, "digest is",
    ),
    (
        body(IMAGE.manifest, "manifests", Content_Type=MANIFEST_TYPE, Docker_Content_Digest="md5:0"),
        RegistryError, "promises no digest",
    ),
    (
        body(
            b'{"schemaVersion": 1}', "manifests",
            Content_Type="application/vnd.docker.distribution.manifest.v1+prettyjws",
        ),
        FormatError, "schema 1",
    ),
    (reset, Unreachable, "reset|broke|Remote"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "error", "message"), HOPELESS)
def test_hopeless(
    store: Store,
    registry: FaultyRegistry,
    fault: Callable[[Handler], bool],
    error: type[LayerfsError],
    message: str,
) -> None:
    pull(store, registry, name="team/app:other")
    registry.fault = fault
    with pytest.raises(error, match=message) as caught:
        pull(store, registry)
    assert "\n" not in str(caught.value)
    recovers(store, registry)


def test_redirect_loop(store: Store, registry: FaultyRegistry) -> None:
    def fault(handler: Handler) -> bool:
        if handler.kind != "blobs":
            return False
        handler.answer(302, b"", {"Location": handler.path})
        return True

    registry.fault = fault
    with pytest.raises(RegistryError, match="redirects more than"):
        pull(store, registry)
    recovers(store, registry)


def test_descriptors_that_lie(store: Store, registry: FaultyRegistry) -> None:
    layers = json.loads(IMAGE.manifest)["layers"]
    for change, error in (
        ({"size": SIZE + 1}, IntegrityError),
        ({"size": -1}, FormatError),
        ({"digest": "sha256:" + "0" * 64}, NotFound),
        ({"digest": "../../x"}, FormatError),
        ({"mediaType": "application/vnd.in-toto+json"}, FormatError),
        ({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "urls": ["http://x"]}, FormatError),
    ):
        registry.add_manifest(manifest_of(layers=[layers[0] | change, *layers[1:]]), MANIFEST_TYPE, "lies")
        with pytest.raises(error):
            pull(store, registry, name="team/app:lies")
    config = json.loads(IMAGE.config)
    config["rootfs"]["diff_ids"][0] = "sha256:" + "1" * 64
    raw = json.dumps(config).encode()
    registry.blobs[digest(raw)] = raw
    described = {"mediaType": CONFIG_TYPE, "digest": digest(raw), "size": len(raw)}
    registry.add_manifest(manifest_of(config=described), MANIFEST_TYPE, "lies")
    with pytest.raises(DigestMismatch, match=f"layer: digest is {digest(IMAGE.layers[0])}"):
        pull(store, registry, name="team/app:lies")
    recovers(store, registry)


def test_an_expansion_without_end_is_stopped(
    store: Store, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerfs.registry.pipeline._RATIO_AFTER", 1 << 20)
    monkeypatch.setattr("layerfs.registry.pipeline._MAX_RATIO", 100)
    bad = TestImage([layer({"zeros": bytes(30_000_000)})])
    registry.add(bad, "bomb")
    with pytest.raises(LimitExceeded, match="expands"):
        pull(store, registry, name="team/app:bomb")
    recovers(store, registry)


@pytest.mark.parametrize("count", [5, 6])
def test_as_many_redirects_as_are_followed(store: Store, registry: FaultyRegistry, count: int) -> None:
    seen: Counter[str] = Counter()

    def fault(handler: Handler) -> bool:
        seen[handler.what] += 1
        if handler.kind != "blobs" or seen[handler.what] > count:
            return False
        handler.answer(302, b"", {"Location": handler.path})
        return True

    registry.fault = fault
    if count > 5:
        with pytest.raises(RegistryError, match="redirects more than 5 times"):
            pull(store, registry)
    else:
        pull(store, registry)
