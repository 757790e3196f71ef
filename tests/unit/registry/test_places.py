"""Which places are asked for an image, how often, and what is said when none has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import Denied, NotFound, RegistryError
from layerfs.registry.access import Access
from layerfs.registry.proxy import find_proxy
from layerfs.registry.query import list_tags
from tests.faulty_registry import Fault, FaultyRegistry, Handler, serving
from tests.image_builder import TestImage, layer

IMAGE = TestImage([layer({"file": b"content"})], ["app"])
QUICK = Access(verify_tls=False, retry_delay=0.01, timeout=2.0, attempts=4)


@pytest.fixture
def two() -> Iterator[tuple[FaultyRegistry, FaultyRegistry]]:
    """Two registries, of which the second has the image."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(serving(FaultyRegistry())) for _ in range(2))
        second.add(IMAGE)
        yield first, second


def answering(number: int) -> Fault:
    def fault(handler: Handler) -> bool:
        if handler.kind:
            handler.answer(number, json.dumps({"errors": [{"code": f"CODE{number}"}]}).encode())
        return bool(handler.kind)

    return fault


def configured(path: Path, text: str) -> Access:
    path.write_text(text)
    return replace(QUICK, registries=(str(path),))


def test_a_mirror_that_is_broken_is_asked_once(
    store: Store, tmp_path: Path, two: tuple[FaultyRegistry, FaultyRegistry]
) -> None:
    mirror, registry = two
    mirror.fault = answering(500)
    access = configured(
        tmp_path / "registries.conf",
        f'[[registry]]\nlocation = "{registry.address}"\nmirror = [{{location = "{mirror.address}"}}]\n',
    )
    (image,) = store.pull(f"{registry.address}/app", access=access)
    assert image.names == (f"{registry.address}/app:latest",)
    assert mirror.count("/manifests/") == 1
    registry.fault = answering(403)
    with pytest.raises(Denied, match=r"CODE403.*also tried.*CODE500"):
        store.pull(f"{registry.address}/app", access=access)


def test_what_is_written_goes_where_it_is_called(
    store: Store, tmp_path: Path, two: tuple[FaultyRegistry, FaultyRegistry]
) -> None:
    """Other locations are for reading: whoever has a mirror there does not want to find pushes in it."""
    named, elsewhere = two
    access = configured(
        tmp_path / "registries.conf",
        f'[[registry]]\nprefix = "{named.address}/team"\nlocation = "{elsewhere.address}"\n',
    )
    (image,) = store.pull(f"{named.address}/team/app", access=access)
    assert not named.asked
    with pytest.raises(NotFound, match="no such repository"):  # the other one is not asked to take it
        store.push(image, f"{named.address}/team/new", access=access)
    assert named.asked
    assert not elsewhere.count("/new/")
    with pytest.raises(NotFound):
        list(list_tags(access, f"{named.address}/team/new"))


def test_a_short_name_is_looked_for_everywhere(
    store: Store, tmp_path: Path, two: tuple[FaultyRegistry, FaultyRegistry]
) -> None:
    first, second = two
    search = f'unqualified-search-registries = ["{first.address}", "{second.address}"]\n'
    blocked = f'[[registry]]\nlocation = "{first.address}"\nblocked = true\n'
    for text in (search, search + blocked):
        (image,) = store.pull("app", access=configured(tmp_path / "registries.conf", text))
        assert image.given == (f"{second.address}/app:latest",)
    access = configured(tmp_path / "registries.conf", search)
    with pytest.raises(NotFound, match=f"{second.address}.*also tried.*{first.address}"):
        store.pull("app:nothing", access=access)
    # That one place has no such image says less than what another one says.
    first.fault = answering(403)
    with pytest.raises(Denied, match=f"{first.address}.*also tried.*{second.address}"):
        store.pull("app:nothing", access=access)
    with pytest.raises(Denied, match="is blocked"):
        store.pull(f"{first.address}/app", access=configured(tmp_path / "registries.conf", search + blocked))


def test_a_list_that_goes_in_a_circle(two: tuple[FaultyRegistry, FaultyRegistry]) -> None:
    registry, _ = two

    def fault(handler: Handler) -> bool:
        handler.answer(200, b'{"tags": ["a"]}', {"Link": f'<{handler.path}>; rel="next"'})
        return True

    registry.fault = fault
    with pytest.raises(RegistryError, match="in a circle"):
        list(list_tags(QUICK, f"{registry.address}/app"))
    assert len(registry.asked) <= 4


def test_a_server_that_resets_what_is_not_http(store: Store) -> None:
    registry = FaultyRegistry()
    registry.add(IMAGE)
    with serving(registry, abrupt=True):
        assert store.pull(f"{registry.address}/app", access=QUICK)


PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("host", "port", "exempt", "is_exempt"),
    [
        ("r.example", 443, "", False),
        ("r.example", 443, "*", True),
        ("r.example", 443, "other.example, r.example", True),
        ("sub.r.example", 443, "r.example", True),
        ("sub.r.example", 443, "R.Example", True),
        ("otherr.example", 443, "r.example", False),
        ("r.example", 443, ".r.example", False),
        ("sub.r.example", 443, ".r.example", True),
        ("sub.r.example", 443, "*.r.example", True),
        ("r.example", 443, "r.example:443", True),
        ("r.example", 5000, "r.example:443", False),
        ("r.example", 443, "a:²", False),
        ("10.9.9.9", 443, "10.0.0.0/8", True),
        ("11.9.9.9", 443, "10.0.0.0/8", False),
        ("10.9.9.9", 443, "10.9.9.9", True),
        ("10.9.9.9", 443, "10.9.9.9:5000", False),
        ("10.9.9.9", 5000, "10.9.9.9:5000", True),
        ("fd00::7", 443, "fd00::/8", True),
        ("fd00::7", 443, "[fd00::7]:443", True),
        ("fd00::7", 443, "fd00::8", False),
        ("localhost", 5000, "", True),
        ("127.3.3.3", 5000, "", True),
        ("::1", 5000, "", True),
        ("127.example", 5000, "", False),
    ],
)
def test_what_needs_no_proxy(host: str, port: int, exempt: str, is_exempt: bool) -> None:
    proxies = {"https": PROXY, "no": exempt}
    assert find_proxy(proxies, "https", host, port) == (None if is_exempt else PROXY)
    assert find_proxy(proxies, "http", host, port) is None
    assert find_proxy({"all": "proxy.example:3128", "no": exempt}, "http", host, port) == (None if is_exempt else PROXY)


def test_an_error_names_the_proxy(store: Store) -> None:
    access = replace(QUICK, proxies={"all": "http://user:secret@127.0.0.1:9"}, attempts=1)
    with pytest.raises(RegistryError, match=r"registry\.invalid, through the proxy 127\.0\.0\.1:9: ") as caught:
        store.pull("registry.invalid/app", access=access)
    assert "secret" not in str(caught.value)
