"""Overlays that live in other mount namespaces, as the kernel tells them and as processes show them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux import mount_namespaces
from layerfs.linux.mount_namespaces import foreign_overlays
from layerfs.linux.mountinfo import find_foreign_upper_mount, is_listed_elsewhere

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay]


@pytest.fixture
def upper(tmp_path: Path) -> Iterator[Path]:
    """An upper directory with an odd name, below 300 lowers, mounted where only another process is."""
    lowers = [tmp_path / f"lower{number}{'n' * 100}" for number in range(300)]
    upper, work, target = (tmp_path / f"{name}, with = and \\ and é" for name in ("upper", "work", "target"))
    for path in (*lowers, upper, work, target):
        path.mkdir()

    # Lowers as options of their own: all of them together are more than mount(8) passes on.
    program = (
        "import sys, os\n"
        "from layerfs.linux import mount_api as api\n"
        "*lowers, upper, work, target = sys.argv[1:]\n"
        "context = api.fsopen('overlay')\n"
        "for lower in lowers:\n    api.fsconfig_string(context, 'lowerdir+', lower)\n"
        "for key, path in (('upperdir', upper), ('workdir', work)):\n"
        "    api.fsconfig_fd(context, key, os.open(path, os.O_PATH))\n"
        "api.fsconfig_create(context)\n"
        "api.move_mount(api.fsmount(context, api.MountAttribute.NONE), os.open(target, os.O_PATH))\n"
        "print('mounted', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = ["unshare", "--mount", sys.executable, "-c", program, *map(str, (*lowers, upper, work, target))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mounted\n"
        yield upper
        process.communicate(b"")


def test_the_kernel_tells_them(upper: Path) -> None:
    try:
        found = list(foreign_overlays())
    except OSError as error:
        pytest.skip(f"this kernel does not tell them: {error.strerror}")
    (options,) = (text for text in found if "lower299" in text)
    assert options.count("lowerdir+=") == 300
    assert "\\054\\040with" in options


@pytest.mark.parametrize("is_told", [True, False])
def test_an_upper_directory_is_found(upper: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool) -> None:
    if not is_told:

        def refuse() -> Iterator[str]:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

        monkeypatch.setattr(mount_namespaces, "foreign_overlays", refuse)
    assert is_listed_elsewhere(upper) is (True if is_told else None)
    assert is_listed_elsewhere(upper.parent) is (False if is_told else None)
    found = find_foreign_upper_mount(upper)
    assert found is not None
    pid, entry = found
    assert entry.option("upperdir") == str(upper)
    assert Path(f"/proc/{pid}/cmdline").exists()
    assert find_foreign_upper_mount(upper.parent) is None
