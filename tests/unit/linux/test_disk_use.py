"""How much of a disk is said to be taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.linux.disk_use import tree_disk

_NOBODY = 65534


def test_each_inode_counts_once(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/file").write_bytes(bytes(100_000))
    before = tree_disk(str(tmp_path))
    assert before >= 100_000
    os.link(tmp_path / "deep/er/file", tmp_path / "link")
    assert tree_disk(str(tmp_path)) == before
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 30)
    assert tree_disk(str(tmp_path)) - before < 100_000


@pytest.mark.needs_root
def test_what_may_not_be_looked_into_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open/file").write_bytes(bytes(50_000))
    for mode in (0o000, 0o444):
        (tmp_path / f"{mode:o}").mkdir()
        (tmp_path / f"{mode:o}/file").write_bytes(bytes(500_000))
        os.chmod(tmp_path / f"{mode:o}", mode)
    os.chmod(tmp_path, 0o755)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.fchdir(fd)  # nobody may not come here by the path
            os.setuid(_NOBODY)
            os.write(writing, b"%d" % tree_disk("."))
        finally:
            os._exit(0)
    os.close(writing)
    os.close(fd)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as answer:
        assert 50_000 <= int(answer.read()) < 500_000
