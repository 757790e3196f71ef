"""Loads images from archives and layouts into the store.

:func:`load_archive` takes what can be read at will, :func:`load_stream` what comes through a pipe. Both end in the same
loop: events of layers come in, layers go out, and at the end images are made of them. A load that fails leaves nothing
but what the next garbage collection removes, and runs that itself.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import FileIO
from typing import BinaryIO

from layerfs.errors import LayerfsError, NotFound
from layerfs.formats.codec import detect
from layerfs.formats.digest import Digest
from layerfs.formats.tar.header import BLOCK
from layerfs.registry.loader import Loader, Progress
from layerfs.registry.members import DirectoryMembers, Members, TarMembers, read_document, stream_reader
from layerfs.registry.pipeline import DigestBacklog, LayerEvent, prefetch, read_blob
from layerfs.registry.plan import LayerPlan, Selection, plan_images
from layerfs.registry.stream import read_stream
from layerfs.store.database import stored_digest
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord
from layerfs.store.ingest import Ingest
from layerfs.store.kept_blob import KeptBlobs
from layerfs.store.layer import find_layer, is_whole

__all__ = ["load_archive", "load_source", "load_stream", "open_archive"]

StrPath = str | os.PathLike[str]


def open_archive(path: str) -> Members | FileIO:
    """Open the archive at a path, once: what a pipe has given is gone. The caller closes it.

    Returns:
        Its members, or the file itself where it has to be read as a stream: a pipe, or compressed as a whole.

    Raises:
        NotFound: there is nothing.
        OSError: as open.
        FormatError: no tar.
    """
    if os.path.isdir(path):
        return DirectoryMembers(path)
    try:
        file = FileIO(path)
    except FileNotFoundError as error:
        raise NotFound("file or directory", path) from error
    try:
        fd = file.fileno()
        if stat.S_ISREG(os.fstat(fd).st_mode) and detect(os.pread(fd, BLOCK, 0)) == "none":
            return _OwnedTar(file)
    except BaseException:
        file.close()
        raise
    return file


class _OwnedTar(TarMembers):
    """A tar whose file is closed with it."""

    def __init__(self, file: FileIO) -> None:
        super().__init__(file.fileno())
        self._file = file

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def load_source(
    handle: StoreHandle,
    source: StrPath | BinaryIO,
    selection: Selection,
    *,
    keep_blobs: bool = False,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> list[ImageRecord]:
    """Load the selected images of whatever this is: a path or a stream, an archive or a layout.

    Raises:
        NotFound: there is nothing at the path.
        LayerfsError: it cannot be read.

    Otherwise as :func:`load_archive`.
    """
    if not isinstance(source, str | os.PathLike):
        return load_stream(handle, source, selection, keep_blobs=keep_blobs, progress=progress, check=check)
    try:
        opened = open_archive(os.fspath(source))
    except OSError as error:
        raise LayerfsError(f"cannot read {os.fspath(source)}: {error.strerror}") from error
    with contextlib.closing(opened):
        if isinstance(opened, FileIO):
            return load_stream(handle, opened, selection, keep_blobs=keep_blobs, progress=progress, check=check)
        return load_archive(handle, opened, selection, keep_blobs=keep_blobs, progress=progress, check=check)


def load_archive(
    handle: StoreHandle,
    members: Members,
    selection: Selection,
    *,
    keep_blobs: bool = False,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> list[ImageRecord]:
    """Load the selected images of an archive that can be read at will. Layers that the store has are not read.

    With ``keep_blobs`` the compressed blobs are kept as well, for an image to go out again with the same manifest.

    Raises:
        FormatError, IntegrityError, NotFound: the archive is not what it should be; the store is as it was.
        OSError: ENOSPC, EIO.

    Atomicity: the images become visible together, when all are complete and durable.
    """
    document = partial(read_document, members)

    plans = plan_images(document, selection)
    loader = Loader(handle, progress, check, keep_blobs=keep_blobs)

    def run(ingest: Ingest) -> list[ImageRecord]:
        wanted = {layer.member: layer for plan in plans for layer in plan.layers}
        for member in loader.take_present(ingest, list(wanted.values()), members):
            del wanted[member]
        backlog = DigestBacklog()
        # Closed before what it reads from: its thread may be in the middle of that.
        with contextlib.closing(
            prefetch(_blobs(members, wanted.values(), backlog, ingest.blobs), backlog.work)
        ) as events:
            loader.consume(ingest, events, wanted)
        return loader.commit(ingest, plans)

    return loader.run(run)


def load_stream(
    handle: StoreHandle,
    file: BinaryIO,
    selection: Selection,
    *,
    keep_blobs: bool = False,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> list[ImageRecord]:
    """Load the selected images of an archive that comes through a pipe, in one pass, whatever the order of its members.

    Nothing is kept besides the layers themselves, in their final form. Raises as :func:`load_archive`.
    """
    loader = Loader(handle, progress, check, keep_blobs=keep_blobs)

    def is_known(digest: Digest) -> bool:
        row = handle.database.connection.execute(
            "SELECT layer.diff_id FROM compressed JOIN layer ON layer.id = compressed.layer"
            " WHERE compressed.digest = ? UNION SELECT diff_id FROM layer WHERE diff_id = ?",
            (str(digest), str(digest)),
        ).fetchone()
        layer = find_layer(handle, stored_digest(row[0])) if row else None
        if layer is None or (keep_blobs and layer.diff_id != digest and not os.path.exists(handle.layout.blob(digest))):
            return False
        return is_whole(handle, layer)

    def run(ingest: Ingest) -> list[ImageRecord]:
        backlog = DigestBacklog()
        keep = ingest.blobs.begin if ingest.blobs is not None else None
        with contextlib.closing(
            prefetch(read_stream(stream_reader(file), is_known, backlog, keep), backlog.work)
        ) as events:
            loader.consume(ingest, events, None)
        return loader.commit(ingest, plan_images(loader.document, selection))

    return loader.run(run)


def _blobs(
    members: Members, layers: Iterable[LayerPlan], backlog: DigestBacklog, kept: KeptBlobs | None
) -> Iterator[LayerEvent]:
    for layer in layers:
        reader = members.open(layer.member)
        try:
            blob = layer.blob.digest.algorithm if layer.blob is not None else "sha256"
            yield from read_blob(
                layer.member, reader.size, reader.read,
                blob_algorithm=blob, diff_algorithm=layer.diff_id.algorithm, backlog=backlog,
                keep=kept.begin if kept is not None and layer.blob is not None else None,
            )  # fmt: skip
        finally:
            reader.close()
