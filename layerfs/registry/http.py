"""HTTP as the registry protocol needs it, on urllib3: connections that are kept, time-outs that hold, no redirects.

The one module that knows the HTTP library; none of its exceptions leave it. Following redirects, retrying and
authentication are for the callers, since each of them decides what of a request may be sent again, and to whom.

Every operation has a deadline that no server can stretch; see :mod:`layerfs.registry.watch`.
"""

from __future__ import annotations

import http.client
import os
import ssl
import stat
import string
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Timeout

from layerfs.errors import LayerfsError, LimitExceeded, RegistryError, Unreachable
from layerfs.formats.certs_d import sort_certificates
from layerfs.registry.access import Access
from layerfs.registry.proxy import find_proxy
from layerfs.registry.watch import Cut, Cuttable, Watch

__all__ = ["PIECE", "HttpClient", "HttpResponse", "NotTls", "noted", "origin", "resolve"]

#: Bytes of a body read at a time: with 64 KiB, TLS costs a fifth more.
PIECE = 1 << 18

#: The first read of a body, and the smallest: one that a slow link fills well within the time-out.
_SMALL_PIECE = 1 << 13

#: Seconds within which a read should return; the next one is made larger or smaller accordingly.
_QUICK, _SLOW = 0.05, 1.0

#: Seconds for a connection to be made; more than this is a host that does not answer.
_CONNECT = 20.0

_TLS_PORT = 443

#: Connections kept to one host; more than that are made when needed and closed afterwards.
_KEPT = 8

_USER_AGENT = "layerfs"

#: Bytes of the line before a chunk.
_MAX_CHUNK_LINE = 8 << 10

#: What OpenSSL says of a certificate for another host: X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH.
_OTHER_NAME = (62, 64)

#: Bytes of a file with certificates that are compared; all authorities of a machine take a quarter of a million.
_LARGEST_BUNDLE = 16 << 20

