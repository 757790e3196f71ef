"""Bad input: one line, a hint where there is a way out, and the right exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerfs.errors import LayerfsError
from layerfs_cli.failure import exit_code
from tests.cli.archive import BASE, TOP, Built, digest
from tests.cli.conftest import Shell


def test_not_an_archive(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"", b"hello", os.urandom(5000), BASE):
        path.write_bytes(content)
        shell.fails(1, "load", "-i", str(path))
    (tmp_path / "empty").mkdir()
    shell.fails(1, "load", "-i", str(tmp_path / "empty"))
    shell.fails(3, "load", "-i", str(tmp_path / "none"))
    assert shell("images", "-q") == ""


@pytest.mark.parametrize(
    "media_type", ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/vnd.example.thing"]
)
def test_encrypted_or_unknown_layer_type(shell: Shell, tmp_path: Path, media_type: str) -> None:
    built = Built(media_type=media_type)
    error = shell.fails(1, "load", "-i", str(built.layout(tmp_path / "layout")))
    assert media_type.rpartition("+")[2] in error or media_type in error


def test_missing_blob(shell: Shell, tmp_path: Path) -> None:
    built = Built(missing=True)
    shell.fails(3, "load", "-i", str(built.layout(tmp_path / "layout")))
    shell.fails(3, "load", "-i", str(built.docker_archive(tmp_path / "a.tar")))


def test_size_mismatch(shell: Shell, tmp_path: Path) -> None:
    built = Built(change_descriptor=lambda layer: layer.update(size=layer["size"] + 1))
    shell.fails(4, "load", "-i", str(built.layout(tmp_path / "layout")))


def test_digest_mismatch(shell: Shell, tmp_path: Path) -> None:
    built = Built(change_diff_ids=lambda ids: ids.__setitem__(-1, digest(b"other")))
    assert digest(TOP) in shell.fails(4, "load", "-i", str(built.docker_archive(tmp_path / "a.tar")))
    assert digest(TOP) in shell.fails(4, "load", "-i", str(built.layout(tmp_path / "layout")))
    assert shell("images", "-q") == ""


def test_options_for_one_side_of_a_copy(shell: Shell, tmp_path: Path) -> None:
    layout, remote = f"oci:{tmp_path}/layout", "docker://127.0.0.1:1/x"
    for option in (["--src-creds", "a:b"], ["--src-tls-verify"], ["--no-src-tls-verify"]):
        assert f"{layout} is none" in shell.fails(2, "copy", *option, layout, remote)
    for option in (["--dest-creds", "a:b"], ["--no-dest-tls-verify"]):
        assert f"{layout} is none" in shell.fails(2, "copy", *option, remote, layout)
    assert "--dest-creds needs a user" in shell.fails(2, "copy", "--dest-creds", ":b", layout, remote)
    assert "--src-creds USER:PASSWORD" in shell.fails(2, "copy", "--src-creds", "a", remote, layout)


def test_asking_a_registry_takes_no_store(shell: Shell) -> None:
    shell.fails(5, "inspect", "docker://127.0.0.1:1/x", "--retry", "0")
    assert not Path(shell.env["LAYERFS_ROOT"]).exists()


def test_no_such_platform(shell: Shell, tmp_path: Path) -> None:
    path = str(Built().layout(tmp_path / "layout"))
    shell.fails(3, "load", "-i", path, "--platform", "linux/s390x")
    shell.fails(2, "load", "-i", path, "--platform", "a/b/c/d")
    shell.fails(2, "load", "-i", path, "--platform", "linux/amd64", "--all-platforms")


def test_unknown_and_ambiguous_images(shell: Shell, tmp_path: Path) -> None:
    for verb in ("inspect", "history", "layers", "ls", "rmi"):
        shell.fails(3, verb, "nothing")
    shell.fails(2, "inspect", "Upper")
    # Labels are tried until two IDs begin alike: about one in 65536 pairs does.
    seen: dict[str, Built] = {}
    for number in range(100_000):
        built = Built(layers=(BASE,), label=str(number), name=f"name:{number}")
        other = seen.setdefault(built.id[7:11], built)
        if other is not built:
            break
    for each in (built, other):
        shell("load", "-q", "-i", str(each.docker_archive(tmp_path / "a.tar")))
    error = shell.fails(6, "inspect", built.id[7:11])
    assert built.id[7:19] in error
    assert other.id[7:19] in error
    assert shell("inspect", built.id[7:19], "--format", "{{.Id}}") == f"{built.id}\n"


def test_usage(shell: Shell) -> None:
    for words in (
        ["bogus"],
        ["load", "--bogus"],
        ["mount", "--read-only"],
        ["mount", "x", "-o", "bogus"],
        ["umount"],
        ["umount", "--all", "x"],
        ["images", "--format", "{{range .}}"],
        ["images", "--format", "yaml"],
        ["completion", "tcsh"],
        ["--log-level", "loud", "images"],
        ["diff", "x", "-z", "--format", "json"],
    ):
        assert "layerfs: hint: " in shell.fails(2, *words)
    assert not Path(shell.env["LAYERFS_ROOT"]).exists()


def test_bad_sources(shell: Shell, tmp_path: Path) -> None:
    shell.fails(2, "pull", "docker-archive:")
    shell.fails(2, "pull", f"oci:{tmp_path}/x:@y")
    shell.fails(3, "pull", f"oci:{tmp_path}/x")
    shell.fails(1, "pull", "docker-daemon:debian")
    shell.fails(5, "pull", "docker://127.0.0.1:1/debian", "--retry", "0")


def test_store_is_something_else(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shell.fails(7, "--root", str(tmp_path / "file"), "images")
    shell("images")
    Path(shell.env["LAYERFS_ROOT"], "store.json").write_text('{"version": 99}')
    shell.fails(7, "images")


def test_damaged_database(shell: Shell, image: Built) -> None:
    root = Path(shell.env["LAYERFS_ROOT"])
    for name in ("store.db-wal", "store.db-shm"):
        (root / name).unlink(missing_ok=True)
    (root / "store.db").write_bytes(b"no database" * 1000)
    shell.fails(7, "images")


def test_a_bug_is_called_one(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerfs.api import Store

    def broken(_: Store) -> None:
        raise RuntimeError("oh")

    monkeypatch.setattr(Store, "images", broken)
    assert "bug in layerfs: RuntimeError: oh" in shell.fails(1, "images")
    debug = shell.try_("images", "--debug").stderr
    assert "Traceback" in debug
    assert "layerfs: error: bug in layerfs" in debug


def test_errors_are_printable(shell: Shell) -> None:
    assert "\x1b" not in shell.fails(3, "diff", "x\x1b[31m")


def test_every_error_has_the_exit_code_of_its_class() -> None:
    todo: list[type[LayerfsError]] = [LayerfsError]
    codes = {}
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        codes[kind.__name__] = exit_code(kind.__new__(kind))
    assert {codes[name] for name in ("FormatError", "UnsupportedFormat", "LimitExceeded", "LayerfsError")} == {1}
    assert (codes["InvalidReference"], codes["NotFound"], codes["DigestMismatch"]) == (2, 3, 4)
    assert codes["DamagedData"] == 4
    assert (codes["RegistryError"], codes["Conflict"], codes["StoreTooNew"], codes["BackendUnavailable"]) == (
        5,
        6,
        7,
        8,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_load_from_a_silent_pipe(shell: Shell, tmp_path: Path, number: signal.Signals) -> None:
    data = Built().docker_archive(tmp_path / "a.tar").read_bytes()
    process = shell.process("load", stdin=-1, stdout=-1, stderr=-1)
    assert process.stdin is not None
    process.stdin.write(data[:2000])
    process.stdin.flush()
    ingest = Path(shell.env["LAYERFS_ROOT"], "ingest")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (ingest.exists() and any(ingest.iterdir())):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert process.stderr is not None
    assert process.stderr.read().splitlines()[-1].startswith(b"layerfs: error: ")
    assert not any(ingest.iterdir())
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def test_a_reader_that_goes_away(shell: Shell, image: Built) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = shell.process("ls", "-R", image.id, stdout=writer, stderr=-1)
    os.close(writer)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize("words", [["images"], ["--help"]])
def test_no_room_for_the_output(shell: Shell, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        process = shell.process(*words, stdout=full, stderr=-1)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.endswith(b"No space left on device\n")
    assert err.startswith(b"layerfs: error: ")
    assert err.count(b"\n") == 1


def as_nobody(shell: Shell, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program as an unprivileged user, whose modules are imported while the interpreter may still read them."""
    script = (
        "import os, pkgutil, importlib, sys\n"
        "import layerfs, layerfs_cli, importlib.metadata, encodings.idna, traceback, difflib, email.parser\n"
        "for package in (layerfs, layerfs_cli):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "if os.geteuid() == 0:\n"
        "    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "from layerfs_cli.main import main\nmain()\n"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LAYERFS_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**env, "HOME": str(home)}, cwd="/", check=False, capture_output=True, text=True,
    )  # fmt: skip


