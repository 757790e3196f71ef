"""Images in: from archives, layouts and streams."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from layerfs.api.base import StorePart, StrPath
from layerfs.errors import InvalidReference, MountError, NotFound, StoreError, UnsupportedFormat
from layerfs.formats.platform import Platform
from layerfs.formats.transport import parse_source
from layerfs.registry.load import load_source
from layerfs.registry.loader import Progress
from layerfs.registry.plan import Selection
from layerfs.values import Image

__all__ = ["TransferPart"]


class TransferPart(StorePart):
    """How images come in."""

    def load(
        self,
        source: StrPath | BinaryIO,
        *,
        platform: Platform | None = None,
        all_platforms: bool = False,
        reference: str | None = None,
        position: int | None = None,
        keep_blobs: bool = False,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Load images from a docker archive, an OCI archive or an OCI layout, recognised by content.

        Args:
            source: path of an archive (possibly compressed as a whole) or of a layout's directory; or a stream, which
                is read in one pass and may be a pipe. The caller closes it.
            platform: of an image for several platforms, this one; None means this machine's.
            all_platforms: all of them instead.
            reference: only the image of this name.
            position: only the image at this place in the archive, from 0.
            keep_blobs: also keep the compressed layers as they are, for :meth:`save` and pushes with the same manifest
                digest; takes their size on top. They go with their image.
            progress: told about every layer.
            check: polled several times a second; what it raises ends the load.

        Returns:
            The images, in the archive's order, without any that another process has removed already.

        Raises:
            FormatError: no image archive, or a broken one; UnsupportedFormat says what is not supported.
            IntegrityError: a size or digest is not as promised.
            NotFound: a blob is missing, or nothing fits ``platform`` or ``reference``.
            StoreError: no space, or an error of the disk.

        Blocking: reads and writes all layers that the store does not have; with ``sync``, waits for the disk.
        Atomicity: an image is visible once it is complete and durable. A load that fails leaves the store as it was.
        """
        stem = None if hasattr(source, "read") else _stem(os.fspath(source))
        selection = Selection(
            platform or Platform.host(), platform is not None, all_platforms, reference, position, stem
        )
        try:
            records = load_source(
                self._handle, source, selection, keep_blobs=keep_blobs, progress=progress, check=check
            )
        except OSError as error:
            if isinstance(error, MountError):
                raise
            raise StoreError(f"load failed: {_explain(error)}", root=self._handle.layout.root) from error
        return self._images(records)

    def pull(
        self,
        source: str,
        *,
        platform: Platform | None = None,
        all_platforms: bool = False,
        keep_blobs: bool = False,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Load images through a transport: ``docker-archive:FILE[:REF]``, ``oci-archive:…``, ``oci:DIR[:REF]``.

        Arguments, errors and guarantees are those of :meth:`load`.

        Raises:
            InvalidReference: the text names no transport that is supported.
            UnsupportedFormat: the transport is known, but not supported.
        """
        wanted = parse_source(source)
        if wanted.transport not in ("docker-archive", "oci-archive", "oci"):
            raise UnsupportedFormat(
                f"pulling from {wanted.transport}: is not supported",
                hint="Copy the image to an archive first, then: layerfs pull oci-archive:FILE",
            )
        if not os.path.exists(wanted.path):
            raise NotFound("file or directory", wanted.path)
        if (wanted.transport == "oci") != os.path.isdir(wanted.path):
            kind = "directory" if wanted.transport == "oci" else "file"
            raise InvalidReference(f"{wanted.transport}: needs a {kind}, which {wanted.path} is not")
        return self.load(
            wanted.path, platform=platform, all_platforms=all_platforms, reference=wanted.reference,
            position=wanted.index, keep_blobs=keep_blobs, progress=progress, check=check,
        )  # fmt: skip


def _stem(path: str) -> str | None:
    """Return what images of an archive are called that have only a tag: the file's name without its endings."""
    name = os.path.basename(os.path.abspath(path)).lower().partition(".")[0]
    return name or None


def _explain(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"
