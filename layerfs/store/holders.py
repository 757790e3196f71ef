"""Which layers already hold the bytes of a file: what lets a load keep every file once.

A file is looked up by its size and its *mark*, a checksum of its first and last block, and what is found is only a
candidate: whoever shares compares the bytes first. So nothing but files that probably have a twin is read twice, and a
damaged layer can never lend its bytes to a good one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from layerfs.formats.digest import Digest
from layerfs.store.derive import LayerKeys
from layerfs.store.handle import StoreHandle
from layerfs.store.layer import LayerRecord, find_holders, is_intact
from layerfs.store.layer_writer import LayerKey, Offer
from layerfs.store.poll import raise_own

__all__ = ["Holders"]

#: Candidates with the same size and mark that are compared with one file; so many that differ are made to cost time.
_MAX_CANDIDATES = 8

#: Layer files kept open to compare with.
_MAX_OPEN = 32


class Holders:
    """The files that one load may borrow: those of its own finished layers, and those of the store.

    All methods belong to one thread.
    """

    def __init__(self, handle: StoreHandle, keys: LayerKeys, lease: Callable[[LayerRecord], bool]) -> None:
        """Look at what the store has.

        Args:
            handle: the store.
            keys: the keys of all layers that this load touches.
            lease: keeps a layer of the store from being collected; False when that is too late.
        """
        self._handle = handle
        self._keys = keys
        self._lease = lease
        self._loaded: dict[tuple[int, int], list[Offer]] = {}
        self._stored: dict[Digest, LayerKey | None] = {}
        self._paths: dict[LayerKey, str] = {}
        self._open: dict[LayerKey, int] = {}
        row = handle.database.connection.execute("SELECT EXISTS (SELECT 1 FROM content)").fetchone()
        self._store_has_content = bool(row[0])

    def add(self, key: LayerKey, content: Iterable[tuple[int, int, int]], path: str) -> None:
        """Offer the files of a layer that was just read.

        Args:
            key: the layer.
            content: its files: (offset, size, mark).
            path: its tar before it is given its place.
        """
        self._paths[key] = path
        for offset, size, found in content:
            self._loaded.setdefault((size, found), []).append((key, offset))

    def find(self, size: int, wanted: int) -> Iterator[Offer]:
        """Yield where files of this size and mark lie, at most a handful; nothing is said of the bytes between."""
        left = _MAX_CANDIDATES
        for offer in self._loaded.get((size, wanted), ()):
            if not left:
                return
            left -= 1
            yield offer
        if not self._store_has_content:
            return
        for layer, offset in find_holders(self._handle, size, wanted, left):
            if layer.diff_id not in self._stored:
                usable = is_intact(self._handle, layer) and self._lease(layer)
                self._stored[layer.diff_id] = self._keys.get(layer.diff_id) if usable else None
            key = self._stored[layer.diff_id]
            if key is not None:
                yield key, offset

    def read(self, key: LayerKey, offset: int, size: int) -> bytes:
        """Return bytes of a layer file, fewer where it is damaged, none where it is gone.

        Raises:
            OSError: EMFILE and the like, which say nothing about the layer.
        """
        try:
            if key not in self._open:
                self._open[key] = self._descriptor(key)
                if len(self._open) > _MAX_OPEN:
                    os.close(self._open.pop(next(iter(self._open))))
            return os.pread(self._open[key], size, offset)
        except OSError as error:
            raise_own(error)
            return b""

    def close(self) -> None:
        """Close the layer files that were read."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, key: LayerKey) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if key in self._paths:
            try:
                return os.open(self._paths[key], flags)
            except FileNotFoundError:
                pass  # it has its place by now
        return os.open(self._handle.layout.layer_tar(key.known), flags)