def test_no_privilege(shell: Shell, image: Built) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        home = Path(name)
        home.chmod(0o777)
        archive = home / "a.tar"
        image.docker_archive(archive)
        archive.chmod(0o644)
        loaded = as_nobody(shell, home, "load", "-q", "-i", str(archive))
        assert loaded.stdout == f"{image.id}\n", loaded.stderr
        assert (home / ".local/share/layerfs/store.db").exists()
        assert loaded.stderr.startswith("layerfs: warning: there is no XDG_RUNTIME_DIR")
        mounted = as_nobody(shell, home, "-q", "mount", "--backend", "overlay", "--read-only", image.id)
        assert mounted.returncode == 8
        error, hint = mounted.stderr.splitlines()
        assert error.startswith("layerfs: error: backend overlay does not work here: ")
        assert hint in {"layerfs: hint: run as root", "layerfs: hint: use --backend fuse"}
        assert "not, because" in as_nobody(shell, home, "-q", "info").stdout
        if os.geteuid() == 0:
            denied = as_nobody(shell, home, "--root", shell.env["LAYERFS_ROOT"], "images")
            assert denied.returncode == 7
            subprocess.run(["rm", "-rf", str(home / ".local")], check=True)


def test_arguments_that_are_not_utf8(shell: Shell, image: Built) -> None:
    process = shell.process("cat", f"{image.id}:/caf\udce9\x1b", stdout=-1, stderr=-1)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (3, b"")
    assert err.decode() == f"layerfs: error: {image.id}:/caf\\xe9\\x1b: No such file or directory\n"


