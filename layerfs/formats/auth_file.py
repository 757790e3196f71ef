"""Files with credentials for registries, as docker, podman and skopeo write them.

    {"auths": {KEY: {"auth": base64 of USER:PASSWORD, "identitytoken": ...}},
     "credHelpers": {HOST: NAME}, "credsStore": NAME}

A key is a host with an optional port, or that and the beginning of a repository's path; docker's keys may have a scheme
and ``/v1/`` or ``/v2/`` around it. Whatever else is in a file survives a change of it. Nothing here opens a file or
runs a helper, and no error, ``str`` or ``repr`` shows a secret.

Source: containers-auth.json(5); docker's config.json.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from layerfs.errors import FormatError
from layerfs.formats.document import JsonObject, parse_document
from layerfs.formats.reference import DEFAULT_DOMAIN

__all__ = ["HUB_KEY", "TOKEN_USER", "AuthFile", "Credential", "lookup_keys", "normal_key", "parse_basic"]

#: What docker calls Docker Hub in its files; podman writes ``docker.io``.
HUB_KEY = "https://index.docker.io/v1/"

#: The user name with which helpers say that the secret is an identity token.
TOKEN_USER = "<token>"  # noqa: S105 - a word of the protocol


@dataclass(frozen=True, slots=True)
class Credential:
    """What opens a registry.

    Attributes:
        username: empty with an identity token alone.
        password: the password; never shown.
        identity_token: an OAuth2 refresh token instead, or None; never shown.
    """

    username: str
    password: str = field(repr=False, default="")
    identity_token: str | None = field(repr=False, default=None)

    @property
    def basic(self) -> str:
        """The base64 text of ``user:password``, whose bytes are those that the user gave, in UTF-8 or not."""
        return base64.b64encode(f"{self.username}:{self.password}".encode("utf-8", "surrogateescape")).decode("ascii")


@dataclass(frozen=True, slots=True)
class AuthFile:
    """One parsed file.

    Attributes:
        credentials: by normalised key; see :func:`normal_key`.
        helpers: names of credential helpers by normalised key.
        store: name of the helper for all other hosts, or None.
        broken: what is wrong with entries that hold no credential, by normalised key: others are none the worse.
        document: the whole file, for :meth:`with_credential`; never shown.
        legacy: it is a ``.dockercfg``, whose top is what other files have in ``auths``.
    """

    credentials: Mapping[str, Credential] = field(default_factory=dict, repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str | None = None
    broken: Mapping[str, str] = field(default_factory=dict)
    document: Mapping[str, object] = field(default_factory=dict, repr=False)
    legacy: bool = False

    @classmethod
    def parse(cls, raw: bytes, *, legacy: bool = False) -> Self:
        """Read a file.

        Args:
            raw: its bytes; an empty file has no credentials.
            legacy: it is a ``.dockercfg``.

        Raises:
            FormatError: no JSON, or a member of the wrong kind; the message names the member, never its value. An
                entry whose text is no credential is an error for who asks for it.
        """
        if not raw.strip():
            return cls(legacy=legacy)
        document = parse_document(raw, "auth file")
        top = JsonObject({"auths": document} if legacy else document)
        credentials: dict[str, Credential] = {}
        broken: dict[str, str] = {}
        auths = top.optional_child("auths")
        for key in auths.members if auths is not None else ():
            assert auths is not None
            entry = auths.optional_child(key)
            try:
                credential = _credential(entry) if entry is not None else None
            except FormatError as error:
                broken[normal_key(key)] = str(error)
                continue
            if credential is not None:
                # Of several spellings of one host the last stands, as it does for who writes the file.
                credentials[normal_key(key)] = credential
        helpers = {normal_key(key): name for key, name in top.text_map("credHelpers").items() if name}
        return cls(credentials, helpers, top.optional_text("credsStore") or None, broken, document, legacy)

    def find(self, key: str) -> Credential | None:
        """Return the credential under exactly this key.

        Raises:
            FormatError: what is there is none.
        """
        found = self.credentials.get(normal_key(key))
        if found is None and normal_key(key) in self.broken:
            raise FormatError(self.broken[normal_key(key)])
        return found

    def helper(self, host: str) -> str | None:
        """Return the name of the helper that is to be asked about a host: its own, else the one for all."""
        return self.helpers.get(normal_key(host), self.store)

    def is_own_helper(self, host: str) -> bool:
        """Whether the helper of a host is for that alone."""
        return normal_key(host) in self.helpers

    def with_credential(self, key: str, credential: Credential | None) -> bytes:
        """Return the file's new bytes with a credential under a key, or without one for None.

        All spellings of the key that docker may have used are replaced.
        """
        document = dict(self.document)
        auths = document if self.legacy else document.get("auths")
        entries: dict[str, object] = dict(auths) if isinstance(auths, Mapping) else {}
        wanted = normal_key(key)
        for spelling in [name for name in entries if normal_key(name) == wanted]:
            del entries[spelling]
        if credential is not None:
            entry = {"auth": credential.basic}
            if credential.identity_token is not None:
                entry["identitytoken"] = credential.identity_token
            entries[key] = entry
        document = entries if self.legacy else {**document, "auths": entries}
        return json.dumps(document, indent="\t", ensure_ascii=False).encode() + b"\n"


def normal_key(key: str) -> str:
    """Return the one spelling of a key: without scheme, trailing slash, ``/v1`` and ``/v2``; Hub is ``docker.io``.

    Both ``https://index.docker.io/v1/`` and ``registry-1.docker.io`` become ``docker.io``.
    """
    text = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    host, slash, path = text.partition("/")
    if path in ("v1", "v2"):
        slash = path = ""
    host = host.lower()
    if host in ("index.docker.io", "registry-1.docker.io"):
        host = DEFAULT_DOMAIN
    return host + slash + path


def lookup_keys(domain: str, path: str = "") -> Iterator[str]:
    """Yield the keys under which a repository's credential may stand, the most special first.

    ``host/ns/image``, ``host/ns``, ``host``.
    """
    parts = [part for part in path.split("/") if part]
    for count in range(len(parts), 0, -1):
        yield "/".join((domain, *parts[:count]))
    yield domain


def parse_basic(text: str) -> Credential:
    """Read ``USER:PASSWORD`` as base64.

    Raises:
        FormatError: it is none; the message does not show it.
    """
    try:
        # Lines of base64(1) are joined, as by everybody.
        joined = text.replace("\r", "").replace("\n", "")
        user, colon, password = base64.b64decode(joined, validate=True).decode().rstrip("\0").partition(":")
    except (binascii.Error, ValueError):
        raise FormatError("auth is not base64 of USER:PASSWORD") from None
    if not colon:
        raise FormatError("auth has no colon between user and password")
    return Credential(user, password)


def _credential(entry: JsonObject) -> Credential | None:
    """Return what an entry holds; None for the empty ones that docker leaves where a helper has the secret."""
    token = entry.optional_text("identitytoken") or None
    text = entry.optional_text("auth")
    if text:
        try:
            found = parse_basic(text)
        except FormatError as error:
            raise FormatError(str(error), where=entry.place("auth")) from None
        return Credential(found.username, found.password, token)
    username, password = entry.optional_text("username") or "", entry.optional_text("password") or ""
    if username or token:
        return Credential(username, password, token)
    return None
