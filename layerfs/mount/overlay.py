"""The kernel backend: an EROFS image or unpacked directories below, overlayfs with an upper directory on top.

What it is: everything between "these files and directories" and "it is mounted at the target". It is not a policy about
which image, which container or where records lie; it keeps no state but the kernel's.

The way: every file system is made detached, by descriptor, and only the finished one is attached, in one system call.
So a mount leaves nothing visible but its target, and a failure half-way leaves nothing at all. Kernels that take a
lower only from an attached mount (before Linux 6.15) get the same result through a private mount namespace; kernels
before 6.7 stack directories through mount(2) inside it. No loop devices.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence

from layerfs.errors import BackendUnavailable, Conflict, MountError
from layerfs.formats.whiteout import mark_prefix
from layerfs.linux.mount_api import move_mount
from layerfs.linux.mountinfo import find_upper_mount, mount_id, read_mounts
from layerfs.linux.probe import feature, privilege_hint
from layerfs.mount.detached import DetachedOverlay, ErofsImage, open_directories
from layerfs.mount.option import MountOptions

__all__ = ["MAX_LOWERS", "mount_directories", "mount_merged", "refuse_file_system"]

StrPath = str | os.PathLike[str]

#: Lower directories that one overlayfs takes (OVL_MAX_STACK of fs/overlayfs/params.h).
MAX_LOWERS = 500

_BACKEND = "overlay"
#: Both ways of it: what is wrong with an upper directory is wrong with it for either.
_BOTH = (_BACKEND, f"{_BACKEND} (lower=dirs)")

#: Seconds that mounting may wait for another mount of the same upper directory that is being made.
_PATIENCE = 5.0
#: How the kernel says that it does not write to a directory.
_REFUSED = frozenset({errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP})
#: File systems without what an upper directory needs: whiteouts, trusted xattrs or temporary files.
_NEVER_UPPER = frozenset(
    {"overlay", "nfs", "nfs4", "cifs", "smb3", "9p", "vfat", "exfat", "fuse", "fuseblk", "proc", "sysfs"}
)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_DEFAULT = MountOptions()


def mount_merged(
    tree: StrPath,
    devices: Sequence[StrPath],
    target: StrPath,
    *,
    upper: StrPath | None = None,
    work: StrPath | None = None,
    read_only: bool = False,
    options: MountOptions = _DEFAULT,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Mount an EROFS image, alone or below a writable directory.

    Args:
        tree: the image, a regular file.
        devices: the files of its device table, in the order of the slots.
        target: an existing directory, which the mount covers.
        upper: directory that takes the changes; None mounts the image itself, which needs ``read_only``.
        work: directory for overlayfs's own use, on the file system of ``upper``; given exactly when ``upper`` is.
        read_only: whether nothing may be written through the mount.
        options: see :class:`MountOptions`.
        check: looks at the files while the kernel opens them, perhaps in another thread; what it raises is raised here,
            and nothing is mounted.

    Returns:
        The kernel's number of the mount, as :func:`layerfs.linux.mountinfo.read_mounts` shows it.

    Raises:
        Conflict: ``mounted``, if the upper directory is in use by another mount that this process can see.
        BackendUnavailable: if this kernel or this user cannot mount that way; ``reasons`` says why.
        MountError: if a step fails; the message says which, and what the kernel said.
        ValueError: for ``upper`` without ``work``, or neither without ``read_only``.

    Blocking: a few reads of the image; waits for another mount of the same upper directory that is being made.
    Atomicity: the target is covered in one step at the end; a failure or a killed process leaves no mount.
    """
    _check_upper(upper, work, read_only=read_only)
    image = ErofsImage(os.path.abspath(tree), tuple(map(_absolute, devices)), check)
    attributes = options.attributes(read_only=read_only)
    if upper is None or work is None:
        with _target(target) as place:
            return _attach(functools.partial(image.mount, attributes), place, target, f"mount {image.path}")

    overlay = DetachedOverlay(
        image.as_lower, os.path.abspath(upper), os.path.abspath(work), options, attributes, os.path.abspath(target)
    )
    with _target(target) as place, _exclusive_upper(upper):
        return _attach(overlay.mount, place, target, f"mount {image.path} below {upper}", overlay)


