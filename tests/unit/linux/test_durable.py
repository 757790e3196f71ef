"""Publishing files and documents: what is visible, what is refused, what is left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from layerfs.linux import durable
from layerfs.linux.durable import fsync_directory, publish, start_writeback, write_document


@pytest.mark.parametrize("sync", [True, False])
def test_publish_moves_a_file(tmp_path: Path, sync: bool) -> None:
    (tmp_path / "a").write_bytes(b"x")
    publish(tmp_path / "a", tmp_path / "b", sync=sync)
    assert (tmp_path / "b").read_bytes() == b"x"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_publish_refuses_to_replace(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        if kind == "file":
            (tmp_path / name).write_text(name)
        else:
            (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError) as caught:
        publish(tmp_path / "a", tmp_path / "b")
    assert str(tmp_path / "b") in str(caught.value)
    assert (tmp_path / "a").exists()


def test_publish_replaces_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    publish(tmp_path / "a", tmp_path / "b", replace=True)
    assert (tmp_path / "b").read_text() == "new"


def test_publish_without_rename_noreplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(errno.EINVAL, "no such flag")

    monkeypatch.setattr(durable, "rename", refuse)
    (tmp_path / "file").write_text("f")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "x").write_text("x")
    publish(tmp_path / "file", tmp_path / "file2")
    publish(tmp_path / "directory", tmp_path / "directory2")
    assert (tmp_path / "file2").read_text() == "f"
    assert (tmp_path / "directory2" / "x").read_text() == "x"
    (tmp_path / "file").write_text("g")
    with pytest.raises(FileExistsError):
        publish(tmp_path / "file", tmp_path / "file2")


def test_publish_syncs_files_before_the_rename_and_directories_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_rename = os.fsync, durable._rename_new

    def fsync(fd: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{fd}"))
        real_fsync(fd)

    def rename(source: str, destination: str) -> None:
        calls.append("rename")
        real_rename(source, destination)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(durable, "_rename_new", rename)
    (tmp_path / "in" / "layer").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "layer" / "tree").write_text("t")
    publish(tmp_path / "in" / "layer", tmp_path / "out" / "layer")
    inner = str(tmp_path / "in" / "layer")
    assert calls == [f"{inner}/tree", inner, "rename", str(tmp_path / "out"), str(tmp_path / "in")]


def test_write_document_replaces_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    write_document(path, b"one", mode=0o644)
    write_document(path, b"two", mode=0o640)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["d.json"]


def test_write_document_leaves_the_old_one_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.json"
    write_document(path, b"old")

    def fail(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_document(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["d.json"]


def test_fsync_directory(tmp_path: Path) -> None:
    fsync_directory(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync_directory(tmp_path / "none")
    fsync_directory(tmp_path / "none", sync=False)


def test_start_writeback_is_a_hint(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        start_writeback(file.fileno())
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="Illegal seek"):
            start_writeback(writing)
        start_writeback(writing, sync=False)
    finally:
        os.close(reading)
        os.close(writing)


def test_publishing_a_directory_is_one_step_without_rename_noreplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(errno.EINVAL, "no such flag")

    monkeypatch.setattr(durable, "rename", refuse)
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    with pytest.raises(FileExistsError):
        publish(tmp_path / "new", tmp_path / "old")
    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", refuse)
        with pytest.raises(OSError, match="no such flag"):
            publish(tmp_path / "new", tmp_path / "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
