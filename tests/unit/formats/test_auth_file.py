"""Credentials in docker's and podman's files."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from layerfs.errors import FormatError
from layerfs.formats.auth_file import AuthFile, Credential, lookup_keys, normal_key, parse_basic


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def parse(document: Any, **options: Any) -> AuthFile:
    return AuthFile.parse(json.dumps(document).encode(), **options)


@pytest.mark.parametrize(
    ("key", "normal"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("https://Quay.IO/v2/", "quay.io"),
        ("http://localhost:5000", "localhost:5000"),
        ("quay.io/team/app", "quay.io/team/app"),
        ("quay.io/v1", "quay.io"),
    ],
)
def test_one_spelling(key: str, normal: str) -> None:
    assert normal_key(key) == normal


def test_the_most_special_key_comes_first() -> None:
    assert list(lookup_keys("h:1", "a/b")) == ["h:1/a/b", "h:1/a", "h:1"]


def test_kinds_of_entries() -> None:
    file = parse(
        {
            "auths": {
                "a": {"auth": encoded("me:pass:word")},
                "b": {"username": "you", "password": "p"},
                "c": {"auth": encoded("x:"), "identitytoken": "T"},
                "https://index.docker.io/v1/": {"auth": encoded("hub:h")},
                "empty": {},
            },
            "credHelpers": {"gcr.io": "gcloud"},
            "credsStore": "desktop",
            "HttpHeaders": {"User-Agent": "x"},
        }
    )
    assert file.find("a") == Credential("me", "pass:word")
    assert file.find("https://a/v2/") == Credential("me", "pass:word")
    assert file.find("b") == Credential("you", "p")
    assert file.find("c") == Credential("x", "", "T")
    assert file.find("docker.io") == Credential("hub", "h")
    assert file.find("empty") is None
    assert file.helper("gcr.io") == "gcloud"
    assert file.helper("other") == "desktop"


def test_legacy_and_empty_files() -> None:
    assert parse({"a": {"auth": encoded("u:p")}}, legacy=True).find("a") == Credential("u", "p")
    assert AuthFile.parse(b" \n") == AuthFile()
    assert AuthFile().helper("a") is None


def test_a_change_keeps_the_rest_and_replaces_all_spellings() -> None:
    document = {"auths": {"https://quay.io/v1/": {"auth": encoded("old:o")}, "x": {}}, "psFormat": "table"}
    raw = parse(document).with_credential("quay.io", Credential("new", "n", "T"))
    written = json.loads(raw)
    assert written["psFormat"] == "table"
    assert written["auths"] == {"x": {}, "quay.io": {"auth": encoded("new:n"), "identitytoken": "T"}}
    assert json.loads(AuthFile.parse(raw).with_credential("quay.io", None))["auths"] == {"x": {}}


@pytest.mark.parametrize("bad", ["no base64!", encoded("nocolon"), "/w==" + "=", encoded("x") + "é"])
def test_errors_show_no_secret(bad: str) -> None:
    file = parse({"auths": {"a": {"auth": bad}, "b": {"auth": encoded("me:p")}}})
    assert file.find("b") == Credential("me", "p")  # one bad entry is no reason to know nothing
    with pytest.raises(FormatError, match=r"auths.a.auth: auth ") as caught:
        file.find("a")
    assert bad not in str(caught.value)
    assert bad not in repr(file)


def test_secrets_are_in_no_repr() -> None:
    file = parse({"auths": {"a": {"auth": encoded("me:secret1"), "identitytoken": "secret2"}}})
    shown = f"{file!r} {file.find('a')!r} {file.find('a')}"
    assert "secret" not in shown
    assert encoded("me:secret1") not in shown


def test_lines_of_base64_are_joined() -> None:
    text = encoded(f"me:{'p' * 90}")
    assert parse_basic(f"{text[:76]}\r\n{text[76:]}\n") == Credential("me", "p" * 90)


def test_basic_ends_at_nul() -> None:
    assert parse_basic(encoded("a:b\0\0")) == Credential("a", "b")
    assert Credential("a", "b").basic == encoded("a:b")


def test_a_dockercfg_stays_one() -> None:
    raw = b'{"h.example": {"auth": "dTpw", "email": "u@example"}}'
    changed = AuthFile.parse(raw, legacy=True).with_credential("new.example", Credential("a", "b"))
    found = AuthFile.parse(changed, legacy=True)
    assert (found.find("h.example"), found.find("new.example")) == (Credential("u", "p"), Credential("a", "b"))
    assert b"auths" not in changed
    assert AuthFile.parse(found.with_credential("h.example", None), legacy=True).find("h.example") is None
    assert b"auths" not in AuthFile.parse(b"", legacy=True).with_credential("x", Credential("a", "b"))
