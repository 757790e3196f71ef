"""Image references: names with an optional tag and digest, in docker's grammar.

Users type familiar names (``alpine``), the store keeps canonical ones (``docker.io/library/alpine:latest``). A
:class:`Reference` is always canonical: its domain and path are what the registry protocol needs, except that the real
host behind ``docker.io`` is for ``registry/`` to know. The one invariant: ``Reference.parse`` of ``str(reference)``
and of ``reference.familiar`` give the same reference again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NoReturn, Self

from layerfs.errors import InvalidReference
from layerfs.formats.digest import Digest

__all__ = ["DEFAULT_DOMAIN", "DEFAULT_TAG", "MAX_NAME_LENGTH", "MAX_TAG_LENGTH", "Reference", "is_tag"]

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
#: Characters of a repository name without its domain. Registries store it as one directory path or column.
MAX_NAME_LENGTH = 255
#: Characters of a tag, fixed by the distribution specification.
MAX_TAG_LENGTH = 128

#: Docker Hub under the name that docker used before 2015; configuration files still spell it so.
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"

_HOST_LABEL = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)"
_DOMAIN = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
#: Not possessive, though that would be quicker on a bad end: Python before 3.11.5 then accepts ``a-/b`` (gh-106052).
#: Lengths are checked first, so there is little to be quick about.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(rf"[a-zA-Z0-9_][a-zA-Z0-9_.-]{{0,{MAX_TAG_LENGTH - 1}}}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_TRANSPORT = re.compile(r"([a-z][a-z0-9-]*)://")


def is_tag(text: str) -> bool:
    """Return whether a text can be a tag."""
    return _TAG.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Reference:
    """A canonical image reference.

    With both a tag and a digest, the digest decides which image is meant and the tag is for display.

    Attributes:
        domain: registry host with optional port, such as ``docker.io`` or ``[::1]:5000``.
        path: repository inside the registry, such as ``library/alpine``.
        tag: the tag, or None.
        digest: the digest of the manifest or index, or None.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        """Refuse fields that do not match the grammar, or would be read back as others."""
        if _DOMAIN.fullmatch(self.domain) is None:
            raise InvalidReference(f"not a registry host: {self.domain!r:.120}{_zone_remark(self.domain)}")
        if len(self.path) > MAX_NAME_LENGTH:
            raise InvalidReference(
                f"repository name has {len(self.path)} characters, at most {MAX_NAME_LENGTH}: {self.path!r:.60}"
            )
        if _PATH.fullmatch(self.path) is None:
            _refuse_path(self.path)
        if _split_domain(self.name) != (self.domain, self.path):
            raise InvalidReference(f"not a canonical name: {self.name!r:.120}")
        if self.tag is not None and not is_tag(self.tag):
            _refuse_tag(self.tag)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a familiar or canonical reference.

        A name is familiar when its part before the first slash is not a host: a host is ``localhost``, or has a dot,
        a colon or an upper-case letter. Familiar names belong to ``docker.io``, those of one component to its
        ``library/``. No tag is added; see :meth:`with_default_tag`.

        Args:
            text: the reference, without a transport and without surrounding space.

        Raises:
            InvalidReference: not a reference; the message says which part is wrong, and the hint what to write.

        Source: the reference grammar and normalisation of the CNCF distribution project, as docker and podman use it.
        """
        if not text:
            raise InvalidReference("a reference must not be empty")
        if _IMAGE_ID.fullmatch(text):
            raise InvalidReference(f"64 hex digits are an image ID, not a name: {text}")
        if transport := _TRANSPORT.match(text):
            raise InvalidReference(
                f"a name is expected here, not one with the transport {transport[1]!r:.40}: {text!r:.120}",
                hint=f"leave out {transport[0]!r:.40}",
            )
        name, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        # A colon before the last slash separates a port or belongs to an IPv6 address.
        slash = name.rfind("/")
        colon = name.find(":", slash + 1)
        tag = None
        if colon >= 0:
            name, tag = name[:colon], name[colon + 1 :]
        domain, path = _split_domain(name)
        if not path:
            raise InvalidReference(f"a repository name is missing: {text!r:.120}")
        return cls(domain, path, tag, digest)

    @property
    def name(self) -> str:
        """Domain and path, without tag and digest."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """The shortest text that users know for this reference, such as ``alpine:3.20``.

        The domain stays where the short form would mean something else: ``docker.io/localhost/x`` for example.
        """
        name = self.name
        if self.domain == DEFAULT_DOMAIN:
            for short in (self.path.removeprefix(_OFFICIAL), self.path):
                if _split_domain(short) == (self.domain, self.path) and not _IMAGE_ID.fullmatch(short):
                    name = short
                    break
        return name + self._suffix()

    def with_default_tag(self) -> Self:
        """Return the reference with the tag ``latest``, if it has neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def _suffix(self) -> str:
        """Return tag and digest with their separators."""
        tag = "" if self.tag is None else f":{self.tag}"
        return tag if self.digest is None else f"{tag}@{self.digest}"

    def __str__(self) -> str:
        """Return the canonical form."""
        return self.name + self._suffix()


def _split_domain(name: str) -> tuple[str, str]:
    """Split a name without tag and digest into domain and path, filling in what familiar names leave out."""
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        domain, path = DEFAULT_DOMAIN if first == _LEGACY_DOMAIN else first, rest
    else:
        domain, path = DEFAULT_DOMAIN, name
    if domain == DEFAULT_DOMAIN and path and "/" not in path:
        path = _OFFICIAL + path
    return domain, path


def _zone_remark(domain: str) -> str:
    """Explain the one mistake in hosts that has a name."""
    return " (IPv6 zones are not allowed)" if domain.startswith("[") and "%" in domain else ""


def _refuse_path(path: str) -> NoReturn:
    """Say what is wrong with a repository name."""
    shown = path.removeprefix(_OFFICIAL)
    if any(letter.isspace() for letter in path):
        raise InvalidReference(f"repository name must not contain white space: {shown!r:.120}")
    if _PATH.fullmatch(path.lower()) is not None:
        raise InvalidReference(
            f"repository name must be lower case: {shown!r:.120}", hint=f"write {shown.lower()!r:.120}"
        )
    raise InvalidReference(
        f"not a repository name: {shown!r:.120}",
        hint="use lower-case letters and digits, with '.', '_', '__' or '-' between them, and '/' between components",
    )


def _refuse_tag(tag: str) -> NoReturn:
    """Say what is wrong with a tag."""
    if not tag:
        raise InvalidReference("the tag after the colon is empty")
    if len(tag) > MAX_TAG_LENGTH:
        raise InvalidReference(f"tag has {len(tag)} characters, at most {MAX_TAG_LENGTH}: {tag!r:.60}")
    raise InvalidReference(
        f"not a tag: {tag!r:.120}", hint="use letters, digits, '_', '.' and '-', and neither '.' nor '-' first"
    )
