"""Files of an image without a mount, and names that are hostile to terminals."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.cli.archive import BASE, TOP, Built, digest
from tests.cli.conftest import Shell

ODD = b"caf\xe9\x1b[31m"


def test_ls(shell: Shell, image: Built) -> None:
    assert shell("ls", image.id).split() == ["bin", "etc", "srv"]
    assert shell("ls", f"{image.name}:/etc").split() == ["hostname", "link"]
    assert shell("ls", f"{image.name}:/etc/hostname") == "/etc/hostname\n"
    assert shell("ls", "-R", f"{image.name}:/bin") == "/bin/sh\n"
    lines = shell("ls", "-l", f"{image.name}:/etc").splitlines()
    assert lines[0] == "-rw-r--r--   1     0     0          4 2020-09-13 12:26:40 hostname"
    assert lines[1].startswith("lrwx")
    assert lines[1].endswith(" link -> hostname")
    assert "4B" in shell("ls", "-l", "--human-readable", f"{image.name}:/etc")
    first, second = shell.json("ls", f"{image.name}:/etc", "--format", "json")
    assert first | {"inode": 0} == {
        "name": "hostname", "type": "file", "mode": "0644", "uid": 0, "gid": 0, "size": 4, "nlink": 1, "inode": 0,
        "mtime": "2020-09-13T12:26:40Z",
    }  # fmt: skip
    assert second["target"] == "hostname"


def test_names_are_raw_bytes_in_lines_and_escapes_in_json(shell: Shell, image: Built) -> None:
    process = shell.process("ls", "-z", f"{image.id}:/srv", stdout=-1)
    assert process.communicate()[0] == ODD + b"\0"
    process = shell.process("ls", f"{image.id}:/srv", "--format", "json", stdout=-1)
    raw = process.communicate()[0]
    assert rb'"caf\udce9\u001b[31m"' in raw
    (entry,) = shell.json("ls", f"{image.id}:/srv", "--format", "json")
    assert os.fsencode(entry["name"]) == ODD


def test_cat(shell: Shell, image: Built) -> None:
    assert shell("cat", f"{image.name}:/etc/hostname", f"{image.id}:/etc/link", f"{image.id}:/bin/sh") == "top\ntop\n#!"
    error = shell.fails(3, "cat", f"{image.name}:/etc/none")
    assert error == f"layerfs: error: {image.name}:/etc/none: No such file or directory\n"
    assert "Is a directory" in shell.fails(1, "cat", f"{image.name}:/etc")
    assert "Not a directory" in shell.fails(3, "cat", f"{image.name}:/bin/sh/x")
    shell.fails(2, "cat", image.name)
    process = shell.process("cat", os.fsdecode(image.id.encode() + b":/srv/" + ODD), stdout=-1)
    assert process.communicate()[0] == b"x"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_large_file_through_a_slow_pipe(shell: Shell, tmp_path: Path, unbuffered: str) -> None:
    from tests.cli.archive import layer

    content = os.urandom(3_000_001)
    built = Built(layers=(layer(("big", content)),))
    shell("load", "-q", "-i", str(built.docker_archive(tmp_path / "x.tar")))
    shell.env["PYTHONUNBUFFERED"] = unbuffered
    process = shell.process("cat", f"{built.id}:/big", stdout=-1)
    assert process.communicate(timeout=60)[0] == content


def test_which(shell: Shell, image: Built) -> None:
    rows = shell.json("which", image.id, "/etc/hostname", "--format", "json")
    assert [(row["position"], row["diff_id"], row["role"]) for row in rows] == [
        (1, digest(TOP), "provides"),
        (0, digest(BASE), "hidden"),
    ]
    assert rows[0] | {"diff_id": ""} == {
        "position": 1, "diff_id": "", "role": "provides", "mode": "100644", "size": 4, "created_by": "RUN step 1",
    }  # fmt: skip
    rows = shell.json("which", image.id, "etc/motd", "--format", "json")
    assert [row["role"] for row in rows] == ["deletes", "hidden"]
    assert shell("which", image.id, "/bin/sh").splitlines()[0].split() == [
        "#", "LAYER", "ROLE", "MODE", "SIZE", "CREATED", "BY",
    ]  # fmt: skip
    shell.fails(3, "which", image.id, "/none")


def test_xattrs_are_base64(shell: Shell, tmp_path: Path) -> None:
    import io
    import tarfile

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("f")
        info.pax_headers = {"SCHILY.xattr.user.k": "v"}
        tar.addfile(info)
    built = Built(layers=(raw.getvalue(),))
    shell("load", "-q", "-i", str(built.docker_archive(tmp_path / "x.tar")))
    (entry,) = shell.json("ls", f"{built.id}:/", "--format", "json")
    assert entry["xattrs"] == {"user.k": base64.b64encode(b"v").decode()}


def on_terminal(shell: Shell, *words: str) -> bytes:
    """Run the program with a terminal as standard output and error; return what it shows."""
    script = (
        "import os, pty, sys\n"
        "pid, fd = pty.fork()\n"
        "if pid == 0:\n"
        "    program = 'from layerfs_cli.main import main; main()'\n"
        "    os.execv(sys.executable, [sys.executable, '-c', program, *sys.argv[1:]])\n"
        "out = b''\n"
        "try:\n"
        "    while data := os.read(fd, 65536):\n"
        "        out += data\n"
        "except OSError:\n"
        "    pass\n"
        "sys.stdout.buffer.write(out)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, **shell.env, "TERM": "xterm"}, stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    return run.stdout


def test_a_terminal_is_not_steered_by_names(shell: Shell, image: Built) -> None:
    assert on_terminal(shell, "ls", f"{image.id}:/srv") == b"caf\\xe9\\x1b[31m\r\n"


@pytest.mark.parametrize("count", [1, 60])
def test_bars_on_a_terminal(shell: Shell, tmp_path: Path, count: int) -> None:
    from tests.cli.archive import layer

    built = Built(layers=[layer((f"file{number}", b"x" * 9000)) for number in range(count)])
    shown = on_terminal(shell, "load", "-i", str(built.layout(tmp_path / "layout")))
    assert b"Load complete" in shown
    assert digest(built.layers[-1])[7:19].encode() in shown
    assert shown.endswith(b"\x1b[?25hLoaded image: example.org/team/app:1.0\r\n" + built.id.encode() + b"\r\n")
    again = on_terminal(shell, "--no-color", "load", "-i", str(tmp_path / "layout"))
    assert b"Already exists" in again
    assert b"\x1b[38" not in again


def test_what_is_no_file_has_no_content(shell: Shell, tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo("pipe")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    built = Built(layers=(raw.getvalue(),))
    shell("load", "-q", "-i", str(built.docker_archive(tmp_path / "a.tar")))
    assert f"{built.name}:/pipe: Not a regular file" in shell.fails(1, "cat", f"{built.name}:/pipe")
