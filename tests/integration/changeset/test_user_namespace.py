"""Changes of a container that FUSE serves in a user namespace, where owners and marks are kept in other xattrs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import Conflict
from layerfs.store import snapshot

_LAYERFS = f'"{sys.executable}" -c "from layerfs_cli.main import main; main()"'

_SCRIPT = f"""
set -e
layerfs() {{ {_LAYERFS} --root store --runroot run "$@"; }}
layerfs import source ns:1 >/dev/null
layerfs mount ns:1 target --name box --backend fuse >/dev/null
rm -r target/d
mkdir target/d
chmod 640 target/mode
: >> target/touched
layerfs umount box >/dev/null
layerfs diff box
layerfs commit box ns:2 >/dev/null
layerfs export ns:2 | tar tv --numeric-owner
"""


@pytest.mark.needs_userns
@pytest.mark.needs_fuse
def test_opaque_directories_and_owners(tmp_path: Path) -> None:
    for name in ("d/hidden", "mode", "touched"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "target").mkdir()
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", _SCRIPT], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    changes, listing = done.stdout.splitlines()[:3], done.stdout.splitlines()[3:]
    assert changes == ["C /d", "D /d/hidden", "C /mode"]
    assert [line.split()[:2] for line in listing] == [
        ["drwxr-xr-x", "0/0"], ["drwxr-xr-x", "0/0"], ["-rw-r-----", "0/0"], ["-rw-r--r--", "0/0"],
    ]  # fmt: skip
    assert [line.split()[-1] for line in listing] == ["./", "d/", "mode", "touched"]


_FOREIGN = f"""
set -e
layerfs() {{ {_LAYERFS} --root store --runroot run "$@"; }}
tar -C source --owner=1000 --group=1000 --mtime=@1000000000 -cf image.tar .
layerfs import image.tar ns:1 >/dev/null
layerfs extract ns:1 extracted
layerfs mount ns:1 target --name box --backend fuse >/dev/null
stat -c "%n %u:%g %Y" target target/file extracted/file
layerfs umount box >/dev/null
"""


@pytest.mark.needs_userns
@pytest.mark.needs_fuse
def test_owners_that_the_namespace_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("f")
    (tmp_path / "target").mkdir()
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", _FOREIGN], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "target 65534:65534 1000000000", "target/file 65534:65534 1000000000", "extracted/file 0:0 1000000000",
    ]  # fmt: skip


_RANGE = f"""
set -e
layerfs() {{ {_LAYERFS} --root store --runroot run "$@"; }}
tar -C source --owner=5000 --group=5000 --mode=6755 --mtime=@1000000000 -cf image.tar .
layerfs import image.tar far:1 >/dev/null
layerfs extract far:1 extracted
stat -c "%n %u:%g %a" extracted/file
layerfs mount far:1 target --name box --backend fuse >/dev/null
stat -c "%n %Y" target
layerfs umount box >/dev/null
! layerfs apply box image.tar 2>error
cat error
layerfs diff box
"""


def _with_a_hundred_owners(script: str, directory: Path, maps: str = "0 0 100") -> str:
    """Run a script in a user namespace that has the users and groups 0 to 99; return what it prints."""
    with subprocess.Popen(
        ["unshare", "-Um", "bash", "-c", f"read mapped\n{script}"], cwd=directory, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        before = os.readlink("/proc/self/ns/user")
        end = time.monotonic() + 20
        while os.readlink(f"/proc/{process.pid}/ns/user") == before:
            assert time.monotonic() < end, "unshare made no user namespace"
            time.sleep(0.01)
        for kind in ("uid", "gid"):
            Path(f"/proc/{process.pid}/{kind}_map").write_text(maps)
        out, said = process.communicate("yes\n")
    assert process.returncode == 0, said
    return out


@pytest.mark.needs_root
@pytest.mark.needs_userns
@pytest.mark.needs_fuse
def test_owners_that_a_namespace_with_several_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("f")
    (tmp_path / "target").mkdir()
    out = _with_a_hundred_owners(_RANGE, tmp_path)
    # No bit that would give the rights of whoever extracts.
    assert out.splitlines()[:2] == ["extracted/file 0:0 755", "target 1000000000"]
    assert "belongs to 5000:5000, whom this user namespace does not have" in out
    # Nothing was changed, but for the root, which could not be given away either.
    assert [line for line in out.splitlines() if line[:2] in {"A ", "C ", "D "}] == ["C /"]


_OWNED = f"""
set -e
layerfs() {{ {_LAYERFS} --root store --runroot run "$@"; }}
tar -C source -cf image.tar .
layerfs import image.tar app:1 >/dev/null
layerfs mount app:1 ./target --name box --backend fuse >/dev/null
chown 5:5 target/file
layerfs umount box >/dev/null
layerfs mount --name box --backend fuse ./target >/dev/null
layerfs umount box >/dev/null
layerfs diff box
"""


@pytest.mark.needs_root
@pytest.mark.needs_userns
@pytest.mark.needs_fuse
def test_owners_of_a_namespace_are_not_taken_for_others_outside_of_it(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("f")
    (tmp_path / "target").mkdir()
    assert "C /file" in _with_a_hundred_owners(_OWNED, tmp_path, "0 0 1\n1 100000 99").splitlines()
    with Store.open(tmp_path / "store", runroot=tmp_path / "run", sync=False) as store:
        for attempt in (
            lambda: store.mount(None, tmp_path / "target", name="box", backend="fuse"),
            lambda: store.mount(None, tmp_path / "target", name="box"),
            lambda: list(store.diff("box")),
            lambda: store.commit("box"),
        ):
            with pytest.raises(Conflict, match="another user namespace") as caught:
                attempt()
            assert "podman unshare" in (caught.value.hint or "")


def test_more_users_than_before_are_no_other_ones() -> None:
    begin = b"owners of a user namespace\n"
    before = begin + b"uid_map 0 1000 1\nuid_map 1 100000 99\ngid_map 0 1000 1\n"
    for now, same in (
        (b"uid_map 0 1000 1\nuid_map 1 100000 65536\ngid_map 0 1000 1\ngid_map 1 100000 9\n", True),
        (b"uid_map 0 1000 1\nuid_map 1 200000 65536\ngid_map 0 1000 1\n", False),
        (b"uid_map 0 1000 1\nuid_map 1 100000 98\ngid_map 0 1000 1\n", False),
        (b"uid_map 0 0 4294967295\ngid_map 0 0 4294967295\n", False),
    ):
        assert snapshot._means_the_same(before, begin + now) is same


_FORGED = f"""
set -e
layerfs() {{ {_LAYERFS} --root store --runroot run "$@"; }}
tar -C source --owner=0 --group=0 --mode=0777 -cf image.tar .
layerfs import image.tar far:1 >/dev/null
layerfs mount far:1 ./target --name box --backend fuse >/dev/null
setpriv --reuid 50 --regid 50 --clear-groups bash -c '
    echo evil > target/evil
    for path in target/evil target; do setfattr -n user.containers.override_stat -v 0:0:4755 $path; done
'
layerfs umount box >/dev/null
layerfs mount --name box --backend fuse ./target >/dev/null
stat -c "%n %u:%g %a" target/evil
layerfs umount box >/dev/null
layerfs commit box new:1 >/dev/null
layerfs export new:1 | tar tv --numeric-owner ./evil evil 2>/dev/null || true
"""


@pytest.mark.needs_root
@pytest.mark.needs_userns
@pytest.mark.needs_fuse
def test_nobody_inside_says_how_owners_are_kept(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    for path in (tmp_path, *list(tmp_path.parents)[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    made, committed = _with_a_hundred_owners(_FORGED, tmp_path).splitlines()
    assert made == "target/evil 50:50 644"
    assert committed.split()[:2] == ["-rw-r--r--", "50/50"]
