"""The ``manifest.json`` of docker archives, which lists the images inside and the paths of their parts.

``docker save`` writes the same file in its old archives (``ID/layer.tar``) and in its new ones (``blobs/sha256/HEX``).
The archive's other index, ``repositories``, says less and is not read. The one invariant: every path that comes out of
here is relative, has no ``..`` and is spelt in one way, so it can be compared with the names of tar members.
"""

from __future__ import annotations

from dataclasses import dataclass

from layerfs.errors import FormatError, UnsafePath
from layerfs.formats.document import JsonObject, json_objects, parse_array

__all__ = ["ArchiveImage", "parse_archive_manifest"]

_WHAT = "manifest.json"


@dataclass(frozen=True, slots=True)
class ArchiveImage:
    """One image of a docker archive.

    Attributes:
        config: path of the image config in the archive.
        repo_tags: the names as written, such as ``alpine:3.20``; often familiar ones, possibly none.
        layers: paths of the layer tars in the archive, bottom first.
    """

    config: str
    repo_tags: tuple[str, ...]
    layers: tuple[str, ...]


def parse_archive_manifest(raw: bytes) -> tuple[ArchiveImage, ...]:
    """Read ``manifest.json`` of a docker archive.

    Args:
        raw: the bytes of the member.

    Returns:
        The images in the order of the file, at least one.

    Raises:
        FormatError: not JSON by the strict rules of ``document``, a member of the wrong type, or no image; ``where``
            is a path such as ``[0].Layers[2]``.
        UnsafePath: a path that is absolute, leaves the archive, or is none.
        LimitExceeded: the document is too large or too deep.

    Source: docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".
    """
    images = tuple(_read_image(entry) for entry in json_objects(parse_array(raw, _WHAT)))
    if not images:
        raise FormatError("lists no image", where=_WHAT)
    return images


def _read_image(entry: JsonObject) -> ArchiveImage:
    """Read one entry."""
    return ArchiveImage(
        config=_member_path(entry.text("Config"), entry.place("Config")),
        repo_tags=entry.texts("RepoTags"),
        layers=tuple(
            _member_path(path, entry.place(f"Layers[{position}]"))
            for position, path in enumerate(entry.texts("Layers"))
        ),
    )


def _member_path(path: str, where: str) -> str:
    """Return the one spelling of a member's name, without ``.`` and doubled slashes."""
    if path.startswith("/"):
        raise UnsafePath(f"path is absolute: {path!r:.200}", where=where)
    if "\0" in path:
        raise UnsafePath(f"path holds a NUL character: {path!r:.200}", where=where)
    components = [component for component in path.split("/") if component not in {"", "."}]
    if ".." in components:
        raise UnsafePath(f"path leaves the archive: {path!r:.200}", where=where)
    if not components:
        raise UnsafePath(f"path names no member: {path!r:.200}", where=where)
    return "/".join(components)