def mount_directories(
    lowers: Sequence[StrPath],
    target: StrPath,
    *,
    upper: StrPath | None = None,
    work: StrPath | None = None,
    read_only: bool = False,
    options: MountOptions = _DEFAULT,
    prepare_root: Callable[[int], None] | None = None,
) -> int:
    """Mount a stack of directories in overlayfs form, alone or below a writable directory.

    Args:
        lowers: the directories, top first; at most 500, and one less without ``upper``. One that comes twice counts
            once, and nothing below one whose root is opaque counts.
        target: an existing directory, which the mount covers.
        upper: directory that takes the changes; None needs ``read_only``.
        work: directory for overlayfs's own use, on the file system of ``upper``; given exactly when ``upper`` is.
        read_only: whether nothing may be written through the mount.
        options: see :class:`MountOptions`.
        prepare_root: without ``upper``, given a descriptor of the directory that becomes the root of the mount, sets
            its attributes; None copies mode, owner and times of the first lower. (With ``upper``, the root is the
            upper directory itself.)

    Returns:
        The kernel's number of the mount.

    Raises:
        Conflict: as :func:`mount_merged`.
        BackendUnavailable: as :func:`mount_merged`.
        MountError: as :func:`mount_merged`; E2BIG for more than 500 lowers.
        ValueError: as :func:`mount_merged`, or for no lowers.

    Blocking: as :func:`mount_merged`.
    Atomicity: as :func:`mount_merged`.
    """
    _check_upper(upper, work, read_only=read_only)
    if not lowers:
        raise ValueError("a stack needs at least one directory")
    paths = _visible(lowers, userxattr=options.userxattr)
    limit = MAX_LOWERS if upper is not None else MAX_LOWERS - 1
    if len(paths) > limit:
        raise MountError(
            f"{len(paths)} layers are more than the {limit} that overlayfs stacks",
            errno=errno.E2BIG,
            backend=_BACKEND,
            hint="mount the merged image instead (--lower erofs)",
        )

    overlay = DetachedOverlay(
        lambda place: open_directories(paths, place, root_on_top=upper is None, prepare_root=prepare_root),
        None if upper is None else os.path.abspath(upper),
        None if work is None else os.path.abspath(work),
        options,
        options.attributes(read_only=read_only),
        os.path.abspath(target),
    )
    with _target(target) as place, _exclusive_upper(upper):
        return _attach(overlay.mount, place, target, f"stack {len(paths)} directories from {paths[0]}", overlay)


def _visible(lowers: Sequence[StrPath], *, userxattr: bool) -> list[str]:
    """Return the directories that can be seen in the stack, top first."""
    mark = mark_prefix(userxattr=userxattr) + b"opaque"
    paths: list[str] = []
    # overlayfs refuses one directory twice (ELOOP), and images have one layer twice. The lower one of them adds
    # nothing: whatever it has or hides, the upper one has or hides again.
    for path in dict.fromkeys(os.path.abspath(lower) for lower in lowers):
        paths.append(path)
        # The kernel merges the roots of all layers without looking for the mark there (fs/overlayfs/super.c).
        with contextlib.suppress(OSError):
            if os.getxattr(path, mark) == b"y":
                break
    return paths


def _check_upper(upper: StrPath | None, work: StrPath | None, *, read_only: bool) -> None:
    """Refuse combinations that make no sense."""
    if (upper is None) != (work is None):
        raise ValueError("upper and work belong together")
    if upper is None and not read_only:
        raise ValueError("a mount without an upper directory is read-only")


def _absolute(path: StrPath) -> str:
    """Return an absolute path; most are already, and 499 calls of abspath would be a tenth of a mount."""
    text = os.fspath(path)
    return text if text.startswith("/") else os.path.abspath(text)


@contextlib.contextmanager
def _target(target: StrPath) -> Iterator[int]:
    """Hold the directory that is to be covered."""
    try:
        fd = os.open(target, _DIRECTORY)
    except OSError as err:
        text = {
            errno.ENOENT: "does not exist",
            errno.ENOTDIR: "is not a directory",
        }.get(err.errno or 0, f"cannot be opened: {err.strerror}")
        raise MountError(
            f"target {os.fspath(target)} {text}",
            errno=err.errno,
            backend=_BACKEND,
            hint="give an existing directory as target",
        ) from err
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _exclusive_upper(upper: StrPath | None) -> Iterator[None]:
    """Refuse an upper directory that is mounted, and keep others from mounting it meanwhile.

    The lock is on the directory itself, so it needs no file of its own. It ends with the call, because a mount
    outlives its process: from then on the mount table tells.
    """
    if upper is None:
        yield
        return
    try:
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise MountError(
            f"upper directory {os.fspath(upper)} cannot be opened: {err.strerror}", errno=err.errno, backend=_BACKEND
        ) from err
    try:
        try:
            _wait_for_lock(fd)
        except BlockingIOError as err:
            raise Conflict(
                f"upper directory {os.fspath(upper)} is in use by another mount", reason="mounted",
                hint="unmount what serves it first",
            ) from err  # fmt: skip
        holder = find_upper_mount(upper)
        if holder is not None:
            raise Conflict(
                f"upper directory {os.fspath(upper)} is already mounted at {holder.target}",
                reason="mounted",
                hint=f"unmount {holder.target} first",
            )
        yield
    finally:
        os.close(fd)


