"""Holes: punching, seeing and keeping them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from layerfs.linux.sparse import copy_data, copy_range, data_segments, punch_hole

MIB = 1 << 20


def _file(path: Path, size: int = MIB) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, os.urandom(size))
    os.fsync(fd)
    return fd


def test_punch_hole_frees_blocks_and_keeps_the_size(tmp_path: Path) -> None:
    fd = _file(tmp_path / "f")
    before = os.fstat(fd).st_blocks * 512
    punch_hole(fd, 4096, MIB - 8192)
    assert os.fstat(fd).st_blocks * 512 <= before - (MIB - 8192) + 4096
    assert os.fstat(fd).st_size == MIB
    assert os.pread(fd, MIB - 8192, 4096) == bytes(MIB - 8192)
    assert list(data_segments(fd)) == [(0, 4096), (MIB - 4096, MIB)]
    punch_hole(fd, 0, 0)
    os.close(fd)


def test_punch_hole_of_a_partial_block_zeroes_it(tmp_path: Path) -> None:
    fd = _file(tmp_path / "f", 8192)
    kept = os.pread(fd, 100, 0)
    punch_hole(fd, 100, 512)
    assert os.pread(fd, 612, 0) == kept + bytes(512)
    os.close(fd)


def test_data_segments_are_clipped(tmp_path: Path) -> None:
    fd = _file(tmp_path / "f")
    punch_hole(fd, 65536, 65536)
    assert list(data_segments(fd, 60000, 140000)) == [(60000, 65536), (131072, 140000)]
    assert list(data_segments(fd, 65536, 131072)) == []
    assert list(data_segments(fd, 2 * MIB)) == []
    os.ftruncate(fd, 2 * MIB)
    assert list(data_segments(fd, MIB)) == []
    os.close(fd)


def test_copy_range_copies_exactly(tmp_path: Path) -> None:
    source, destination = _file(tmp_path / "a"), _file(tmp_path / "b")
    old = os.pread(destination, MIB, 0)
    copy_range(source, 777, destination, 4096 + 5, 300_000)
    new = os.pread(destination, MIB, 0)
    assert new[4101:304101] == os.pread(source, 300_000, 777)
    assert new[:4101] == old[:4101]
    assert new[304101:] == old[304101:]
    os.close(source)
    os.close(destination)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS])
def test_copy_range_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_arguments: object, **_options: object) -> int:
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    source, destination = _file(tmp_path / "a", 3 * MIB + 17), _file(tmp_path / "b", 0)
    copy_range(source, 5, destination, 0, 3 * MIB + 12)
    assert os.pread(destination, 4 * MIB, 0) == os.pread(source, 4 * MIB, 5)
    os.close(source)
    os.close(destination)


def test_copy_range_past_the_end_is_an_error(tmp_path: Path) -> None:
    source, destination = _file(tmp_path / "a", 100), _file(tmp_path / "b", 0)
    with pytest.raises(OSError, match="source ends at byte 100"):
        copy_range(source, 50, destination, 0, 51)
    os.close(source)
    os.close(destination)


def test_copy_range_polls_check(tmp_path: Path) -> None:
    source, destination = _file(tmp_path / "a"), _file(tmp_path / "b", 0)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        copy_range(source, 0, destination, 0, MIB, check=stop)
    assert os.fstat(destination).st_size == 0
    os.close(source)
    os.close(destination)


def test_copy_data_keeps_holes(tmp_path: Path) -> None:
    source, destination = _file(tmp_path / "a"), _file(tmp_path / "b", 0)
    punch_hole(source, 65536, MIB - 131072)
    os.ftruncate(destination, MIB - 10)
    copy_data(source, 10, destination, 0, MIB - 10)
    assert os.pread(destination, MIB, 0) == os.pread(source, MIB, 10)
    assert os.fstat(destination).st_blocks * 512 < 200_000
    os.close(source)
    os.close(destination)
