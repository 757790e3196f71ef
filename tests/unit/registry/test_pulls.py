"""What a pull asks for, how often, in which words it fails, and what it leaves for the next one."""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import trio

from layerfs.api import Store
from layerfs.api.async_store import AsyncStore
from layerfs.errors import (
    Conflict,
    DigestMismatch,
    FormatError,
    LayerfsError,
    NotFound,
    RegistryError,
    Unreachable,
)
from layerfs.formats.digest import Digest
from layerfs.registry.proxy import is_loopback
from layerfs.registry.pull import Pull
from layerfs.registry.query import fetch_image
from layerfs.store.part import Part
from tests.faulty_registry import FaultyRegistry, Handler, serving
from tests.image_builder import INDEX_TYPE, MANIFEST_TYPE, TestImage, digest, layer, noise
from tests.store_audit import assert_whole, read_file
from tests.unit.registry.faults import (
    BIG,
    IMAGE,
    QUICK,
    SECRET,
    SIZE,
    TOKEN,
    Times,
    cut_at,
    drip_header,
    pull,
    redirect,
    reset,
    status,
)


def test_an_index_that_names_no_platforms(store: Store, registry: FaultyRegistry) -> None:
    """Then the configs say what the images are for."""
    from layerfs.formats.platform import Platform

    both = {name: TestImage([layer({"for": name.encode()})], architecture=name) for name in ("arm64", "amd64")}
    for name, image in both.items():
        registry.add(image, f"only-{name}")
    entries = [
        {"mediaType": MANIFEST_TYPE, "digest": digest(image.manifest), "size": len(image.manifest)}
        for image in both.values()
    ]
    raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}).encode()
    registry.add_manifest(raw, INDEX_TYPE, "silent")
    name = f"{registry.address}/team/app:silent"
    for architecture in both:
        wanted = Platform.parse(f"linux/{architecture}")
        assert store.pull(name, access=QUICK, platform=wanted)[0].platform.architecture == architecture
        assert fetch_image(QUICK, name, wanted).config.platform.architecture == architecture


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
    with serving(registry), pytest.raises(DigestMismatch, match=bad) as caught:
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
    """A registry behind a proxy may say what it is called inside: nobody else is asked, and the list goes on."""
    from layerfs.registry.query import list_tags

    def fault(handler: Handler) -> bool:
        if handler.path.endswith("/v2/inner?last=a"):
            handler.answer(200, b'{"tags": ["b"]}')
        else:
            link = '<http://127.0.0.2:1/v2/inner?last=a>; title="x" ;rel="next"; y, </v2/other>; rel="prev"'
            handler.answer(200, b'{"tags": ["a"]}', {"Link": link})
        return True

    registry.fault = fault
    assert list(list_tags(QUICK, f"{registry.address}/team/app")) == ["a", "b"]


@pytest.mark.parametrize("link", ["<" * 60_000, "<a>;" * 16_000, "<a>" + " " * 60_000 + ";"])
def test_links_that_take_long_to_read(registry: FaultyRegistry, link: str) -> None:
    from layerfs.registry.query import list_tags

    def fault(handler: Handler) -> bool:
        handler.answer(200, b'{"tags": ["a"]}', {"Link": link})
        return True

    registry.fault = fault
    with pytest.raises(RegistryError, match="header with links has"):
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


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("position", [5, 150, 600, 10_000])
def test_a_damaged_layer_is_another_one_whatever_is_wrong_inside(store: Store, codec: str, position: int) -> None:
    image = TestImage([layer({"a": noise(50_000)})], codec=codec)
    made = FaultyRegistry()
    made.add(image)
    (blob,) = image.blobs
    made.blobs[digest(blob)] = blob[:position] + bytes([blob[position] ^ 0xFF]) + blob[position + 1 :]
    with serving(made), pytest.raises(DigestMismatch, match=digest(blob)) as caught:
        pull(store, made)
    assert caught.value.exit_code == 4
    assert_whole(store)


def test_a_layer_that_is_no_tar_is_named(store: Store) -> None:
    image = TestImage([b"x" * 2000], codec="none")
    made = FaultyRegistry()
    made.add(image)
    with serving(made), pytest.raises(FormatError, match=f"layer {digest(image.blobs[0])}: .*not a tar archive"):
        pull(store, made)


