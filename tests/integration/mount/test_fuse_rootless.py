"""The whole flow without privileges: in a user namespace, and as an ordinary user through fusermount3."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.archive import Built

pytestmark = pytest.mark.needs_fuse

#: One that every machine has: fusermount3 wants to know its name.
USER = pwd.getpwnam("daemon").pw_uid

#: Loads, mounts, writes, compares, unmounts, mounts again; run by the Python of the tests.
FLOW = """
import os, stat, sys
from layerfs.api import Store
home, archive = sys.argv[1:]
target = os.path.join(home, "mnt")
os.mkdir(target)
with Store.open(os.path.join(home, "store"), runroot=os.path.join(home, "run")) as store:
    image = store.load(archive)[0]
    mount = store.mount(image, target, name="box")
    assert mount.backend == "fuse", mount
    def at(name):
        return os.path.join(target, name)
    assert os.lstat(at("etc/hostname")).st_uid == os.geteuid()
    with open(at("etc/hostname"), "a") as file:
        file.write("more")
    os.chmod(at("etc/hostname"), 0o4711)
    os.mkdir(at("srv/new"), 0o500)
    os.symlink("nowhere", at("srv/link"))
    os.unlink(at("bin/sh"))
    os.rmdir(at("bin"))
    os.mkdir(at("bin"))
    os.mkdir(at("bin/inside"))
    os.rename(at("etc/hostname"), at("srv/moved"))
    changes = [(change.kind, change.path) for change in store.diff("box")]
    for kind, path in (("D", "/bin/sh"), ("A", "/bin/inside"), ("D", "/etc/hostname"), ("A", "/srv/moved"),
                       ("A", "/srv/new")):
        assert (kind, path.encode()) in changes, changes
    store.umount("box")
    assert not os.path.ismount(target)
    store.mount(None, target, name="box")
    assert open(at("srv/moved")).read() == "top\\nmore"
    assert stat.S_IMODE(os.lstat(at("srv/moved")).st_mode) == 0o4711
    assert stat.S_IMODE(os.lstat(at("srv/new")).st_mode) == 0o500
    assert os.listdir(at("bin")) == ["inside"]
    store.umount("box")
print("done")
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that other users can reach, and theirs."""
    path = Path(tempfile.mkdtemp(prefix="layerfs-user-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def device() -> Iterator[None]:
    """The device for everybody, as udev makes it; a machine without udev may keep it for root."""
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)
    yield
    os.chmod("/dev/fuse", mode)


@pytest.fixture
def archive(home: Path) -> Path:
    path = home / "image.tar"
    Built().docker_archive(path)
    path.chmod(0o644)
    return path


@pytest.mark.needs_userns
def test_in_a_user_namespace(home: Path, archive: Path) -> None:
    place = home / "inside"
    place.mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", FLOW, str(place), str(archive)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    upper = next((place / "store/snapshots").glob("*/upper"))
    assert os.getxattr(upper / "srv/moved", "user.containers.override_stat").endswith(b":4711")


def _python_of(user: int) -> tuple[str, dict[str, str]]:
    """Return a Python that a user can run and that finds what this one does, and its environment.

    That of the tests may lie in a home that others cannot enter; then the system's one of the same version will do.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    version = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    said = []
    for python in (sys.executable, version):
        command = [python, "-c", "import layerfs.api, os; os.close(os.open('/dev/fuse', os.O_RDWR))"]
        try:
            tried = subprocess.run(
                command, check=False, capture_output=True, text=True, user=user, group=user, extra_groups=[], cwd="/",
                env=environment,
            )  # fmt: skip
        except OSError as error:
            said.append(f"{python}: {error.strerror}")
            continue
        if not tried.returncode:
            return python, environment
        said.append(f"{python}: {tried.stderr.strip().splitlines()[-1]}")
    pytest.skip(f"no Python for user {user}: {'; '.join(said)}")


@pytest.mark.needs_root
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("options", ["", "pyfuse3"])
def test_as_an_ordinary_user(home: Path, archive: Path, options: str) -> None:
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    place = home / "own"
    place.mkdir()
    os.chown(place, USER, USER)
    python, environment = _python_of(USER)
    flow = FLOW
    if options:
        flow = "from layerfs.mount.option import MountOptions\n" + FLOW.replace(
            'name="box")', 'name="box", options=MountOptions(pyfuse3=True))'
        )
    done = subprocess.run(
        [python, "-c", flow, str(place), str(archive)], check=False, capture_output=True, text=True, user=USER,
        group=USER, extra_groups=[], cwd="/", env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.needs_root
@pytest.mark.usefixtures("device")
def test_what_fusermount_says_is_told(home: Path, archive: Path) -> None:
    place = home / "own"
    place.mkdir(mode=0o755)  # of root, so a user may not mount on it
    python, environment = _python_of(USER)
    code = f"""
from layerfs.mount.fuse.specification import FuseSpecification
from layerfs.mount.fuse.start import start_fuse
from layerfs.errors import MountError
try:
    start_fuse(FuseSpecification(target={str(place)!r}, lowers=("/usr",), read_only=True))
except MountError as error:
    print(error)
"""
    done = subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True, user=USER, group=USER, extra_groups=[],
        cwd="/", env=environment,
    )  # fmt: skip
    assert done.stdout.startswith(f"cannot mount at {place}: ")
    assert "write access" in done.stdout or "Permission denied" in done.stdout
