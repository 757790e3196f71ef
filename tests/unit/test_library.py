"""The library as other programs use it: threads, processes, callbacks, errors that travel."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from layerfs import errors
from layerfs.api import AsyncStore, Store
from layerfs.errors import DigestMismatch, IntegrityError, InvalidReference, LayerfsError, NotFound, StoreError
from layerfs.linux.lock import FileLock
from layerfs.store import usage
from layerfs.store.snapshot import create_snapshot
from tests.image_builder import TestImage, layer, noise, oci, outer, pipe, write_layout


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", sync=False) as opened:
        yield opened


def named(name: str) -> TestImage:
    return TestImage([layer({name: name.encode()})], [f"{name}:1"])


def test_closing_waits_for_other_threads(tmp_path: Path) -> None:
    """In a process of its own, for what went wrong was a crash."""
    code = """
import sys, threading, time
from layerfs.api import Store
from layerfs.errors import StoreError
store = Store.open(sys.argv[1], sync=False)
def work():
    try:
        while True:
            store.images()
    except StoreError as error:
        assert "closed" in str(error), error
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
time.sleep(0.2)
store.close()
for thread in threads:
    thread.join()
"""
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "s"], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_number_never_means_another_image(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has read it uses it when the image is gone."""
    store.load(pipe(outer(oci(named("a")))))
    record = store._record("a:1")
    store.remove_image("a:1")
    store.load(pipe(outer(oci(named("b")))))
    assert store._record("b:1").id != record.id
    monkeypatch.setattr(store, "_record", lambda _image: record)
    with pytest.raises(NotFound):
        store.tag("a:1", "mine:1")


def test_an_image_that_goes_while_it_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.load(pipe(outer(oci(named("a")))))

    def slow(_record: object) -> None:
        monkeypatch.undo()
        store.remove_image("a:1")
        store.load(pipe(outer(oci(named("b")))))

    monkeypatch.setattr(store, "_refuse_used", slow)
    with pytest.raises(NotFound):
        store.remove_image("a:1")
    assert [image.names for image in store.images()] == [("docker.io/library/b:1",)]


