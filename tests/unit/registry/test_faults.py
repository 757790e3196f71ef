"""Registries that do everything wrong: each pull ends well, or with one clear error, soon, and the store unharmed."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from layerfs.api import Store
from layerfs.api.async_store import AsyncStore
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
from layerfs.formats.auth_file import Credential
from layerfs.registry.access import Access
from tests.faulty_registry import FaultyRegistry, Handler, serving
from tests.image_builder import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE, TestImage, digest, layer, noise
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

#: Seconds within which every pull here has to end.
BOUND = 30


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    made = FaultyRegistry()
    made.add(IMAGE)
    made.add(TestImage([layer({"other": noise(50_000, "other")})]), "other")
    with serving(made):
        yield made


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


SECRET = "s3cr3t-pass"
TOKEN = "tok-" + "e" * 40


def test_authorization_never_goes_elsewhere(store: Store, registry: FaultyRegistry) -> None:
    """Not on a redirect to another port, host or scheme, whatever the status; and it comes back for the registry."""
    other = FaultyRegistry(blobs=dict(registry.blobs))
    with serving(other):
        for number in (301, 302, 303, 307, 308):

            def fault(handler: Handler, number: int = number) -> bool:
                if handler.headers.get("Authorization") is None:
                    handler.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
                elif handler.kind == "blobs":
                    handler.answer(number, b"", {"Location": f"http://{other.address}{handler.path}"})
                else:
                    return False
                return True

            registry.fault = fault
            access = replace(QUICK, credential=Credential("me", SECRET))
            pull(store, registry, access)
            assert registry.asked[-1].authorization
            store.remove_image(f"{registry.address}/team/app")
        assert other.count("/blobs/") >= 15
        assert {request.authorization for request in other.asked} == {None}


def test_what_came_with_the_command_is_for_the_named_registry_only(
    store: Store, registry: FaultyRegistry, tmp_path: object
) -> None:
    """Neither a mirror nor the other side of a copy gets the credential or the token of the command."""
    from pathlib import Path

    from layerfs.api.copying import copy

    mirror = FaultyRegistry()
    mirror.fault = challenge
    registry.fault = challenge
    with serving(mirror):
        conf = Path(str(tmp_path)) / "registries.conf"
        conf.write_text(
            f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
            f'[[registry.mirror]]\nlocation = "{mirror.address}"\ninsecure = true\n'
        )
        for given in ({"credential": Credential("me", SECRET)}, {"token": TOKEN}):
            access = replace(QUICK, registries=(str(conf),), **given)
            with contextlib.suppress(RegistryError):
                pull(store, registry, access)
            with contextlib.suppress(LayerfsError):
                access = replace(QUICK, **given)
                copy(f"docker://{registry.address}/team/app", f"docker://{mirror.address}/x", access=access)
        assert mirror.asked
        assert {request.authorization for request in mirror.asked} == {None}
    assert any(request.authorization for request in registry.asked)


def test_a_policy_that_is_not_there_lets_nothing_in(store: Store, registry: FaultyRegistry) -> None:
    with pytest.raises(LayerfsError, match="policy file /nowhere does not exist"):
        pull(store, registry, replace(QUICK, policy="/nowhere"))
    assert store.images() == []


def test_a_challenge_of_a_foreign_host_is_not_answered(store: Store, registry: FaultyRegistry) -> None:
    other = FaultyRegistry()
    other.fault = challenge
    with serving(other):
        registry.fault = both(
            Times(1, status(401, "manifests", WWW_Authenticate='Basic realm="x"')),
            redirect(f"http://{other.address}/x"),
        )
        with pytest.raises(RegistryError, match="answers 401"):
            pull(store, registry, replace(QUICK, credential=Credential("me", SECRET)))
        assert {request.authorization for request in other.asked} == {None}


def test_a_token_in_the_middle_runs_out(store: Store, registry: FaultyRegistry) -> None:
    issued: list[str] = []

    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            issued.append(f"{TOKEN}{len(issued)}")
            handler.answer(200, json.dumps({"token": issued[-1]}).encode())
            return True
        # Each token is good for two requests.
        used = handler.headers.get("Authorization")
        asked = sum(request.authorization == used for request in registry.asked)
        if used is None or used != f"Bearer {issued[-1]}" or asked > 2:
            realm = f'Bearer realm="http://{registry.address}/token",service="s",scope="repository:team/app:pull"'
            handler.answer(401, b"", {"WWW-Authenticate": realm})
            return True
        return False

    registry.fault = fault
    pull(store, registry, replace(QUICK, jobs=1))
    assert len(issued) >= 3
    assert any("scope=repository%3Ateam%2Fapp%3Apull" in request.path for request in registry.asked)
    assert_whole(store)


@pytest.mark.parametrize(
    "answer",
    [b"{", b"[]", b"{}", b'{"token": 1}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}', b" " * 1_000_000],
)
def test_broken_tokens(store: Store, registry: FaultyRegistry, answer: bytes) -> None:
    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.answer(200, answer)
        else:
            realm = f'Bearer realm="http://{registry.address}/token"'
            handler.answer(401, b"", {"WWW-Authenticate": realm})
        return True

    registry.fault = fault
    with pytest.raises((RegistryError, LimitExceeded), match="token"):
        pull(store, registry)
    recovers(store, registry)


def test_secrets_stay_secret(
    store: Store, registry: FaultyRegistry, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A registry that sends back what it was sent does not get it shown."""

    def fault(handler: Handler) -> bool:
        sent = handler.headers.get("Authorization")
        if sent is None:
            handler.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        else:
            said = {"errors": [{"code": "X", "message": f"you sent {sent} {SECRET}\n\x1b[31m"}]}
            handler.answer(403, json.dumps(said).encode())
        return True

    registry.fault = fault
    credential = Credential("me", SECRET)
    with pytest.raises(Denied, match=r"you sent Basic \*\*\* \*\*\*") as caught:
        pull(store, registry, replace(QUICK, credential=credential))
    shown = f"{caught.value} {caught.value!r} {credential!r} {capfd.readouterr()} {caplog.text}"
    assert SECRET not in shown
    assert credential.basic not in shown
    assert "\x1b" not in shown


