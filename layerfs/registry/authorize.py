"""Authentication with a registry: from a challenge and a credential to an ``Authorization`` header.

A password goes to the registry itself (basic), or to the realm that the registry names (bearer), and only over TLS
unless the registry itself is allowed to go without. A token is kept per realm, service and scope until it ends.
No message made here contains a password or token, and what servers say is cleaned of them.

Source: CNCF distribution, "Token Authentication Specification" and "Oauth2 Token Authentication".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from layerfs.errors import FormatError, LayerfsError, RegistryError, Unauthorized, Unreachable
from layerfs.formats.auth_file import Credential
from layerfs.formats.challenge import Challenge
from layerfs.formats.document import JsonObject, parse_document
from layerfs.registry.http import HttpClient, HttpResponse, origin
from layerfs.registry.redirect import followed

__all__ = ["Authorizer", "refuse_unauthorized"]

#: Bytes of a token's answer; real ones have 2 to 5 KiB.
_MAX_TOKEN = 256 << 10

#: Seconds that a token lives when its answer does not say.
_DEFAULT_LIFE = 60

#: Seconds before its end from which on a token is not used any more.
_MARGIN = 5

_CLIENT_ID = "layerfs"
_BEARER = "Bearer "

#: Characters from which on a secret is looked for in what servers say; shorter ones are in too many words.
_SHORTEST_SECRET = 4

_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    ends: float


class Authorizer:
    """Authenticates with one registry. Thread-safe.

    The header of :meth:`header` may go to that registry's own scheme, host and port only; who sends it sees to that.
    """

    def __init__(
        self, http: HttpClient, domain: str, credential: Credential | None, *, token: str | None, insecure: bool
    ) -> None:
        """Prepare.

        Args:
            http: for requests to realms.
            domain: of the registry, whose certificates count for its realms too.
            credential: for the registry, or None for anonymous.
            token: a bearer token to send as it is, or None.
            insecure: whether credentials may go over plain HTTP and to servers with bad certificates.

        Raises:
            LayerfsError: the token is none.
        """
        if token is not None and not _is_token(token):
            raise LayerfsError("the token for the registry has characters that no token has, such as a line end")
        self._http = http
        self._domain = domain
        self._credential = credential
        self._insecure = insecure
        self._fixed = f"{_BEARER}{token}" if token else None
        self._tokens: dict[tuple[str, str, tuple[str, ...]], _Token] = {}
        self._challenge: Challenge | None = None
        self._lock = threading.Lock()
        self._refresh: str | None = None

    def header(self, scopes: Sequence[str]) -> str | None:
        """Return the header for a request of these scopes; None as long as the registry has not asked for any.

        Raises:
            Unauthorized: the realm gives no token.
            RegistryError: the realm answers wrongly, or not.
        """
        if self._fixed is not None:
            return self._fixed
        challenge = self._challenge
        return None if challenge is None else self._answer(challenge, scopes)

    def learn(
        self, challenges: Sequence[Challenge], scopes: Sequence[str], used: str | None, *, again: bool = False
    ) -> str | None:
        """Take a registry's challenges; return a header to try again with, or None if there is no other.

        Args:
            challenges: of the answer 401.
            scopes: of the request.
            used: the header that it was refused with; a token like this one is forgotten.
            again: whether headers of this method were refused before, for the same request.

        Raises:
            Unauthorized, RegistryError: as :meth:`header`.
        """
        if self._fixed is not None:
            return None
        offered = {challenge.scheme: challenge for challenge in reversed(challenges)}
        chosen = offered.get("bearer") or offered.get("basic")
        if chosen is None:
            return None
        credential = self._credential
        has_password = credential is not None and bool(credential.username and credential.password)
        # Where both are offered, and tokens that were given a moment ago do not help, though they allow enough.
        is_enough = chosen.parameters.get("error") != "insufficient_scope"
        instead = offered.get("basic") if has_password and is_enough else None
        if again and instead is not None:
            chosen = instead
        with self._lock:
            self._tokens = {key: token for key, token in self._tokens.items() if token.header != used}
        header = self._answer(chosen, scopes)
        if header == used and chosen is not instead and instead is not None:
            chosen, header = instead, self._answer(instead, scopes)
        self._challenge = chosen
        return None if header == used else header

    def clean(self, text: str) -> str:
        """Return what a server said without any secret that it may have sent back."""
        credential = self._credential
        secrets = [(self._fixed or "").removeprefix(_BEARER), self._refresh or ""]
        if credential is not None:
            basic = credential.basic  # with the padding of base64 and without
            secrets += [credential.password, credential.identity_token or "", basic, basic.rstrip("=")]
        secrets += [token.header.removeprefix(_BEARER) for token in list(self._tokens.values())]
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "***")
        return text

    def _answer(self, challenge: Challenge, scopes: Sequence[str]) -> str | None:
        if challenge.scheme == "basic":
            if self._credential is None or not self._credential.username:
                return None
            return f"Basic {self._credential.basic}"
        # The registry may know better than the request what the request needs: where that has no scope, or too little.
        named = tuple(scope for scope in (challenge.parameters.get("scope") or "").split(" ") if scope)
        asked = not scopes or challenge.parameters.get("error") == "insufficient_scope"
        wanted = tuple(dict.fromkeys((*scopes, *(named if asked else ()))))
        realm, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
        with self._lock:
            key = (realm, service, wanted)
            token = self._tokens.get(key)
            if token is None or token.ends <= time.monotonic():
                token = self._tokens[key] = self._fetch(realm, service, wanted)
            return token.header

    def _fetch(self, realm: str, service: str, scopes: tuple[str, ...]) -> _Token:
        scheme, host, _ = origin(realm)
        if scheme == "http" and not self._insecure and host not in _LOCAL:
            raise RegistryError(
                f"the registry wants credentials sent to {host} without TLS",
                hint="Pass --tls-verify=false if you must.",
            )
        credential = self._credential
        headers = {"Accept": "application/json"}
        refresh = credential.identity_token if credential is not None else None
        if refresh:
            fields = {"grant_type": "refresh_token", "refresh_token": refresh, "client_id": _CLIENT_ID}
            body = urlencode({**fields, "service": service, "scope": " ".join(scopes)}).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = self._http.request(
                "POST", realm, headers=headers, body=body, registry=self._domain, verify=not self._insecure
            )  # fmt: skip
        else:
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in scopes]
            if credential is not None and credential.username:
                headers["Authorization"] = f"Basic {credential.basic}"
                query.append(("account", credential.username))
            url = realm + ("&" if urlsplit(realm).query else "?" if query else "") + urlencode(query)
            answer = self._followed(url, headers)
        with answer:
            return self._read(answer, host)

    def _followed(self, url: str, headers: dict[str, str]) -> HttpResponse:
        """Ask a realm, and follow where it redirects to; the password goes to the realm alone."""
        home = origin(url)

        def ask(url: str) -> HttpResponse:
            own = origin(url) == home
            sent = headers if own else {name: value for name, value in headers.items() if name != "Authorization"}
            try:
                return self._http.request("GET", url, headers=sent, registry=self._domain, verify=not self._insecure)
            except Unreachable as error:
                error.args = (f"{error}, where {self._domain} sends us for a token",)
                raise

        return followed(ask(url), ask, home, home[1], insecure=self._insecure)

    def _read(self, answer: HttpResponse, host: str) -> _Token:
        raw = answer.read_all(_MAX_TOKEN, "token")
        if answer.status in (401, 403):
            raise Unauthorized(
                f"{host} gives no token: {'wrong user or password' if self._credential else 'credentials are needed'}",
                status=answer.status, hint=f"Log in with: layerfs login {self._domain}",
            )  # fmt: skip
        if answer.status != 200:
            temporary = answer.status == 429 or answer.status >= 500
            raise RegistryError(
                f"{host} gives no token: status {answer.status}", status=answer.status, temporary=temporary
            )
        try:
            document = JsonObject(parse_document(raw, "token"))
            token = document.optional_text("token") or document.optional_text("access_token")
            life = document.optional_integer("expires_in")
            refresh = document.optional_text("refresh_token")
        except FormatError as error:
            raise RegistryError(f"{host} answers no token: {self.clean(str(error))}", status=200) from None
        if not token or not _is_token(token):
            raise RegistryError(f"{host} answers no token", status=200)
        if refresh:
            self._refresh = refresh
        seconds = max(life or _DEFAULT_LIFE, _DEFAULT_LIFE // 6)
        return _Token(f"{_BEARER}{token}", time.monotonic() + seconds - min(_MARGIN, seconds / 2))


def _is_token(text: str) -> bool:
    """Return whether a text can stand in a header as a token."""
    return text.isascii() and text.isprintable() and " " not in text


def refuse_unauthorized(host: str, what: str, *, had_credential: bool) -> Unauthorized:
    """Return the error for an answer 401 that no header changes."""
    if had_credential:
        return Unauthorized(
            f"{host} does not accept the credentials for {what}", status=401, hint=f"Log in with: layerfs login {host}"
        )
    return Unauthorized(f"{host} wants credentials for {what}", status=401, hint=f"Log in with: layerfs login {host}")
