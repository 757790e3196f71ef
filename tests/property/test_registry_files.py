"""Files and headers about registries: whatever comes, only FormatError comes out, and what is written is read again."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import FormatError
from layerfs.formats.auth_file import AuthFile, Credential
from layerfs.formats.challenge import parse_challenges
from layerfs.formats.policy import Policy
from layerfs.formats.registries_conf import RegistriesConfig

_tokens = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=12)
_texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["auths", "auth", "credHelpers", "credsStore", "identitytoken", "username", "default", "transports",
             "docker", "type", "", "a"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@given(st.text())
def test_any_challenge_is_read(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


@given(st.lists(st.tuples(_tokens, st.dictionaries(_tokens, _texts, min_size=1, max_size=4)), min_size=1, max_size=3))
def test_challenges_come_back(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        scheme + " " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert [(found.scheme, dict(found.parameters)) for found in parse_challenges(header)] == challenges


@given(_json | st.binary())
def test_bad_files_are_format_errors(value: object) -> None:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    for parse in (AuthFile.parse, Policy.parse, lambda raw: RegistriesConfig.parse([("x", raw)])):
        try:
            parse(raw)
        except FormatError:
            continue


@given(_tokens, st.text(max_size=20).filter(lambda text: ":" not in text and not text.endswith("\0")), st.text())
def test_credentials_come_back(key: str, user: str, password: str) -> None:
    credential = Credential(user or "u", password.rstrip("\0"))
    try:
        credential.basic.encode()
    except UnicodeEncodeError:
        return
    assert AuthFile.parse(AuthFile().with_credential(key, credential)).find(key) == credential