def test_a_realm_without_tls_gets_no_password(store: Store, registry: FaultyRegistry, tmp_path_factory: object) -> None:
    from layerfs.registry.authorize import Authorizer
    from layerfs.registry.http import HttpClient

    with HttpClient(QUICK) as http:
        careful = Authorizer(http, "registry.example", Credential("me", SECRET), token=None, insecure=False)
        from layerfs.formats.challenge import parse_challenges

        with pytest.raises(RegistryError, match="without TLS"):
            careful.learn(parse_challenges('Bearer realm="http://example.invalid/token"'), ("repository:a:pull",), None)


def test_an_index_for_several_platforms(store: Store, registry: FaultyRegistry) -> None:
    from layerfs.formats.platform import Platform

    arm = TestImage([layer({"arm": b"arm"})], architecture="arm64")
    registry.add_index({"arm64": arm, "amd64": IMAGE}, "multi")
    image = store.pull(f"{registry.address}/team/app:multi", access=QUICK, platform=Platform.parse("linux/arm64"))[0]
    assert image.platform.architecture == "arm64"
    both = store.pull(f"{registry.address}/team/app:multi", access=QUICK, all_platforms=True)
    assert sorted(image.platform.architecture for image in both) == ["amd64", "arm64"]
    index = digest(registry.manifests["multi"][0])
    for name in (f"{registry.address}/team/app:multi", f"{registry.address}/team/app@{index}"):
        assert store.resolve(name).platform.architecture == Platform.host().architecture
    assert {image.origins for image in both} == {
        (f"{registry.address}/team/app@{index}",),
        tuple(sorted(f"{registry.address}/team/app@{each}" for each in (index, digest(arm.manifest)))),
    }
    with pytest.raises(LayerfsError, match="platform"):
        store.pull(f"{registry.address}/team/app:multi", access=QUICK, platform=Platform.parse("linux/s390x"))


def test_nothing_new_takes_one_request(store: Store, registry: FaultyRegistry) -> None:
    pull(store, registry)
    registry.asked.clear()
    pull(store, registry)
    # The first one finds out whether it speaks TLS, which is not known where it need not.
    assert [request.path for request in registry.asked] == ["/v2/", "/v2/team/app/manifests/latest"]


