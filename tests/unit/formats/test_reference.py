"""References: docker's grammar, familiar and canonical forms, and what errors say."""

from __future__ import annotations

import time

import pytest

from layerfs.errors import InvalidReference
from layerfs.formats.digest import Digest
from layerfs.formats.reference import Reference

HEX = "0123456789abcdef" * 4
SHA256 = f"sha256:{HEX}"
SHA512 = f"sha512:{HEX}{HEX}"


@pytest.mark.parametrize(
    ("text", "domain", "path", "tag", "familiar"),
    [
        ("alpine", "docker.io", "library/alpine", None, "alpine"),
        ("alpine:3.20", "docker.io", "library/alpine", "3.20", "alpine:3.20"),
        ("library/alpine", "docker.io", "library/alpine", None, "alpine"),
        ("docker.io/alpine", "docker.io", "library/alpine", None, "alpine"),
        ("docker.io/library/alpine", "docker.io", "library/alpine", None, "alpine"),
        ("index.docker.io/alpine", "docker.io", "library/alpine", None, "alpine"),
        ("index.docker.io/library/alpine:1", "docker.io", "library/alpine", "1", "alpine:1"),
        ("docker.io:443/alpine", "docker.io:443", "alpine", None, "docker.io:443/alpine"),
        ("bitnami/redis", "docker.io", "bitnami/redis", None, "bitnami/redis"),
        ("a/b/c/d", "docker.io", "a/b/c/d", None, "a/b/c/d"),
        ("localhost", "docker.io", "library/localhost", None, "localhost"),
        ("localhost:5000", "docker.io", "library/localhost", "5000", "localhost:5000"),
        ("localhost/x", "localhost", "x", None, "localhost/x"),
        ("localhost:5000/x:1", "localhost:5000", "x", "1", "localhost:5000/x:1"),
        ("host:5000/x", "host:5000", "x", None, "host:5000/x"),
        ("host/x", "docker.io", "host/x", None, "host/x"),
        ("Host/x", "Host", "x", None, "Host/x"),
        ("ghcr.io/org/x:v1", "ghcr.io", "org/x", "v1", "ghcr.io/org/x:v1"),
        ("192.168.0.1:80/x", "192.168.0.1:80", "x", None, "192.168.0.1:80/x"),
        ("[::1]/x", "[::1]", "x", None, "[::1]/x"),
        ("[::1]:5000/x/y:t", "[::1]:5000", "x/y", "t", "[::1]:5000/x/y:t"),
        ("[2001:DB8::1]:5000/x", "[2001:DB8::1]:5000", "x", None, "[2001:DB8::1]:5000/x"),
        ("xn--n3h.com/x", "xn--n3h.com", "x", None, "xn--n3h.com/x"),
        ("a.b", "docker.io", "library/a.b", None, "a.b"),
        ("a_b", "docker.io", "library/a_b", None, "a_b"),
        ("a__b", "docker.io", "library/a__b", None, "a__b"),
        ("a-b", "docker.io", "library/a-b", None, "a-b"),
        ("a---b", "docker.io", "library/a---b", None, "a---b"),
        ("x:_.-A", "docker.io", "library/x", "_.-A", "x:_.-A"),
        ("docker.io/localhost/x", "docker.io", "localhost/x", None, "docker.io/localhost/x"),
        ("docker.io/my.org/x", "docker.io", "my.org/x", None, "docker.io/my.org/x"),
        ("docker.io/library/library/x", "docker.io", "library/library/x", None, "library/library/x"),
        (f"docker.io/library/{HEX}", "docker.io", f"library/{HEX}", None, f"library/{HEX}"),
        (f"{HEX}:1", "docker.io", f"library/{HEX}", "1", f"library/{HEX}:1"),
        (HEX[:-1], "docker.io", f"library/{HEX[:-1]}", None, HEX[:-1]),
    ],
)
def test_normalised_and_familiar(text: str, domain: str, path: str, tag: str | None, familiar: str) -> None:
    reference = Reference.parse(text)
    assert (reference.domain, reference.path, reference.tag, reference.digest) == (domain, path, tag, None)
    assert reference.name == f"{domain}/{path}"
    assert str(reference) == f"{domain}/{path}" + (f":{tag}" if tag else "")
    assert reference.familiar == familiar
    assert Reference.parse(familiar) == reference
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize("digest", [SHA256, SHA512])
@pytest.mark.parametrize("tag", [None, "3.20"])
def test_digest_with_and_without_tag(digest: str, tag: str | None) -> None:
    suffix = (f":{tag}" if tag else "") + f"@{digest}"
    reference = Reference.parse(f"alpine{suffix}")
    assert reference.tag == tag
    assert reference.digest == Digest.parse(digest)
    assert str(reference) == f"docker.io/library/alpine{suffix}"
    assert reference.familiar == f"alpine{suffix}"


