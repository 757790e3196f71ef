"""The life of a process that serves one FUSE mount: union, mount, readiness, loop, end.

The process mounts by itself where it may, and through fusermount3 where it may not. A signal detaches the mount and
lets those who still use it go on; a second one ends the process at once. When the process is killed its mount stays,
and answers ENOTCONN: an empty directory in its place could make a backup program delete the backup.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable

from layerfs.formats.whiteout import mark_prefix
from layerfs.linux.mountinfo import find_upper_mount
from layerfs.linux.probe import feature
from layerfs.mount.fuse.attach import attach, detach_mount, find_device, raise_read_ahead
from layerfs.mount.fuse.connection import answer_requests
from layerfs.mount.fuse.requests import Requests
from layerfs.mount.fuse.specification import FuseSpecification
from layerfs.store.layer import map_tree
from layerfs.union.image import ImageLower
from layerfs.union.lower import LowerTree
from layerfs.union.owner import OwnerMap
from layerfs.union.stack import StackLower
from layerfs.union.union import Union
from layerfs.union.upper import Upper

__all__ = ["serve"]

_log = logging.getLogger(__name__)


def serve(wanted: FuseSpecification, ready: Callable[[], None], *, notify_socket: str | None = None) -> None:
    """Mount and serve until unmounted.

    Args:
        wanted: what is to be mounted.
        ready: called once, when the mount works.
        notify_socket: where systemd waits to be told so, or None.

    Raises:
        OSError: a directory cannot be used, or the mount was refused.
        FormatError: the tree is damaged.

    Blocking: for the life of the mount.
    """
    _raise_limits()
    os.umask(0)
    privileged = feature("privilege").usable
    # The kernel leaves the umask to the union where it was told so: by this process itself, or by a mount flag.
    union = _union(wanted, raw_umask=not wanted.pyfuse3 or (privileged and wanted.acl))
    with contextlib.closing(union):
        device = attach(wanted, privileged=privileged)

        # Not by asking for the path itself: nobody would answer yet.
        place = find_device(wanted.target) or ""
        works = False

        def started() -> None:
            nonlocal works
            raise_read_ahead(place)
            # What was made so far lives as long as the mount; looking through it again and again finds nothing.
            gc.freeze()
            ready()
            works = True
            _notify(notify_socket, b"READY=1")

        def detach() -> bool:
            try:
                detach_mount(place, privileged=privileged)
            except OSError as error:
                _log.warning("cannot unmount %s: %s", wanted.target, error)
                # Under another mount it goes on; a second signal ends it.
                return error.errno == errno.EBUSY
            return True

        try:
            if wanted.pyfuse3:
                try:
                    from layerfs.mount.fuse.pyfuse3_loop import serve_through_pyfuse3  # noqa: PLC0415 - not needed otherwise
                except ImportError as error:
                    needed = "apt install libfuse3-dev pkg-config gcc; pip install 'layerfs[fuse]'"
                    raise ImportError(f"pyfuse3 cannot be used ({needed}): {error}") from error
                serve_through_pyfuse3(device, union, wanted, started, detach)
            else:
                _serve_device(device, union, wanted, started, detach)
        except BaseException:
            if not works:
                with contextlib.suppress(OSError):
                    detach_mount(place, privileged=privileged)
            raise
        finally:
            _notify(notify_socket, b"STOPPING=1")


def _serve_device(
    device: int, union: Union, wanted: FuseSpecification, started: Callable[[], None], detach: Callable[[], bool]
) -> None:
    """Serve from /dev/fuse; the first signal detaches the mount, the second ends the process."""
    detaching: list[threading.Thread] = []

    def stop(number: int, _frame: object) -> None:
        if detaching:
            raise SystemExit(128 + number)
        # In a thread: taking it away may make the kernel write, which this process has to serve.
        detaching.append(threading.Thread(target=end, args=(number,), daemon=True))
        detaching[0].start()

    def end(number: int) -> None:
        if not detach():
            os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        answer_requests(device, Requests(device, union, timeout=wanted.timeout, acl=wanted.acl), started)
    finally:
        os.close(device)


def _union(wanted: FuseSpecification, *, raw_umask: bool) -> Union:
    """Make the union."""
    userxattr = wanted.userxattr
    if userxattr is None:
        userxattr = not feature("trusted-xattrs").usable
    prefix = mark_prefix(userxattr=userxattr)
    with contextlib.ExitStack() as stack:
        upper = None
        override = None if wanted.override is None else os.fsencode(wanted.override)
        if wanted.upper is not None and wanted.work is not None:
            if find_upper_mount(wanted.upper) is not None:
                raise OSError(errno.EBUSY, "upper directory is mounted by the kernel", wanted.upper)
            upper = Upper(
                wanted.upper, wanted.work, prefix, noatime=wanted.noatime or wanted.read_only, override=override,
                foreign_marks=wanted.tree is None,
            )  # fmt: skip
            stack.callback(upper.close)
        lower: LowerTree
        if wanted.tree is not None:
            file = os.open(wanted.tree, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, file)
            lower = ImageLower(map_tree(file), wanted.devices, file)
        else:
            lower = StackLower(
                wanted.lowers, prefix, device=None if upper is None else upper.device,
                override=override if upper is None else upper.override,
                trapped=() if upper is None else upper.places,
            )  # fmt: skip
            stack.callback(lower.close)
            _refuse_waiting_for_oneself(wanted, lower, upper)
        owners = wanted.owners
        if owners is None and os.geteuid() != 0:
            # An ordinary user can only ever own files; root of the image is whoever mounts it.
            owners = OwnerMap(uid=os.geteuid(), gid=os.getegid())
        union = Union(
            lower, upper, owners=owners, raw_umask=raw_umask, static_nlink=wanted.static_nlink, prefix=prefix,
            sync=wanted.sync,
        )  # fmt: skip
        stack.pop_all()
    return union


def _refuse_waiting_for_oneself(wanted: FuseSpecification, lower: StackLower, upper: Upper | None) -> None:
    """Refuse a target inside of a directory that cannot be opened apart from it: reading it would never end.

    Raises:
        OSError: ELOOP.
    """
    target = os.path.realpath(wanted.target)
    used = [*(wanted.lowers if not lower.alone else ()), *([wanted.upper] if upper and not upper.alone else ())]
    for path in filter(None, used):
        real = os.path.realpath(path)
        if os.path.commonpath((real, target)) == real:
            raise OSError(errno.ELOOP, "the target lies in a directory that cannot be opened apart from it here", path)


def _raise_limits() -> None:
    """Take as many descriptors as may be had, and let no limit of whoever mounts bind those who write."""
    for limit, wanted in ((resource.RLIMIT_NOFILE, 0), (resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)):
        hard = resource.getrlimit(limit)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (hard, hard))
        if wanted:
            with contextlib.suppress(ValueError, OSError):  # root may exceed it
                resource.setrlimit(limit, (wanted, wanted))


def _notify(address: str | None, message: bytes) -> None:
    """Tell systemd."""
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect("\0" + address[1:] if address[0] == "@" else address)
        connection.send(message)
