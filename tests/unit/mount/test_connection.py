"""Requests as kernels send them that this machine's does not; a pair of sockets stands for /dev/fuse."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from layerfs.linux.inode_flags import EXTENDED, FLAGS, FlagForm
from layerfs.mount.fuse.connection import answer_requests
from layerfs.mount.fuse.protocol import IN_HEADER, OUT_HEADER, Operation
from layerfs.mount.fuse.requests import Requests


class _Flagged:
    """A union of inodes with flags."""

    def __init__(self) -> None:
        self.set: list[tuple[int, FlagForm, bytes]] = []

    def flags(self, ino: int, form: FlagForm) -> bytes:
        return ino.to_bytes(form.size, "little")

    def set_flags(self, ino: int, form: FlagForm, value: bytes) -> None:
        self.set.append((ino, form, value))


def _ioctl(union: _Flagged, command: int, argument: int = 0, data: bytes = b"") -> tuple[int, bytes]:
    """Return the error and the body of the answer."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        body = struct.pack("=QIIQII", 0, 0, command, argument, len(data), 0) + data
        length = IN_HEADER.size + len(body)
        mine.send(IN_HEADER.pack(length, Operation.IOCTL, 7, 5, 1000, 1000, 1, 0, 0) + body)
        mine.send(IN_HEADER.pack(IN_HEADER.size, Operation.DESTROY, 8, 0, 0, 0, 0, 0, 0))
        requests = Requests(theirs.fileno(), union, timeout=1.0, acl=False)  # type: ignore[arg-type]
        answer_requests(theirs.fileno(), requests, lambda: None)
        answer = mine.recv(4096)
    length, error, unique = OUT_HEADER.unpack_from(answer)
    assert (length, unique) == (len(answer), 7)
    return -error, answer[OUT_HEADER.size :]


@pytest.mark.parametrize("form", [FLAGS, EXTENDED])
def test_the_kernel_itself_reads_and_sets_flags(form: FlagForm) -> None:
    union = _Flagged()
    assert _ioctl(union, form.get) == (0, bytes(16) + (5).to_bytes(form.size, "little"))
    assert _ioctl(union, form.set, 0, b"f" * form.size) == (0, bytes(16))
    assert union.set == [(5, form, b"f" * form.size)]


@pytest.mark.parametrize("form", [FLAGS, EXTENDED])
def test_a_program_does_not_past_the_kernels_checks(form: FlagForm) -> None:
    """Before Linux 5.13 whoever could open a file would have made it immutable with the rights of this process."""
    union = _Flagged()
    assert _ioctl(union, form.set, 0x7FFF0000, b"f" * form.size) == (errno.ENOTTY, b"")
    assert _ioctl(union, form.get, 0x7FFF0000) == (errno.ENOTTY, b"")
    assert not union.set


def test_other_commands_and_sizes_are_not_served() -> None:
    union = _Flagged()
    assert _ioctl(union, 0x5401) == (errno.ENOTTY, b"")
    assert _ioctl(union, FLAGS.set, 0, b"f") == (errno.ENOTTY, b"")
    assert not union.set
