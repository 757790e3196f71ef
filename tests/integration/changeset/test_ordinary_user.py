"""Whoever is not root gets the files of an image too, as his own."""

from __future__ import annotations

import os
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.api import Store
from tests.image_builder import TestImage, docker_old, entry, layer, noise, outer

pytestmark = [pytest.mark.needs_root]

NOBODY = 65534

IMAGE = TestImage(
    [
        layer(
            [
                entry("etc", kind=b"5", uid=0, mtime=1_500_000_000),
                entry("etc/one", noise(9000), uid=7, mode=0o4755, mtime=1_600_000_001, xattrs={"user.note": b"x"}),
                entry("etc/two", kind=b"1", link="etc/one", uid=7, mode=0o4755, mtime=1_600_000_001),
                entry("etc/holes", bytes(3 << 20) + b"end"),
                entry("etc/secret", b"s", mode=0o000),
                entry("etc/out", kind=b"2", link="/tmp/elsewhere"),
                entry("dev", kind=b"5", mode=0o555),
                entry("dev/null", kind=b"3", major=1, minor=3),
                entry("dev/pipe", kind=b"6"),
                entry("bin", b"b", xattrs={"security.capability": bytes.fromhex("0100000200040000" + "00" * 12)}),
            ]
        )
    ],
    ["app:1"],
)


def _as_nobody(work: Callable[[], None]) -> None:
    """Run a function in a process without privileges, and fail with what it fails with."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(writer, traceback.format_exc().encode()[-60_000:])
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        text = told.read().decode()
    assert os.waitpid(child, 0)[1] == 0, text


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    for parent in (folder, *folder.parents):
        if parent == Path("/tmp"):
            break
        os.chmod(parent, 0o755)
    os.chown(folder, NOBODY, NOBODY)
    (folder / "archive.tar").write_bytes(outer(docker_old(IMAGE)))
    return folder


def test_an_image_is_extracted_by_an_ordinary_user(place: Path) -> None:
    # What is imported late must be there before this process loses the right to read it.
    with Store.open(place / "warm", sync=False) as store:
        store.load(place / "archive.tar")
        store.extract("app:1", place / "by-root")
        with (place / "saved").open("wb") as saved:
            store.save(["app:1"], saved)

    def work() -> None:
        with Store.open(place / "store", sync=False) as store:
            store.load(place / "archive.tar")
            skipped = store.extract("app:1", place / "tree")
            assert (skipped.devices, skipped.xattrs, skipped.set_ids) == (1, 1, 1)
            assert skipped.owners
            assert set(skipped.paths) == {b"/bin", b"/dev/null", b"/etc/one"}
            with (place / "saved-by-user").open("wb") as saved:
                store.save(["app:1"], saved)

    _as_nobody(work)
    tree, root = place / "tree", place / "by-root"
    one = (tree / "etc/one").stat()
    assert (one.st_uid, one.st_nlink, stat.S_IMODE(one.st_mode)) == (NOBODY, 2, 0o755), "no set-user-ID of the user"
    assert one.st_mtime_ns == (root / "etc/one").stat().st_mtime_ns
    assert (tree / "etc/one").read_bytes() == noise(9000)
    assert os.getxattr(tree / "etc/one", "user.note") == b"x"
    assert (tree / "etc/holes").read_bytes() == bytes(3 << 20) + b"end"
    assert (tree / "etc/holes").stat().st_blocks * 512 < 1 << 20
    assert stat.S_IMODE((tree / "etc/secret").stat().st_mode) == 0
    assert os.readlink(tree / "etc/out") == "/tmp/elsewhere"
    assert not (tree / "dev/null").exists()
    assert stat.S_ISFIFO((tree / "dev/pipe").stat().st_mode)
    assert stat.S_IMODE((tree / "dev").stat().st_mode) == 0o555
    assert (place / "saved").read_bytes() == (place / "saved-by-user").read_bytes()
    assert stat.S_IMODE((root / "etc/one").stat().st_mode) == 0o4755
    assert (root / "etc/one").stat().st_uid == 7
    assert stat.S_ISCHR((root / "dev/null").stat().st_mode)
    assert os.getxattr(root / "bin", "security.capability")
