"""``layerfs ls``: files of an image, read from its tree."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from layerfs_cli.argument import image_argument, split_image_path
from layerfs_cli.output import as_json, print_document, stdout_is_terminal, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_size, rfc3339, shown_name

if TYPE_CHECKING:
    from layerfs.api import Store
    from layerfs.store.view import ImageTree

__all__ = ["command"]

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@verb("ls", short_help="List files of an image.")
@image_argument("place", "IMAGE[:/PATH]")
@click.option("-l", "--long", is_flag=True, help="Mode, links, owner, group, size, time and the target of links.")
@click.option("-R", "--recursive", is_flag=True, help="All that is below, each by its absolute path.")
@click.option("--human-readable", is_flag=True, help="With -l, sizes as 5.83MB.")
@click.option("-z", "--null", is_flag=True, help="End lines with NUL, for names that contain newlines.")
@click.option("--format", "form", type=click.Choice(("lines", "json", "jsonl")), default="lines", show_default=True,
              help="JSON has all attributes; values of xattrs are base64.")  # fmt: skip
@click.pass_context
def command(
    context: click.Context, place: str, form: str, *, long: bool, recursive: bool, human_readable: bool, null: bool
) -> None:
    """List what is in a directory of an image, or one file, in byte order of names; hidden files too.

    PATH is absolute; symlinks on the way are followed inside the image, the last name only before a slash. Owners are
    numbers: which names they have is the image's own matter.
    """
    image, path = split_image_path(place)
    terminal = stdout_is_terminal() and not null
    end = b"\0" if null else b"\n"
    documents: list[object] = []
    with settings_of(context).open_store() as store:
        for name, nid, tree in _entries(store, image, path or b"/", recursive=recursive):
            if form == "json":
                documents.append(_document(tree, name, nid))
            elif form == "jsonl":
                write(as_json(_document(tree, name, nid)) + "\n")
            elif long:
                write(_line(tree, name, nid, terminal=terminal, human_readable=human_readable) + end)
            else:
                write(shown_name(name, terminal=terminal) + end)
    if form == "json":
        print_document(documents)


def _entries(store: Store, image: str, path: bytes, *, recursive: bool) -> Iterator[tuple[bytes, int, ImageTree]]:
    """Yield (name, inode number, tree): names in the directory, or absolute paths if recursive."""
    with store.tree(image) as tree:
        try:
            nid = tree.resolve(path, follow=path.endswith(b"/"))
        except OSError as error:
            error.filename = f"{image}:{os.fsdecode(path)}"
            raise
        if not stat.S_ISDIR(tree.inode(nid).mode):
            yield path, nid, tree
        elif recursive:
            base = b"/" + b"/".join(part for part in path.split(b"/") if part)
            for name, child, _ in tree.walk(nid, b"" if base == b"/" else base):
                yield name, child, tree
        else:
            for name, child, _ in tree.readdir(nid):
                yield name, child, tree


def _line(tree: ImageTree, name: bytes, nid: int, *, terminal: bool, human_readable: bool) -> bytes:
    inode = tree.inode(nid)
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        size = f"{os.major(inode.rdev)}, {os.minor(inode.rdev)}"
    else:
        size = human_size(inode.size) if human_readable else str(inode.size)
    moment = (rfc3339(inode.mtime * 10**9) or "").replace("T", " ").removesuffix("Z")
    head = f"{stat.filemode(inode.mode)} {inode.nlink:>3} {inode.uid:>5} {inode.gid:>5} {size:>10} {moment} "
    line = head.encode() + shown_name(name, terminal=terminal)
    if stat.S_ISLNK(inode.mode):
        line += b" -> " + shown_name(tree.readlink(nid), terminal=terminal)
    return line


def _document(tree: ImageTree, name: bytes, nid: int) -> dict[str, object]:
    inode = tree.inode(nid)
    document: dict[str, object] = {
        "name": os.fsdecode(name),
        "type": _TYPES.get(stat.S_IFMT(inode.mode), "unknown"),
        "mode": f"{stat.S_IMODE(inode.mode):04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "nlink": inode.nlink,
        "inode": nid,
        "mtime": rfc3339(inode.mtime * 10**9 + inode.mtime_ns),
    }
    if stat.S_ISLNK(inode.mode):
        document["target"] = os.fsdecode(tree.readlink(nid))
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        document["device"] = {"major": os.major(inode.rdev), "minor": os.minor(inode.rdev)}
    xattrs = tree.xattrs(nid)
    if xattrs:
        document["xattrs"] = {
            os.fsdecode(key): base64.b64encode(value).decode("ascii") for key, value in sorted(xattrs.items())
        }
    return document
