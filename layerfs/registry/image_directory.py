"""The transport ``dir:``: one image as plain files, the way skopeo lays it down.

    version                 ``Directory Transport Version: 1.1``
    manifest.json           the manifest, or the index
    HEX                     a blob, by the hex digits of its digest
    HEX.manifest.json       a manifest that the index names

Reading, it is presented as a layout: so whatever loads layouts loads it.

Source: containers-transports(5), "dir".
"""

from __future__ import annotations

import io
import os

from layerfs.errors import FormatError, NotFound
from layerfs.formats.digest import Digest
from layerfs.formats.document import MAX_DOCUMENT_SIZE
from layerfs.formats.image_layout import LAYOUT, blob_path, encode_index
from layerfs.formats.oci import parse_manifest_or_index
from layerfs.registry.members import DirectoryMembers, MemberReader

__all__ = ["VERSION", "ImageDirectory", "blob_file"]

#: What the file ``version`` holds.
VERSION = b"Directory Transport Version: 1.1\n"


class ImageDirectory:
    """An image in a directory, read as if it were a layout; see :class:`layerfs.registry.members.Members`."""

    def __init__(self, path: str) -> None:
        """Look at a directory.

        Raises:
            NotFound: it has no manifest.
            FormatError: its manifest is none.
        """
        self._files = DirectoryMembers(path)
        try:
            reader = self._files.open("manifest.json")
            try:
                raw = reader.read(MAX_DOCUMENT_SIZE + 1)
            finally:
                reader.close()
            document = parse_manifest_or_index(raw)
        except BaseException:
            self._files.close()
            raise
        entry = {"mediaType": document.media_type, "digest": str(document.digest), "size": len(raw)}
        self._own = {
            "oci-layout": LAYOUT,
            "index.json": encode_index([entry]),
            blob_path(document.digest): raw,
        }

    def open(self, name: str) -> MemberReader:
        """Open a member of the layout that this stands for.

        Raises:
            NotFound: there is none of that name.
        """
        if name in self._own:
            return _Bytes(self._own[name])
        file = self._file(name)
        if file is None:
            raise NotFound("file", name)
        return self._files.open(file)

    def has(self, name: str) -> bool:
        """Return whether :meth:`open` would find a member."""
        return name in self._own or self._file(name) is not None

    def close(self) -> None:
        """Release what it holds."""
        self._files.close()

    def _file(self, name: str) -> str | None:
        _, _, digits = name.rpartition("/")
        if not name.startswith("blobs/"):
            return None
        return next((file for file in (digits, f"{digits}.manifest.json") if self._files.has(file)), None)


class _Bytes(io.BytesIO):
    """Bytes in memory as a member."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.size = len(raw)

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size)


def blob_file(directory: str, digest: Digest, *, manifest: bool = False) -> str:
    """Return the file of a blob, or of a manifest that an index names.

    Raises:
        FormatError: the digest is of an algorithm that such directories do not name files by.
    """
    if digest.algorithm != "sha256":
        raise FormatError(f"dir: has no place for {digest}", hint="Use oci: instead.")
    return os.path.join(directory, digest.hex + (".manifest.json" if manifest else ""))
