"""An OCI layout in a directory that is written to, perhaps by several processes at a time.

The marker ``oci-layout`` comes first, so that what was interrupted can be told from what is something else; blobs
appear when they are complete; ``index.json`` is replaced at the end.

Source: OCI image-spec v1.1 image-layout.md.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable

from layerfs.errors import FormatError
from layerfs.formats.digest import Digest
from layerfs.formats.document import parse_document
from layerfs.formats.image_layout import LAYOUT, blob_path, encode_index
from layerfs.formats.oci import Descriptor
from layerfs.linux.durable import make_directories, write_document
from layerfs.linux.staging import StagedFile, locked_file

__all__ = ["LayoutDirectory", "has_others", "put_blob"]


#: What is there for a moment before a marker or document has its name, and stays if a process is killed then.
_UNDER_WAY = re.compile(r"\.(oci-layout|index\.json|version|manifest\.json)\.[0-9a-f]{12}")


def has_others(path: str) -> bool:
    """Whether a directory is there and has anything in it but what we are about to put there."""
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not all(_UNDER_WAY.fullmatch(name) for name in names)


class LayoutDirectory:
    """The layout.

    Attributes:
        path: of the directory, absolute.
        sync: whether what is written is durable when the method returns.
    """

    def __init__(self, path: str | os.PathLike[str], *, sync: bool = True) -> None:
        """Look at the directory, which need not be there.

        Raises:
            FormatError: it has something else in it, or a damaged index.
            OSError: EACCES and the like.
        """
        self.path = os.path.abspath(path)
        self.sync = sync
        self._index = os.path.join(self.path, "index.json")
        self._marker = os.path.join(self.path, "oci-layout")
        # The marker is looked for last: another process may be making the layout.
        other = has_others(self.path)
        if other and not os.path.exists(self._index) and not os.path.exists(self._marker):
            raise FormatError(f"{os.fspath(path)} is not empty, and no OCI layout", hint="Name another directory.")
        self._entries()

    def blob(self, digest: Digest) -> str:
        """Return where a blob lies."""
        return os.path.join(self.path, blob_path(digest))

    def has(self, blob: Descriptor) -> bool:
        """Return whether a blob is there, as far as its size tells."""
        try:
            return os.stat(self.blob(blob.digest)).st_size == blob.size
        except FileNotFoundError:
            return False

    def begin(self) -> None:
        """Make the directory a layout, if it is none yet."""
        if os.path.exists(self._marker):
            return
        make_directories(self.path, sync=self.sync)
        with StagedFile(self.path, "oci-layout") as staged, contextlib.suppress(FileExistsError):
            staged.write(LAYOUT)
            os.fchmod(staged.file.fileno(), 0o644)
            # One that another process has made stays: it may be locked.
            staged.publish("oci-layout", replace=False, sync=self.sync)

    def staged(self, algorithm: str) -> StagedFile:
        """Begin a blob whose digest is not known yet; it is published by the hex digits of that."""
        self.begin()
        return _staged(os.path.join(self.path, "blobs", algorithm), sync=self.sync)

    def put(self, digest: Digest, pieces: Iterable[bytes]) -> None:
        """Write a blob, which nobody verifies here."""
        self.begin()
        put_blob(self.blob(digest), pieces, sync=self.sync)

    def change_index(self, change: Callable[[list[object]], list[object]]) -> None:
        """Write ``index.json`` anew; no other process changes it meanwhile.

        Args:
            change: gets the entries that are there, any JSON, and returns those that are to be.
        """
        self.begin()
        # The marker is locked, and not the directory: others may have locked that around all this.
        with locked_file(self._marker):
            write_document(self._index, encode_index(change(self._entries())), mode=0o644, sync=self.sync)

    def _entries(self) -> list[object]:
        try:
            with open(self._index, "rb") as file:
                listed = parse_document(file.read(), "index.json").get("manifests")
        except FileNotFoundError:
            return []
        return list(listed) if isinstance(listed, list) else []


def put_blob(path: str, pieces: Iterable[bytes], *, sync: bool) -> None:
    """Write a file that appears under its name when it is complete, and the directories above it."""
    directory, name = os.path.split(path)
    with _staged(directory, sync=sync) as staged:
        for piece in pieces:
            staged.write(piece)
        staged.publish(name, sync=sync)


def _staged(directory: str, *, sync: bool) -> StagedFile:
    make_directories(directory, sync=sync)
    staged = StagedFile(directory, "blob")
    os.fchmod(staged.file.fileno(), 0o644)  # as the documents
    return staged
