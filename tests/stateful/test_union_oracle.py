"""Kernel overlayfs is the oracle: whatever is done, both mounts say the same, and their uppers mean the same."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from layerfs.linux.mount_api import umount
from layerfs.linux.process import wait_for_end
from tests.union_oracle import (
    ACCESS_ACL,
    DEFAULT_ACL,
    NOATIME,
    NODUMP,
    OLD,
    USER,
    Actor,
    Pair,
    describe_tree,
    is_counted_on,
    is_uncounted,
    mount_kernel,
)

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_fuse]

SEQUENCES = int(os.environ.get("LAYERFS_ORACLE", "120"))
_LEAVES = ["f0", "f1", "f2", "n0", "n1", "d0", "d1", "d2", "l0", "l1", "p0", "c0", "h0", "big"]
names = st.sampled_from(_LEAVES)
paths = st.one_of(
    names,
    st.tuples(st.sampled_from(["d0", "d1", "n0", "d2"]), names).map("/".join),
    st.tuples(st.just("d0"), st.sampled_from(["d1", "n0"]), names).map("/".join),
)
users = st.sampled_from([0, 0, 0, USER])
modes = st.sampled_from([0o644, 0o755, 0o600, 0o4755, 0o2755, 0o2644, 0o1777, 0o000, 0o777, 0o6711])
contents = st.sampled_from([b"", b"a", b"some text", b"z" * 5000])
offsets = st.sampled_from([0, 3, 4096, 70_000])
keys = st.sampled_from(["user.color", "user.x", "trusted.t", "trusted.overlay.opaque", "security.capability",
                        "system.posix_acl_access", "system.posix_acl_default"])  # fmt: skip
slots = st.integers(0, 2)
flags = st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_TRUNC,
                         os.O_WRONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY | os.O_DIRECTORY])  # fmt: skip
_VALUES = {
    "system.posix_acl_access": ACCESS_ACL,
    "system.posix_acl_default": DEFAULT_ACL,
    "security.capability": bytes.fromhex("0100000200200000000000000000000000000000"),
}


class Comparison(RuleBasedStateMachine):
    """One sequence of operations."""

    pair: Pair

    def __init__(self) -> None:
        super().__init__()
        self.actors: list[Actor] = []

    @initialize()
    def begin(self) -> None:
        name = self.pair.take()
        self.actors = [Actor(side / name) for side in self.pair.sides]

    def both(self, *operation: Any) -> None:
        mine, kernels = (actor.do(*operation) for actor in self.actors)
        if mine != kernels and operation[1] in {"stat", "fstat"}:
            # The kernel copies a directory up above what it refuses then, and counts no links of such a one.
            mine, kernels = ((*one[:1], 0, *one[2:]) if is_uncounted(mine, kernels) else one for one in (mine, kernels))
        if operation[1] == "removexattr" and "posix_acl" in operation[3] and {mine, kernels} == {None, "ENODATA"}:
            return  # which one depends on whether the file was copied up; overlayfs does that when it is opened
        if operation[1] in {"flags", "set_flags"} and mine == "ENOTTY" and self.is_device(operation[2]):
            return  # FUSE in the kernel asks neither server nor driver, where other file systems let the driver answer
        if operation[1] == "fstat" and is_counted_on(mine, kernels):
            kernels = mine
        assert mine == kernels, operation

    def is_device(self, name: str) -> bool:
        return stat.S_IFMT(os.lstat(self.actors[1].path(name)).st_mode) in {stat.S_IFBLK, stat.S_IFCHR}

    @rule(uid=users, path=paths)
    def look(self, uid: int, path: str) -> None:
        self.both(uid, "stat", path)
        self.both(uid, "xattrs", path)

    @rule(path=st.one_of(paths, st.sampled_from([".", "d0", "d1", "d0/d1"])), uid=users)
    def enumerate(self, uid: int, path: str) -> None:
        self.both(uid, "listing", path)

    @rule(uid=users, path=paths)
    def read(self, uid: int, path: str) -> None:
        self.both(uid, "read", path)
        self.both(uid, "readlink", path)

    @rule(
        uid=users, path=paths, offset=offsets, data=contents,
        flag=st.sampled_from([0, os.O_CREAT, os.O_APPEND, os.O_TRUNC, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC]),
    )  # fmt: skip
    def write(self, uid: int, path: str, flag: int, offset: int, data: bytes) -> None:
        self.both(uid, "write", path, flag, offset, data)
        self.both(0, "stat", path)

    @rule(uid=users, path=paths, size=offsets)
    def truncate(self, uid: int, path: str, size: int) -> None:
        self.both(uid, "truncate", path, size)

    @rule(uid=users, path=paths, mode=modes)
    def chmod(self, uid: int, path: str, mode: int) -> None:
        self.both(uid, "chmod", path, mode)
        self.both(0, "stat", path)

    @rule(uid=users, path=paths, owner=st.sampled_from([0, USER, -1]), group=st.sampled_from([0, USER, -1]))
    def chown(self, uid: int, path: str, owner: int, group: int) -> None:
        self.both(uid, "chown", path, owner, group)
        self.both(0, "stat", path)

    @rule(uid=users, path=paths, flag=st.sampled_from([0, NODUMP, NOATIME, NODUMP | NOATIME]))
    def set_flags(self, uid: int, path: str, flag: int) -> None:
        if self.pair.pyfuse3:
            return  # which does not bind ioctl
        self.both(uid, "set_flags", path, flag)
        self.both(0, "flags", path)
        self.both(0, "stat", path)

    @rule(uid=users, path=paths)
    def utime(self, uid: int, path: str) -> None:
        self.both(uid, "utime", path, OLD * 1_000_000_000 + 5)
        self.both(0, "stat", path)

    @rule(uid=users, path=paths, mode=modes)
    def mkdir(self, uid: int, path: str, mode: int) -> None:
        self.both(uid, "mkdir", path, mode)
        self.both(0, "stat", path)

    @rule(uid=users, path=paths)
    def rmdir(self, uid: int, path: str) -> None:
        self.both(uid, "rmdir", path)

    @rule(uid=users, path=paths)
    def unlink(self, uid: int, path: str) -> None:
        self.both(uid, "unlink", path)

    @rule(uid=users, path=paths, content=st.sampled_from(["f0", "../f1", "x" * 300, "d0"]))
    def symlink(self, uid: int, content: str, path: str) -> None:
        self.both(uid, "symlink", content, path)
        self.both(0, "stat", path)

    @rule(uid=users, path=paths, node=st.sampled_from([
        (stat.S_IFIFO | 0o644, 0), (stat.S_IFCHR | 0o600, os.makedev(1, 5)), (stat.S_IFCHR, 0), (stat.S_IFREG, 0),
        (stat.S_IFSOCK | 0o777, 0), (stat.S_IFBLK | 0o600, os.makedev(7, 300)),
    ]))  # fmt: skip
    def mknod(self, uid: int, path: str, node: tuple[int, int]) -> None:
        self.both(uid, "mknod", path, *node)
        self.both(0, "stat", path)

    @rule(uid=users, old=paths, new=paths)
    def link(self, uid: int, old: str, new: str) -> None:
        self.both(uid, "link", old, new)
        self.both(0, "stat", new)
        self.both(0, "stat", old)

    @rule(uid=users, old=paths, new=paths, flag=st.sampled_from([0, 0, 0, 1, 2, 2]))
    def rename(self, uid: int, old: str, new: str, flag: int) -> None:
        self.both(uid, "rename", old, new, flag)
        self.both(0, "stat", old)
        self.both(0, "stat", new)

    @rule(uid=users, path=paths, key=keys, flag=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]))
    def setxattr(self, uid: int, path: str, key: str, flag: int) -> None:
        self.both(uid, "setxattr", path, key, _VALUES.get(key, b"value"), flag)
        self.both(0, "xattrs", path)
        self.both(0, "stat", path)

    @rule(uid=users, path=paths, key=keys)
    def removexattr(self, uid: int, path: str, key: str) -> None:
        self.both(uid, "removexattr", path, key)

    @rule(uid=users, path=paths, mode=st.sampled_from([os.R_OK, os.W_OK, os.X_OK]))
    def access(self, uid: int, path: str, mode: int) -> None:
        self.both(uid, "access", path, mode)

    @rule(uid=users, slot=slots, path=paths, flag=flags)
    def open(self, uid: int, slot: int, path: str, flag: int) -> None:
        self.both(uid, "open", slot, path, flag)

    @rule(slot=slots, offset=offsets, data=contents, uid=users)
    def fwrite(self, uid: int, slot: int, offset: int, data: bytes) -> None:
        self.both(uid, "fwrite", slot, offset, data)
        self.both(0, "fstat", slot)

    @rule(slot=slots)
    def fread(self, slot: int) -> None:
        self.both(0, "fread", slot)
        self.both(0, "fstat", slot)

    @rule(slot=slots, size=offsets, mode=modes, uid=users)
    def fchange(self, uid: int, slot: int, size: int, mode: int) -> None:
        self.both(uid, "ftruncate", slot, size)
        self.both(uid, "fchmod", slot, mode)
        self.both(0, "fstat", slot)

    @rule(slot=slots)
    def fsync(self, slot: int) -> None:
        self.both(0, "fsync", slot)

    @rule(slot=slots)
    def release(self, slot: int) -> None:
        self.both(0, "release", slot)

    def teardown(self) -> None:
        if not self.actors:
            return
        mine, kernels = (describe_tree(Path(os.fsdecode(actor.root))) for actor in self.actors)
        for actor in self.actors:
            actor.close()
        assert mine == kernels


def _run(pair: Pair, sequences: int) -> None:
    machine: Any = type("Machine", (Comparison,), {"pair": pair})
    run_state_machine_as_test(machine, settings=settings(
        max_examples=sequences, stateful_step_count=40, deadline=None, database=None, report_multiple_bugs=False,
        phases=(Phase.generate,) if sequences > 1000 else (Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("links", "image", "pyfuse3"),
    [(False, False, False), (True, False, False), (False, True, False), (True, True, False), (False, False, True)],
    ids=["plain", "hard links in a layer", "image", "hard links in an image", "through pyfuse3"],
)  # fmt: skip
def test_every_answer_is_that_of_the_kernel(links: bool, image: bool, pyfuse3: bool) -> None:
    pair = Pair(sequences=200, links=links, image=image, pyfuse3=pyfuse3)
    try:
        _run(pair, SEQUENCES // 4 if pyfuse3 else SEQUENCES)
        before = describe_tree(pair.sides[0])
        pair.unmount()
        # Each upper, below the other one's file system. (With links in a layer, overlayfs keeps part of what it knows
        # of them outside the upper.)
        mount_kernel(pair.layers, pair.uppers[0], pair.works[0], pair.sides[1])
        assert describe_tree(pair.sides[1]) == before
        umount(pair.sides[1])
        if not links:
            # The kernel also copies directories up above what it refuses then; such a copy means nothing.
            below = pair.describe_lower()
            mine, kernels = (
                {path: facts for path, facts in describe_tree(upper, marks=True).items() if below.get(path) != facts}
                for upper in pair.uppers
            )
            assert mine == kernels
            pid = pair.mount_union(pair.uppers[1], pair.works[1])
            assert describe_tree(pair.sides[0]) == before
            umount(pair.sides[0])
            assert wait_for_end(pid, 10)
    finally:
        pair.remove()
