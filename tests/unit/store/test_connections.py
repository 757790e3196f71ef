"""The connections of a database: one for each thread, closed when that has ended or the store is closed."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from layerfs.errors import StoreError
from layerfs.store.database import Database


def test_a_thread_that_ended_has_no_connection(tmp_path: Path) -> None:
    known = Database(str(tmp_path / "store.db"), sync=False)
    found: list[sqlite3.Connection] = []

    def ask() -> None:
        found.append(known.connection)
        assert known.connection is found[-1]

    for _ in range(3):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert len(set(map(id, found))) == 3
    for connection in found[:2]:
        with pytest.raises(StoreError, match="closed"):
            connection.execute("SELECT 1")
    found[2].execute("SELECT 1")
    assert known.connection.execute("SELECT 1").fetchone() == (1,)
    known.close()
    with pytest.raises(StoreError, match="closed"):
        found[2].execute("SELECT 1")


def test_closed_while_a_thread_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Database(str(tmp_path / "store.db"), sync=False)
    connect = sqlite3.connect
    made: list[sqlite3.Connection] = []

    def slow(*arguments: Any, **options: Any) -> sqlite3.Connection:
        made.append(connect(*arguments, **options))
        known.close()
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", slow)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            known.connection.execute("SELECT 1")
        except StoreError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "the store is closed" in str(failures[0])
    with pytest.raises(StoreError, match="closed"):
        made[0].execute("SELECT 1")
