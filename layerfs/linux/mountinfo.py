"""What is mounted where, and who keeps a mount busy, read from /proc.

Paths are text as the kernel shows them to this process: relative to its root directory, undecodable bytes as surrogate
escapes, so that they can be passed back to the kernel unchanged.

Source: proc_pid_mountinfo(5); Linux fs/proc_namespace.c and fs/seq_file.c for the escapes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass

__all__ = [
    "Holder",
    "MountEntry",
    "find_foreign_upper_mount",
    "find_holders",
    "find_mount",
    "find_upper_mount",
    "is_listed_elsewhere",
    "mount_id",
    "read_mounts",
]

_ESCAPE = re.compile(rb"\\([0-7]{3})")
#: What the kernel escapes in paths of the table (show_mountinfo of fs/proc_namespace.c).
_SPECIAL = re.compile(r"[ \t\n\\]")
_BACKSLASHED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount of this process's mount namespace.

    Attributes:
        mount_id: the kernel's number of the mount; reused after an unmount.
        parent_id: number of the mount that it covers a directory of.
        device: ``MAJOR:MINOR`` of the file system.
        root: path inside the file system that is the root of the mount.
        target: where it is mounted.
        options: attributes of this mount, such as ``("ro", "nosuid")``.
        fstype: type of the file system.
        source: what was given as source.
        super_options: options of the file system instance, still escaped; read them by :meth:`option`.
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: str

    def option(self, key: str) -> str | None:
        """Return the value of the last option of the file system instance with this key, or None.

        Args:
            key: the option's name; the value of a flag is "".
        """
        return next(reversed(self.option_values(key)), None)

    def option_values(self, key: str) -> list[str]:
        """Return the values of all options of the file system instance with this key, such as ``lowerdir+``."""
        return _values(self.super_options, key)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that keeps a mount busy.

    Attributes:
        pid: its number.
        command: its command name, at most 15 bytes; "?" if it ended meanwhile.
        use: what it holds: ``working directory``, ``root directory``, ``program``, ``open file``, ``mapped file``.
    """

    pid: int
    command: str
    use: str

    def __str__(self) -> str:
        """Return ``COMMAND (PID, USE)``."""
        return f"{self.command} ({self.pid}, {self.use})"


def read_mounts(
    pid: int | str = "self", *, fstype: str | None = None, numbers: Container[int] | None = None
) -> list[MountEntry]:
    """Return the mounts that a process sees.

    Args:
        pid: the process, or "self".
        fstype: only mounts of this type; cheaper where there are thousands, as are ``numbers``.
        numbers: only mounts with these numbers.

    Returns:
        Entries in the kernel's order: a mount comes after the mount that it covers.

    Raises:
        OSError: ENOENT or ESRCH if there is no such process, EACCES.
    """
    # Fields have their spaces escaped, so nothing but the type can look like this.
    lines = _read_lines(pid, "" if fstype is None else f" - {fstype} ")
    if numbers is not None:
        lines = [line for line in lines if int(line.partition(" ")[0]) in numbers]
    return [_parse(line) for line in lines]


def find_mount(target: str | os.PathLike[str]) -> MountEntry | None:
    """Return the topmost mount at exactly this path, or None.

    Args:
        target: a path; symbolic links in it are resolved, as far as that is possible.
    """
    path = os.path.realpath(target)
    # The same text may be the root of another mount, or a type.
    found = [_parse(line) for line in _read_lines("self", f" {_escape(path)} ")]
    return next((entry for entry in reversed(found) if entry.target == path), None)


def find_upper_mount(upper: str | os.PathLike[str]) -> MountEntry | None:
    """Return the overlay mount of this mount namespace that has this upper directory, or None.

    A mount that was unmounted lazily and is still in use, or that lies in another mount namespace, is not seen.

    Args:
        upper: the directory.

    Raises:
        OSError: if ``upper`` cannot be looked at.
    """
    wanted = os.stat(upper)
    real = os.fsdecode(os.path.realpath(upper))

    def has(options: str) -> bool:
        if _has_upper(options, wanted):
            return True
        # Of a relative path nobody knows what it was relative to. Of one name alone there may be many.
        path = os.path.normpath((_values(options, "upperdir") or ["/"])[-1])
        return not path.startswith((os.sep, "..")) and os.sep in path and real.endswith(os.sep + path)

    return next((entry for entry in read_mounts(fstype="overlay") if has(entry.super_options)), None)


def find_foreign_upper_mount(upper: str | os.PathLike[str]) -> tuple[int, MountEntry] | None:
    """Return an overlay mount with this upper directory in another mount namespace, and a process that lives there.

    Every process is looked at, so :func:`is_listed_elsewhere` is worth asking first. Namespaces of processes that this
    one may not look at are not seen, nor those that no process lives in.

    Args:
        upper: the directory.

    Raises:
        OSError: if ``upper`` cannot be looked at.
    """
    wanted = os.stat(upper)
    seen = {os.readlink("/proc/self/ns/mnt")}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended, or is somebody else's
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            mounts = list(read_mounts(int(pid), fstype="overlay"))
            seen.add(namespace)  # now that it was looked at: others live there still when one ends
            for entry in mounts:
                if _has_upper(entry.super_options, wanted, "", f"/proc/{pid}/root"):
                    return int(pid), entry
    return None


