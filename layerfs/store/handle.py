"""An open store: its paths, its database and how durable it is. What the modules of this floor work on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EACCES, EPERM, EROFS
from functools import partial

from layerfs.errors import FormatError, StoreError, StoreReadOnly, StoreTooNew
from layerfs.formats.digest import Digest
from layerfs.formats.document import parse_document
from layerfs.linux.durable import fsync_directory, write_document
from layerfs.linux.lock import FileLock
from layerfs.store.database import Database
from layerfs.store.layout import Layout

__all__ = ["FORMAT_VERSION", "StoreHandle", "open_store"]

#: Raised only for changes that an older layerfs would misread; see ``incompatible`` for smaller ones.
FORMAT_VERSION = 1

#: Incompatible features this version understands; a store with others is refused.
_KNOWN_FEATURES = frozenset[str]()


@dataclass(frozen=True, slots=True)
class StoreHandle:
    """One open store.

    Attributes:
        layout: its paths.
        database: its metadata.
        sync: whether everything reported done survives a power cut.
    """

    layout: Layout
    database: Database
    sync: bool

    def write_blob(self, digest: Digest, raw: bytes) -> None:
        """Keep a document under its digest; it is there, durably, when the call returns.

        A document that is there already with the same bytes is left alone, one that is damaged is replaced.

        Raises:
            OSError: ENOSPC, EIO.
        """
        path = self.layout.blob(digest)
        try:
            with open(path, "rb") as file:
                if file.read() == raw:
                    # Another load may have written it and died before its name was durable.
                    fsync_directory(os.path.dirname(path), sync=self.sync)
                    return
        except OSError:
            pass  # missing, or on a bad block: written anew
        write_document(path, raw, sync=self.sync)

    def read_blob(self, digest: Digest) -> bytes:
        """Return a document, verified.

        Raises:
            StoreError: it is missing or damaged.
        """
        path = self.layout.blob(digest)
        try:
            with open(path, "rb") as file:
                raw = file.read()
        except FileNotFoundError:
            raw = b""
        except OSError as error:
            raise StoreError(
                f"document {digest} cannot be read: {error.strerror}: {path}", root=self.layout.root,
                hint="Load the image again.",
            ) from error  # fmt: skip
        if Digest.of(raw, digest.algorithm) != digest:
            raise StoreError(
                f"document {digest} is missing or damaged", root=self.layout.root, hint="Load the image again."
            )
        return raw

    @contextlib.contextmanager
    def trees_kept(self) -> Iterator[None]:
        """Keep merged trees, and the layers that they name, where they are: nothing is collected meanwhile.

        Raises:
            OSError: EACCES, ENOLCK.

        Blocking: until a collection that is about to remove something has done so.
        """
        if self.database.frozen:
            yield
            return
        with FileLock(self.layout.trees_lock, shared=True):
            yield

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def open_store(root: str, runroot: str, *, sync: bool = True) -> StoreHandle:
    """Open the store at ``root``, made if it is not there.

    On a read-only file system it can be looked at; what would change it is refused with :class:`StoreReadOnly`.

    Args:
        root: directory of the store, absolute.
        runroot: directory for what does not outlive a boot, absolute; made when first needed.
        sync: False skips every fsync: a power cut may then lose or damage what was reported done.

    Raises:
        StoreTooNew: a newer layerfs wrote it.
        StoreReadOnly: no permission.
        StoreError: ``root`` is something else.
    """
    layout = Layout(root, runroot)
    _refuse_stranger(root)
    try:
        layout.create(sync=sync)
        if not _read_marker(layout):
            document = {"version": FORMAT_VERSION, "compatible": [], "incompatible": []}
            write_document(layout.marker, json.dumps(document, indent=2).encode() + b"\n", sync=sync)
        # SQLite answers "locked" at once, without waiting, when two make the same database.
        with FileLock(layout.lock("open")):
            database = Database(layout.database, sync=sync, in_use=partial(_has_content, layout))
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"{root} is no store: {error.strerror}: {error.filename}", root=root) from error
    except OSError as error:
        if error.errno == EROFS and _read_marker(layout):
            frozen = Database(layout.database, sync=sync, frozen=True, in_use=partial(_has_content, layout))
            return StoreHandle(layout, frozen, sync)
        message = f"cannot use the store at {root}: {error.strerror}"
        if error.errno in (EACCES, EPERM, EROFS):
            raise StoreReadOnly(message, root=root, hint="Run as its owner, or name another --root.") from error
        raise StoreError(message, root=root) from error
    return StoreHandle(layout, database, sync)


def _refuse_stranger(root: str) -> None:
    """Refuse a store of somebody else: what root writes into it, its owner could neither read nor remove."""
    try:
        owner = os.stat(root).st_uid
    except OSError:
        return  # not there yet, or whoever opens it will be told why not
    if owner != os.geteuid():
        raise StoreReadOnly(
            f"the store at {root} belongs to user {owner}, not to {os.geteuid()}", root=root,
            hint="Run as its owner, or name another --root.",
        )  # fmt: skip


def _read_marker(layout: Layout) -> bool:
    """Check the format of an existing store; return whether there is one."""
    foreign = os.path.exists(layout.database)  # looked at first: another process may be making both right now
    try:
        with open(layout.marker, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        if foreign:
            raise StoreError(f"{layout.root} has a store.db but no store.json", root=layout.root,
                hint="Name another --root, or restore store.json: it is the same for every store of this version.",
            ) from None  # fmt: skip
        return False
    try:
        marker = parse_document(raw, "store.json")
    except FormatError as error:
        raise StoreError(f"store.json in {layout.root} is damaged: {error}", root=layout.root) from error
    if not foreign and not os.path.exists(layout.database) and _has_content(layout):
        # An empty database would turn all that is here into rubbish for the next collection.
        raise StoreError(
            f"{layout.root} has layers or containers but no store.db", root=layout.root,
            hint="Restore store.db, or remove the directory to begin anew.",
        )  # fmt: skip
    version, features = marker.get("version"), marker.get("incompatible", [])
    unknown = set(map(str, features)) - _KNOWN_FEATURES if isinstance(features, list) else {"?"}
    if type(version) is not int:
        raise StoreError(f"store.json in {layout.root} is damaged: it has no version", root=layout.root)
    if version > FORMAT_VERSION or unknown:
        what = f"features {', '.join(sorted(unknown))}" if unknown else f"format {version}"
        raise StoreTooNew(
            f"store at {layout.root} uses {what}, which this layerfs does not know",
            root=layout.root, hint="Use the newer layerfs, or another --root.",
        )  # fmt: skip
    return True


def _has_content(layout: Layout) -> bool:
    """Return whether a store has layers or containers on disk."""
    places = (os.path.join(layout.root, name) for name in ("layers/sha256", "layers/sha512", "snapshots"))
    return any(os.listdir(place) for place in places)