def test_parts_survive_a_failure_and_go_with_success(store: Store, registry: FaultyRegistry) -> None:
    from pathlib import Path

    parts = Path(store.info().root) / "partial"
    registry.fault = cut_at(SIZE // 2, reset=False)
    with pytest.raises(Unreachable):
        pull(store, registry)
    assert (parts / f"sha256-{BIG.partition(':')[2]}").stat().st_size == SIZE // 2
    registry.fault = None
    registry.asked.clear()
    pull(store, registry)
    big = [request.range for request in registry.asked if request.path.endswith(BIG)]
    assert big == [f"bytes={SIZE // 2}-"]
    assert not list(parts.iterdir())
    assert_whole(store)


def test_a_damaged_part_is_found_and_fetched_anew(store: Store, registry: FaultyRegistry) -> None:
    from pathlib import Path

    part = Path(store.info().root) / "partial" / f"sha256-{BIG.partition(':')[2]}"
    # The last one is found while its bytes are laid down, and others are still being read.
    no_tar = gzip.compress(noise(SIZE, "y"), 0)[: SIZE - 100_000]
    for damaged in (bytes(1000), IMAGE.blobs[0][:-1] + b"\0", noise(SIZE, "x"), noise(SIZE + 5, "x"), no_tar):
        part.write_bytes(damaged)
        pull(store, registry)
        assert_whole(store)
        assert not part.exists()
        store.remove_image(f"{registry.address}/team/app")


@pytest.mark.parametrize("tasks", [False, True], ids=["threads", "tasks"])
def test_the_error_of_laying_down_counts(store: Store, tasks: bool) -> None:
    image = TestImage([layer({f"f{number}": noise(30_000, number)}) for number in range(24)], codec="gzip")
    registry = FaultyRegistry()
    registry.add(image)
    bad = digest(image.blobs[2])
    access = replace(QUICK, jobs=8)

    def slow(handler: Handler) -> bool:
        time.sleep(0.005)
        if not handler.path.endswith(bad):
            return False
        handler.answer(200, noise(len(image.blobs[2]), "bad"))
        return True

    registry.fault = slow

    async def run(name: str) -> None:
        async with await AsyncStore.open(store.info().root) as same:
            await same.pull(name, access=access)

    # Others are being received, and are given up: that is not what went wrong.
    with serving(registry), pytest.raises(FormatError, match="not a tar archive") as caught:
        name = f"{registry.address}/team/app"
        if tasks:
            trio.run(run, name)
        else:
            store.pull(name, access=access)
    assert not hasattr(caught.value, "__notes__")


def test_tasks_get_the_same_errors(store: Store, registry: FaultyRegistry) -> None:
    registry.fault = cut_at(SIZE // 2, reset=False)

    async def run() -> None:
        async with await AsyncStore.open(store.info().root) as same:
            with pytest.raises(Unreachable, match="the connection broke"):
                await same.pull(f"{registry.address}/team/app", access=QUICK)
            registry.fault = None
            await same.pull(f"{registry.address}/team/app", access=QUICK)

    trio.run(run)
    assert_whole(store)


def test_gc_removes_parts(store: Store, registry: FaultyRegistry) -> None:
    from pathlib import Path

    registry.fault = cut_at(SIZE // 2, reset=False)
    with pytest.raises(Unreachable):
        pull(store, registry)
    assert store.gc().size >= SIZE // 2
    assert not list((Path(store.info().root) / "partial").iterdir())


def test_a_digest_pull_leaves_tags_alone(store: Store, registry: FaultyRegistry) -> None:
    pull(store, registry)
    name = f"{registry.address}/team/app@{digest(registry.manifests['other'][0])}"
    image = store.pull(name, access=QUICK)[0]
    assert image.names == ()
    assert store.resolve(name).id == image.id
    assert image.origins == (name,)
    assert read_file(store, f"{registry.address}/team/app", b"/top") == b"top"


def test_tags_and_referrers(registry: FaultyRegistry) -> None:
    from layerfs.formats.digest import Digest
    from layerfs.formats.reference import Reference
    from layerfs.registry.query import list_tags
    from layerfs.registry.remote import Registries

    def fault(handler: Handler) -> bool:
        if handler.kind == "tags":
            last = "last=b" in handler.path
            page = {"name": "team/app", "tags": ["c"] if last else ["a", "b"]}
            link = {} if last else {"Link": '</v2/team/app/tags/list?n=2&last=b>; rel="next"'}
            handler.answer(200, json.dumps(page).encode(), link)
            return True
        return False

    registry.fault = fault
    assert list(list_tags(QUICK, f"{registry.address}/team/app")) == ["a", "b", "c"]
    subject = digest(IMAGE.manifest)
    entry = {
        "mediaType": MANIFEST_TYPE, "digest": digest(b"x"), "size": 1, "artifactType": "application/vnd.example+json",
    }  # fmt: skip
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}).encode()
    registry.add_manifest(index, INDEX_TYPE, subject.replace(":", "-"))
    with Registries.open(QUICK) as registries:
        repository = registries.write_to(Reference.parse(f"{registry.address}/team/app"))
        found = repository.referrers(Digest.parse(subject))
        assert [str(entry.digest) for entry in found] == [digest(b"x")]
        assert repository.referrers(Digest.parse(subject), "application/other") == []
        assert repository.referrers(Digest.parse(digest(b"nothing"))) == []


def test_a_list_that_goes_on_elsewhere(registry: FaultyRegistry) -> None:
    from layerfs.registry.query import list_tags

    def fault(handler: Handler) -> bool:
        handler.answer(200, b'{"tags": ["a"]}', {"Link": '<http://127.0.0.2:1/v2/x>; rel="next"'})
        return True

    registry.fault = fault
    with pytest.raises(RegistryError, match="another host"):
        list(list_tags(QUICK, f"{registry.address}/team/app"))


def test_mirrors_are_tried_first_and_fail_over(store: Store, registry: FaultyRegistry, tmp_path: object) -> None:
    from pathlib import Path

    mirror = FaultyRegistry(manifests=dict(registry.manifests), blobs=dict(registry.blobs))
    del mirror.blobs[BIG]
    with serving(mirror):
        conf = Path(str(tmp_path)) / "registries.conf"
        conf.write_text(
            f'[[registry]]\nlocation = "{registry.address}"\n'
            f'[[registry.mirror]]\nlocation = "{mirror.address}"\ninsecure = true\n'
            f'[[registry.mirror]]\nlocation = "127.0.0.1:1"\n'
        )
        pull(store, registry, replace(QUICK, registries=(str(conf),)))
    assert mirror.count("/manifests/") == 1
    assert registry.count("/manifests/") == 0
    assert registry.count("/blobs/") == 1  # the one that the mirror lacks
    assert [str(name) for name in store.images()[0].names] == [f"{registry.address}/team/app:latest"]


def test_through_a_proxy(store: Store, registry: FaultyRegistry) -> None:
    """The proxy is asked for whole URLs, with its own password; hosts that are exempt are not."""
    from urllib.parse import urlsplit

    seen = []

    def fault(handler: Handler) -> bool:
        seen.append((handler.path, handler.headers.get("Proxy-Authorization"), handler.headers.get("Authorization")))
        handler.path = urlsplit(handler.path).path
        return False

    registry.fault = fault
    access = replace(
        QUICK, proxies={"http": f"http://me:{SECRET}@{registry.address}", "no": "exempt.invalid, 10.0.0.1"}
    )
    store.pull("registry.invalid/team/app", access=access)
    assert seen
    assert all(path.startswith("http://registry.invalid/v2/") for path, _, _ in seen)
    assert {(proxy is not None, own) for _, proxy, own in seen} == {(True, None)}
    seen.clear()
    with pytest.raises(Unreachable, match=r"exempt\.invalid"):
        store.pull("sub.exempt.invalid/team/app", access=replace(access, attempts=1))
    assert not seen


def test_a_list_that_breaks_off_is_not_mixed_with_that_of_another_name(
    registry: FaultyRegistry, tmp_path: Path
) -> None:
    from layerfs.registry.query import list_tags

    def first(handler: Handler) -> bool:
        if "last=a" in handler.path:
            return False  # there is no such page: 404
        handler.answer(200, b'{"tags": ["a"]}', {"Link": '</v2/app/tags/list?last=a>; rel="next"'})
        return True

    def second(handler: Handler) -> bool:
        handler.answer(200, b'{"tags": ["other"]}')
        return True

    other = FaultyRegistry()
    registry.fault, other.fault = first, second
    with serving(other):
        conf = tmp_path / "registries.conf"
        conf.write_text(
            'short-name-mode = "permissive"\n'
            f'unqualified-search-registries = ["{registry.address}", "{other.address}"]\n'
            f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
            f'[[registry]]\nlocation = "{other.address}"\ninsecure = true\n'
        )
        found = list_tags(replace(QUICK, registries=(str(conf),)), "app")
        assert next(found) == "a"
        with pytest.raises(NotFound):
            next(found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bücher.example/x", "not a registry host|must"),
        ("registry.example/Team/App", "must be lower case"),
        ("registry.example:port/x", "not a registry host"),
        ("registry.example/x:", "tag"),
        ("registry.example/x@sha256:12", "digest"),
    ],
)
def test_bad_names(store: Store, name: str, message: str) -> None:
    from layerfs.errors import InvalidReference

    with pytest.raises(InvalidReference, match=message):
        store.pull(name, access=QUICK)


