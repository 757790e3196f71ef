"""One registry: sends requests with the right header to the right place, as often as it makes sense.

Redirects are followed for reading only, and ``Authorization`` goes to the registry's own scheme, host and port alone,
whatever it redirects to: blobs lie on other people's servers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from urllib.parse import urlsplit, urlunsplit

from layerfs.errors import Denied, LimitExceeded, NotFound, RateLimited, RegistryError, Unreachable
from layerfs.formats.auth_file import Credential
from layerfs.formats.challenge import parse_challenges
from layerfs.formats.reference import DEFAULT_DOMAIN
from layerfs.registry.access import Access
from layerfs.registry.authorize import Authorizer, refuse_unauthorized
from layerfs.registry.credential import Credentials
from layerfs.registry.http import HttpClient, HttpResponse, NotTls, origin, resolve
from layerfs.registry.redirect import followed
from layerfs.registry.retry import Backoff, parse_retry_after

__all__ = ["Body", "Server"]

#: Host behind ``docker.io``.
_HUB_HOST = "registry-1.docker.io"

#: Answers 401 to one request that are taken as a wish for another token.
_MAX_CHALLENGES = 4

#: Attempts at a registry that has never answered.
_FIRST_CONTACT = 3

#: Bytes of an error's body that are read, and characters of a message in it that are shown.
_MAX_ERROR = 64 << 10
_MAX_MESSAGE = 200

_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})

#: A request's body: bytes, or something that yields them from the start each time.
Body = bytes | Callable[[], Iterator[bytes]]


#: How names of what may be missing begin.
_KINDS = frozenset({"manifest", "blob", "repository"})


class Server:
    """One registry as one user sees it. Thread-safe.

    Attributes:
        domain: as names have it.
    """

    def __init__(
        self,
        http: HttpClient,
        access: Access,
        domain: str,
        credentials: Credentials,
        *,
        path: str = "",
        insecure: bool = False,
        plain: bool = False,
        named: bool = True,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Prepare; nothing is sent, and nobody asked for a credential.

        Args:
            http: the connections.
            access: how registries are reached.
            domain: host with optional port.
            credentials: where to look for one.
            path: of the repository, to choose a credential by.
            insecure: whether bad certificates and plain HTTP are allowed.
            plain: whether plain HTTP is.
            named: whether the user named it, so that it may have what came with the command.
            check: polled while waiting to try again.
        """
        self.domain = domain
        self._host = _HUB_HOST if domain == DEFAULT_DOMAIN else domain
        self._http = http
        self._access = access
        self._insecure = insecure
        self._check = check
        self._answered = False
        self._base: str | None = None if insecure or plain else f"https://{self._host}"
        self._find = partial(credentials.find, domain, path, named=named)
        self._token = access.token if named else None

    @cached_property
    def authorizer(self) -> Authorizer:
        """What authenticates with it; its credential is looked for when the first request is sent.

        Raises:
            LayerfsError: a credential helper or file is broken.
        """
        return Authorizer(self._http, self.domain, self._credential, token=self._token, insecure=self._insecure)

    @cached_property
    def _credential(self) -> Credential | None:
        return self._find()

    def send(
        self,
        method: str,
        target: str,
        *,
        what: str,
        scopes: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        expect: Sequence[int] = (200,),
        attempts: int | None = None,
        missing: str | None = None,
    ) -> HttpResponse:
        """Send a request until it is answered as expected; the caller closes the answer.

        Args:
            method: the HTTP method.
            target: path with query on this registry, or a whole URL that the registry gave.
            what: what is asked for, for errors.
            scopes: what a token has to allow.
            headers: of the request.
            body: of the request.
            expect: statuses to return; others are errors.
            attempts: how often to try; None for the usual number.
            missing: what is not there after a 404, its kind first; None for ``what``.

        Raises:
            NotFound: status 404.
            Unauthorized, Denied, RateLimited, Unreachable, RegistryError: as they say.
        """
        tries = Backoff(attempts or self._access.attempts, self._access.retry_delay, self._poll)
        while True:
            try:
                answer = self._authorized(method, target, scopes, dict(headers or {}), body, what)
                self._answered = True
                if answer.status in expect:
                    return answer
                with answer:
                    raise self._refusal(answer, what, missing)
            except RegistryError as error:
                # Who waits for a transfer to go on has patience; who names a registry that is down wants to know.
                tries.wait(error, None if self._answered else _FIRST_CONTACT)

    def url(self, target: str) -> str:
        """Return the whole URL of a path on this registry, or of a place that it named.

        Raises:
            RegistryError: the place is to be reached without TLS, and the registry is not.
        """
        home = f"{self._base or f'https://{self._host}'}/"
        url = resolve(home, target)
        if urlsplit(url).scheme != "http" or not home.startswith("https:"):
            return url
        if origin(url)[1] == origin(home)[1]:
            # A registry behind a proxy that ends TLS may not know that there is any.
            parts = urlsplit(url)
            return urlunsplit(urlsplit(home)._replace(path=parts.path, query=parts.query))
        if self._insecure:
            return url
        raise RegistryError(f"{self.domain} sends us to {origin(url)[1]} without TLS")

    def _poll(self) -> None:
        """End a pause: the connections were given up, or the caller's check says so."""
        self._http.raise_if_aborted()
        if self._check is not None:
            self._check()

    def _authorized(
        self, method: str, target: str, scopes: Sequence[str], headers: dict[str, str], body: Body | None, what: str
    ) -> HttpResponse:
        """Send a request, and once more with another header when the registry asks for it."""
        header = self.authorizer.header(scopes)
        for count in range(_MAX_CHALLENGES):
            answer, own = self._follow(method, target, headers, header, body)
            if answer.status != 401:
                return answer
            with answer:
                with contextlib.suppress(LimitExceeded):  # a proxy's page; the challenge is in the header
                    answer.read_all(_MAX_ERROR, "error")
                challenges = parse_challenges(answer.header("WWW-Authenticate") or "")
            if not own:
                raise RegistryError(f"{origin(answer.url)[1]}, where {self.domain} sends us for {what}, answers 401")
            other = self.authorizer.learn(challenges, scopes, header, again=count > 1)
            if other is None:
                break
            header = other
        raise refuse_unauthorized(
            self.domain, what, had_credential=self._token is not None or self._credential is not None
        )

    def _follow(
        self, method: str, target: str, headers: dict[str, str], header: str | None, body: Body | None
    ) -> tuple[HttpResponse, bool]:
        """Send a request and follow redirects; also return whether the answer is from the registry itself."""
        answer = self._first(method, target, headers, header, body)
        home = origin(self.url(""))

        def ask(url: str) -> HttpResponse:
            sent = {**headers, "Authorization": header} if header and origin(url) == home else headers
            return self._http.request(method, url, headers=sent, registry=self.domain, verify=not self._insecure)

        if method in ("GET", "HEAD"):
            answer = followed(answer, ask, home, self.domain, insecure=self._insecure)
        return answer, origin(answer.url) == home

    def _first(
        self, method: str, target: str, headers: dict[str, str], header: str | None, body: Body | None
    ) -> HttpResponse:
        """Send a request to the registry itself; an insecure one may turn out to speak plain HTTP."""
        if self._base is None:
            self._base = self._find_out()
        url = self.url(target)
        own = origin(url) == origin(self._base)
        sent = {**headers, "Authorization": header} if header and own else headers
        return self._http.request(
            method, url, headers=sent, body=body, registry=self.domain, verify=not self._insecure
        )  # fmt: skip

    def _find_out(self) -> str:
        """Find out whether a registry that may do without TLS does; return how its URLs begin.

        Raises:
            Unreachable: it speaks neither.
        """
        base = f"https://{self._host}"
        failure: Unreachable | None = None
        try:
            verify = not self._insecure
            self._http.request("GET", f"{base}/v2/", headers={}, registry=self.domain, verify=verify).close()
        except Unreachable as error:
            # Not only what says that it is no TLS: some servers reset what they do not understand.
            if verify and not isinstance(error, NotTls):
                raise
            failure = error
        if failure is not None:
            base = f"http://{self._host}"
            try:
                self._http.request("GET", f"{base}/v2/", headers={}, registry=self.domain).close()
            except Unreachable:
                if not isinstance(failure, NotTls):
                    raise failure from None
                raise
        return base

    def _refusal(self, answer: HttpResponse, what: str, missing: str | None) -> Exception:
        """Return the error that a status means, with what the registry says about it."""
        status = answer.status
        said = self._message(answer)
        if status == 404:
            kind, _, name = (missing or what).partition(" ")
            if not name or kind not in _KINDS:
                return NotFound(missing or what, f"on {self.domain}{said}")
            return NotFound(kind, f"{name} on {self.domain}{said}")
        if status == 403:
            return Denied(f"{self.domain} denies {what}{said}", status=status)
        after = parse_retry_after(answer.header("Retry-After"))
        if status == 429:
            return RateLimited(f"{self.domain} limits requests for {what}{said}", retry_after=after)
        return RegistryError(
            f"{self.domain} answers {status} to {what}{said}", status=status, temporary=status in _TEMPORARY,
            retry_after=after,
        )  # fmt: skip

    def _message(self, answer: HttpResponse) -> str:
        """Return what an answer says in people's words, as the end of a message."""
        try:
            document = json.loads(answer.read_all(_MAX_ERROR, "error"))
            first = document["errors"][0]
            text = " ".join(f"{first.get('code') or ''} {first.get('message') or ''}".split())
        except (RegistryError, LimitExceeded, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return ""
        shown = "".join(letter for letter in self.authorizer.clean(text) if letter.isprintable())
        return f": {shown[:_MAX_MESSAGE]}" if shown else ""
