"""Entry point of ``layerfs-fuse``: stacks directories through FUSE, with the options that fuse-overlayfs takes.

    layerfs-fuse -o lowerdir=A:B,upperdir=U,workdir=W[,OPTION...] TARGET

It is what podman and buildah call as ``mount_program``. It returns when the mount works, and leaves a process behind
that serves it; ``-f`` stays in the foreground instead. What an option of fuse-overlayfs cannot mean here is ignored
with one warning, as fuse-overlayfs does.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerfs.mount.fuse.specification import FuseSpecification
    from layerfs.union.owner import Range

__all__ = ["main"]

#: 2^32-1 is (uid_t)-1, which owns nothing.
_MAX_ID = 2**32 - 2

#: A year of seconds; the kernel takes any number, and what is longer was not meant.
_LONGEST_TIMEOUT = 366 * 86400

#: Options that ask for what holds anyway, or that are the kernel's.
_SILENT = frozenset({
    "async", "atime", "auto", "default_permissions", "defaults", "diratime", "fast_ino", "max_idle_threads",
    "nodiratime", "noxattrs", "plugins", "relatime", "rw", "sync", "threaded",
    "writeback", "nofail", "user", "users", "lazytime", "index", "metacopy",
    "redirect_dir", "userxattr",
})  # fmt: skip
#: Where xattr_permissions keeps owners and modes.
_OVERRIDES = {0: None, 1: "security.fuseoverlayfs.override_stat", 2: "user.containers.override_stat"}

_HELP = """Stack directories through FUSE, as overlayfs in the kernel would.

LOWERDIR is a list of directories with colons between them, the topmost first; upperdir takes the changes, workdir is an
empty directory beside it. Without these two the mount is read-only.

Further options: ro, nosuid, dev (devices have no effect without), noexec, noatime, allow_other,
uidmapping=STORED:SHOWN:COUNT, gidmapping=..., squash_to_uid=N, squash_to_gid=N, squash_to_root, xattr_permissions=1 or
2 (owners and modes are kept in an xattr), static_nlink, noacl, volatile, fsync=0, timeout=SECONDS, fsname=TEXT, pyfuse3
(serve through it and libfuse instead of /dev/fuse). Others are ignored with a warning."""


@click.command("layerfs-fuse", help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("places", metavar="[SOURCE] TARGET", nargs=-1, type=click.Path())
@click.option("-o", "words", metavar="OPTION[=VALUE],...", multiple=True, help="What to mount, and how.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option("-d", "--debug", is_flag=True, help="Stay in the foreground and say more.")
@click.version_option(package_name="layerfs", message="layerfs-fuse %(version)s")
def _program(places: tuple[str, ...], words: tuple[str, ...], *, foreground: bool, debug: bool) -> None:
    import logging

    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(format="layerfs-fuse: %(levelname)s: %(message)s", level=level)
    # mount(8) puts the source in front: mount -t fuse.layerfs-fuse SOURCE TARGET -o ...
    if not 1 <= len(places) <= 2:
        raise click.UsageError("one TARGET is needed")
    target = places[-1]
    from layerfs.mount.fuse.start import clear_dead

    clear_dead(target)  # not only if it is no directory: the kernel may know that one's attributes for a day
    if not os.path.isdir(target):
        raise click.UsageError(f"{target} is not a directory")
    wanted = _specification(os.path.realpath(target), _options(words))
    if foreground or debug:
        _serve(wanted, lambda: None)
    else:
        _background(wanted)


def main() -> NoReturn:
    """Mount, and leave with an exit code: 0 when the mount works, 1 with one line when it does not, 2 for usage."""
    from layerfs.errors import LayerfsError
    from layerfs.linux.standard_descriptors import fill_standard_descriptors
    from layerfs_cli.text import printable

    fill_standard_descriptors()
    try:
        _program.main(args=sys.argv[1:], prog_name="layerfs-fuse", standalone_mode=False)
        code = 0
    except click.exceptions.Exit as leaving:
        code = leaving.exit_code
    except click.ClickException as error:
        click.echo(f"layerfs-fuse: error: {printable(error.format_message())}", err=True)
        code = 2
    except (KeyboardInterrupt, click.Abort):
        code = 130
    except ImportError as error:
        click.echo(f"layerfs-fuse: error: {printable(str(error))}", err=True)
        code = 1
    except (OSError, LayerfsError) as error:
        _report(error)
        code = 1
    raise SystemExit(code)


def _options(words: tuple[str, ...]) -> dict[str, str | None]:
    """Split what stands behind ``-o``; a backslash protects a comma or a colon."""
    found: dict[str, str | None] = {}
    for word in words:
        for item in _split(word, ","):
            if item:
                key, equals, value = item.partition("=")
                found.pop(key, None)  # the last of several counts, and its place
                found[key] = value if equals else None
    return found


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that no backslash protects; the backslashes stay for the next level."""
    parts = [""]
    escaped = False
    for letter in text:
        if letter == separator and not escaped:
            parts.append("")
        else:
            parts[-1] += letter
        escaped = letter == "\\" and not escaped
    return parts


