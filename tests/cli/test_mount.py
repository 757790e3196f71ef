"""Mounts and containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.linux.process import wait_for_end
from tests.cli.archive import BASE, Built
from tests.cli.conftest import Shell

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay]


def test_mount_prints_target_and_generated_name(shell: Shell, image: Built, target: Path) -> None:
    first, name = shell("mount", image.name, str(target)).splitlines()
    assert first == str(target)
    assert [row["Names"] for row in shell.json("ps", "--format", "json")] == [[name]]
    assert shell("umount", name) == f"{target}\n"
    made, second = shell("mount", image.name).splitlines()
    assert second != name
    assert (Path(made) / "etc/hostname").read_text() == "top\n"
    assert shell("umount", made) == f"{made}\n"
    assert shell("mount", "-q", image.name).count("\n") == 1
    assert shell("mount", "--format", "{{.Target}} {{.Container}}", image.name).count(" ") == 1
    assert len(shell("umount", "--all").splitlines()) == 2
    assert shell.json("mount", "--format", "json") == []


def test_a_container_goes_on(shell: Shell, image: Built, target: Path) -> None:
    assert shell("mount", "--name", "web", image.name, str(target)) == f"{target}\n"
    (target / "etc/hostname").write_text("changed\n")
    (target / "bin/sh").unlink()
    (target / "srv/new").write_text("")
    (row,) = shell.json("mount", "--format", "json")
    assert (row["mountpoint"], row["container"], row["image"], row["read_only"]) == (
        str(target), "web", image.name, False,
    )  # fmt: skip
    assert shell("diff", "web").splitlines() == [
        "C /bin", "D /bin/sh", "C /etc", "C /etc/hostname", "C /srv", "A /srv/new",
    ]  # fmt: skip
    shell("umount", "web")
    assert shell.json("diff", "web", "--format", "json") == {
        "changed": ["/bin", "/etc", "/etc/hostname", "/srv"],
        "added": ["/srv/new"],
        "deleted": ["/bin/sh"],
    }
    assert json.loads(shell("diff", "web", "--format", "jsonl").splitlines()[1]) == {"kind": "D", "path": "/bin/sh"}
    assert shell("diff", "-z", "--name-only", "web").split("\0")[:2] == ["/bin", "/bin/sh"]
    assert shell("mount", "--name", "web", str(target)) == f"{target}\n"
    assert (target / "etc/hostname").read_text() == "changed\n"
    assert shell.json("inspect", "web")[0]["mountpoint"] == str(target)
    shell("umount", "web")
    assert shell("rm", "web") == "web\n"
    assert shell.json("ps", "--format", "json") == []


def test_what_is_in_use(shell: Shell, image: Built, target: Path, tmp_path: Path) -> None:
    shell("mount", "--name", "web", image.name, str(target))
    (tmp_path / "other").mkdir()
    assert str(target) in shell.fails(6, "mount", "--name", "web", str(tmp_path / "other"))
    assert str(target) in shell.fails(6, "mount", image.name, str(target))
    shell.fails(6, "rm", "web")
    shell.fails(6, "rmi", image.name)
    with (target / "etc/hostname").open():
        assert "in use by" in shell.fails(8, "umount", "web")
    assert shell("rm", "--force", "web") == "web\n"
    shell.fails(3, "umount", "web")
    assert shell("umount", "--force", "web") == ""
    assert len(shell("ps").splitlines()) == 1


def test_a_target_that_is_none(shell: Shell, image: Built, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "not a directory" in shell.fails(8, "mount", image.name, str(tmp_path / "file"))
    assert "mkdir" in shell.fails(8, "mount", image.name, str(tmp_path / "none"))
    assert "./none" in shell.fails(3, "mount", "--name", "x", "none")
    assert shell.json("ps", "--format", "json") == []


def test_another_image_for_a_container(shell: Shell, image: Built, target: Path, tmp_path: Path) -> None:
    shell("mount", "--name", "web", image.name, str(target))
    shell("umount", "web")
    shell("load", "-q", "-i", str(Built(layers=(BASE,), name="b").docker_archive(tmp_path / "b.tar")))
    shell.fails(6, "mount", "--name", "web", "b", str(target))


@pytest.mark.parametrize("words", [["--read-only"], ["-o", "ro"]])
def test_read_only(shell: Shell, image: Built, target: Path, words: list[str]) -> None:
    assert shell("mount", *words, image.name, str(target)) == f"{target}\n"
    with pytest.raises(OSError, match="Read-only"):
        (target / "x").touch()
    assert shell.json("ps", "--format", "json") == []


def options_of(target: Path) -> set[str]:
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        if fields[4] == str(target):
            return set(fields[5].split(","))
    raise AssertionError("not mounted")


@pytest.mark.parametrize("lower", ["erofs", "dirs"])
def test_options(shell: Shell, image: Built, target: Path, lower: str) -> None:
    shell("mount", "--lower", lower, image.name, str(target))
    assert {"nosuid", "nodev"} <= options_of(target)
    shell("umount", str(target))
    shell("mount", "--lower", lower, "-o", "suid,dev", "-o", "noexec", image.name, str(target))
    assert {"nosuid", "nodev", "noexec"} & options_of(target) == {"noexec"}


@pytest.mark.needs_fuse
def test_one_container_by_two_backends(shell: Shell, image: Built, target: Path) -> None:
    shell.env["LAYERFS_BACKEND"] = "fuse"
    shell("mount", "--name", "web", image.name, str(target))
    (row,) = shell.json("mount", "--format", "json")
    assert row["backend"] == "fuse"
    os.kill(row["pid"], 0)
    (target / "etc/hostname").write_text("by fuse\n")
    (target / "bin/sh").unlink()
    changes = shell("diff", "web")
    assert changes.splitlines() == ["C /bin", "D /bin/sh", "C /etc", "C /etc/hostname"]
    shell("umount", "web")
    assert wait_for_end(row["pid"], 0)
    del shell.env["LAYERFS_BACKEND"]
    shell("mount", "--backend", "overlay", "--name", "web", str(target))
    assert (target / "etc/hostname").read_text() == "by fuse\n"
    (target / "srv/new").write_text("by the kernel\n")
    shell("umount", "web")
    for options in (("-o", "pyfuse3"), ()):
        shell("mount", "--backend", "fuse", *options, "--name", "web", str(target))
        assert (target / "srv/new").read_text() == "by the kernel\n"
        assert not (target / "bin/sh").exists()
        if options:
            shell("umount", "web")
    # Its process is killed: the next mount takes away what it left.
    (row,) = shell.json("mount", "--format", "json")
    os.kill(row["pid"], signal.SIGKILL)
    shell("umount", "web")
    shell("mount", "--backend", "fuse", "--name", "web", str(target))
    (row,) = shell.json("mount", "--format", "json")
    assert shell("ps", "--format", "{{.Status}}") == "mounted\n"
    os.kill(row["pid"], signal.SIGKILL)
    assert wait_for_end(row["pid"], 10)
    assert shell("ps", "--format", "{{.Status}}") == "dead\n"
    assert shell("mount", "--read-only", "--backend", "overlay", image.name, str(target)) == f"{target}\n"
    assert (target / "etc/hostname").read_text() == "top\n"
    shell("umount", str(target))
    shell("rm", "web")
    assert "reads the image as it is stored" in shell.fails(
        8, "mount", "--backend", "fuse", "--lower", "dirs", image.name, str(target)
    )


def test_a_mount_whose_name_cannot_be_said_is_undone(shell: Shell, image: Built, target: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = shell.process("mount", image.name, str(target), stdout=full, stderr=-1)
        process.communicate(timeout=30)
    assert process.returncode == 1
    assert shell.json("mount", "--format", "json") == []
    assert shell.json("ps", "--format", "json") == []


def test_a_container_in_use_is_neither_removed_nor_mounted_again(
    shell: Shell, image: Built, target: Path, tmp_path: Path
) -> None:
    shell("mount", "--name", "web", image.name, str(target))
    elsewhere = ("--runroot", str(tmp_path / "elsewhere"))
    for words in (("rm", "web"), ("mount", "--name", "web", str(target))):
        assert "mounted at" in shell.fails(6, *elsewhere, *words)
    with (target / "etc/hostname").open("r+") as file:
        shell("umount", "--lazy", "web")
        assert shell.json("mount", "--format", "json") == []
        for again in (("rm", "web"), ("rm", "--force", "web"), ("mount", "--name", "web", str(target))):
            assert "still in use by" in shell.fails(6, *again)
        file.write("later")
    shell("mount", "--name", "web", str(target))
    assert (target / "etc/hostname").read_text().startswith("later")
    shell("umount", "--lazy", "web")
    shell("rm", "web")


def test_targets_in_or_over_the_store(shell: Shell, image: Built, tmp_path: Path) -> None:
    root = tmp_path / "store"
    for place in (root, root.parent, root / "layers", root / "locks"):
        assert "store" in shell.fails(8, "mount", image.name, str(place))
    assert shell.json("ps", "--format", "json") == []


def test_a_name_like_the_beginning_of_an_id(shell: Shell, image: Built, target: Path) -> None:
    shell("mount", "--name", "first", image.name, str(target))
    shell("umount", "first")
    (row,) = shell.json("ps", "--format", "json")
    name = row["Id"][:6]
    shell("mount", "--name", name, image.name, str(target))
    assert sorted(row["Names"][0] for row in shell.json("ps", "--format", "json")) == sorted(["first", name])
    shell("umount", name)


def test_two_read_only_mounts_without_a_target(shell: Shell, image: Built) -> None:
    shell("mount", "--read-only", image.name)
    assert "is mounted at" in shell.fails(6, "mount", "--read-only", image.name)
    shell("umount", image.name)


def test_a_mount_of_a_killed_process_is_found(shell: Shell, image: Built, target: Path, tmp_path: Path) -> None:
    words = ("mount", "--name", "web", image.name, str(target))
    program = [sys.executable, "-c", "from layerfs_cli.main import main; main()", *words]
    calls = "?rename,?renameat,?renameat2"  # some architectures have one, some another
    trace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:signal=KILL:when=1",
    ]
    subprocess.run([*trace, *program], env={**os.environ, **shell.env}, check=False, capture_output=True)
    assert (target / "etc/hostname").exists()
    assert not list((tmp_path / "run/mounts").glob("*.json"))
    assert [row["container"] for row in shell.json("mount", "--format", "json")] == ["web"]
    assert "is mounted at" in shell.fails(6, "rm", "web")
    shell("umount", "web")
    shell("rm", "web")


def test_the_tables_of_the_kernel_are_no_target(shell: Shell, image: Built) -> None:
    program = "from layerfs_cli.main import main; main()"
    for target in ("/proc", "/proc/self", "/sys", "/dev/shm"):
        ran = subprocess.run(
            ["unshare", "-m", "--propagation", "private", sys.executable, "-c", program, "mount", image.name, target],
            env={**os.environ, **shell.env}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert (ran.returncode, ran.stdout) == (8, "")
        assert "which mounting itself needs" in ran.stderr
    assert shell.json("ps", "--format", "json") == []


@pytest.mark.parametrize("backend", ["overlay", "fuse"])
def test_a_damaged_layer_is_not_mounted(shell: Shell, image: Built, target: Path, backend: str) -> None:
    tars = sorted((shell.directory / "store/layers/sha256").glob("*/layer.tar"))
    tar = max(tars, key=lambda path: path.stat().st_size)
    whole = tar.read_bytes()
    for what in ("cut short at 512 bytes", "missing"):
        if what == "missing":
            tar.unlink()
        else:
            os.truncate(tar, 512)
        said = shell.fails(4, "mount", "--backend", backend, image.name, str(target))
        assert what in said
        assert str(tar) in said
        assert "Load the image again" in said
        assert shell.json("mount", "--format", "json") == shell.json("ps", "--format", "json") == []
    tar.write_bytes(whole)
    shell("mount", "--backend", backend, "--name", "healed", image.name, str(target))
    shell("umount", "healed")
