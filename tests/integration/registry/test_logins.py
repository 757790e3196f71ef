"""Logging in and out, with the files and helpers that docker and podman have."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bench.registry import registry_server
from layerfs.errors import RegistryError
from layerfs.formats.auth_file import Credential
from tests.cli.conftest import Shell
from tests.integration.conftest import require
from tests.integration.registry.conftest import PLAIN, put, skopeo
from tests.integration.registry.test_real_registry import htpasswd, keeping_helper


def test_a_login_in_a_helper_is_forgotten_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one registry, named with a path or not, and of all, those that only the helper knows included."""
    from layerfs.registry.query import log_in, log_out

    kept = keeping_helper(tmp_path, monkeypatch)
    file = tmp_path / "config.json"
    file.write_text('{"credsStore": "testing"}')
    with registry_server(tmp_path / "registry", auth=htpasswd(tmp_path / "auth")) as registry:
        me = Credential("me", "secret-pass")
        log_in(PLAIN, f"{registry.address}/team", me, str(file))
        assert os.listdir(kept) == [registry.address]
        assert log_out(f"{registry.address}/team", str(file)) == [f"{registry.address}/team"]
        assert os.listdir(kept) == []
        log_in(PLAIN, registry.address, me, str(file))
        (kept / "other.example").touch()
        assert log_out(None, str(file)) == sorted([registry.address, "other.example"])
        assert os.listdir(kept) == []
        # One that is broken keeps nobody else from forgetting.
        log_in(PLAIN, registry.address, me, str(file))
        file.write_text('{"credsStore": "testing", "credHelpers": {"broken.example": "is-not-there"}}')
        with pytest.raises(RegistryError, match="docker-credential-is-not-there is not installed"):
            log_out(None, str(file))
        assert os.listdir(kept) == []


def test_command_line(shell: Shell, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log in, pull, tags, inspect, push, log out: with the files where docker and podman have them."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    conf = tmp_path / "config/containers/registries.conf"
    conf.parent.mkdir(parents=True)
    with registry_server(tmp_path / "registry", auth=htpasswd(tmp_path / "auth")) as registry:
        put(layout, registry.name("team/app:1"), "--dest-creds", "me:secret-pass")
        put(layout, registry.name("team/app:2"), "--dest-creds", "me:secret-pass")
        conf.write_text(
            f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
            f'[aliases]\n"app" = "{registry.address}/team/app"\n'
        )
        assert "Log in with" in shell.fails(5, "pull", registry.name("team/app:1"))
        shell.fails(2, "login", "-u", "me", registry.address)
        assert "--username is needed" in shell.fails(2, "login", registry.address)
        process = shell.process(
            "login", "-u", "me", "--password-stdin", registry.address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.communicate(b"secret-pass\n")[0] == b"Login Succeeded!\n"
        file = tmp_path / "xdg/containers/auth.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        process = shell.process(
            "login", "-u", "me", "--password-stdin", registry.address, stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        said = process.communicate(b"wrong-pass\n")[1]
        assert b"does not accept this user and password" in said
        assert b"hint" not in said
        assert process.returncode == 5
        assert shell("login", registry.address) == "Login Succeeded!\n"  # with what is kept
        skopeo("inspect", "--tls-verify=false", "--authfile", file, f"docker://{registry.name('team/app:1')}")
        pulled = shell("pull", "app:1").splitlines()
        assert pulled == [f"Loaded image: {registry.name('team/app:1')}", pulled[-1]]
        assert shell("pull", "-q", "app:1") == f"{pulled[-1]}\n"
        events = [json.loads(line) for line in shell("pull", "--format", "jsonl", "app:2").splitlines()]
        assert events[-1] == {"Id": pulled[-1], "RepoTags": [registry.name("team/app:2")]}
        assert {event["status"] for event in events[:-1]} == {"Already exists"}
        assert sorted(shell("tags", registry.name("team/app")).split()) == ["1", "2"]
        assert sorted(shell.json("tags", "app", "--format", "json")) == ["1", "2"]
        raw = shell("inspect", "--raw", f"docker://{registry.name('team/app:1')}")
        assert json.loads(raw)["schemaVersion"] == 2
        (shown,) = shell.json("inspect", f"docker://{registry.name('team/app:1')}")
        other = json.loads(
            skopeo("inspect", "--tls-verify=false", "--authfile", file, f"docker://{registry.name('team/app:1')}")
        )
        for key in ("Name", "Digest", "Created", "Labels", "Architecture", "Os", "Layers", "Env"):
            assert shown[key] == other[key], key
        assert shell("push", "-q", registry.name("team/app:1"), registry.name("team/new:x")).startswith("sha256:")
        assert shell("pull", "-q", "-a", registry.name("team/app")).splitlines() == [pulled[-1]] * 2
        shell("logout", registry.address)
        shell.fails(5, "tags", registry.name("team/app"))
        shell.fails(3, "logout", registry.address)
        policy = tmp_path / "config/containers/policy.json"
        policy.write_text('{"default": [{"type": "reject"}]}')
        assert "trust policy rejects" in shell.fails(5, "pull", "app:1")
        policy.write_text('{"default": [{"type": "reject"}], "defualt": []}')
        assert "unknown member 'defualt'" in shell.fails(1, "pull", "app:1")
        shell("pull", "--insecure-policy", "--creds", "me:secret-pass", "app:1")
        ends = (f"docker://{registry.name('team/app:1')}", f"docker://{registry.name('team/copied:1')}")
        copied = ("copy", "-q", "--insecure-policy", "--src-creds", "me:secret-pass")
        assert "Log in with" in shell.fails(5, *copied, "--dest-creds", "me:wrong-pass", *ends)
        assert shell(*copied, "--dest-creds", "me:secret-pass", *ends) == f"{other['Digest']}\n"
        shell.fails(5, "copy", "-q", "--insecure-policy", "--dest-creds", "me:secret-pass", *ends)
        # What is for the source is not offered to the destination, not even when that asks for it.
        shell.fails(5, *copied, *ends)
        # What is for both is for one registry, however it is reached.
        both = (*copied[:3], "--creds", "me:secret-pass", "--dest-tls-verify=false", *ends)
        assert shell(*both) == f"{other['Digest']}\n"


@pytest.mark.needs_root
def test_root_without_a_runtime_directory_shares_logins_with_podman(shell: Shell, tmp_path: Path, layout: Path) -> None:
    """As under sudo and cron; in a mount namespace of its own, for the file is the machine's."""
    require("podman")
    with registry_server(tmp_path / "registry", auth=htpasswd(tmp_path / "auth")) as registry:
        skopeo("copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", "me:secret-pass", f"oci:{layout}:app",
               f"docker://{registry.name('app:1')}")  # fmt: skip
        script = (
            "mount -t tmpfs none /run/containers 2>/dev/null || { mkdir -p /run/containers && "
            "mount -t tmpfs none /run/containers; }; unset XDG_RUNTIME_DIR REGISTRY_AUTH_FILE DOCKER_CONFIG; "
            'podman login --tls-verify=false -u me -p secret-pass "$1" && '
            '"$2" -c "from layerfs_cli.main import main; main()" pull -q --tls-verify=false "$1/app:1"'
        )
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", registry.address,
             sys.executable], env={**os.environ, **shell.env}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
