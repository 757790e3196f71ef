"""The store's SQLite connection: one per thread, WAL, one writer at a time.

Source: sqlite.org "Write-Ahead Logging" and "PRAGMA synchronous": with FULL every commit is on the disk when it
returns; OFF trusts the operating system and may lose or damage the file at a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from layerfs.errors import IntegrityError, InvalidReference, StoreError, StoreFull, StoreReadOnly, StoreTooNew
from layerfs.formats.digest import Digest
from layerfs.linux.durable import fsync_directory
from layerfs.store.room import block_size, give_up_spare, is_full, keep_spare
from layerfs.store.schema import SCHEMA, SCHEMA_VERSION

__all__ = ["Database", "stored_digest"]

T = TypeVar("T")

#: Seconds to wait for another process's write transaction; the longest (a large layer's rows) takes well below one.
_BUSY_TIMEOUT = 60.0


#: Bytes of a path that SQLite opens (MAX_PATHNAME of its os_unix.c).
_MAX_PATH = 512

#: What SQLite says when the disk is full, in the middle of whatever it does.
_NO_ROOM = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN")

#: What SQLite's module raises for what is wrong with the database: text that is none, too.
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)

#: The tables that say what is in use.
_IN_USE = ("layer", "image_layer", "image", "name", "origin", "snapshot", "lease")

#: Seconds to wait for others who have the database open, where there is no room to share it.
_WAIT_TO_BE_ALONE = 1.0

#: Bytes of the smallest index of a log that is in use (sqlite.org/walformat.html, "The WAL-Index File Format").
_INDEX = 32 << 10

#: Bytes of the pages in which SQLite makes room for the index of its log.
_PAGE = 4096


class _Cursor(sqlite3.Cursor):
    """Rows, of which the database may turn out to be damaged at any."""

    def __next__(self) -> Any:
        return self._asked(super().__next__)

    def fetchone(self) -> Any:
        return self._asked(super().fetchone)

    def fetchall(self) -> list[Any]:
        return self._asked(super().fetchall)

    def _asked(self, question: Callable[[], T]) -> T:
        connection = self.connection
        assert isinstance(connection, _Connection)
        with connection.lock:
            try:
                return question()
            except sqlite3.IntegrityError:
                raise
            except _DAMAGE as error:
                raise _explain(connection.path, error) from error


class _Connection(sqlite3.Connection):
    """A connection that tells of damage and full disks in the words of layerfs.

    Attributes:
        path: the file of the database.
        lock: held by whoever is inside SQLite with it: closing it then would pull the memory from under that thread.
        mode: ``shared``, as usual; or, on a disk without room for the index of the log, ``still``, which reads the
            file as it was when it was opened, and ``alone``, with the index in memory and everybody else kept out.
        seen: what the file was then.
    """

    path = ""
    mode = "shared"
    seen: tuple[int, ...] = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lock = threading.RLock()

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        with self.lock:
            try:
                return self.cursor(_Cursor).execute(sql, parameters)
            except sqlite3.IntegrityError:
                raise  # the caller explains what it means that rows contradict each other
            except _DAMAGE as error:
                raise _explain(self.path, error) from error

    def executemany(self, sql: str, rows: Iterable[Any], /) -> sqlite3.Cursor:
        with self.lock:
            try:
                return super().executemany(sql, rows)
            except sqlite3.IntegrityError:
                raise
            except sqlite3.DatabaseError as error:
                raise _explain(self.path, error) from error

    def close(self) -> None:
        with self.lock:
            super().close()


class Database:
    """The metadata of one store. Thread-safe: every thread gets a connection of its own.

    Attributes:
        frozen: whether it cannot be written through this file system or mount.
    """

    def __init__(
        self, path: str, *, sync: bool, frozen: bool = False, in_use: Callable[[], bool] = lambda: False
    ) -> None:
        """Open, or make, the database.

        Args:
            path: the file; its directory exists.
            sync: whether commits survive a power cut.
            frozen: whether this process cannot write it, for it lies on a read-only file system or mount.
            in_use: whether there is something already that a database that is made now would not know.

        Raises:
            StoreTooNew: a newer layerfs wrote it.
            StoreError: no database, or it cannot be opened.
            StoreReadOnly: this process may not write it.
        """
        self._path = path
        self._root = os.path.dirname(path)
        self._sync = sync
        self.frozen = frozen
        self._in_use = in_use
        self._local = threading.local()
        self._all: list[tuple[threading.Thread, sqlite3.Connection]] = []
        self._guard = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        self._inherited: list[object] = []
        try:
            if not frozen:
                keep_spare(path)
            self._prepare()
        except BaseException:
            self.close()
            raise

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection, in autocommit mode.

        Raises:
            StoreError: the store was closed, or cannot be opened by one more thread.
        """
        return self._own()

    def _leave_parent(self) -> None:
        """After a fork, let go of the parent's connections, which must be neither used nor closed here.

        Source: sqlite.org/howtocorrupt.html, "Carrying an open database connection across a fork".
        """
        if os.getpid() != self._process:
            self._inherited += [self._local, self._all]
            self._local, self._all, self._guard = threading.local(), [], threading.Lock()
            self._process = os.getpid()

    def _own(self) -> _Connection:
        self._leave_parent()
        found: _Connection | None = getattr(self._local, "connection", None)
        if found is not None and found.mode != "shared" and not found.in_transaction and self._is_outdated(found):
            self._drop(found)
            found = None
        if found is None:
            self._refuse_closed()
            found = self._take(self._open())
        return found

    def _take(self, made: _Connection) -> _Connection:
        """Let a new connection be this thread's."""
        with self._guard:
            # Loads start threads, and a store may be open for long: what a thread had open ends with it.
            kept = []
            for thread, connection in self._all:
                if thread.is_alive():
                    kept.append((thread, connection))
                else:
                    connection.close()
            self._all = [*kept, (threading.current_thread(), made)]
            closed = self._closed
        if closed:  # meanwhile, and perhaps without knowing of this one
            made.close()
            self._refuse_closed()
        self._local.connection = made
        return made

    def _open(self) -> _Connection:
        """Return a new connection, of which it is known that something can be read."""
        if not self.frozen and not self._would_fault():
            try:
                return self._connect("shared")
            except StoreFull:
                pass
        # Without room for the index of the log. Where nothing is in the log, the database is whole without it.
        if self.frozen or _is_at_rest(self._path):
            return self._connect("still")
        return self._connect("alone")

    def _is_outdated(self, found: _Connection) -> bool:
        """Whether a connection that makes do shows what was, or is not needed any more."""
        if self.frozen:
            return False
        return (found.mode == "still" and found.seen != _state_of(self._path)) or not is_full(self._root)

    def _drop(self, found: _Connection) -> None:
        """Close a connection of this thread."""
        with self._guard:
            self._all = [(thread, connection) for thread, connection in self._all if connection is not found]
        self._local.connection = None
        found.close()

    def _writable(self) -> _Connection:
        """Return this thread's connection, another one if it can only be read through."""
        found = self._own()
        if found.mode != "still" or self.frozen:
            return found
        self._drop(found)  # it may be what keeps the database from being had alone
        if not self._would_fault():
            with contextlib.suppress(StoreFull):
                return self._take(self._connect("shared"))
        return self._take(self._connect("alone"))

    def share(self) -> None:
        """See to it that this thread sees what others write: before something is removed because nothing refers to it.

        Raises:
            StoreFull: there is no room for that, not even where something was set aside.
        """
        if self.frozen:
            return
        give_up_spare(self._path)
        found = self._own()
        if found.mode != "shared":
            self._drop(found)
            if self._would_fault():
                raise _full(self._root)
            self._take(self._connect("shared"))

    def _would_fault(self) -> bool:
        """Whether a write to the map of the log's index could find no room, which ends the process by SIGBUS.

        SQLite makes room by one byte in each page of 4096; where blocks are smaller, the others of it get none.
        """
        if block_size(self._root) >= _PAGE or not is_full(self._root):
            return False
        try:
            index = os.stat(f"{self._path}-shm")
        except FileNotFoundError:
            return True
        return index.st_blocks * 512 < index.st_size

    def _connect(self, mode: str) -> _Connection:
        source, wait = self._path, _BUSY_TIMEOUT
        if mode == "still":
            from urllib.parse import quote  # noqa: PLC0415 - every other start does without

            source = f"file:{quote(os.fsencode(self._path))}?mode=ro"
            logless = self.frozen and not os.path.exists(f"{self._path}-wal")
            if logless or (_is_at_rest(self._path) and not _is_shared(self._path)):
                source += "&immutable=1"
        elif mode == "alone":
            wait = _WAIT_TO_BE_ALONE
        try:
            made = sqlite3.connect(
                source, timeout=wait, isolation_level=None, check_same_thread=False, cached_statements=64,
                factory=_Connection, uri=mode == "still",
            )  # fmt: skip
        except sqlite3.Error as error:
            raise _explain(self._path, error) from error
        made.path, made.mode = self._path, mode
        if mode == "still":
            made.seen = _state_of(self._path)
        try:
            if mode == "alone":
                made.execute("PRAGMA locking_mode = EXCLUSIVE")
            made.execute("PRAGMA foreign_keys = ON")
            made.execute(f"PRAGMA synchronous = {'FULL' if self._sync else 'OFF'}")
            made.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        except BaseException as error:
            made.close()
            if mode == "alone" and isinstance(error, StoreError):  # others have it open
                raise _full(self._root) from error
            raise
        return made

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreError("the store is closed", root=os.path.dirname(self._path))

    @contextmanager
    def transaction(self, *, frees: bool = False) -> Iterator[sqlite3.Connection]:
        """Run the block as one write transaction, on this thread's connection.

        Args:
            frees: whether it comes before something that makes room, and so may use what was set aside.

        Atomicity: all of the block's statements are visible and durable when it ends, or none if it raises.

        Raises:
            StoreFull: there is no room for it.
            StoreError: the database is busy for a minute, or damaged.
        """
        if not self.frozen:
            keep_spare(self._path)
            if frees:
                give_up_spare(self._path)
        connection = self._writable()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            if os.getpid() == self._process:  # no child that comes out of the block as well
                connection.execute("COMMIT")
        except BaseException as error:
            is_own = os.getpid() == self._process
            with contextlib.suppress(sqlite3.ProgrammingError, StoreError):  # the store was closed meanwhile
                if is_own and connection.in_transaction:  # a full disk makes SQLite roll back by itself
                    connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.IntegrityError):
                raise _explain(self._path, error) from error
            raise
        finally:
            if connection.mode == "alone" and os.getpid() == self._process:
                self._drop(connection)

    def make_room(self) -> None:
        """Give up what was set aside, if the disk is full: for the lock of something that makes room."""
        if not self.frozen:
            give_up_spare(self._path)

    def refuse_contradictions(self, *, borrowed: bool = False) -> None:
        """Refuse to go on where an index differs from its table.

        What is in use would look as if it were not; and a row that an index has lost would come a second time, so that
        the index cannot be made anew.

        Args:
            borrowed: whether the extents are looked at as well: a millisecond for a thousand of them, where the other
                tables take half a one.

        Raises:
            StoreError: one does, or is damaged.
        """
        for table in (*_IN_USE, *(("extent",) if borrowed else ())):
            said = self.connection.execute(f"PRAGMA integrity_check({table})").fetchone()[0]
            if said != "ok":
                root = os.path.dirname(self._path)
                raise StoreError(f"store database at {root}: {said}", root=root, hint="Run: layerfs check --repair")

    def close(self) -> None:
        """Close the connections of all threads, for good.

        Blocking: until what other threads ask the database right now is answered.
        """
        self._leave_parent()
        self._closed = True
        with self._guard:
            for _, connection in self._all:
                connection.close()
            self._all.clear()
        self._local = threading.local()

    def _prepare(self) -> None:
        fresh = not os.path.exists(self._path)
        connection = self.connection
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StoreTooNew(
                f"store database is of version {version}, this layerfs knows {SCHEMA_VERSION}",
                root=os.path.dirname(self._path), hint="Use the newer layerfs, or another --root.",
            )  # fmt: skip
        if version == SCHEMA_VERSION:
            return
        if version:
            raise StoreError(
                f"store database is of version {version}, which no release has written",
                root=os.path.dirname(self._path), hint="Load the images into a new store: name another --root.",
            )  # fmt: skip
        if self._in_use():
            # For the next collection all that would be rubbish.
            raise StoreError(
                f"store.db in {os.path.dirname(self._path)} is empty, but there are layers or containers",
                root=os.path.dirname(self._path), hint="Restore store.db, or remove the directory to begin anew.",
            )  # fmt: skip
        connection.execute("PRAGMA journal_mode = WAL")
        with self.transaction() as connection:
            # Another process may have made it between the two looks.
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if fresh:
            fsync_directory(os.path.dirname(self._path), sync=self._sync)


