"""One FUSE mount, served from /dev/fuse: a request is read, answered, and its reply written, one after the other.

What makes it fast is what is never asked. The kernel is told that opening files and directories needs no request
(ENOSYS, once), so it opens and closes them by itself, keeps listings and pages, and names files by inode number alone;
names, missing names, attributes and link targets are its own for as long as the timeout says. What is left costs one
read, one call of the union and one write, without an event loop in between.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import struct
from collections.abc import Callable

from layerfs.mount.fuse.protocol import OUT_HEADER, Operation
from layerfs.mount.fuse.requests import Reply, Requests

__all__ = ["answer_requests"]

_log = logging.getLogger(__name__)

#: Errors of reading a request that only mean that it was taken back.
_AGAIN = frozenset({errno.ENOENT, errno.EINTR})

#: What an IN_HEADER begins with: length, operation, unique, inode.
_begin = struct.Struct("=IIQQ")


def answer_requests(device: int, requests: Requests, ready: Callable[[], None]) -> None:
    """Answer requests until the file system is unmounted.

    Args:
        device: descriptor of /dev/fuse that was given to the mount; the caller closes it.
        requests: what answers them.
        ready: called when the kernel's first request is answered; the mount works from then on.

    No error of a request ends it: an OSError becomes its errno, everything else is logged and becomes EIO.
    """
    request, unpack = requests.buffer, _begin.unpack_from
    # The shortest way from Python into a buffer.
    read = io.FileIO(device, closefd=False).readinto
    handler_of, write = requests.handlers.get, os.write
    init, destroy = int(Operation.INIT), int(Operation.DESTROY)
    while True:
        try:
            if read(request) is None:  # nothing there, of a descriptor that does not block
                continue
        except OSError as error:
            if error.errno in _AGAIN:
                continue
            if error.errno == errno.ENODEV:
                return
            raise
        length, operation, unique, ino = unpack(request)
        handler = handler_of(operation)
        if handler is None:
            if operation == destroy:
                return
            reply: Reply = OUT_HEADER.pack(OUT_HEADER.size, -errno.ENOSYS, unique)
        else:
            try:
                reply = handler(unique, ino, length)
            except Exception as error:  # noqa: BLE001 - no request may end the mount
                reply = requests.failed(operation, ino, unique, error)
        if reply is not None:
            try:
                write(device, reply)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno != errno.ENOENT:  # whoever asked was killed
                    _log.error("reply to request %d of inode %d: %s", operation, ino, error)
            if operation == init:
                _check(reply)
                ready()


def _check(reply: bytes | memoryview) -> None:
    """Refuse a kernel that was refused."""
    (number,) = struct.unpack_from("=4xi", reply)
    if number:
        raise OSError(-number, "this kernel speaks another version of FUSE")
