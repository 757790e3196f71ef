"""Image sources: where an image comes from, as ``TRANSPORT:DETAILS``.

Only text is read here: whether a path exists, or what kind of archive it holds, is for the caller to find out. The
one invariant: ``parse_source(str(source))`` gives the same source again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from layerfs.errors import InvalidReference
from layerfs.formats.reference import Reference

__all__ = ["TRANSPORTS", "ImageSource", "is_registry", "parse_source", "registry_name"]

#: Every transport that the grammar knows, with its form.
TRANSPORTS: Final = {
    "docker": "docker://REFERENCE",
    "docker-archive": "docker-archive:PATH[:REFERENCE|:@INDEX]",
    "oci": "oci:PATH[:NAME|:@INDEX]",
    "oci-archive": "oci-archive:PATH[:NAME|:@INDEX]",
    "dir": "dir:PATH",
    "store": "store:IMAGE",
    "docker-daemon": "docker-daemon:REFERENCE",
    "containers-storage": "containers-storage:[[STORE]]REFERENCE",
}

#: Archives and layouts hold far fewer images than this has digits; more of them is a mistake, not a position.
_MAX_INDEX_DIGITS = 6


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One place an image can be read from.

    Attributes:
        transport: a key of :data:`TRANSPORTS`.
        path: host path of the archive or directory, or the bracketed store of ``containers-storage``; else empty.
        reference: which image of the source. Canonical, with its default tag, except for ``oci`` and ``oci-archive``,
            where it is the literal ``org.opencontainers.image.ref.name``, and for ``store``, where it is what the user
            wrote. None for the only image there.
        index: position of the image in the source, from 0, instead of a reference; or None.
    """

    transport: str
    path: str
    reference: str | None = None
    index: int | None = None

    def __str__(self) -> str:
        """Return the text that parses to this source."""
        reference = self.reference if self.index is None else f"@{self.index}"
        if self.transport == "docker":
            return f"docker://{reference}"
        if self.transport in {"docker-daemon", "containers-storage", "store"}:
            return f"{self.transport}:{self.path}{reference}"
        return f"{self.transport}:{self.path}" + ("" if reference is None else f":{reference}")


def parse_source(text: str) -> ImageSource:
    """Read an image source; a text without a transport is a reference on a registry.

    ``docker:dind`` is the image ``docker`` with the tag ``dind``: only ``docker://`` is the transport. The other
    transports win over an image of the same name, so an image called ``oci`` has to be written with its domain. A path
    ends at its first colon, but for ``dir``, where nothing follows it.

    Args:
        text: what the user wrote.

    Raises:
        InvalidReference: an unknown transport, a missing path, a host path without transport, or a bad reference.

    Source: containers-transports(5).
    """
    transport, colon, details = text.partition(":")
    if not colon or transport not in TRANSPORTS or (transport == "docker" and not details.startswith("//")):
        if text.startswith(("/", "./", "../", "~")):
            raise InvalidReference(
                f"a path needs a transport: {text!r:.200}",
                hint="write docker-archive:PATH, oci-archive:PATH or oci:PATH",
            )
        if "://" in text:
            raise InvalidReference(
                f"unknown transport {text.partition('://')[0]!r:.40}", hint=f"use one of {', '.join(TRANSPORTS)}"
            )
        return ImageSource("docker", "", _canonical(text))
    if "\0" in details:
        raise InvalidReference(f"a NUL character in {text!r:.200}")
    if transport == "docker":
        return ImageSource(transport, "", _canonical(details.removeprefix("//")))
    if transport == "docker-daemon":
        return ImageSource(transport, "", _canonical(details))
    if transport == "containers-storage":
        store, bracket, reference = details.partition("]") if details.startswith("[") else ("", "", details)
        return ImageSource(transport, store + bracket, _canonical(reference))
    if transport == "store":
        # Whatever finds an image there: a name, an ID, the beginning of an ID.
        return ImageSource(transport, "", _required_path(transport, details))
    if transport == "dir":
        # Colons are allowed here: a directory holds one image and takes no reference.
        return ImageSource(transport, _required_path(transport, details))
    path, colon, selector = details.partition(":")
    path = _required_path(transport, path)
    if not colon:
        return ImageSource(transport, path)
    if selector.startswith("@"):
        return ImageSource(transport, path, index=_index(selector, text))
    if transport == "docker-archive":
        return ImageSource(transport, path, _archive_reference(selector))
    if not selector or not selector.isprintable() or " " in selector:
        raise InvalidReference(f"not the name of an image in a layout: {selector!r:.120}")
    return ImageSource(transport, path, selector)


def is_registry(text: str) -> bool:
    """Return whether a source is an image on a registry.

    Raises:
        InvalidReference: as :func:`parse_source`.
    """
    return parse_source(text).transport == "docker"


def registry_name(text: str) -> str:
    """Return the name in a source on a registry as the user wrote it: what is short in it may have a meaning."""
    return text.removeprefix("docker://")


def _canonical(text: str) -> str:
    """Return a registry reference in canonical form."""
    return str(Reference.parse(text).with_default_tag())


def _archive_reference(text: str) -> str:
    """Return the reference of an image in a docker archive, which knows images by tag alone."""
    reference = Reference.parse(text)
    if reference.digest is not None:
        raise InvalidReference(
            f"a docker archive does not record digests: {text!r:.120}", hint="name the image by its tag"
        )
    return str(reference.with_default_tag())


def _required_path(transport: str, path: str) -> str:
    """Refuse an empty path."""
    if not path:
        raise InvalidReference(f"the path after {transport}: is empty", hint=f"write {TRANSPORTS[transport]}")
    return path


def _index(selector: str, text: str) -> int:
    """Read the position in ``@POSITION``."""
    digits = selector.removeprefix("@")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_INDEX_DIGITS):
        raise InvalidReference(f"not a position after '@': {text!r:.200}", hint="count from @0")
    return int(digits)
