"""What registries send in WWW-Authenticate, and what broken ones send."""

from __future__ import annotations

import pytest

from layerfs.formats.challenge import Challenge, parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="Registry Realm"', [("basic", {"realm": "Registry Realm"})]),
        (
            HUB,
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token", "service": "registry.docker.io",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        ("bearer realm = https, Service=x", [("bearer", {"realm": "https", "service": "x"})]),
        (
            'Basic realm="a", Bearer realm="b",service=c',
            [("basic", {"realm": "a"}), ("bearer", {"realm": "b", "service": "c"})],
        ),
        ('Negotiate, Basic realm="a"', [("negotiate", {}), ("basic", {"realm": "a"})]),
        ('Negotiate YWJj==, Basic realm="a"', [("negotiate", {}), ("basic", {"realm": "a"})]),
        (r'Basic realm="a \"b\" \\c"', [("basic", {"realm": r'a "b" \c'})]),
        (', , Basic realm="a",,charset=UTF-8', [("basic", {"realm": "a", "charset": "UTF-8"})]),
        ('Bearer realm="a",realm="b"', [("bearer", {"realm": "a"})]),
        ('Bearer realm="a",error="invalid_token"', [("bearer", {"realm": "a", "error": "invalid_token"})]),
        ('Bearer realm="never ends', [("bearer", {})]),
        ("", []),
        ("=", []),
        ("Basic", [("basic", {})]),
    ],
)  # fmt: skip
def test_parse(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    found = parse_challenges(header)
    assert [(challenge.scheme, dict(challenge.parameters)) for challenge in found] == expected


def test_a_long_header_is_cut() -> None:
    assert parse_challenges("Basic " + "x" * 10_000_000)[0] == Challenge("basic")
