"""The mount table: escapes, options, holders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.linux import mountinfo
from layerfs.linux.mountinfo import find_holders, find_mount, mount_id, read_mounts

LINE = (
    r"79 27 0:43 / /srv/a\040b\134c rw,relatime shared:1 master:2 - overlay layerfs "
    r"rw,lowerdir+=/,upperdir=/x\054y\040z,workdir=/w,userxattr"
)


def test_a_line_is_parsed_with_its_escapes() -> None:
    entry = mountinfo._parse(LINE)
    assert (entry.mount_id, entry.parent_id, entry.device, entry.root) == (79, 27, "0:43", "/")
    assert entry.target == "/srv/a b\\c"
    assert entry.options == ("rw", "relatime")
    assert (entry.fstype, entry.source) == ("overlay", "layerfs")
    assert entry.option("upperdir") == "/x,y z"
    assert entry.option("userxattr") == ""
    assert entry.option("upper") is None


@pytest.mark.parametrize(
    ("text", "plain"),
    [(r"\040", " "), (r"a\011b\012", "a\tb\n"), (r"\134040", r"\040"), (r"\303\244", "ä"), (r"\377", "\udcff")],
)
def test_unescape(text: str, plain: str) -> None:
    assert mountinfo._unescape(text) == plain


def test_a_path_is_escaped_as_the_kernel_does() -> None:
    path = "/a b\tc\nd\\e\udcff"
    assert mountinfo._escape(path) == "/a\\040b\\011c\\012d\\134e\udcff"
    assert mountinfo._unescape(mountinfo._escape(path)) == path


def test_an_empty_source_does_not_shift_the_fields() -> None:
    entry = mountinfo._parse("1 0 0:1 / / rw - tmpfs  rw,size=1k")
    assert (entry.source, entry.option("size")) == ("", "1k")


def test_this_process_sees_proc() -> None:
    entry = find_mount("/proc")
    assert entry is not None
    assert entry.fstype == "proc"
    assert entry in read_mounts()
    assert entry in read_mounts(fstype="proc")
    assert {one.fstype for one in read_mounts(fstype="proc")} == {"proc"}
    assert read_mounts(os.getpid()) == read_mounts()
    assert read_mounts(numbers={entry.mount_id}) == [entry]
    assert read_mounts(numbers=()) == []
    assert find_mount("/proc/self") is None
    fd = os.open("/proc/version", os.O_PATH)
    assert mount_id(fd) == entry.mount_id
    os.close(fd)


def test_mount_id_of_no_descriptor() -> None:
    with pytest.raises(OSError, match="no such descriptor"):
        mount_id(1 << 20)


def test_holders_are_found_by_their_use(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        fd = os.open(tmp_path, os.O_PATH)
        try:
            holders = {holder.pid: holder for holder in find_holders(mount_id(fd))}
        finally:
            os.close(fd)
        holder = holders[process.pid]
        assert holder.use == "working directory"
        assert str(holder) == f"{holder.command} ({process.pid}, working directory)"
        process.kill()