def _wait_for_lock(fd: int) -> None:
    """Take the lock of an upper directory: another mount in the making ends soon, one through FUSE holds it for life.

    Raises:
        BlockingIOError: it was not free for long enough.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _attach(
    make: Callable[[], int], place: int, target: StrPath, what: str, overlay: DetachedOverlay | None = None
) -> int:
    """Make a detached mount, put it in place and return its number."""
    try:
        mount = make()
    except OSError as err:
        reason = None
        if overlay is not None and overlay.upper is not None and overlay.work is not None:
            reason = _refused_upper(overlay.upper, overlay.work, err)
        if reason is not None:
            raise MountError(f"cannot {what}: {reason}", errno=err.errno, backend=_BACKEND) from err
        if overlay is not None and overlay.upper is not None and err.errno in _REFUSED:
            refuse_file_system(overlay.upper, what)
        if overlay is not None and overlay.upper is not None and err.errno in _REFUSED and err.filename is None:
            text = err.strerror or str(err)
            raise BackendUnavailable(f"cannot {what}: {text}", reasons=dict.fromkeys(_BOTH, text)) from err
        raise _failure(f"cannot {what}", err) from err
    try:
        number = mount_id(mount)
        move_mount(mount, place)
    except OSError as err:
        raise _failure(f"cannot attach a mount at {os.fspath(target)}", err) from err
    finally:
        os.close(mount)
    return number


def _refused_upper(upper: str, work: str, err: OSError) -> str | None:
    """Say what is wrong with an upper and work directory, which overlayfs tells only the kernel's log."""
    if err.errno not in _REFUSED:
        return None
    numbers = []
    for path in (upper, work):
        try:
            fd = os.open(path, _DIRECTORY)
        except OSError as problem:
            return f"{path}: {problem.strerror}"
        try:
            numbers.append(mount_id(fd))
        finally:
            os.close(fd)
    if numbers[0] != numbers[1]:
        return f"upper directory {upper} and work directory {work} are not on one mount"
    if os.path.commonpath((upper, work)) in {upper, work}:
        return f"of upper directory {upper} and work directory {work} one lies in the other"
    for entry in read_mounts(numbers=numbers[:1]):
        if "ro" in entry.options:
            return f"upper directory {upper} lies on {entry.target}, which is read-only"
    return None


def refuse_file_system(upper: str, what: str) -> None:
    """Refuse an upper directory on a file system that overlayfs cannot write to.

    Args:
        upper: the directory.
        what: cannot be done then.

    Raises:
        BackendUnavailable: it lies on one.
        OSError: it cannot be looked at.
    """
    fd = os.open(upper, _DIRECTORY)
    try:
        number = mount_id(fd)
    finally:
        os.close(fd)
    for entry in read_mounts(numbers=(number,)):
        if entry.fstype in _NEVER_UPPER or entry.fstype.startswith("fuse."):
            reason = f"upper directory {upper} lies on {entry.fstype}, which overlayfs cannot use for it"
            raise BackendUnavailable(
                f"cannot {what}: {reason}", reasons=dict.fromkeys(_BOTH, reason),
                hint="Put it on another file system; in a container, on a volume.",
            )  # fmt: skip


def _failure(what: str, err: OSError) -> MountError:
    """Turn an OSError into the error that says whether this backend can work here at all."""
    text = err.strerror or str(err)
    if err.filename is not None:
        text = f"{os.fsdecode(err.filename)}: {text}"
    if err.errno in {errno.EPERM, errno.ENODEV, errno.ENOSYS, errno.ENOTBLK}:
        for name in ("privilege", "mount-api", "overlay", "erofs", "erofs-file"):
            found = feature(name)
            if not found.usable:
                return BackendUnavailable(
                    f"{what}: {found.reason}",
                    reasons={_BACKEND: found.reason},
                    hint=privilege_hint() if name == "privilege" else "see layerfs info for what works here",
                )
    if err.errno == errno.ENOTBLK:  # tmpfs, say
        return BackendUnavailable(f"{what}: {text}", reasons={_BACKEND: text})
    return MountError(f"{what}: {text}", errno=err.errno, backend=_BACKEND)
