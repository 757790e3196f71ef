"""Directories for the meantime: what is swept, and what is somebody else's."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from layerfs.linux import scratch
from layerfs.linux.scratch import scratch_directory

STEM, MARKER = "work", ".made-by-work"


def leave(path: Path, *, marked: bool = True) -> Path:
    """Leave what a killed process leaves."""
    (path / "store").mkdir(parents=True)
    (path / "store/file").write_text("x")
    if marked:
        (path / MARKER).touch()
    return path


def test_it_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with scratch_directory(str(tmp_path), STEM) as made:
        assert Path(made).parent == tmp_path
        assert oct(os.stat(made).st_mode & 0o777) == "0o700"
        leave(Path(made), marked=False)
        os.symlink("/", f"{made}/link")
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), scratch_directory(str(tmp_path), STEM):
        raise KeyError
    assert not list(tmp_path.iterdir())
    assert os.listdir("/")


def test_only_what_is_marked_old_and_not_locked_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, empty = leave(tmp_path / ".work-deaddead"), tmp_path / ".work-emptyone"
    empty.mkdir()
    used = leave(tmp_path / ".work-usedused")
    others = [leave(tmp_path / ".work-precious", marked=False), leave(tmp_path / ".work-other-name")]
    (tmp_path / ".work-afile_12").touch()
    (tmp_path / ".work-alink_12").symlink_to(others[0])
    fd = os.open(used / MARKER, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    everything = set(tmp_path.iterdir())
    with scratch_directory(str(tmp_path), STEM):
        assert everything < set(tmp_path.iterdir()), "they may be about to be marked and locked"
    monkeypatch.setattr(scratch, "_FRESH", -1)
    with scratch_directory(str(tmp_path), STEM) as first, scratch_directory(str(tmp_path), STEM):
        assert os.path.isdir(first)
    os.close(fd)
    assert set(tmp_path.iterdir()) == everything - {dead, empty}
    assert others[0].joinpath("store/file").exists()


def test_a_removal_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_FRESH", -1)
    rmtree = shutil.rmtree

    def fails(path: str) -> None:
        if path.endswith("d"):
            raise OSError(errno.EIO, path)
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", fails)
    with scratch_directory(str(tmp_path), STEM) as made:
        for name in "abcdefgh":
            (Path(made) / name).mkdir()
    assert sorted(os.listdir(made)) == [MARKER, "d"]
    with scratch_directory(str(tmp_path), STEM):
        assert (Path(made) / MARKER).exists()
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with scratch_directory(str(tmp_path), STEM):
        assert not os.path.exists(made)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    left = leave(tmp_path / ".work-deaddead")
    monkeypatch.setattr(scratch, "_FRESH", -1)
    monkeypatch.setattr(fcntl, "flock", flock)
    with scratch_directory(str(tmp_path), STEM) as made:
        assert os.path.isdir(made)
        assert left.exists(), "nobody can tell whether it is in use"