def test_standard_streams_that_are_closed(shell: Shell, image: Built) -> None:
    def run(redirection: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        script = f'exec "$@" {redirection}'
        program = [sys.executable, "-c", "from layerfs_cli.main import main; main()", *words]
        return subprocess.run(
            ["sh", "-c", script, "sh", *program], env={**os.environ, **shell.env}, check=False, capture_output=True
        )

    closed = run(">&-", "images")
    assert closed.returncode == 1
    assert closed.stderr == b"layerfs: error: standard output: Bad file descriptor\n"
    for words in (["images", "--format", "{{.ID}}"], ["ls", f"{image.id}:/"], ["layers", image.id]):
        closed = run(">&-", *words)
        assert (closed.returncode, closed.stderr) == (1, b"layerfs: error: standard output: Bad file descriptor\n")
    for redirection in (">&-", "<&-"):
        assert run(redirection, "explore", image.id).returncode == 2
    closed = run(">&-", "export", image.id)
    assert closed.returncode == 2
    assert b"standard output is closed" in closed.stderr
    closed = run("<&-", "load")
    assert closed.returncode == 2
    assert b"standard input is closed" in closed.stderr


@pytest.mark.parametrize("redirection", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_files_of_the_store_get_no_standard_descriptor(shell: Shell, image: Built, redirection: str) -> None:
    script = (
        "import os, sys\nfrom layerfs_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "os.write(int(sys.argv[2]), str([os.fstat(fd).st_rdev for fd in range(3)]).encode())"
    )
    reading, writing = os.pipe()
    with os.fdopen(reading) as found:
        subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", script, "--version", str(writing)],
            env={**os.environ, **shell.env}, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, pass_fds=[writing],
        )  # fmt: skip
        os.close(writing)
        assert found.read() == str([os.stat(os.devnull).st_rdev] * 3)


def test_progress_that_nobody_reads(shell: Shell, image: Built, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    shell("save", "-o", str(archive), image.id)
    source = f"docker-archive:{archive}"

    def run(command: str) -> int:
        program = f"{sys.executable} -c 'from layerfs_cli.main import main; main()'"
        script = f"set -o pipefail; {program} {command}"
        return subprocess.run(
            ["bash", "-c", script], env={**os.environ, **shell.env}, check=False, stdin=subprocess.DEVNULL,
            capture_output=True,
        ).returncode  # fmt: skip

    assert run(f"--root {tmp_path}/a pull {source} 2>/dev/full") == 0
    assert run(f"--root {tmp_path}/b pull {source} 2>&-") == 0
    assert run(f"--debug --root {tmp_path}/a inspect nothing 2>/dev/full") == 3
    assert run(f"--root {tmp_path}/c pull --format jsonl {source} >/dev/full") == 1
    assert run(f"--root {tmp_path}/d pull --format jsonl {source} | exec true") in (0, 141)


def test_load_asks_the_policy(shell: Shell, image: Built, tmp_path: Path) -> None:
    archive, layout = str(tmp_path / "image.tar"), str(tmp_path / "layout")
    shell("save", "--format", "oci", "-o", layout, image.id)
    shell.env["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    policy = tmp_path / "config/containers/policy.json"
    policy.parent.mkdir(parents=True, exist_ok=True)
    accept = [{"type": "insecureAcceptAnything"}]
    policy.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"oci": {str(tmp_path): accept}}}))
    shell("load", "-q", "-i", layout)
    assert "trust policy rejects" in shell.fails(5, "load", "-i", archive)
    shell("load", "-q", "--insecure-policy", "-i", archive)
    policy.write_text(json.dumps({"default": accept, "transports": {"docker-archive": {"": [{"type": "reject"}]}}}))
    shell("load", "-q", "-i", layout)
    assert "docker-archive default" in shell.fails(5, "load", "-i", archive)
    with open(archive, "rb") as file:
        process = shell.process("load", stdin=file, stdout=-1, stderr=-1)
        assert b"trust policy rejects standard input" in process.communicate(timeout=30)[1]
    assert process.returncode == 5


