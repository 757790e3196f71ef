"""Opening a store: new, old, damaged, foreign, and by several at once."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import InvalidReference, LayerfsError, StoreError, StoreReadOnly, StoreTooNew
from layerfs.formats.digest import Digest
from layerfs.linux.lock import FileLock
from layerfs.store.database import Database
from tests.image_builder import TestImage, layer, noise, oci, outer, pipe
from tests.store_audit import assert_whole


def test_a_new_store_is_its_owners_alone(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "store"
    with Store.open(root) as store:
        assert store.images() == []
        assert_whole(store)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert json.loads((root / "store.json").read_text())["version"] == 1
    root.chmod(0o755)
    Store.open(root).close()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "marker",
    [
        {"version": 2},
        {"version": 1, "incompatible": ["packs"]},
        {"version": 2**60},
        {"version": 1, "incompatible": "x"},
    ],
)
def test_a_newer_store_is_refused(tmp_path: Path, marker: dict[str, object]) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "store.json").write_text(json.dumps(marker))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(StoreTooNew) as caught:
        Store.open(tmp_path)
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_compatible_feature_is_no_obstacle(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "store.json").write_text('{"version": 1, "compatible": ["hints"], "incompatible": []}')
    Store.open(tmp_path).close()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"version": "1"}', b'{"version": true}'])
def test_a_damaged_marker_is_refused(tmp_path: Path, raw: bytes) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "store.json").write_bytes(raw)
    with pytest.raises(StoreError):
        Store.open(tmp_path)


def test_a_database_without_marker_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "store.json").unlink()
    with pytest.raises(StoreError, match=r"no store\.json"):
        Store.open(tmp_path)


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreTooNew):
        Store.open(tmp_path)


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "store.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError):
        Store.open(tmp_path)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/dev/null"), Path("/proc/layerfs")):
        with pytest.raises(StoreError):
            Store.open(root)


def test_the_runroot_is_made_when_needed(tmp_path: Path) -> None:
    runroot = tmp_path / "run" / "layerfs"
    with Store.open(tmp_path / "store", runroot=runroot, sync=False) as store:
        assert store.info().runroot == str(runroot)
        assert store.mounts() == []
        assert store.containers() == []
        store.load(pipe(outer(oci(TestImage([layer({"a": b"a"})], ["t:1"])))))
        store.remove_image("t:1")


def test_several_processes_make_one_store(tmp_path: Path) -> None:
    program = "import sys; from layerfs.api import Store; Store.open(sys.argv[1], sync=False).images()"
    for number in range(3):
        root = tmp_path / str(number)
        running = [
            subprocess.Popen([sys.executable, "-c", program, root], stderr=subprocess.PIPE, text=True) for _ in range(5)
        ]
        for process in running:
            assert process.communicate()[1] == ""
            assert process.returncode == 0


def test_threads_make_one_store(tmp_path: Path) -> None:
    failures: list[LayerfsError] = []
    for number in range(10):
        barrier = threading.Barrier(6)

        def work(root: Path = tmp_path / str(number), barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                Store.open(root, sync=False).close()
            except LayerfsError as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "store.db"), sync=False)
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        connection.execute("INSERT INTO image (digest, manifest, chain_id, loaded) VALUES ('a', 'b', 'c', 1)")
        _ = 1 / 0
    assert not database.connection.execute("SELECT * FROM image").fetchall()
    database.connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreError, match="full"), database.transaction() as connection:
        for number in range(1000):
            connection.execute(
                "INSERT INTO image (digest, manifest, chain_id, loaded) VALUES (?, 'b', 'c', 1)", (f"{number:0500}",)
            )
    assert not database.connection.execute("SELECT * FROM image").fetchall()
    database.close()


def test_a_damaged_database_is_a_store_error(tmp_path: Path) -> None:
    with Store.open(tmp_path, sync=False) as store:
        for number in range(20):
            store.load(pipe(outer(oci(TestImage([layer({"f": noise(5000, number)})], [f"t{number}:1"])))))
    path = tmp_path / "store.db"
    raw = bytearray(path.read_bytes())
    raw[4096:] = os.urandom(len(raw) - 4096)
    path.write_bytes(raw)
    with pytest.raises(StoreError), Store.open(tmp_path) as store:
        store.images()


def test_a_foreign_directory_is_neither_locked_nor_filled(tmp_path: Path) -> None:
    foreign = tmp_path / "srv"
    foreign.mkdir()
    foreign.chmod(0o1777)
    (foreign / "x").touch()
    with pytest.raises(StoreError, match="not empty"):
        Store.open(foreign)
    assert foreign.stat().st_mode & 0o7777 == 0o1777
    assert os.listdir(foreign) == ["x"]


def test_a_store_that_lost_its_database_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Store.open(root).close()
    (root / "layers" / "sha256" / ("0" * 64)).mkdir()
    for name in os.listdir(root):
        if name.startswith("store.db"):
            (root / name).unlink()
    with pytest.raises(StoreError, match=r"no store\.db"):
        Store.open(root)
    assert os.listdir(root / "layers" / "sha256")


@pytest.mark.parametrize("what", ["layers/sha256", "snapshots"])
def test_an_empty_database_is_not_taken_for_a_new_one(tmp_path: Path, what: str) -> None:
    root = tmp_path / "store"
    Store.open(root).close()
    for name in ("store.db-wal", "store.db-shm"):
        (root / name).unlink(missing_ok=True)
    (root / "store.db").write_bytes(b"")
    Store.open(root).close()  # nothing was lost
    (root / what / ("0" * 64)).mkdir()
    for name in ("store.db-wal", "store.db-shm"):
        (root / name).unlink(missing_ok=True)
    (root / "store.db").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"store\.db .* is empty"):
            Store.open(root)
    assert os.listdir(root / what)


def test_an_unreadable_document_is_named_and_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = outer(oci(TestImage([layer({"a": noise(5000)})], ["a:1"])))
    with Store.open(tmp_path, sync=False) as store:
        (image,) = store.load(pipe(archive))
        path = Path(store._handle.layout.blob(image.id))
        path.unlink()
        path.mkdir()  # reading it fails, as from a bad block
        (listed,) = store.images()
        assert str(path) in (listed.damage or "")
        path.rmdir()
        store.load(pipe(archive))
        assert store.images()[0].damage is None


def test_platforms_may_be_words(tmp_path: Path) -> None:
    archive = outer(oci(TestImage([layer({"a": noise(5000)})], ["a:1"])))
    with Store.open(tmp_path, sync=False) as store:
        (image,) = store.load(pipe(archive))
        assert store.load(pipe(archive), platform=str(image.platform)) == [image]
        with pytest.raises(InvalidReference, match="not a platform"):
            store.load(pipe(archive), platform="a/b/c/d")


def test_a_closed_store_stays_closed(tmp_path: Path) -> None:
    store = Store.open(tmp_path, sync=False)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.images()


def test_a_file_is_read_within_its_bounds(tmp_path: Path) -> None:
    archive = outer(oci(TestImage([layer({"a": noise(5000, "secret"), "b": b"public"})], ["a:1"])))
    with Store.open(tmp_path, sync=False) as store:
        (image,) = store.load(pipe(archive))
        with store.tree(image) as tree:
            nid = tree.resolve(b"/b")
            assert tree.read(nid, 2, 3) == b"bli"
            for offset, size in ((-5, 10), (0, -1), (-512, None)):
                with pytest.raises(OSError, match="Invalid argument"):
                    tree.read(nid, offset, size)
        assert store.remove_image(image).deleted == (image.id,)


def test_a_tree_that_nobody_closes_keeps_no_descriptor(tmp_path: Path) -> None:
    archive = outer(oci(TestImage([layer({"a": noise(5000)})], ["a:1"])))
    with Store.open(tmp_path, sync=False) as store:
        (image,) = store.load(pipe(archive))
        before = len(os.listdir("/proc/self/fd"))
        tree = store.tree(image)
        assert tree.read(tree.resolve(b"/a"))
        assert len(os.listdir("/proc/self/fd")) > before
        del tree
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_store_of_somebody_else_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path / "store", sync=False).close()
    if os.geteuid():
        pytest.skip("giving a directory away needs root")
    os.chown(tmp_path / "store", 65534, 65534)
    with pytest.raises(StoreReadOnly, match="belongs to user 65534"):
        Store.open(tmp_path / "store")


def test_waiting_for_another_load_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("layerfs.store.ingest._SILENCE", 0.1)
    image = TestImage([layer({"a": noise(5000)})], ["a:1"])
    with Store.open(tmp_path, sync=False) as store:
        lock = FileLock(store._handle.layout.layer_lock(Digest.parse(image.diff_ids[0])))
        lock.acquire()
        timer = threading.Timer(0.5, lock.release)
        timer.start()
        store.load(pipe(outer(oci(image))))
        timer.join()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "waiting for it" in caplog.text