def is_listed_elsewhere(upper: str | os.PathLike[str]) -> bool | None:
    """Return whether the kernel lists an overlay in another mount namespace that seems to have this upper directory.

    None says that it does not tell: an older kernel, or no privilege.

    Raises:
        OSError: if ``upper`` cannot be looked at.
    """
    from layerfs.linux.mount_namespaces import foreign_overlays  # noqa: PLC0415 - who only lists needs no ctypes

    wanted = os.stat(upper)
    # The same directory may have another path there, but hardly another name and place in what it belongs to.
    end = os.sep + os.sep.join(os.path.realpath(upper).split(os.sep)[-3:])
    try:
        return any(
            _has_upper(options, wanted) or any(path.endswith(end) for path in _values(options, "upperdir"))
            for options in foreign_overlays()
        )
    except OSError:
        return None


def mount_id(fd: int) -> int:
    """Return the kernel's number of the mount that a descriptor lies on.

    Args:
        fd: any descriptor, O_PATH included.

    Raises:
        OSError: EBADF; ENODATA on a kernel that does not tell (before 3.15).
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            number = _field(file.read())
    except FileNotFoundError:
        raise OSError(errno.EBADF, "no such descriptor") from None
    if number is None:
        raise OSError(errno.ENODATA, "the kernel does not tell the mount of a descriptor")
    return number


def find_holders(mount: int) -> Iterator[Holder]:
    """Yield the processes of this mount namespace that keep a mount busy.

    Args:
        mount: number of the mount, as in :attr:`MountEntry.mount_id`.

    Returns:
        One entry per process, its first use found; lazily, in the order of their numbers. Processes that this one may
        not look into are skipped, so an unprivileged caller may see none.

    Blocking: reads a few files per process and one per open descriptor of it: some milliseconds on a quiet machine,
        a second with 100,000 descriptors. For the explanation of EBUSY, not for a hot path.
    """
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    for pid in pids:
        use = _use_of(pid, mount)
        if use is not None:
            command = "?"
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", "rb") as file:
                command = os.fsdecode(file.read()).rstrip("\n")
            yield Holder(pid, command, use)


def _read_lines(pid: int | str, needle: str) -> list[str]:
    """Return the lines of a mount table in which a text occurs."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        text = os.fsdecode(file.read())
    return [line for line in text.split("\n") if line and needle in line]


def _parse(line: str) -> MountEntry:
    """Parse one line; optional fields end at a lone hyphen."""
    front, _, back = line.partition(" - ")
    number, parent, device, root, target, options = front.split(" ")[:6]
    fstype, source, super_options = [*back.split(" "), "", ""][:3]
    return MountEntry(
        mount_id=int(number),
        parent_id=int(parent),
        device=device,
        root=_unescape(root),
        target=_unescape(target),
        options=tuple(options.split(",")),
        fstype=_unescape(fstype),
        source=_unescape(source),
        super_options=super_options,
    )


def _values(options: str, key: str) -> list[str]:
    """Return the values of all options of this key."""
    # Commas inside a value are escaped, so that is undone after the split.
    pairs = (item.partition("=") for item in options.split(","))
    return [_unescape(value) for name, _, value in pairs if name == key]


def _has_upper(options: str, wanted: os.stat_result, *roots: str) -> bool:
    """Return whether an overlay with these options has this upper directory, which it names below one of the roots."""
    for shown in _values(options, "upperdir")[-1:]:
        # As mount(2) was given it, with backslashes before what separates options there.
        for path in {shown, _BACKSLASHED.sub(r"\1", shown)}:
            for root in roots or ("",):
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(root + path), wanted):
                        return True
    return False


def _unescape(text: str) -> str:
    r"""Turn ``\040`` and the like back into their bytes."""
    if "\\" not in text:
        return text
    raw = os.fsencode(text)
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), raw))


def _escape(text: str) -> str:
    r"""Write a path as the kernel does: the opposite of :func:`_unescape`."""
    return _SPECIAL.sub(lambda match: f"\\{ord(match[0]):03o}", text)


def _field(fdinfo: bytes) -> int | None:
    """Return ``mnt_id`` of the text of an fdinfo file."""
    for line in fdinfo.splitlines():
        if line.startswith(b"mnt_id:"):
            return int(line[7:])
    return None


def _use_of(pid: int, mount: int) -> str | None:
    """Return how a process uses a mount, or None; what may not be looked at counts as unused."""
    base = f"/proc/{pid}"
    for link, use in (("cwd", "working directory"), ("root", "root directory"), ("exe", "program")):
        if _link_on(f"{base}/{link}", mount):
            return use
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{base}/fdinfo"):
            with contextlib.suppress(OSError), open(f"{base}/fdinfo/{name}", "rb") as file:
                if _field(file.read()) == mount:
                    return "open file"
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{base}/map_files"):
            if _link_on(f"{base}/map_files/{name}", mount):
                return "mapped file"
    return None


def _link_on(link: str, mount: int) -> bool:
    """Whether a magic link of /proc leads onto the mount."""
    try:
        fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return mount_id(fd) == mount
    finally:
        os.close(fd)
