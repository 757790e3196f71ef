"""Every error that layerfs raises on purpose, with the exit code of the command line.

This is the bottom floor: it imports nothing of layerfs, and everything may import it. ``layerfs.linux`` and
``layerfs.union`` raise plain :class:`OSError` instead, because they implement POSIX.

A message is one line, lower case, without a full stop: what failed and which path, digest or step. ``hint`` is one
imperative sentence that says what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

__all__ = [
    "BackendUnavailable",
    "Conflict",
    "DamagedData",
    "Denied",
    "DigestMismatch",
    "FormatError",
    "IntegrityError",
    "InvalidReference",
    "LayerfsError",
    "LimitExceeded",
    "MountError",
    "NotFound",
    "RateLimited",
    "RegistryError",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreTooNew",
    "Unauthorized",
    "Unreachable",
    "UnsafePath",
    "UnsupportedFormat",
    "quoted",
]


class LayerfsError(Exception):
    """Base of all errors that layerfs raises on purpose.

    Attributes:
        hint: one imperative sentence that tells the user the way out, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep the one-line message and the optional hint."""
        super().__init__(message)
        self.hint = hint

    def extended(self, text: str) -> Self:
        """Return the error itself, with more behind its message."""
        self.args = (f"{self}{text}",)
        return self

    def __reduce__(self) -> tuple[Callable[..., LayerfsError], tuple[object, ...]]:
        """Let it go from process to process: the message is finished, and no class would take it as it is."""
        fields = self.__dict__ | ({"errno": self.errno} if isinstance(self, OSError) else {})
        return _made_again, (type(self), self.args, fields)


def _made_again(kind: type[LayerfsError], arguments: tuple[object, ...], fields: dict[str, object]) -> LayerfsError:
    """Return an error as it was in another process."""
    error = kind.__new__(kind)
    error.args = arguments
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class InvalidReference(LayerfsError, ValueError):
    """The text is not a reference, digest, platform or transport."""

    exit_code = 2


class FormatError(LayerfsError, ValueError):
    """A document, tar stream or file system image breaks the rules of its format.

    Attributes:
        where: the place inside it, such as ``layers[3].digest`` or ``@0x1c00``; empty when unknown.
    """

    def __init__(self, message: str, *, where: str = "", hint: str | None = None) -> None:
        """Prefix the message with the place, when there is one."""
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.where = where


class DamagedData(FormatError):
    """A stream breaks off, or does not agree with a checksum of its own."""

    exit_code = 4


class UnsafePath(FormatError):
    """A name from outside would leave the tree it belongs to, or is no name at all."""


class UnsupportedFormat(FormatError):
    """The input is well formed as far as it was read, but of a kind that layerfs does not handle."""


class LimitExceeded(FormatError):
    """A named limit (expansion, entries, path length, document size) was passed."""


class NotFound(LayerfsError, LookupError):
    """Nothing of that name is in the store, archive or tree.

    Attributes:
        kind: what was looked for: image, container, layer, blob, path.
        name: the name as the caller gave it.
    """

    exit_code = 3

    def __init__(self, kind: str, name: str, *, hint: str | None = None) -> None:
        """Say which kind of thing was not found under which name."""
        super().__init__(f"no such {kind}: {name}", hint=hint)
        self.kind = kind
        self.name = name


class IntegrityError(LayerfsError):
    """Bytes are not what a digest, size or checksum promised."""

    exit_code = 4


class DigestMismatch(IntegrityError):
    """Content does not have the digest under which it was announced.

    Attributes:
        expected: the digest that was promised, as text.
        actual: the digest that was computed, as text.
        size: how many bytes were digested.
    """

    def __init__(self, what: str, *, expected: str, actual: str, size: int) -> None:
        """Name the thing, both digests and the size."""
        super().__init__(f"{what}: digest is {actual} over {size} bytes, expected {expected}")
        self.expected = expected
        self.actual = actual
        self.size = size


class RegistryError(LayerfsError):
    """A registry refused, answered wrongly or could not be reached.

    Attributes:
        status: HTTP status of the answer, or None when there was none.
        temporary: whether the same request may well succeed a little later.
        retry_after: seconds after which the registry says to come back, or None.
    """

    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        temporary: bool = False,
        retry_after: float | None = None,
        hint: str | None = None,
    ) -> None:
        """Keep the status beside the message."""
        super().__init__(message, hint=hint)
        self.status = status
        self.temporary = temporary
        self.retry_after = retry_after


class Unauthorized(RegistryError):
    """The registry wants credentials, or others than it got."""


class Denied(RegistryError):
    """The registry, or a policy of this machine, does not allow it; other credentials might not help."""


class RateLimited(RegistryError):
    """The registry wants to be left alone for a while."""

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str | None = None) -> None:
        """Keep the number of seconds that it named."""
        super().__init__(message, status=429, temporary=True, retry_after=retry_after, hint=hint)


class Unreachable(RegistryError):
    """There was no answer, or it broke off: no route, no name, no TLS, a reset, silence."""


class Conflict(LayerfsError):
    """The request contradicts the present state: a name that is taken, a thing in use, an ambiguous prefix.

    Attributes:
        reason: one word for programs: ``exists``, ``mounted``, ``in-use``, ``ambiguous``.
    """

    exit_code = 6

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        """Keep the one-word reason beside the message."""
        super().__init__(message, hint=hint)
        self.reason = reason


class StoreError(LayerfsError):
    """The store itself cannot be used: wrong version, locked, read-only, no space.

    Attributes:
        root: the store's root directory.
    """

    exit_code = 7

    def __init__(self, message: str, *, root: str, hint: str | None = None) -> None:
        """Keep the root beside the message."""
        super().__init__(message, hint=hint)
        self.root = root


class StoreFull(StoreError):
    """The file system of the store, or a quota on it, leaves no room for what is to be written."""


class StoreTooNew(StoreError):
    """A newer layerfs wrote this store with a feature that this one does not know."""


class StoreReadOnly(StoreError):
    """The store lies where this process may not write."""


class MountError(LayerfsError, OSError):
    """Mounting or unmounting failed.

    Attributes:
        backend: the backend that was tried, or None.
    """

    exit_code = 8

    def __init__(
        self, message: str, *, errno: int | None = None, backend: str | None = None, hint: str | None = None
    ) -> None:
        """Keep the errno of the failed call and the backend that made it."""
        LayerfsError.__init__(self, message, hint=hint)
        self.errno = errno
        self.backend = backend

    def __str__(self) -> str:
        """Return the message alone, not the errno pair of OSError."""
        return str(self.args[0])


class BackendUnavailable(MountError):
    """No backend can make this mount here.

    Attributes:
        reasons: per backend, why it cannot be used.
    """

    def __init__(self, message: str, *, reasons: Mapping[str, str], hint: str | None = None) -> None:
        """Keep the reason of every backend."""
        super().__init__(message, hint=hint)
        self.reasons = dict(reasons)


def quoted(name: bytes, most: int = 200) -> str:
    """Return bytes as they may stand in a message: quoted, on one line, escaped where they are no ASCII, cut short."""
    return repr(name[:most])[1:] + ("…" if len(name) > most else "")