def test_default_tag_only_where_nothing_is_said() -> None:
    assert str(Reference.parse("a").with_default_tag()) == "docker.io/library/a:latest"
    assert Reference.parse("a:1").with_default_tag().tag == "1"
    assert Reference.parse(f"a@{SHA256}").with_default_tag().tag is None


def test_lengths() -> None:
    assert Reference.parse("r.io/" + "a" * 255).path == "a" * 255
    assert Reference.parse("library/" + "a" * 247).path == "library/" + "a" * 247
    with pytest.raises(InvalidReference, match="has 256 characters, at most 255"):
        Reference.parse("r.io/" + "a" * 256)
    with pytest.raises(InvalidReference, match="has 256 characters, at most 255"):
        Reference.parse("a" * 248)
    assert Reference.parse("a:" + "t" * 128).tag == "t" * 128
    with pytest.raises(InvalidReference, match="has 129 characters, at most 128"):
        Reference.parse("a:" + "t" * 129)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must not be empty"),
        (HEX, "are an image ID, not a name"),
        ("Alpine", "must be lower case: 'Alpine'"),
        ("library/Alpine", "must be lower case: 'Alpine'"),
        ("ghcr.io/Org/x", "must be lower case: 'Org/x'"),
        ("alpine:", "tag after the colon is empty"),
        ("alpine:-x", "not a tag: '-x'"),
        ("alpine:.x", "not a tag: '.x'"),
        ("alpine:a:b", "not a tag: 'a:b'"),
        ("alpine:ä", "not a tag: 'ä'"),
        ("alpine:1\n", "not a tag: '1\\n'"),
        ("alpine@", "not a digest"),
        ("alpine@sha256:abc", "64 hex digits, not 3"),
        (f"alpine@md5:{'0' * 32}", "algorithm 'md5'"),
        (f"alpine@{SHA256}@{SHA256}", "hex digits"),
        (f"@{SHA256}", "repository name is missing"),
        (f":1@{SHA256}", "repository name is missing"),
        (":1", "repository name is missing"),
        ("localhost/", "repository name is missing"),
        ("ghcr.io/", "repository name is missing"),
        ("ghcr.io/:1", "repository name is missing"),
        ("/alpine", "not a repository name: '/alpine'"),
        ("a//b", "not a repository name: 'a//b'"),
        ("a/", "not a repository name"),
        ("a/../b", "not a repository name"),
        ("../b", "not a registry host: '..'"),
        ("a..b", "not a repository name"),
        ("a___b", "not a repository name"),
        ("a._b", "not a repository name"),
        ("-a", "not a repository name"),
        ("a-", "not a repository name"),
        ("a-/b", "not a repository name"),
        ("b/a._/b", "not a repository name"),
        ("a/b-/c", "not a repository name"),
        ("\uff41", "not a repository name"),
        ("٣", "not a repository name"),
        ("al pine", "must not contain white space"),
        (" alpine", "must not contain white space"),
        ("alpine\n", "must not contain white space"),
        ("alp\x1b[31mine", "'alp\\x1b[31mine'"),
        ("-host.io/x", "not a registry host: '-host.io'"),
        ("host-.io/x", "not a registry host"),
        ("a..io/x", "not a registry host"),
        ("host:/x", "not a registry host: 'host:'"),
        ("host:port/x", "not a registry host: 'host:port'"),
        ("ho_st:80/x", "not a registry host"),
        ("[::1/x", "not a registry host"),
        ("::1/x", "not a registry host"),
        ("[fe80::1%eth0]:5000/x", "IPv6 zones are not allowed"),
        ("docker://alpine", "transport 'docker'"),
        ("https://ghcr.io/x", "transport 'https'"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_hints_say_what_to_write() -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse("ghcr.io/Org/Tool")
    assert caught.value.hint == "write 'org/tool'"
    with pytest.raises(InvalidReference) as caught:
        Reference.parse("docker://alpine")
    assert caught.value.hint == "leave out 'docker://'"


def test_constructor_holds_the_grammar_too() -> None:
    with pytest.raises(InvalidReference, match="registry host"):
        Reference("../..", "x")
    with pytest.raises(InvalidReference, match="repository name"):
        Reference("docker.io", "../x")
    with pytest.raises(InvalidReference, match="tag"):
        Reference("docker.io", "library/x", "a/b")


@pytest.mark.parametrize(
    ("domain", "path"), [("docker.io", "x"), ("index.docker.io", "library/x"), ("host", "x"), ("index.docker.io", "x")]
)
def test_constructor_refuses_what_would_be_read_back_as_another(domain: str, path: str) -> None:
    with pytest.raises(InvalidReference, match="not a canonical name"):
        Reference(domain, path)


@pytest.mark.parametrize("text", ["a" * 1_000_000 + "!", "a-" * 500_000, "a/" * 500_000, "r.io/" + "a" * 250 + "!"])
def test_long_bad_names_are_refused_at_once(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(InvalidReference):
        Reference.parse(text)
    assert time.process_time() - begin < 10  # a grammar that backtracks needs hours