def test_an_image_that_goes_while_it_is_looked_at(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.load(pipe(outer(oci(named("a")))))
    record = store._record("a:1")
    store.remove_image("a:1")
    monkeypatch.setattr(store, "_record", lambda _image: record)
    for method in (store.config, store.manifest, store.layers, store.history):
        with pytest.raises(NotFound):
            method("a:1")


def test_damage_that_shows_while_rows_are_read(store: Store) -> None:
    """SQLite reads a row when it is asked for, so not every error comes when a statement is run."""
    store.load(pipe(outer(oci(named("a")))))
    rows = store._handle.database.connection.execute(
        "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9)"
        " SELECT CASE WHEN i > 5 THEN json_extract('{', '$') ELSE i END FROM n"
    )
    assert rows.fetchone() == (0,)
    with pytest.raises(StoreError, match="malformed JSON"):
        rows.fetchall()
    with pytest.raises(StoreError, match="malformed JSON"):
        for _ in store._handle.database.connection.execute(
            "SELECT json_extract(value, '$') FROM json_each('[1, \"{\"]')"
        ):
            pass


def test_after_a_fork_both_go_on(store: Store) -> None:
    store.load(pipe(outer(oci(named("a")))))
    pid = os.fork()
    if not pid:
        try:
            store.tag("a:1", "child:1")
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the child must not run the rest of the tests
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    store.tag("a:1", "parent:1")
    assert len(store.resolve("child:1").names) == 3


def test_closing_in_a_child_leaves_the_parent_alone(store: Store) -> None:
    """Not even a thread of the parent's that was inside SQLite when it forked makes it wait."""
    store.load(pipe(outer(oci(named("a")))))
    connection: Any = store._handle.database.connection
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with connection.lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pid = os.fork()
    if not pid:
        signal.alarm(10)
        store.close()
        os._exit(0)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        done.set()
        thread.join()
    assert len(store.images()) == 1


def test_a_store_that_is_closed_in_a_transaction(store: Store) -> None:
    with pytest.raises(StoreError, match="closed"), store._handle.database.transaction() as connection:
        store.close()
        connection.execute("SELECT 1")


class _Deadline(TimeoutError):
    """An exception that is an OSError, as those of deadlines are."""


@pytest.mark.parametrize("where", ["check", "progress"])
def test_what_a_caller_raises_stays_that(store: Store, tmp_path: Path, where: str) -> None:
    class Progress:
        def update(self, *_: object) -> None:
            raise _Deadline("mine")

    def check() -> None:
        raise _Deadline("mine")

    image = TestImage([layer({"f": noise(100_000)})], ["a:1"])
    layout = write_layout(tmp_path / "layout", oci(image))
    given: dict[str, Any] = {"check": check} if where == "check" else {"progress": Progress()}
    with pytest.raises(_Deadline):
        store.load(layout, **given)
    store.load(layout, keep_blobs=True)
    for form, target in (("docker-archive", "a.tar"), ("oci-archive", "b.tar"), ("oci", "c")):
        with pytest.raises(_Deadline):
            store.save("a:1", tmp_path / target, form=form, check=check)
    with pytest.raises(_Deadline):
        store.extract("a:1", tmp_path / "d", check=check)

    def full() -> None:
        raise OSError(28, "mine")

    def pieces() -> Iterator[bytes]:
        full()
        yield b""

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(noise(3_000_000))
    with pytest.raises(OSError, match="mine"):
        store.import_tree(tmp_path / "tree", check=full)
    with pytest.raises(OSError, match="mine"):
        store.import_tree(pieces())
    with pytest.raises(OSError, match="mine"):
        store.squash("a:1", check=full)
    with pytest.raises(OSError, match="mine"):
        store.push("a:1", "127.0.0.1:1/a:1", check=full)
    with pytest.raises(OSError, match="mine"):
        store.analyze("a:1", check=full)
    create_snapshot(store._handle, store._record("a:1"), "box")
    with pytest.raises(OSError, match="mine"):
        store.apply("box", pieces())
    with pytest.raises(OSError, match="mine"):
        store.apply("box", [layer({"g": b"g"})], check=full)
    store.remove_container("box")
    with pytest.raises(OSError, match="mine"):
        store.verify_layer(store.layers("a:1")[0].diff_id, check=full)
    with FileLock(store._handle.layout.lock("ingest-gc")):  # so that the layer stays
        store.remove_image("a:1")
    with pytest.raises(OSError, match="mine"):
        store.gc(check=full)
    assert len(store.gc().layers) == 1


def test_errors_travel_from_process_to_process() -> None:
    made: list[LayerfsError] = [
        NotFound("image", "x", hint="Look."), DigestMismatch("layer", expected="a", actual="b", size=3),
        errors.Conflict("no", reason="exists"), StoreError("bad", root="/r"),
        errors.MountError("no", errno=16, backend="overlay"), errors.BackendUnavailable("no", reasons={"a": "b"}),
        errors.RateLimited("slow", retry_after=2.5), errors.FormatError("bad", where="@3"),
    ]  # fmt: skip
    for error in made:
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(again) is type(error)
            assert str(again) == str(error)
            assert vars(again) == vars(error)
            assert getattr(again, "errno", None) == getattr(error, "errno", None)


def test_names_that_are_no_text(store: Store) -> None:
    for call in (store.container, store.remove_container, lambda name: list(store.diff(name)), store.umount):
        with pytest.raises(LayerfsError):
            call("\udcff")
    store.load(pipe(outer(oci(named("a")))))
    with pytest.raises(LayerfsError, match="does not exist"):
        store.import_tree("/not/there")


def test_the_run_root_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Store.open(tmp_path / "store", runroot=tmp_path / "run/one", sync=False) as opened:
            store = opened
            store.load(pipe(outer(oci(named("a")))))
            store._own_target(store._record("a:1"), None)
    finally:
        os.umask(before)
    for directory in ("run/one", "run/one/targets"):
        assert stat.S_IMODE((tmp_path / directory).stat().st_mode) == 0o700


def test_what_the_library_needs_can_be_imported_from_one_place() -> None:
    import layerfs.api

    for name in layerfs.api.__all__:
        assert getattr(layerfs.api, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = layerfs.api.Nonsense
    assert layerfs.api.Access().jobs


def test_a_store_that_was_closed_knows_nothing_of_mounts(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", sync=False)
    assert store.mounts() == []
    store.close()
    for ask in (store.mounts, store.containers, store.images):
        with pytest.raises(StoreError, match="the store is closed"):
            ask()


def test_what_is_no_store_and_no_images(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidReference, match="must not be empty"):
        Store.open("")
    with pytest.raises(LayerfsError, match="no image to save"):
        store.save([], tmp_path / "none.tar")
    assert not (tmp_path / "none.tar").exists()
    (image,) = store.load(pipe(outer(oci(TestImage([layer({"a": b"a"})], ["a:1"])))))
    assert [saved.names for saved in store.save(image, tmp_path / "one.tar")] == [image.names]
    with pytest.raises(NotFound):
        store.umount(tmp_path)


def test_a_mount_that_has_no_place_leaves_no_container(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", runroot=tmp_path / "run", sync=False) as store:
        (image,) = store.load(pipe(outer(oci(TestImage([layer({"a": b"a"})], ["a:1"])))))
        (tmp_path / "run").mkdir(mode=0o700)
        (tmp_path / "run/targets").write_text("in the way")
        for name in ("box", None):
            with pytest.raises(LayerfsError):
                store.mount(image, name=name)
        assert not store.containers()


def test_a_container_that_goes_while_it_is_measured(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_path: str) -> int:
        raise FileNotFoundError

    store.load(pipe(outer(oci(named("a")))))
    create_snapshot(store._handle, store._record("a:1"), "box")
    monkeypatch.setattr(usage, "tree_disk", lambda path: gone(path) if "snapshots" in path else 0)
    assert store.usage().containers == {}


def test_parts_of_the_library_are_imported_by_threads_at_once() -> None:
    # Python 3.13.0 loses that race for a module of its own.
    code = """
import collections.abc, sys, threading
sys.setswitchinterval(1e-5)
names = ["layerfs.formats.tar", "layerfs.formats.tar.header", "layerfs.changeset.layer_tar", "layerfs.registry.save"]
failed = []
def work(name):
    try:
        __import__(name)
    except Exception as error:
        failed.append(error)
threads = [threading.Thread(target=work, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(str(failed) if failed else 0)
"""
    for _ in range(8):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_came_before_an_error_is_handed_out(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "oci", oci(TestImage([layer({"f": noise(3_000_000)})], ["a:1"])))

    async def run() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store:
            await store.load(layout)
            (found,) = await store.layers("a:1")
            path = tmp_path / "store/layers/sha256" / found.diff_id.hex / "layer.tar"
            os.truncate(path, 2_000_000)
            size = 0
            with pytest.raises(IntegrityError):
                async for piece in store.read_layer(found.diff_id):
                    size += len(piece)
            assert size >= 1 << 20

    trio.run(run)


def test_steps_are_good_until_the_next_one(tmp_path: Path) -> None:
    files = {f"{directory}/{name}": f"{directory}{name}".encode() for directory in "abc" for name in "xyz"}
    layout = write_layout(tmp_path / "oci", oci(named("a")))

    with Store.open(tmp_path / "store", sync=False) as store:
        store.load(layout)
        snapshot = create_snapshot(store._handle, store._record("a:1"), "box")
        for name, content in files.items():
            path = Path(store._handle.layout.snapshot(snapshot.id), "upper", name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    async def run() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store:
            found = {}
            async for step in store.steps(None, "box"):
                if step.new is not None and stat.S_ISREG(step.new.mode):
                    found[step.path.lstrip(b"/").decode()] = b"".join(step.new.pieces())
            assert found == files

    trio.run(run)


def test_an_interrupt_in_a_callback_comes_out_as_it_is(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "oci", oci(named("a")))

    def check() -> None:
        raise KeyboardInterrupt

    async def run() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store:
            with pytest.raises(KeyboardInterrupt):
                await store.load(layout, check=check)

    trio.run(run)


def test_closing_a_store_in_a_scope_that_was_cancelled(tmp_path: Path) -> None:
    async def run() -> None:
        store = await AsyncStore.open(tmp_path / "store", sync=False)
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.images()

    trio.run(run)


def test_a_save_is_cancelled_though_another_thread_reads(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "oci", oci(TestImage([layer({"f": noise(30_000_000)})], ["a:1"])))

    async def run() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store:
            await store.load(layout)
            with trio.move_on_after(0.05) as scope:
                await store.save("a:1", tmp_path / "out.tar", form="oci-archive", compression="gzip")
            assert scope.cancelled_caught
            assert not (tmp_path / "out.tar").exists()

    trio.run(run)
    assert not [thread for thread in threading.enumerate() if thread.name == "layerfs-read"]