def _plain(text: str) -> str:
    """Take the protecting backslashes away."""
    result, escaped = "", False
    for letter in text:
        if letter == "\\" and not escaped:
            escaped = True
        else:
            result += letter
            escaped = False
    return result


def _specification(target: str, given: dict[str, str | None]) -> FuseSpecification:
    from layerfs.mount.fuse.specification import FuseSpecification
    from layerfs.union.owner import OwnerMap

    def path(key: str) -> str | None:
        value = given.pop(key, None)
        return _whole(_plain(value)) if value else None

    lowers = tuple(_whole(_plain(part)) for part in _split(given.pop("lowerdir", None) or "", ":") if part)
    if not lowers:
        raise click.UsageError("option lowerdir is missing")
    upper, work = path("upperdir"), path("workdir")
    if (upper is None) != (work is None):
        raise click.UsageError("upperdir and workdir go together")
    _refuse_overlap(upper, work, lowers)
    users, groups = _ranges(given.pop("uidmapping", None)), _ranges(given.pop("gidmapping", None))
    root = _flag(given, "squash_to_root")
    uid, gid = _number(given, "squash_to_uid"), _number(given, "squash_to_gid")
    owners = OwnerMap(users, groups, 0 if root and uid is None else uid, 0 if root and gid is None else gid)
    sync = not _flag(given, "volatile")
    if _number(given, "fsync") == 0:
        sync = False
    fields: dict[str, Any] = {
        "read_only": _flag(given, "ro") or upper is None,
        "nosuid": not _last(given, "suid", "nosuid", default=True),
        "nodev": not _last(given, "dev", "nodev", default=False),
        "noexec": not _last(given, "exec", "noexec", default=True),
        "noatime": _flag(given, "noatime"),
        "static_nlink": _flag(given, "static_nlink"),
        "allow_other": _flag(given, "allow_other") or os.geteuid() == 0,
        "acl": not _flag(given, "noacl"),
        "pyfuse3": _flag(given, "pyfuse3"),
    }
    permissions = _number(given, "xattr_permissions")
    if permissions is not None:
        if permissions not in _OVERRIDES:
            raise click.UsageError(f"xattr_permissions is one of {', '.join(map(str, _OVERRIDES))}, not {permissions}")
        fields["override"] = _OVERRIDES[permissions]
    timeout = given.pop("timeout", None)
    if timeout:
        try:
            fields["timeout"] = float(timeout)
        except ValueError:
            raise click.UsageError(f"timeout is no number: {timeout}") from None
        if not 0 <= fields["timeout"] <= _LONGEST_TIMEOUT:
            raise click.UsageError(f"timeout is not between 0 and {_LONGEST_TIMEOUT} seconds: {timeout}")
    source = _plain(given.pop("fsname", None) or "layerfs")
    _warn(sorted(key for key in given if key not in _SILENT and not key.startswith(("x-", "context"))))
    return FuseSpecification(
        target=target, source=source, lowers=lowers, upper=upper, work=work, sync=sync,
        owners=owners if owners != OwnerMap() else None, **fields,
    )  # fmt: skip


def _flag(given: dict[str, str | None], key: str) -> bool:
    """Take a word that is there or not; ``=0`` says not."""
    if key not in given:
        return False
    return given.pop(key) not in {"0", "false", "no"}


