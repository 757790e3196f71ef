"""Files that appear when they are complete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.linux.staging import StagedFile


def test_a_file_appears_when_it_is_published(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("old")
    with StagedFile(str(tmp_path), "name") as staged:
        staged.file.write(b"new")
        assert (tmp_path / "name").read_text() == "old"
        staged.publish("name")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("name", "new")]


def test_what_is_not_published_goes(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), StagedFile(str(tmp_path), "name") as staged:
        staged.file.write(b"new")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_have_left_goes_and_nothing_else(tmp_path: Path) -> None:
    for name in (".name.0123456789ab", ".name.0123456789abc", ".other.0123456789ab", "name.0123456789ab"):
        (tmp_path / name).write_text("left")
    with StagedFile(str(tmp_path), "name") as first, StagedFile(str(tmp_path), "name") as second:
        assert len(list(tmp_path.iterdir())) == 3 + 2
        first.publish("one")
        second.publish("two")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".name.0123456789abc", ".other.0123456789ab", "name.0123456789ab", "one", "two",
    ]  # fmt: skip


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    with StagedFile(str(tmp_path), "ä" * 127) as staged:
        staged.publish("ä" * 127)
    assert os.listdir(tmp_path) == ["ä" * 127]


def test_a_directory_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads all")
    tmp_path.chmod(0o300)
    with StagedFile(str(tmp_path), "name") as staged:
        staged.publish("name")
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == ["name"]
