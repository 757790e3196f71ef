"""Containers: a writable layer on top of an image, kept in overlayfs's own on-disk format."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from dataclasses import dataclass

from layerfs.errors import Conflict, IntegrityError, InvalidReference, NotFound, StoreFull
from layerfs.formats.digest import Digest
from layerfs.linux.disk_use import tree_disk
from layerfs.linux.durable import fsync_directory
from layerfs.linux.lock import FileLock
from layerfs.linux.process import in_initial_user_namespace
from layerfs.linux.safe_path import remove_tree
from layerfs.store.database import stored_digest
from layerfs.store.handle import StoreHandle
from layerfs.store.image import MIN_PREFIX, ImageRecord

__all__ = [
    "Snapshot",
    "create_snapshot",
    "dressed_marker",
    "find_snapshot",
    "is_dressed",
    "keeps_owners",
    "list_snapshots",
    "mark_dressed",
    "refuse_other_owners",
    "remove_snapshot",
    "require_directories",
    "sweep_snapshots",
]

#: What docker and podman accept as a container's name.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,126}")

_ADJECTIVES = ("calm", "brisk", "clear", "deep", "early", "fair", "keen", "light", "mild", "plain", "quiet", "swift")
_NOUNS = ("amber", "basalt", "chalk", "flint", "garnet", "jasper", "loam", "marl", "onyx", "opal", "slate", "topaz")

#: What the marker of a dressed upper directory holds where owners are kept in xattrs; and what its text begins with
#: where they are those of a user namespace, whose maps follow.
_KEEPS_OWNERS = b"owners in xattrs\n"
_MAPPED = b"owners of a user namespace\n"

_COLUMNS = "snapshot.id, name, image.digest, snapshot.manifest, snapshot.created"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One container.

    Attributes:
        id: 64 hex digits.
        name: what it is called.
        image: the image ID.
        manifest: digest of the image's manifest by which it was made.
        created: nanoseconds since the epoch.
    """

    id: str
    name: str
    image: Digest
    manifest: Digest
    created: int


def create_snapshot(handle: StoreHandle, image: ImageRecord, name: str | None) -> Snapshot:
    """Make a container with an empty writable layer.

    Args:
        handle: the store.
        image: what it is based on.
        name: its name; None makes one up.

    Raises:
        InvalidReference: the name has characters that names do not have.
        Conflict: the name is taken.

    Atomicity: its directories are durable before it is listed.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise InvalidReference(
            f"{name!r} is no container name", hint="Use letters, digits, '_', '.' and '-', a letter or digit first."
        )
    handle.database.refuse_contradictions()
    identifier = os.urandom(32).hex()
    directory = handle.layout.snapshot(identifier)
    # Held until it is listed: what is neither listed nor locked was left by somebody who died.
    lock = FileLock(handle.layout.lock(f"snapshot-{identifier}"))
    lock.acquire()
    try:
        os.mkdir(directory, 0o700)
        for path in (handle.layout.upper(identifier), handle.layout.work(identifier)):
            os.mkdir(path, 0o755)
        fsync_directory(directory, sync=handle.sync)
        fsync_directory(os.path.dirname(directory), sync=handle.sync)
        return _insert(handle, identifier, image, name)
    except BaseException:
        remove_tree(directory, missing_ok=True)
        raise
    finally:
        lock.release(remove=True)


def list_snapshots(handle: StoreHandle) -> list[Snapshot]:
    """Return all containers, newest first."""
    rows = handle.database.connection.execute(
        f"SELECT {_COLUMNS} FROM snapshot JOIN image ON image.id = snapshot.image ORDER BY snapshot.created DESC"
    )
    return [_snapshot(row) for row in rows]


def find_snapshot(handle: StoreHandle, text: str) -> Snapshot:
    """Return a container by its name, its ID, or the unique beginning of its ID.

    Raises:
        NotFound: there is none.
        Conflict: several IDs begin so.
    """
    if not text.isascii():  # names are; SQLite takes no text that is not in UTF-8
        raise NotFound("container", text, hint="List what there is with: layerfs ps")
    connection = handle.database.connection
    base = f"SELECT {_COLUMNS} FROM snapshot JOIN image ON image.id = snapshot.image WHERE"
    row = connection.execute(f"{base} name = ?", (text,)).fetchone()
    if row is not None:
        return _snapshot(row)
    if len(text) >= MIN_PREFIX and not text.strip("0123456789abcdef"):
        rows = connection.execute(f"{base} snapshot.id LIKE ?", (text + "%",)).fetchall()
        if len(rows) == 1:
            return _snapshot(rows[0])
        if rows:
            listed = ", ".join(sorted(row[0][:12] for row in rows))
            raise Conflict(f"{text} is the beginning of {len(rows)} container IDs: {listed}", reason="ambiguous")
    raise NotFound("container", text, hint="List what there is with: layerfs ps")


def dressed_marker(upper: str) -> str:
    """Return the file that says that an upper directory has the attributes of its image's root."""
    return os.path.join(os.path.dirname(upper), "dressed")


def is_dressed(upper: str) -> bool:
    """Tell whether an upper directory has the attributes of its image's root yet."""
    return os.path.exists(dressed_marker(upper))


def mark_dressed(upper: str, *, keeps_owners: bool) -> None:
    """Note that an upper directory has the attributes of its image's root, and how owners are kept in it.

    Beside it, where nobody in the container can change it.
    """
    with open(dressed_marker(upper), "wb") as file:
        file.write(_KEEPS_OWNERS if keeps_owners else b"" if in_initial_user_namespace() else _maps())