def _last(given: dict[str, str | None], positive: str, negative: str, *, default: bool) -> bool:
    """Take two words that contradict each other; return whether the last of them is the positive one."""
    found = [key for key in given if key in (positive, negative)]
    for key in found:
        del given[key]
    return found[-1] == positive if found else default


def _number(given: dict[str, str | None], key: str) -> int | None:
    """Take a number."""
    if key not in given:
        return None
    value = given.pop(key)
    if value is None or not value.isdecimal() or int(value) > _MAX_ID:
        raise click.UsageError(f"{key} needs a number up to {_MAX_ID}")
    return int(value)


def _whole(path: str) -> str:
    """Return an absolute path; not by abspath, since .. behind a symbolic link is not what the text says."""
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def _refuse_overlap(upper: str | None, work: str | None, lowers: Sequence[str]) -> None:
    """Refuse directories of which one lies in another: what is written would show up in a place that never changes.

    Two layers that overlap are as bad: one directory would be at two places.
    """
    layers = [os.path.realpath(path) for path in lowers]
    for position, place in enumerate(layers):
        for other in layers[position + 1 :]:
            if os.path.commonpath((place, other)) in (place, other):
                raise click.UsageError(f"lowerdir: {place} and {other} overlap")
    if upper is None or work is None:
        return
    written = [os.path.realpath(path) for path in (upper, work)]
    for position, (name, place) in enumerate(zip(("upperdir", "workdir"), written, strict=True)):
        for other in (*written[position + 1 :], *layers):
            common = os.path.commonpath((place, other))
            # A lower may well contain the upper or work directory, as / does; it may not lie in them.
            if common == place or (common == other and other in written):
                raise click.UsageError(f"{name} {place} and {other} overlap")


def _ranges(text: str | None) -> tuple[Range, ...]:
    """Parse ``STORED:SHOWN:COUNT``, repeated with colons between; containers/storage puts one before the first too."""
    from layerfs.union.owner import Range

    if not text:
        return ()
    numbers = text.removeprefix(":").split(":")
    if len(numbers) % 3 or not all(number.isdecimal() for number in numbers):
        raise click.UsageError(f"a mapping is STORED:SHOWN:COUNT, not {text}")
    values = [int(number) for number in numbers]
    if any(start + values[at + 2] > _MAX_ID + 1 for at in range(0, len(values), 3) for start in values[at : at + 2]):
        raise click.UsageError(f"a mapping ends at {_MAX_ID}, which {text} passes")
    triples = (values[at : at + 3] for at in range(0, len(values), 3))
    return tuple(Range(shown=shown, stored=stored, count=count) for stored, shown, count in triples)


def _warn(keys: list[str]) -> None:
    if keys:
        click.echo(f"layerfs-fuse: warning: ignored: {', '.join(keys)}", err=True)


def _serve(wanted: FuseSpecification, ready: Any) -> None:
    from layerfs.mount.fuse.serve import serve

    serve(wanted, ready, notify_socket=os.environ.get("NOTIFY_SOCKET"))


def _background(wanted: FuseSpecification) -> None:
    """Serve in a child; return when it says that the mount works."""
    from layerfs.errors import LayerfsError
    from layerfs.mount.fuse.daemon import detach

    answer, ready = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ready)
        with os.fdopen(answer, "rb") as pipe:
            said = pipe.read()
        if said == b"ready":
            return
        raise SystemExit(_exit_of(pid))
    os.close(answer)
    os.setsid()

    def tell() -> None:
        detach(None)
        os.write(ready, b"ready")
        os.close(ready)

    # The child reports its failure by itself, on the streams that it still has.
    code = 0
    try:
        _serve(wanted, tell)
    except (OSError, LayerfsError) as error:
        _report(error)
        code = 1
    except ImportError as error:
        click.echo(f"layerfs-fuse: error: {error}", err=True)
        code = 1
    os._exit(code)


def _report(error: Exception) -> None:
    """Say in one line what went wrong."""
    from layerfs.errors import LayerfsError
    from layerfs_cli.text import printable

    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, LayerfsError):
        where = [os.fsdecode(error.filename)] if isinstance(error.filename, str | bytes) else []
        text = ": ".join([*where, error.strerror or text])
    click.echo(f"layerfs-fuse: error: {printable(text)}", err=True)


def _exit_of(pid: int) -> int:
    """Return the exit code of a child that reported nothing."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or 1