def test_where_room_is_short_what_was_received_goes_when_it_is_laid_down(
    store: Store, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = Part.clear
    cleared = Mock()

    def noted(self: Part) -> None:
        cleared()
        clear(self)

    monkeypatch.setattr(Part, "clear", noted)
    pull(store, registry, name="team/app:other")
    assert cleared.call_count == 0
    found = os.statvfs(store.info().root)
    short = Mock(f_bavail=SIZE // found.f_frsize, f_frsize=found.f_frsize)
    monkeypatch.setattr("layerfs.registry.pull.os.statvfs", lambda _path: short)
    pull(store, registry)
    assert cleared.call_count == 3
    assert_whole(store)


def test_a_layer_that_is_removed_meanwhile_is_received(
    store: Store, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = TestImage([*IMAGE.layers, layer({"more": b"more"})], codec="gzip")
    registry.add(both, "both")
    pull(store, registry)
    begin = Pull.__init__

    def removed(self: Pull, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        if len(self.wanted) == 1:
            store.remove_image(f"{registry.address}/team/app")

    monkeypatch.setattr(Pull, "__init__", removed)
    pull(store, registry, name="team/app:both")
    assert read_file(store, f"{registry.address}/team/app:both", b"/more") == b"more"
    assert_whole(store)


def test_short_names_find_what_was_pulled_by_long_ones(store: Store, registry: FaultyRegistry) -> None:
    pull(store, registry)
    image = store.resolve(f"{registry.address}/team/app")
    for name in ("app", "app:latest", "team/app"):
        assert store.resolve(name) == image
    for name in ("pp", "eam/app", "app:other", "localhost/app", "x.example/team/app"):
        with pytest.raises(NotFound):
            store.resolve(name)
    pull(store, registry, name="team/app:other")
    store.tag(f"{registry.address}/team/app:other", "r.example/x/app:latest")
    with pytest.raises(Conflict, match="may mean"):
        store.resolve("app")
    assert store.remove_image("team/app").untagged == (f"{registry.address}/team/app:latest",)


def test_registries_of_this_machine_need_no_tls(store: Store, registry: FaultyRegistry) -> None:
    pull(store, registry, access=replace(QUICK, verify_tls=None))
    with pytest.raises(Unreachable, match="speaks plain HTTP"):
        pull(store, registry, access=replace(QUICK, verify_tls=True))


@pytest.mark.parametrize(
    ("domain", "loopback"),
    [
        ("localhost", True), ("LOCALHOST:5000", True), ("127.1.2.3:80", True), ("[::1]:5000", True), ("[::1]", True),
        ("localhost.example", False), ("example.org:5000", False), ("10.0.0.1", False), ("[2001:db8::1]:5000", False),
    ],
)  # fmt: skip
def test_what_is_this_machine(domain: str, loopback: bool) -> None:
    assert is_loopback(domain) == loopback


def test_damage_is_told_also_where_the_rest_does_not_come(store: Store) -> None:
    image = TestImage([b"no tar" * 100_000], codec="none")
    made = FaultyRegistry()
    made.add(image)

    def fault(handler: Handler) -> bool:
        if handler.kind != "blobs" or handler.what != digest(image.blobs[0]):
            return False
        handler.answer(200, b"", {"Content-Length": str(len(image.blobs[0]))})
        handler.write(image.blobs[0][:300_000])
        time.sleep(4)
        handler.close_connection = True
        return True

    made.fault = fault
    with serving(made), pytest.raises(FormatError, match="not a tar archive"):
        pull(store, made)


def test_a_pull_that_waits_for_another_one_says_so_once(
    store: Store, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("layerfs.registry.pull._SILENCE", 0.2)
    parts = [Part.claim(store._handle, Digest.parse(digest(blob))) for blob in IMAGE.blobs]
    with ThreadPoolExecutor(1) as pool:
        pulled = pool.submit(pull, store, registry)
        time.sleep(1)
        for part in parts:
            assert part is not None
            part.close(remove=True)
        pulled.result()
    assert caplog.text.count("waiting for it") == 1
    caplog.clear()
    pull(store, registry, name="team/app:other")
    assert "waiting" not in caplog.text