def test_the_file_that_is_named_for_registries(shell: Shell, tmp_path: Path) -> None:
    shell.env["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    shell.env["CONTAINERS_REGISTRIES_CONF"] = str(tmp_path / "named.conf")
    assert "there is no" in shell.fails(2, "tags", "blocked.invalid/a")
    (tmp_path / "named.conf").write_text("")
    drop_ins = tmp_path / "config/containers/registries.conf.d"
    drop_ins.mkdir(parents=True)
    (drop_ins / "own.conf").write_text('[[registry]]\nlocation = "blocked.invalid"\nblocked = true\n')
    assert "is blocked" in shell.fails(5, "tags", "blocked.invalid/a")


def test_what_has_several_names_says_which_one_failed(shell: Shell) -> None:
    result = shell.try_("rmi", "one", "two:1")
    assert result.exit_code == 3
    assert result.stderr.count("layerfs: error: no such image: ") == 2
    result = shell.try_("umount", "/nowhere", "/neither")
    assert all(name in result.stderr for name in ("/nowhere", "/neither"))


@pytest.mark.parametrize("name", ["oci:/x", "oci-archive:/x", "docker-archive:/x", "dir:/x"])
def test_inspecting_an_archive(shell: Shell, name: str) -> None:
    assert "only that and registries can be looked into" in shell.fails(2, "inspect", name)


def test_all_and_a_platform(shell: Shell) -> None:
    assert "exclude each other" in shell.fails(2, "copy", "--all", "--platform", "linux/arm64", "dir:/a", "dir:/b")


def test_pushing_what_is_below_localhost(shell: Shell, tmp_path: Path) -> None:
    shell("load", "-q", "-i", str(Built(name="localhost/mine:1").docker_archive(tmp_path / "a.tar")))
    assert "localhost/mine:1 is no name to push to" in shell.fails(2, "push", "mine:1")


def test_a_login_without_standard_input(shell: Shell) -> None:
    process = subprocess.run(
        ["bash", "-c", 'exec "$0" -c "from layerfs_cli.main import main; main()" "$@" <&-', sys.executable, "login",
         "-u", "me", "--password-stdin", "localhost:1"],
        env={**os.environ, **shell.env}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 2
    assert "standard input is closed" in process.stderr


def test_one_damaged_config_ends_no_list(shell: Shell, image: Built) -> None:
    name = image.id[7:]
    path = shell.directory / "store/blobs/sha256" / name
    path.chmod(0o600)
    path.write_bytes(b"{}")
    for words in (("df",), ("df", "-v"), ("images", "--filter", "label=x"), ("images",)):
        assert shell.try_(*words).exit_code == 0, words


def test_a_credential_in_another_file(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "CONTAINERS_REGISTRIES_CONF"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".docker/config.json"
    path.parent.mkdir()
    path.write_text('{"auths": {"r.example": {"auth": "dTpw"}}}')
    assert f"--authfile {path} r.example" in shell.fails(3, "logout", "r.example")
    assert shell("logout", "--authfile", str(path), "r.example") == "Removed login credentials for r.example\n"
