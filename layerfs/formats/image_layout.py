"""The files of an OCI image layout, in a directory or as the members of an archive.

Source: OCI image-spec v1.1 image-layout.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from layerfs.formats.digest import Digest
from layerfs.formats.media_type import OCI_INDEX
from layerfs.formats.oci import IMAGE_NAME, LAYOUT_VERSION, REF_NAME
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.writer import encode_member

__all__ = [
    "IMAGE_NAME",
    "LAYOUT",
    "REF_NAME",
    "MemberDirectories",
    "blob_path",
    "encode_index",
    "member_header",
    "name_of",
]

#: What ``oci-layout`` holds.
LAYOUT = json.dumps({"imageLayoutVersion": LAYOUT_VERSION}).encode()


def blob_path(digest: Digest) -> str:
    """Return the path of a blob inside the layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def encode_index(entries: Sequence[object]) -> bytes:
    """Return ``index.json`` with these entries."""
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}).encode()


def name_of(entry: object) -> str | None:
    """Return the name that an entry of ``index.json`` has, or None; the entry may be anything that is JSON."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


class MemberDirectories:
    """The directories of an archive's members, each named once before what is in it.

    Who unpacks an archive as an ordinary user needs them: containers/storage gives to root what is not named.
    """

    def __init__(self) -> None:
        """Start without any."""
        self._known: set[str] = set()

    def before(self, name: str) -> bytes:
        """Return the headers of those that a member lies in and that were not named yet."""
        made = b""
        for index, letter in enumerate(name):
            directory = name[: index + 1]
            if letter == "/" and directory not in self._known:
                self._known.add(directory)
                made += _header(directory, b"5", 0o755, 0)
        return made


def member_header(name: str, size: int) -> bytes:
    """Return the header of a file of so many bytes in an archive: nobody's, and from the epoch."""
    return _header(name, b"0", 0o644, size)


def _header(name: str, kind: bytes, mode: int, size: int) -> bytes:
    return encode_member(Member(name.encode(), kind, mode, 0, 0, 0, 0, size, b"", 0, 0, None, 0, 0, 0, None))