def _is_at_rest(path: str) -> bool:
    """Return whether nothing is left in the log of a database, so that it is whole without it."""
    try:
        return os.stat(f"{path}-wal").st_size == 0
    except FileNotFoundError:
        return True


def _is_shared(path: str) -> bool:
    """Return whether some process has a database open, or had when it was killed: there is an index of its log."""
    try:
        return os.stat(f"{path}-shm").st_size >= _INDEX
    except FileNotFoundError:
        return False


def stored_digest(text: object) -> Digest:
    """Return the digest that a row holds.

    Raises:
        IntegrityError: it holds none.
    """
    if isinstance(text, str):
        with contextlib.suppress(InvalidReference):
            return Digest.parse(text)
    raise IntegrityError(f"the store's database is damaged: it has {text!r:.80} for a digest")


def _full(root: str) -> StoreFull:
    return StoreFull(
        f"no space left for the database of the store at {root}", root=root,
        hint="Free some on its file system, or remove a container or an image: layerfs rm, layerfs rmi.",
    )  # fmt: skip


def _state_of(path: str) -> tuple[int, ...]:
    """Return what changes when a database is written to."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, _is_at_rest(path), _is_shared(path)


def _explain(path: str, error: Exception) -> StoreError:
    root = os.path.dirname(path)
    text = str(error)
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(_NO_ROOM) and is_full(root):
        return _full(root)
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in text:
        return StoreError("the store is closed", root=root)
    with contextlib.suppress(OSError):
        if "readonly" in text and os.statvfs(root).f_flag & os.ST_RDONLY:
            return StoreReadOnly(f"cannot write the store at {root}: {os.strerror(errno.EROFS)}", root=root)
    if "unable to open" in text:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as found:
            if found.errno in (errno.EMFILE, errno.ENFILE):
                return StoreError(f"cannot open the database of the store at {root}: {found.strerror}", root=root)
    if "unable to open" in text and len(os.fsencode(path)) + len("-journal") > _MAX_PATH:
        return StoreError(
            f"the path of the store has {len(os.fsencode(root))} bytes; SQLite takes {_MAX_PATH - 20}", root=root,
            hint="Choose a place with a shorter path.",
        )  # fmt: skip
    if "readonly" in text or "unable to open" in text:
        return StoreReadOnly(f"cannot write the store at {root}: {text}", root=root, hint="Check its permissions.")
    return StoreError(f"store database at {root}: {text}", root=root)