def require_directories(handle: StoreHandle, snapshot: Snapshot) -> None:
    """Refuse a container that has lost one of its directories.

    Raises:
        IntegrityError: it has.
    """
    for path in (handle.layout.upper(snapshot.id), handle.layout.work(snapshot.id)):
        if not os.path.isdir(path):
            raise IntegrityError(f"{path} is missing", hint="Run: layerfs check --repair")


def keeps_owners(upper: str | os.PathLike[str]) -> bool:
    """Tell whether owners and modes are kept in xattrs of an upper directory, as by who may give no file away."""
    return _read_marker(upper) == _KEEPS_OWNERS


def refuse_other_owners(upper: str | os.PathLike[str]) -> None:
    """Refuse an upper directory whose owners are those of a user namespace with other IDs: here they mean other users.

    Raises:
        Conflict: they are.
    """
    said = _read_marker(upper)
    if said.startswith(_MAPPED) and not _means_the_same(said, _maps()):
        raise Conflict(
            f"the owners in {os.fspath(upper)} are those of another user namespace", reason="in-use",
            hint="Do this where it was mounted first: in podman unshare, say.",
        )  # fmt: skip


def _read_marker(upper: str | os.PathLike[str]) -> bytes:
    try:
        with open(dressed_marker(os.fspath(upper)), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _maps() -> bytes:
    """Return the users and groups of this process's user namespace."""
    found = [_MAPPED]
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", "rb") as file:
            found += [name.encode() + b" " + b" ".join(line.split()) + b"\n" for line in file]
    return b"".join(found)


def _means_the_same(before: bytes, now: bytes) -> bool:
    """Return whether all IDs of earlier maps are mapped now, to the same: a user may have been given more."""
    try:
        ranges = [
            [(name, int(inside), int(outside), int(count)) for name, inside, outside, count in map(bytes.split, lines)]
            for lines in (before.splitlines()[1:], now.splitlines()[1:])
        ]
    except ValueError:
        return False
    return all(
        any(
            other == name and outside - inside == there - here and here <= inside and inside + count <= here + many
            for other, here, there, many in ranges[1]
        )
        for name, inside, outside, count in ranges[0]
    )


def remove_snapshot(handle: StoreHandle, snapshot: Snapshot) -> None:
    """Remove a container and everything written in it. It must not be mounted, and its lock is held.

    Atomicity: it is no longer listed before its files go; a crash leaves files that :func:`sweep_snapshots` removes. On
    a disk without room for that what was written goes first: a crash leaves a container that can only be removed.
    """
    try:
        _delete(handle, snapshot)
    except StoreFull:
        remove_tree(handle.layout.upper(snapshot.id), missing_ok=True, unprotect=True)
        _delete(handle, snapshot)
    remove_tree(handle.layout.snapshot(snapshot.id), missing_ok=True, unprotect=True)


def sweep_snapshots(handle: StoreHandle) -> int:
    """Remove writable layers that are not listed: a crash while one was made or removed left them.

    Returns:
        The bytes of disk that they took.

    Raises:
        StoreError: the database contradicts itself; nothing is removed then.
    """
    handle.database.share()
    handle.database.refuse_contradictions()
    connection = handle.database.connection
    directory = os.path.join(handle.layout.root, "snapshots")
    known = {row[0] for row in connection.execute("SELECT id FROM snapshot")}
    freed = 0
    for name in set(os.listdir(directory)) - known:
        lock = FileLock(handle.layout.lock(f"snapshot-{name}"))
        if not lock.try_acquire():
            continue  # it is being made or removed
        try:
            path = os.path.join(directory, name)
            listed = connection.execute("SELECT 1 FROM snapshot WHERE id = ?", (name,)).fetchone()
            if listed is None and os.path.isdir(path):
                freed += tree_disk(path)
                remove_tree(path, unprotect=True)
        finally:
            lock.release(remove=True)
    return freed


def _delete(handle: StoreHandle, snapshot: Snapshot) -> None:
    with handle.database.transaction(frees=True) as connection:
        connection.execute("DELETE FROM snapshot WHERE id = ?", (snapshot.id,))


def _insert(handle: StoreHandle, identifier: str, image: ImageRecord, name: str | None) -> Snapshot:
    import secrets  # noqa: PLC0415 - makes up names alone, and brings random and OpenSSL along

    created = time.time_ns()
    wanted = name
    for attempt in range(20):
        if wanted is None:
            wanted = f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}"
            if attempt > 3:
                wanted += f"-{secrets.randbelow(1000)}"
        try:
            with handle.database.transaction() as connection:
                made = connection.execute(
                    "INSERT INTO snapshot SELECT ?, ?, id, ?, ? FROM image WHERE id = ? AND digest = ?",
                    (identifier, wanted, str(image.manifest), created, image.id, str(image.digest)),
                )
                if not made.rowcount:
                    raise NotFound("image", str(image.digest), hint="It was removed just now.")
        except sqlite3.IntegrityError as error:
            if name is None:
                wanted = None
                continue
            raise Conflict(
                f"a container called {name} exists", reason="exists", hint=f"Mount it with: layerfs mount --name {name}"
            ) from error
        return Snapshot(identifier, wanted, image.digest, image.manifest, created)
    raise Conflict("no free container name was found", reason="exists", hint="Give one with --name.")


def _snapshot(row: tuple[str, str, str, str, int]) -> Snapshot:
    return Snapshot(row[0], row[1], stored_digest(row[2]), stored_digest(row[3]), row[4])