def test_an_internationalised_host_in_its_ascii_form(store: Store) -> None:
    with pytest.raises(Unreachable, match=r"xn--bcher-kva\.invalid"):
        store.pull("xn--bcher-kva.invalid:5000/x", access=replace(QUICK, attempts=1))


def test_a_registry_that_never_answered_is_given_up_sooner(store: Store, registry: FaultyRegistry) -> None:
    registry.fault = lambda handler: handler.kind == "manifests" and reset(handler)
    with pytest.raises(Unreachable):
        pull(store, registry, replace(QUICK, attempts=6))
    assert registry.count("/manifests/") == 3
    registry.asked.clear()
    registry.fault = lambda handler: handler.kind == "blobs" and reset(handler)
    with pytest.raises(Unreachable):
        pull(store, registry, replace(QUICK, attempts=6, jobs=1))
    assert registry.count("/blobs/") >= 6


@pytest.mark.parametrize("fault", [drip_header, redirect("http://[bad/")], ids=["cut header", "bad redirect"])
def test_answers_that_nobody_gets_are_closed(
    store: Store, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Handler], bool]
) -> None:
    import urllib3

    answers = []
    urlopen = urllib3.HTTPConnectionPool.urlopen

    def remember(*args: Any, **options: Any) -> Any:
        answers.append(urlopen(*args, **options))
        return answers[-1]

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", remember)
    registry.fault = fault
    with pytest.raises(RegistryError):
        pull(store, registry, replace(QUICK, timeout=0.3, attempts=1))
    assert len(answers) > 1
    assert [answer.closed for answer in answers] == [True] * len(answers)