_Failures = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL: what credentials belong to.

    Raises:
        RegistryError: it is no http or https URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RegistryError(f"not a URL: {url!r:.200}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RegistryError(f"not an http or https URL: {_shown(url)}")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


class NotTls(Unreachable):
    """Whatever answers, it does not speak TLS, or not as it should."""


class _Peer(NamedTuple):
    """Where connections go, and what for: they are shared by requests that agree in all of it."""

    scheme: str
    host: str
    port: int
    registry: str
    verify: bool
    proxy: str | None


class HttpClient:
    """Makes requests. Thread-safe, for as many threads as there are; a context manager."""

    def __init__(self, access: Access) -> None:
        """Prepare; nothing is connected before the first request."""
        self._access = access
        self._pools: dict[_Peer, urllib3.HTTPConnectionPool] = {}
        self._managers: list[urllib3.ProxyManager] = []
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._guard = threading.Lock()
        self._watch = Watch(access.timeout)

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self.close()

    def close(self) -> None:
        """Close all connections; what still waits for one fails."""
        self._watch.close()
        with self._guard:
            for pool in self._pools.values():
                pool.close()
            for manager in self._managers:
                manager.clear()

    def abort(self) -> None:
        """Make everything that waits fail at once, and every further request; may be called from any thread."""
        self._watch.abort()

    def raise_if_aborted(self) -> None:
        """Tell a thread that only waits that everything was given up.

        Raises:
            Unreachable: it was.
        """
        if self._watch.aborted:
            raise Unreachable("given up")

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        registry: str,
        body: bytes | Callable[[], Iterator[bytes]] | None = None,
        verify: bool = True,
        timeout: float | None = None,
    ) -> HttpResponse:
        """Send a request and return the answer, whatever its status, once its header is there.

        Args:
            method: GET, HEAD and so on.
            url: http or https.
            headers: besides those that every request has.
            registry: the domain of the registry that it is for. What the user has put down in certs.d for that one
                counts for its realms, and where it redirects to, as well.
            body: bytes, or something that yields them; with the latter, ``Content-Length`` is the caller's.
            verify: whether the server's certificate has to be good.
            timeout: seconds for the answer to begin; None for the usual ones. Sending a body does not count.

        Raises:
            Unreachable: no answer. ``temporary`` unless the certificate or the name is wrong. What ``body`` raises is
                raised as it is.
            LayerfsError: a certificate of the user cannot be read.

        Blocking: until the header of the answer is there, at most a few time-outs.
        """
        scheme, host, port = origin(url)
        parts = urlsplit(url)
        shown = parts.netloc.rpartition("@")[2]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        proxy = find_proxy(self._access.proxies, scheme, host, port)
        if proxy is not None:
            shown += f", through the proxy {urlsplit(proxy).netloc.rpartition('@')[2]}"
            if scheme == "http":
                target = url  # a plain proxy wants to know all of it
        try:
            pool = self._pool(_Peer(scheme, host, port, registry, verify, proxy))
        except (urllib3.exceptions.HTTPError, ValueError):
            if proxy is None:
                raise RegistryError(f"not a URL: {_shown(url)}") from None
            raise LayerfsError(
                f"the proxy {_without_user(proxy)} cannot be used", hint="Proxies are http://[USER:PASSWORD@]HOST:PORT."
            ) from None
        sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        seconds = self._access.timeout if timeout is None else timeout
        broken: list[Exception] = []
        payload: Any = body
        if body is not None and not isinstance(body, bytes):
            payload = self._watch.extending(noted(body(), broken), seconds)
        answer: urllib3.BaseHTTPResponse | None = None
        try:
            with _failures_of(shown, self._watch), self._watch.operation(seconds) as operation:
                answer = pool.urlopen(
                    method, target, body=payload, headers=sent, redirect=False, retries=False, preload_content=False,
                    decode_content=False, assert_same_host=False, timeout=Timeout(min(_CONNECT, seconds), seconds),
                )  # fmt: skip
        except Unreachable:
            # A header that was cut at its deadline looks like a whole one: there is an answer, which nobody gets.
            if answer is not None:
                answer.close()
            if broken:
                raise broken[0] from None  # not the connection: what was to be sent
            raise
        return HttpResponse(self._watch, answer, operation.connection, url, self._access.timeout)

    def _pool(self, peer: _Peer) -> urllib3.HTTPConnectionPool:
        """Return the connections to a host."""
        with self._guard:
            pool = self._pools.get(peer)
            if pool is None:
                pool = self._pools[peer] = self._make_pool(peer)
        return pool

    def _make_pool(self, peer: _Peer) -> urllib3.HTTPConnectionPool:
        extra: dict[str, Any] = {"maxsize": _KEPT, "block": False, "retries": False}
        if peer.scheme == "https":
            trust = (peer.registry, peer.verify)
            context = self._contexts.get(trust)
            if context is None:  # the machine's authorities take 30 ms to read
                context = self._contexts[trust] = self._tls(peer.registry, verify=peer.verify)
            extra["ssl_context"] = context
            if not peer.verify:
                extra |= {"assert_hostname": False, "cert_reqs": "CERT_NONE"}
        literal = f"[{peer.host}]" if ":" in peer.host else peer.host
        if peer.proxy is not None:
            manager = urllib3.ProxyManager(
                _without_user(peer.proxy), proxy_headers=_proxy_headers(peer.proxy), **extra
            )  # fmt: skip
            self._managers.append(manager)
            pool = manager.connection_from_host(literal, peer.port, peer.scheme)
        elif peer.scheme == "https":
            pool = urllib3.HTTPSConnectionPool(literal, peer.port, **extra)
        else:
            pool = urllib3.HTTPConnectionPool(literal, peer.port, **extra)
        is_tls = isinstance(pool, urllib3.HTTPSConnectionPool)  # also to a proxy that is reached through TLS
        pool.ConnectionCls = _tracked(self._watch, HTTPSConnection if is_tls else HTTPConnection)
        return pool

    def _tls(self, registry: str, *, verify: bool) -> ssl.SSLContext:
        """Return what a connection trusts, with the certificates that the user has put down for the registry."""
        if verify:
            context = ssl.create_default_context()
            # As docker and podman: an authority without a key usage is one, though Python 3.13 refuses it and openssl
            # makes them like that; and so is the certificate of the server itself.
            context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
            _add_authorities(context, self._access.authorities)
        else:
            # Without the machine's authorities: reading them takes longer than a small request.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self._access.certificates is not None:
            directories = [self._access.certificates]
        else:
            # By what the user calls it: docker.io, not the host behind that.
            own = registry.removesuffix(f":{_TLS_PORT}")
            names = [own] if ":" in own.rpartition("]")[2] else [f"{own}:{_TLS_PORT}", own]
            directories = [os.path.join(root, name) for root in self._access.certificate_roots for name in names]
        for directory in directories:
            _add_certificates(context, directory, required=directory == self._access.certificates)
        return context


