"""What must not be seen, and what a terminal must not be given."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import LayerfsError, RegistryError
from layerfs.formats.auth_file import Credential
from layerfs.registry.access import Access
from layerfs.registry.authorize import Authorizer
from layerfs.registry.credential import ask_helper
from layerfs.registry.http import HttpClient
from layerfs.registry.query import list_tags, log_out, registry_domain
from tests.faulty_registry import FaultyRegistry, Handler, serving

QUICK = Access(verify_tls=False, retry_delay=0.01, timeout=2.0, attempts=2)
SECRET = "S3CR3T-T0KEN"


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with serving(FaultyRegistry()) as made:
        yield made


def test_a_token_with_a_line_end_is_refused_without_showing_it(
    store: Store, registry: FaultyRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(LayerfsError, match="characters that no token has") as caught:
        store.pull(f"{registry.address}/app", access=replace(QUICK, token=f"{SECRET}\r"))
    assert SECRET not in str(caught.value) + caplog.text
    assert not registry.asked


def test_a_password_with_spaces_is_cleaned() -> None:
    credential = Credential("user", "my secret pw", None)
    with HttpClient(QUICK) as http:
        authorizer = Authorizer(http, "registry.example", credential, token=None, insecure=False)
        assert authorizer.clean("bad password 'my secret pw'") == "bad password '***'"


def test_a_helper_that_fails_after_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-leaky"
    helper.write_text(f"""#!/bin/sh
echo '{{"ServerURL": "x", "Username": "u", "Secret": "{SECRET}"}}'
echo backend gone
exit 1
""")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(RegistryError, match="get failed: backend gone") as caught:
        ask_helper("leaky", "registry.example")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("tag", ["\x1b]0;owned\x07", "a b", "a\nb", "", 5])
def test_tags_that_are_none(registry: FaultyRegistry, tag: object) -> None:
    import json

    def fault(handler: Handler) -> bool:
        if handler.kind != "tags":
            return False
        handler.answer(200, json.dumps({"name": "app", "tags": ["good", tag]}).encode())
        return True

    registry.fault = fault
    with pytest.raises(RegistryError, match="nonsense"):
        list(list_tags(QUICK, f"{registry.address}/app"))


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:1080", "http://127.0.0.1:port", "https://127.0.0.1:9", "http://ü@127.0.0.1:9"]
)
def test_proxies_that_cannot_be_used(store: Store, proxy: str) -> None:
    access = replace(QUICK, verify_tls=True, proxies={"https": proxy, "http": proxy}, attempts=1)
    for each in (access, replace(access, verify_tls=False)):
        with pytest.raises(LayerfsError, match=r"the proxy .*"):
            store.pull("registry.invalid/app", access=each)


def test_an_encrypted_key_is_an_error_and_no_question(store: Store, tmp_path: Path) -> None:
    key, certificate = tmp_path / "client.key", tmp_path / "client.cert"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:secret", "-subj", "/CN=x", "-keyout", key,
         "-out", certificate], check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(LayerfsError, match="is encrypted"):
        store.pull("registry.invalid/app", access=replace(QUICK, verify_tls=True, certificates=str(tmp_path)))


def test_a_part_of_a_registry_can_be_logged_in_to() -> None:
    assert registry_domain("docker.io/team") == "docker.io/team"
    assert registry_domain("quay.io/team") == "quay.io/team"


def test_nothing_to_forget_makes_no_file(tmp_path: Path) -> None:
    assert log_out(None, str(tmp_path / "auth.json")) == []
    assert not (tmp_path / "auth.json").exists()


@pytest.mark.parametrize("password", ["====", "a===", "="])
def test_a_password_of_what_pads_leaves_messages_whole(password: str) -> None:
    with HttpClient(QUICK) as http:
        made = Authorizer(http, "r.example", Credential("me", password), token=None, insecure=False)
        assert made.clean("UNAUTHORIZED: authentication required") == "UNAUTHORIZED: authentication required"


def test_a_password_that_is_no_text() -> None:
    assert base64.b64decode(Credential("me", os.fsdecode(b"\xff pw")).basic) == b"me:\xff pw"


def test_a_fifo_among_certificates_keeps_nobody_waiting(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.crt")
    with pytest.raises(LayerfsError, match=r"x\.crt is no regular file"):
        store.pull("127.0.0.1:1/a", access=Access(certificates=str(tmp_path)))


def test_what_a_registry_promises_shows_no_password(store: Store, registry: FaultyRegistry) -> None:
    def fault(handler: Handler) -> bool:
        if not handler.kind:
            return False
        sent = handler.headers.get("Authorization")
        if sent is None:
            handler.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        else:
            secret = sent.partition(" ")[2]
            handler.answer(200, b"{}", {"Docker-Content-Digest": f"x:{secret.rstrip('=')}"})
        return True

    registry.fault = fault
    access = Access(verify_tls=False, retry_delay=0.01, credential=Credential("user", "p4ssw0rd-of-mine"))
    with pytest.raises(RegistryError, match="promises no digest") as caught:
        store.pull(f"{registry.address}/app", access=access)
    assert "***" in str(caught.value)
    assert Credential("user", "p4ssw0rd-of-mine").basic.rstrip("=") not in str(caught.value)
