"""Trust policies: strict to read, closed when in doubt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from layerfs.errors import Denied, FormatError
from layerfs.formats.policy import Policy, path_scopes, reference_scopes
from layerfs.formats.reference import Reference

ACCEPT = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
SIGNED = [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]


def check(document: Any, name: str) -> None:
    reference = Reference.parse(name)
    Policy.parse(json.dumps(document).encode()).check("docker", reference_scopes(reference), name)


def test_scopes() -> None:
    assert reference_scopes(Reference.parse("r.example.com:5000/a/b")) == [
        "r.example.com:5000/a/b:latest", "r.example.com:5000/a/b", "r.example.com:5000/a", "r.example.com:5000",
        "*.example.com", "*.com",
    ]  # fmt: skip


POLICY = {
    "default": REJECT,
    "transports": {
        "docker": {
            "good.example/team": ACCEPT,
            "good.example/team/bad": REJECT,
            "good.example/team/bad:fixed": ACCEPT,
            "*.wild.example": ACCEPT,
            "signed.example": SIGNED,
        },
        "oci": {"": ACCEPT},
    },
}


@pytest.mark.parametrize(
    "name", ["good.example/team/x", "good.example/team/bad:fixed", "a.wild.example/x", "a.b.wild.example/x/y:1"]
)
def test_accepted(name: str) -> None:
    check(POLICY, name)


@pytest.mark.parametrize(
    "name", ["debian", "good.example/team/bad:other", "good.example/teams/x", "wild.example/x", "good.example/x"]
)
def test_rejected(name: str) -> None:
    with pytest.raises(Denied, match="rejects"):
        check(POLICY, name)


@pytest.mark.parametrize("kind", ["signedBy", "sigstoreSigned", "signedBaseLayer"])
def test_signatures_fail_closed(kind: str) -> None:
    with pytest.raises(Denied, match=f"signed \\({kind}") as caught:
        check({"default": [{"type": "insecureAcceptAnything"}, {"type": kind}]}, "debian")
    assert caught.value.hint


def test_a_transports_default() -> None:
    policy = Policy.parse(json.dumps(POLICY).encode())
    policy.check("oci", ["/some/path:x"], "x")
    with pytest.raises(Denied):
        policy.check("dir", ["/some/path"], "x")


YES, NO = {"type": "insecureAcceptAnything"}, {"type": "reject"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b'{"default": []}',
        b'{"default": null}',
        b'{"default": {"type": "reject"}}',
        b'{"default": [{"type": "accept"}]}',
        b'{"default": [{"type": "reject", "more": 1}]}',
        b'{"default": [{"type": "reject"}], "other": 1}',
        b'{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
        b'{"default": [{"type": "reject"}], "transports": []}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": []}}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": {"a": []}}}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": {"a": null}}}',
        b'{"default": [{"type": "signedBy", "keyRing": "x"}]}',
    ],
)
def test_anything_unknown_refuses_the_whole(raw: bytes) -> None:
    with pytest.raises(FormatError):
        Policy.parse(raw)


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "dir"])
@pytest.mark.parametrize("scope", ["/srv/images/", "/srv/./images", "/srv/a/../images", "/", "srv/images", "images"])
def test_a_scope_that_no_image_has_refuses_the_whole(transport: str, scope: str) -> None:
    """It would let in what its author meant to keep out; skopeo refuses it as well."""
    raw = json.dumps({"default": [YES], "transports": {transport: {scope: [NO]}}}).encode()
    with pytest.raises(FormatError, match="absolute path"):
        Policy.parse(raw)


def test_a_docker_archive_has_no_scopes() -> None:
    Policy.parse(json.dumps({"default": [NO], "transports": {"docker-archive": {"": [YES]}}}).encode())
    raw = json.dumps({"default": [NO], "transports": {"docker-archive": {"/some/path": [YES]}}}).encode()
    with pytest.raises(FormatError, match="no scopes"):
        Policy.parse(raw)


def test_what_an_image_is_called_in_a_layout_is_no_part_of_its_scope() -> None:
    raw = json.dumps({"default": [NO], "transports": {"oci": {"/path:name": [YES]}}}).encode()
    with pytest.raises(Denied):
        Policy.parse(raw).check("oci", path_scopes("/path"), "x")