class HttpResponse:
    """An answer. Its body is read by the thread that owns it, once, and then closed."""

    def __init__(
        self,
        watch: Watch,
        answer: urllib3.BaseHTTPResponse,
        connection: Cuttable | None,
        url: str,
        timeout: float,
    ) -> None:
        """Wrap what urllib3 returned."""
        self.status = answer.status
        self.url = url
        self._watch = watch
        self._answer = answer
        self._connection = connection
        self._timeout = timeout
        self._piece = _SMALL_PIECE
        self._host = urlsplit(url).netloc.rpartition("@")[2]

    def __enter__(self) -> Self:
        """Return the answer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the connection back."""
        self.close()

    def header(self, name: str) -> str | None:
        """Return a header's value, those of several of one name joined with commas; None if it is not there."""
        value = self._answer.headers.get(name)
        return None if value is None else str(value)

    @property
    def length(self) -> int | None:
        """The announced size of the body in bytes; None when none, or nonsense, was announced."""
        text = (self.header("Content-Length") or "").strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    def read(self, size: int = PIECE) -> bytes:
        """Return up to ``size`` bytes of the body, and nothing at its end.

        Raises:
            Unreachable: it broke off, or stalled; ``temporary``.

        Blocking: for a piece whose size follows the speed of the connection, at most a time-out.
        """
        wanted = min(size, self._piece)
        began = time.monotonic()
        with _failures_of(self._host, self._watch), self._watch.operation(self._timeout, self._connection):
            data = self._answer.read(wanted, decode_content=False)
        took = time.monotonic() - began
        if took < _QUICK:
            self._piece = min(self._piece * 4, PIECE)
        elif took > _SLOW:
            self._piece = max(self._piece // 4, _SMALL_PIECE // 8)
        return data

    def read_all(self, limit: int, what: str) -> bytes:
        """Return the whole body.

        Raises:
            LimitExceeded: it is larger than ``limit`` bytes; ``what`` names it.
            Unreachable: it broke off, or did not come in three time-outs altogether.
        """
        if (self.length or 0) > limit:
            raise LimitExceeded(f"{what} from {self._host} has {self.length} bytes, more than {limit}")
        parts: list[bytes] = []
        size = 0
        deadline = time.monotonic() + 3 * self._timeout
        while data := self.read():
            size += len(data)
            parts.append(data)
            if size > limit:
                raise LimitExceeded(f"{what} from {self._host} has more than {limit} bytes")
            if time.monotonic() > deadline:
                raise Unreachable(f"{self._host}: {what} comes too slowly", temporary=True)
        return b"".join(parts)

    def close(self) -> None:
        """Give the connection back if the body was read to its end, close it otherwise."""
        with suppress(*_Failures):
            if self._answer.length_remaining == 0:
                self._answer.read(decode_content=False)  # the library counts a body as read when its end was
            else:
                self._answer.close()
            self._answer.release_conn()


@contextmanager
def _failures_of(what: str, watch: Watch) -> Iterator[None]:
    """Turn what the HTTP library raises in the block into errors of ours."""
    try:
        yield
    except Cut as error:
        raise Unreachable(f"{what}: {error}", temporary=error.expired) from None
    except LayerfsError:
        raise
    except _Failures as error:
        if watch.aborted:
            raise Unreachable(f"{what}: given up") from None
        raise _explain(what, error) from None


class _StrictResponse(http.client.HTTPResponse):
    """An answer whose chunks have the sizes that RFC 9112 allows, section 7.1.

    The standard library takes what Python takes for a hexadecimal number: a chunk of -1 bytes would be read to the end
    of the connection at once, whatever it holds.
    """

    def _read_next_chunk_size(self) -> int:
        line = self.fp.readline(_MAX_CHUNK_LINE + 1)
        size = line.partition(b";")[0].strip()
        if not line.endswith(b"\n") or not 0 < len(size) <= 15 or size.strip(string.hexdigits.encode()):
            self.close()
            raise http.client.IncompleteRead(b"")
        return int(size, 16)


def _tracked(watch: Watch, base: type[HTTPConnection]) -> type[HTTPConnection]:
    """Return a class of connections that tell the watch about themselves and can be cut from another thread."""

    class Tracked(base):  # type: ignore[misc, valid-type]
        response_class = _StrictResponse
        _handle: Any = None

        def _new_conn(self) -> Any:
            found = super()._new_conn()
            # A second descriptor of the same connection: the first one changes hands when TLS begins.
            self._handle = found.dup()
            watch.opened(self)
            return found

        def connect(self) -> None:
            super().connect()
            # A user who allows bad certificates needs no warning about each; what is checked, the context says.
            self.is_verified = True

        def request(self, *args: Any, **options: Any) -> Any:
            watch.used(self)
            return super().request(*args, **options)

        def close(self) -> None:
            super().close()
            watch.gone(self)
            handle, self._handle = self._handle, None
            if handle is not None:
                handle.close()

        def cut(self) -> None:
            handle = self._handle
            if handle is not None:
                with suppress(OSError):
                    handle.shutdown(2)

    return Tracked


def _add_authorities(context: ssl.SSLContext, directories: Iterable[str]) -> None:
    """Trust what directories have, whatever its name; OpenSSL itself only looks for names that are hashes."""
    # Most are links to others, or stand in the bundle that OpenSSL has read: to read a few hundred of them takes 0.1 s.
    known = [_content(ssl.get_default_verify_paths().cafile)]
    for directory in directories:
        with suppress(OSError):
            found: dict[tuple[int, int], tuple[int, str]] = {}
            with os.scandir(directory) as entries:
                for entry in entries:
                    with suppress(OSError):
                        status = entry.stat()
                        if stat.S_ISREG(status.st_mode):
                            found[status.st_dev, status.st_ino] = status.st_size, entry.path
            for _, path in sorted(found.values(), reverse=True):  # bundles first
                content = _content(path)
                if not any(content in part for part in known):
                    with suppress(OSError):  # no certificate, as Go passes it over
                        context.load_verify_locations(path)
                        known.append(content)


def _content(path: str | None) -> bytes:
    """Return the bytes of a file without the blanks around them; nothing if it cannot be read."""
    if path is not None:
        with suppress(OSError), open(path, "rb") as file:
            return file.read(_LARGEST_BUNDLE).strip()
    return b""


def _add_certificates(context: ssl.SSLContext, directory: str, *, required: bool) -> None:
    try:
        names = sort_certificates(os.listdir(directory), directory)
    except (FileNotFoundError, NotADirectoryError) as error:
        if required:
            raise LayerfsError(f"cannot read certificates in {directory}: {error.strerror}") from error
        return
    except OSError as error:
        raise LayerfsError(f"cannot read certificates in {directory}: {error.strerror}") from error
    for name in (*names.authorities, *(name for pair in names.pairs for name in pair)):
        if not os.path.isfile(os.path.join(directory, name)):  # OpenSSL would wait for who writes to a fifo
            raise LayerfsError(f"bad certificate in {directory}: {name} is no regular file")
    try:
        for name in names.authorities:
            context.load_verify_locations(os.path.join(directory, name))
        for certificate, key in names.pairs:
            context.load_cert_chain(
                os.path.join(directory, certificate), os.path.join(directory, key), password=partial(_no_password, key)
            )  # fmt: skip
    except (OSError, ssl.SSLError) as error:
        raise LayerfsError(f"bad certificate in {directory}: {error.strerror or error}") from error


def noted(pieces: Iterable[bytes], broken: list[Exception]) -> Iterator[bytes]:
    """Yield a body, and keep what making it raises: the HTTP library takes that for an error of the connection."""
    try:
        yield from pieces
    except Exception as error:
        broken.append(error)
        raise


def _no_password(key: str) -> str:
    """Refuse a key that asks for one: OpenSSL would ask at the terminal, in the middle of a request."""
    raise LayerfsError(f"the key {key} is encrypted", hint="Put it there without a passphrase, for its owner alone.")


def _explain(what: str, error: BaseException) -> RegistryError:
    """Return the error that an exception of the HTTP library means, in one line and without its objects' names."""
    cause = _root_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        hint = "Put its authority into certs.d, or pass --tls-verify=false if you must."
        if cause.verify_code in _OTHER_NAME:
            hint = "Write the name that is in its certificate, or pass --tls-verify=false if you must."
        said = cause.verify_message or cause.reason
        return Unreachable(f"{what}: certificate is not trusted: {said}", hint=hint)
    if isinstance(cause, urllib3.exceptions.LocationParseError):
        return Unreachable(f"{what}: not the name of a host")
    if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"):
        return NotTls(f"{what}: speaks plain HTTP, not TLS", hint="Pass --tls-verify=false if that is meant to be so.")
    if isinstance(cause, ssl.SSLError):
        return NotTls(f"{what}: TLS failed: {cause.reason or cause}", temporary=True)
    if isinstance(cause, OSError) and cause.__class__.__name__ == "gaierror":
        hint = "Check the name of the registry, and that this machine can look up names."
        return Unreachable(f"{what}: {cause.strerror}", temporary=cause.errno == -3, hint=hint)
    if isinstance(cause, OSError) and cause.strerror:
        return Unreachable(f"{what}: {cause.strerror}", temporary=True)
    if isinstance(cause, OSError) and "Tunnel connection failed: 407" in str(cause):
        return Unreachable(
            f"{what}: the proxy wants credentials, or others",
            hint="Name them with it: http://USER:PASSWORD@HOST:PORT",
        )
    if isinstance(cause, TimeoutError | urllib3.exceptions.TimeoutError):
        return Unreachable(f"{what}: no answer in time", temporary=True)
    if isinstance(error, urllib3.exceptions.ProtocolError | http.client.IncompleteRead):
        return Unreachable(f"{what}: the connection broke", temporary=True)
    # What a ValueError quotes may be a header with a secret.
    text = "" if isinstance(cause, ValueError) else " ".join(str(cause).split())[:200]
    return Unreachable(f"{what}: the connection broke: {text or type(cause).__name__}", temporary=True)


def _root_cause(error: BaseException) -> BaseException:
    """Return the operating system's error inside what urllib3 wraps around it, else the exception itself."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None or isinstance(seen, ssl.SSLError):
            break
        inner = next((arg for arg in seen.args if isinstance(arg, BaseException)), None) or seen.__cause__
        if isinstance(seen, OSError) and seen.strerror and not isinstance(inner, ssl.SSLError):
            break
        if inner is None:
            break
        seen = inner
    return seen or error


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _proxy_headers(url: str) -> dict[str, str]:
    user = urlsplit(url).netloc.rpartition("@")[0]
    if not user:
        return {}
    from urllib.parse import unquote  # noqa: PLC0415 - few have a proxy

    return dict(urllib3.make_headers(proxy_basic_auth=unquote(user)))


def resolve(url: str, place: str) -> str:
    """Return the URL that a place in an answer from another URL means.

    Raises:
        RegistryError: it means none.
    """
    try:
        return urljoin(url, place)
    except ValueError as error:
        raise RegistryError(f"not a URL: {_shown(place)}") from error


def _shown(url: str) -> str:
    """Return a URL without its query, which may hold a signature."""
    return repr(url.partition("?")[0])[:200]