@pytest.mark.parametrize("number", [429, 503])
def test_retry_after_is_waited_for(store: Store, registry: FaultyRegistry, number: int) -> None:
    registry.fault = Times(1, status(number, "manifests", Retry_After="1"))
    began = time.monotonic()
    pull(store, registry)
    assert time.monotonic() - began >= 1


def test_a_first_pull_with_a_token_takes_three_requests_before_layers(store: Store, registry: FaultyRegistry) -> None:
    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.answer(200, json.dumps({"token": TOKEN}).encode())
        elif handler.headers.get("Authorization") != f"Bearer {TOKEN}" and handler.kind:
            handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="http://{registry.address}/token"'})
        else:
            return False
        return True

    registry.fault = fault
    pull(store, registry)
    registry.asked.clear()
    pull(store, registry)
    # But for the first one, which an insecure registry needs.
    assert [request.path.partition("?")[0] for request in registry.asked[1:]] == [
        "/v2/team/app/manifests/latest", "/token", "/v2/team/app/manifests/latest",
    ]  # fmt: skip


def test_a_host_that_nobody_knows_is_told_with_what_to_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(Unreachable, match=r"r\.example: Name or service not known") as caught:
        store.pull("docker://r.example/app", access=QUICK)
    assert "Check the name" in str(caught.value.hint)
