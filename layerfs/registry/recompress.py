"""Copies whose layers are compressed in another way than where they come from.

The layers are compressed into files first, for a manifest has to name their digests, and an archive their sizes, before
the bytes follow. What they are uncompressed stays, and so do config and image ID; manifests and indexes become others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from layerfs.errors import FormatError, UnsupportedFormat
from layerfs.formats.amend import layer_type, with_blobs
from layerfs.formats.codec import PIECE, decompress, detect, rejoined
from layerfs.formats.compress import check_level, compress
from layerfs.formats.digest import Digest, new_hash
from layerfs.formats.media_type import CONFIG_TYPES, DOCKER_MANIFEST, Compression, layer_compression
from layerfs.formats.oci import Descriptor, Index, Manifest
from layerfs.formats.oci_form import about, index_as_oci, index_of
from layerfs.formats.tar.header import BLOCK
from layerfs.linux.durable import write_all
from layerfs.registry.copy import CopyPlan, CopySource
from layerfs.registry.pipeline import name_layer

__all__ = ["RecompressedSource"]

_READ = 1 << 20


class RecompressedSource:
    """A source whose layers are compressed as somebody wants them."""

    def __init__(self, came: CopySource, directory: str, compression: Compression, level: int | None) -> None:
        """Prepare.

        Args:
            came: where the image comes from.
            directory: for the compressed layers; somebody else removes it.
            compression: of all layers.
            level: of the compression. Without one a layer that is compressed like this already stays as it is.

        Raises:
            InvalidReference: the compression has no such level.
        """
        check_level(compression, level)
        self._came = came
        self._directory = directory
        self._compression: Compression = compression
        self._level = level
        self._made: dict[Digest, tuple[Digest, int]] = {}  # by the blob that it was made of
        self._files: dict[Digest, str] = {}

    def top(self) -> Manifest | Index:
        """See :class:`CopySource`."""
        return self._came.top()

    def document(self, descriptor: Descriptor) -> bytes:
        """See :class:`CopySource`."""
        return self._came.document(descriptor)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """See :class:`CopySource`."""
        path = self._files.get(descriptor.digest)
        if path is None:
            yield from self._came.blob(descriptor)
            return
        with open(path, "rb", buffering=0) as file:
            while data := file.read(_READ):
                yield data

    def changed(self, plan: CopyPlan) -> list[Descriptor]:
        """Return the layers that have to be compressed anew, each once. What is no layer of an image is none."""
        found: dict[Digest, Descriptor] = {}
        for document in plan.documents:
            if isinstance(document, Manifest) and document.config.media_type in CONFIG_TYPES:
                for layer in document.layers:
                    with suppress(UnsupportedFormat):  # attestations, and what only the vendor has
                        announced = layer_compression(layer.media_type)
                        if self._level is not None or announced != self._compression:
                            found.setdefault(layer.digest, layer)
        return list(found.values())

    def compress(self, layer: Descriptor, pieces: Iterator[bytes]) -> None:
        """Compress a layer into a file. Thread-safe, for different layers.

        Args:
            layer: one of those that are changed.
            pieces: of its blob, verified.

        Raises:
            FormatError: its bytes are damaged, or compressed in a way that layers are not.
            LayerfsError: what ``pieces`` raises.
            OSError: ENOSPC, EIO.
        """
        path = os.path.join(self._directory, layer.digest.hex)
        hasher, size = new_hash("sha256"), 0
        with open(path, "xb", buffering=0) as file:
            for piece in compress(_plain(layer, pieces), self._compression, self._level):
                hasher.update(piece)
                size += len(piece)
                write_all(file.fileno(), piece)
        digest = Digest("sha256", hasher.hexdigest())
        self._made[layer.digest] = digest, size
        self._files[digest] = path

    def replan(self, plan: CopyPlan) -> CopyPlan:
        """Return the plan with the layers that were compressed, and the documents that name them."""
        forms: dict[Digest, bytes] = {}
        of_oci: set[Digest] = set()  # that were of docker: an index of docker lists none of them
        blobs: dict[Digest, Descriptor] = {}
        became: dict[Digest, Manifest | Index] = {}
        # First what others are about, last what lists them; of indexes, the inner ones come first.
        for document in sorted(plan.documents, key=_rank):
            found: Manifest | Index = document
            algorithm = document.digest.algorithm
            if isinstance(document, Index):
                listed = {entry.digest for entry in document.manifests}
                if not listed.isdisjoint(forms):
                    change = index_of if listed.isdisjoint(of_oci) else index_as_oci
                    found = Index.parse(change(document.raw, forms), algorithm=algorithm)
            else:
                raw = document.raw if document.subject is None else about(document.raw, forms)
                if made := self._replaced(document):
                    blobs |= made
                    raw = with_blobs(raw, made)
                if raw is not document.raw:
                    found = Manifest.parse(raw, algorithm=algorithm)
            if found is not document:
                forms[document.digest] = found.raw
            if found.media_type != document.media_type:
                of_oci.add(document.digest)
            became[document.digest] = found
        moved = {blob.digest: blob for blob in (blobs.get(blob.digest, blob) for blob in plan.blobs)}
        return CopyPlan(tuple(moved.values()), tuple(became[document.digest] for document in plan.documents))

    def _replaced(self, manifest: Manifest) -> dict[Digest, Descriptor]:
        media_type = layer_type(self._compression, docker=manifest.media_type == DOCKER_MANIFEST)
        return {
            layer.digest: Descriptor(media_type, *self._made[layer.digest])
            for layer in manifest.layers
            if layer.digest in self._made
        }


def _plain(layer: Descriptor, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a layer uncompressed."""
    read = _reader(pieces)
    head = b""
    while len(head) < BLOCK and (more := read(BLOCK - len(head))):
        head += more
    try:
        yield from decompress(rejoined(head, read), detect(head))
    except FormatError as error:
        while read(PIECE):  # that the blob is another, which is told at its end, says more than what is wrong inside
            pass
        name_layer(error, str(layer.digest))
        raise
    while read(PIECE):  # what follows the compressed data is part of the blob
        pass


def _reader(pieces: Iterable[bytes]) -> Callable[[int], bytes]:
    """Return what reads up to so many bytes of a stream that comes in pieces, and nothing at its end."""
    source, rest = iter(pieces), memoryview(b"")

    def read(size: int) -> bytes:
        nonlocal rest
        while not rest:
            piece = next(source, None)
            if piece is None:
                return b""
            rest = memoryview(piece)
        data, rest = bytes(rest[:size]), rest[size:]
        return data

    return read


def _rank(document: Manifest | Index) -> int:
    if isinstance(document, Index):
        return 2
    return 0 if document.subject is None else 1
