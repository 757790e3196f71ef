"""Platforms: spellings, versions of variants, and choosing among several."""

from __future__ import annotations

import os
import sys

import pytest

from layerfs.errors import InvalidReference, NotFound
from layerfs.formats.platform import Platform

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v2", "linux/amd64/v2"),
        ("linux/i386", "linux/386"),
        ("linux/i686", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v8.0", "linux/arm64"),
        ("linux/arm64/v8.2", "linux/arm64/v8.2"),
        ("linux/arm64/9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/V6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/armv7l", "linux/arm/v7"),
        ("linux/armv6l", "linux/arm/v6"),
        ("linux/armv5tel", "linux/arm/v5"),
        ("linux/loongarch64", "linux/loong64"),
        ("linux/ppc64le", "linux/ppc64le"),
        ("linux/ppc64le/power9", "linux/ppc64le/power9"),
        ("linux/amd64/foo", "linux/amd64/foo"),
        ("macos/arm64", "darwin/arm64"),
        ("windows/amd64", "windows/amd64"),
        ("unknown/unknown", "unknown/unknown"),
        ("linux", "linux/arm/v6"),
        ("windows", "windows/arm/v7"),
        ("macOS", "darwin/arm/v7"),
        ("amd64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("arm", "linux/arm/v7"),
    ],
)
def test_parse_normalises(text: str, expected: str) -> None:
    platform = Platform.parse(text, host=Platform("linux", "arm", "v6"))
    assert str(platform) == expected
    assert Platform.parse(str(platform)) == platform


@pytest.mark.parametrize(
    "text", ["", "/", "linux/", "/amd64", "linux/arm/v7/x", "linux//v7", "plan10", "linux/a b", "linux/\x1b[0m", "ä/b"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Platform.parse(text)
    assert str(caught.value).isprintable()


def test_spellings_compare_equal() -> None:
    assert len({Platform("linux", "aarch64"), Platform("linux", "arm64", "v8"), Platform("Linux", "arm64", "8")}) == 1


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv8l", "linux/arm/v8"),
        ("i686", "linux/386"),
        ("riscv64", "linux/riscv64"),
        ("s390x", "linux/s390x"),
    ],
)
def test_host(monkeypatch: pytest.MonkeyPatch, machine: str, expected: str) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6.18", "#1", machine)))
    assert str(Platform.host()) == expected
    assert Platform.parse("linux") == Platform.host()


@pytest.mark.parametrize(
    ("wanted", "best_first"),
    [
        ("linux/arm/v8", ["linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm/v7", ["linux/arm", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm/v6", ["linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm64", ["linux/arm64/v8"]),
        ("linux/arm64/v9", ["linux/arm64/v9", "linux/arm64/v8.9", "linux/arm64/v8.1", "linux/arm64"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]),
        ("linux/ppc64le/power9", ["linux/ppc64le/power9", "linux/ppc64le"]),
        ("linux/amd64/foo", ["linux/amd64/foo", "linux/amd64"]),
    ],
)
def test_ranks_rise(wanted: str, best_first: list[str]) -> None:
    ranks = [Platform.parse(wanted).rank(Platform.parse(text)) for text in best_first]
    assert ranks[0] == 0
    known = [rank for rank in ranks if rank is not None]
    assert len(known) == len(ranks)
    assert known == sorted(set(known))


@pytest.mark.parametrize(
    ("wanted", "candidate"),
    [
        ("linux/amd64", "linux/amd64/v2"),
        ("linux/amd64", "linux/386"),
        ("linux/amd64", "windows/amd64"),
        ("linux/amd64", "linux/amd64/foo"),
        ("linux/arm64", "linux/arm64/v9"),
        ("linux/arm64", "linux/arm/v7"),
        ("linux/arm/v7", "linux/arm/v8"),
        ("linux/arm/v6", "linux/arm"),
        ("linux/arm/v7", "linux/arm/v4"),
        ("linux/ppc64le", "linux/ppc64le/power9"),
        ("linux/ppc64le/power8", "linux/ppc64le/power9"),
        ("linux/amd64", "unknown/unknown"),
    ],
)
def test_does_not_fit(wanted: str, candidate: str) -> None:
    assert not Platform.parse(wanted).matches(Platform.parse(candidate))


def test_os_version_counts_only_when_asked_for() -> None:
    old, new = (Platform("windows", "amd64", os_version=version) for version in ("10.0.1", "10.0.2"))
    assert Platform("windows", "amd64").matches(old)
    assert new.matches(new)
    assert new.matches(Platform("windows", "amd64"))
    assert not new.matches(old)


@pytest.mark.parametrize(
    ("wanted", "candidates", "expected"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], 2),
        ("linux/arm64", ["linux/arm64/v9", "linux/arm64/v8"], 1),
        ("linux/amd64", [None, "linux/amd64"], 1),
        ("linux/amd64", ["linux/arm64", None, None], 1),
        ("linux/amd64", ["unknown/unknown", None], 1),
    ],
)
def test_select(wanted: str, candidates: list[str | None], expected: int) -> None:
    parsed = [None if text is None else Platform.parse(text) for text in candidates]
    assert Platform.parse(wanted).select(parsed) == expected


def test_attestations_are_never_selected() -> None:
    with pytest.raises(NotFound):
        Platform("unknown", "unknown").select([Platform("unknown", "unknown")])


def test_not_found_lists_what_there_is() -> None:
    with pytest.raises(NotFound) as caught:
        Platform("linux", "s390x").select([AMD64, ARM64, AMD64, Platform("unknown", "unknown")])
    assert str(caught.value) == "no such platform: linux/s390x"
    assert caught.value.hint == "choose one of linux/amd64, linux/arm64"


def test_not_found_in_nothing() -> None:
    with pytest.raises(NotFound) as caught:
        AMD64.select([])
    assert caught.value.hint is not None
    assert "no platform" in caught.value.hint


def test_not_found_lists_a_bounded_number() -> None:
    with pytest.raises(NotFound) as caught:
        AMD64.select([Platform("linux", f"cpu{number}") for number in range(1000)])
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("linux/cpu19 and 980 more")
