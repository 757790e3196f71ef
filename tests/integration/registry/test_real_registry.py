"""Pull and push with Debian's docker-registry; skopeo, podman and containerd on the other side."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench.peers import containerd, podman
from bench.registry import Certificates, Registry, registry_server, token_server
from layerfs.api import Store
from layerfs.errors import Denied, NotFound, RegistryError, Unauthorized, Unreachable
from layerfs.formats.auth_file import Credential
from layerfs.formats.digest import Digest
from layerfs.formats.reference import Reference
from layerfs.registry.access import Access
from layerfs.registry.query import list_tags
from layerfs.registry.remote import Registries
from layerfs.registry.upload import Uploader
from tests.faulty_registry import FaultyRegistry, Handler, serving
from tests.image_builder import oci, write_layout
from tests.integration.conftest import require
from tests.integration.registry.conftest import IMAGE, PLAIN, put, skopeo
from tests.store_audit import assert_whole, read_file


class Seen:
    """Remembers what a transfer tells its progress to."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, int, int | None]] = []

    def update(self, key: str, state: str, done: int, total: int | None) -> None:
        self.events.append((key, state, done, total))


def skopeo_manifest(name: str) -> bytes:
    done = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"], check=True, capture_output=True
    )
    return done.stdout


def test_pull_is_what_skopeo_put(store: Store, registry: Registry, layout: Path) -> None:
    name = registry.name("team/app:1")
    put(layout, name)
    image = store.pull(name, access=PLAIN)[0]
    assert image.names == (name,)
    assert store.manifest(image).raw == skopeo_manifest(name)
    digest = skopeo("inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{name}").strip()
    assert str(image.manifest_digest) == digest
    config = skopeo("inspect", "--config", "--raw", "--tls-verify=false", f"docker://{name}")
    assert store.config(image).raw.decode() == config
    assert_whole(store)
    by_digest = store.pull(f"docker://{registry.name('team/app')}@{digest}", access=PLAIN)[0]
    assert by_digest.id == image.id


def test_docker_manifests_and_zstd(store: Store, registry: Registry, layout: Path, tmp_path: Path) -> None:
    put(layout, registry.name("docker:1"), "--format", "v2s2")
    packed = write_layout(tmp_path / "zstd", oci(IMAGE.using(codec="zstd")))
    put(packed, registry.name("zstd:1"))
    docker = store.pull(registry.name("docker:1"), access=PLAIN)[0]
    assert store.manifest(docker).media_type.startswith("application/vnd.docker.")
    zstd = store.pull(registry.name("zstd:1"), access=PLAIN)[0]
    assert all(layer.media_type.endswith("zstd") for layer in store.manifest(zstd).layers)
    assert {layer.diff_id for layer in store.layers(docker)} == {layer.diff_id for layer in store.layers(zstd)}
    assert_whole(store)


def test_tls_with_an_authority_of_its_own(
    store: Store, certificates: Certificates, layout: Path, tmp_path: Path
) -> None:
    said = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "keyUsage", "-in", certificates.authority], check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Key Usage" not in said.stdout, "Python 3.13 would refuse this one by itself"
    with registry_server(tmp_path / "tls", tls=certificates) as registry:
        name = registry.name("app:1")
        put(layout, name)
        with pytest.raises(Unreachable, match="certificate is not trusted"):
            store.pull(name, access=Access(retry_delay=0.01))
        trusted = tmp_path / "certs.d" / registry.address
        trusted.mkdir(parents=True)
        shutil.copy(certificates.authority, trusted / "ca.crt")
        assert store.pull(name, access=Access(certificate_roots=(str(tmp_path / "certs.d"),)))
        elsewhere = Access(certificate_roots=(str(tmp_path / "nothing"),), verify_tls=True)
        with pytest.raises(Unreachable, match="certificate"):
            store.pull(name, access=elsewhere)
        assert store.pull(name, access=Access(certificates=str(trusted)))
        shutil.copy(certificates.certificate, trusted / "ca.crt")  # of the server alone, which its authority has signed
        assert skopeo("inspect", "--cert-dir", str(trusted), f"docker://{name}")
        assert store.pull(name, access=Access(certificates=str(trusted)))
        assert store.pull(name, access=Access(verify_tls=False))
        (tmp_path / "authorities").mkdir()
        (tmp_path / "authorities/readme").write_text("no certificate")
        shutil.copy(certificates.authority, tmp_path / "authorities/any name")
        (tmp_path / "authorities/gone").symlink_to("nothing")
        assert store.pull(name, access=Access(authorities=("/nowhere", str(tmp_path / "authorities"))))
        # As a directory of the machine is: bundles, and names that look like what OpenSSL would look for.
        shutil.rmtree(tmp_path / "authorities")
        (tmp_path / "authorities").mkdir()
        (tmp_path / "authorities/0123abcd.1").symlink_to("ca.pem")
        texts = [certificates.certificate.read_text(), certificates.authority.read_text()]
        (tmp_path / "authorities/ca.pem").write_text("\n".join(texts))
        assert store.pull(name, access=Access(authorities=(str(tmp_path / "authorities"),)))
        pushed = store.push(name, registry.name("copy:1"), access=Access(certificates=str(trusted)))
        assert pushed.manifest_digest == store.resolve(name).manifest_digest


def test_the_authority_of_a_registry_counts_for_where_it_sends_one(
    store: Store, certificates: Certificates, tmp_path: Path
) -> None:
    tls = (certificates.certificate, certificates.key)
    registry, realm = FaultyRegistry(), FaultyRegistry()
    registry.add(IMAGE)
    realm.add(IMAGE)

    def fault(handler: Handler) -> bool:
        if handler.headers.get("Authorization") != "Bearer word":
            handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="https://{realm.address}/token"'})
        elif handler.kind == "blobs":
            handler.answer(307, b"", {"Location": f"https://{realm.address}{handler.path}"})
        else:
            return False
        return True

    def token(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.answer(200, b'{"token": "word"}')
        return handler.path.startswith("/token")

    registry.fault, realm.fault = fault, token
    with serving(registry, tls=tls), serving(realm, tls=tls):
        access = Access(certificate_roots=(str(tmp_path),), retry_delay=0.01)
        with pytest.raises(Unreachable, match="certificate is not trusted"):
            store.pull(f"{registry.address}/app", access=access)
        trusted = tmp_path / registry.address
        trusted.mkdir()
        shutil.copy(certificates.authority, trusted / "ca.crt")
        assert store.pull(f"{registry.address}/app", access=access)
        assert realm.count("/token")
        assert realm.count("/blobs/")
        assert not any(asked.authorization for asked in realm.asked if "/blobs/" in asked.path)


def test_what_has_a_subject_is_found_again(registry: Registry, layout: Path) -> None:
    """Debian's registry has no API for it, so the list is kept under a tag."""
    put(layout, registry.name("app:1"))
    raw = skopeo_manifest(registry.name("app:1"))
    about = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(Digest.of(raw)), "size": len(raw)}
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(b"{}")), "size": 2}
    with Registries.open(PLAIN) as registries:
        repository = registries.write_to(Reference.parse(registry.name("app:1")))
        Uploader(repository, PLAIN, lambda: None).put(Digest.of(b"{}"), 2, lambda: [b"{}"], lambda _: None)
        put_there = []
        for kind in ("application/vnd.example.sbom", "application/vnd.example.signature"):
            document = {
                "schemaVersion": 2, "mediaType": about["mediaType"], "artifactType": kind, "config": empty,
                "layers": [empty], "subject": about, "annotations": {"kind": kind},
            }  # fmt: skip
            text = json.dumps(document).encode()
            put_there.append(repository.put_manifest(Digest.of(text), text, str(about["mediaType"])))
            repository.put_manifest(Digest.of(text), text, str(about["mediaType"]))  # it is listed already
        found = repository.referrers(Digest.of(raw))
        assert [entry.digest for entry in found] == put_there
        assert [entry.annotations["kind"] for entry in found] == [entry.artifact_type for entry in found]
        assert repository.referrers(Digest.of(raw), "application/vnd.example.sbom") == found[:1]


def test_each_manifest_of_an_image_goes_out_under_its_name_and_digest(
    store: Store, registry: Registry, layout: Path
) -> None:
    put(layout, registry.name("app:1"))
    put(layout, registry.name("app:2"), "--format", "v2s2")
    digests = [Digest.of(skopeo_manifest(registry.name(f"app:{number}"))) for number in (1, 2)]
    assert digests[0] != digests[1]
    for number in (1, 2):
        store.pull(registry.name(f"app:{number}"), access=PLAIN)
    for number, digest in enumerate(digests, 1):
        for name in (f"{registry.name('app')}@{digest}", registry.name(f"app:{number}")):
            store.push(name, registry.name("copy:1"), access=PLAIN)
            assert Digest.of(skopeo_manifest(registry.name("copy:1"))) == digest


def htpasswd(directory: Path) -> dict[str, object]:
    file = directory / "htpasswd"
    file.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["htpasswd", "-Bbc", file, "me", "secret-pass"], check=True, capture_output=True)
    return {"htpasswd": {"realm": "tests", "path": str(file)}}


def test_passwords(store: Store, layout: Path, tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry", auth=htpasswd(tmp_path / "auth")) as registry:
        name = registry.name("team/app:1")
        put(layout, name, "--dest-creds", "me:secret-pass")
        with pytest.raises(Unauthorized, match="wants credentials"):
            store.pull(name, access=PLAIN)
        with pytest.raises(Unauthorized, match="does not accept"):
            store.pull(name, access=replace(PLAIN, credential=Credential("me", "wrong")))
        files = (tmp_path / "none.json", tmp_path / "auth.json")
        entry = {"auth": base64.b64encode(b"me:secret-pass").decode()}
        files[1].write_text(json.dumps({"auths": {f"{registry.address}/team": entry}}))
        access = replace(PLAIN, auth_files=tuple(map(str, files)))
        store.pull(name, access=access)
        with pytest.raises(Unauthorized):
            store.push(name, registry.name("other:1"), access=access)
        store.push(name, registry.name("team/copy:1"), access=access)
        assert list(list_tags(access, registry.name("team/copy"))) == ["1"]


def test_a_credential_helper(store: Store, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "bin" / "docker-credential-testing"
    helper.parent.mkdir()
    helper.write_text(
        '#!/bin/sh\nread server; echo "$1 $server" >> ' + f"{tmp_path}/asked\n"
        'case "$server" in 127.0.0.1:*) echo \'{"Username": "me", "Secret": "secret-pass"}\';;\n'
        "*) echo credentials not found in native keychain; exit 1;; esac\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    with registry_server(tmp_path / "registry", auth=htpasswd(tmp_path / "auth")) as registry:
        put(layout, registry.name("app:1"), "--dest-creds", "me:secret-pass")
        (tmp_path / "config.json").write_text('{"credsStore": "testing"}')
        store.pull(registry.name("app:1"), access=replace(PLAIN, auth_files=(str(tmp_path / "config.json"),)))
        assert (tmp_path / "asked").read_text() == f"get {registry.address}\n"


def keeping_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a helper ``testing``; return the directory in which it keeps a file per registry."""
    kept = tmp_path / "kept"
    kept.mkdir()
    helper = tmp_path / "bin" / "docker-credential-testing"
    helper.parent.mkdir()
    helper.write_text(
        f"#!/usr/bin/env python3\nimport json, os, sys\nkept = {str(kept)!r}\n"
        "given = sys.stdin.read()\n"
        "if sys.argv[1] == 'store':\n"
        "    open(os.path.join(kept, json.loads(given)['ServerURL'].replace('/', '_')), 'w').write(given)\n"
        "elif sys.argv[1] == 'erase':\n    os.unlink(os.path.join(kept, given.replace('/', '_')))\n"
        "elif sys.argv[1] == 'list':\n    print(json.dumps({name: 'me' for name in os.listdir(kept)}))\n"
        "elif os.path.exists(os.path.join(kept, given.replace('/', '_'))):\n"
        "    print(open(os.path.join(kept, given.replace('/', '_'))).read())\n"
        "else:\n    print('credentials not found in native keychain')\n    sys.exit(1)\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    return kept


def test_helpers_of_registries_conf(
    store: Store, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerfs.registry.query import log_in, log_out

    kept, file, conf = keeping_helper(tmp_path, monkeypatch), tmp_path / "auth.json", tmp_path / "registries.conf"
    conf.write_text('credential-helpers = ["testing", "containers-auth.json"]')
    helpers = ("testing", "containers-auth.json")
    access = replace(PLAIN, registries=(str(conf),), auth_files=(str(file),))
    with registry_server(tmp_path / "registry", auth=htpasswd(tmp_path / "auth")) as registry:
        name, me = registry.name("app:1"), Credential("me", "secret-pass")
        put(layout, name, "--dest-creds", "me:secret-pass")
        wrong = {"auth": base64.b64encode(b"me:old").decode()}
        file.write_text(json.dumps({"auths": {registry.address: wrong}}))
        assert log_in(access, registry.address, me, str(file)) == "docker-credential-testing"
        assert os.listdir(kept) == [registry.address]
        store.pull(name, access=access)  # and not by what the file says
        assert log_out(registry.address, str(file), helpers) == [registry.address]
        assert os.listdir(kept) == []
        assert json.loads(file.read_text())["auths"] == {}
        with pytest.raises(NotFound):
            log_out(registry.address, str(file), helpers)
        # One that fails is passed over.
        conf.write_text('credential-helpers = ["is-not-there", "containers-auth.json"]')
        assert log_in(access, registry.address, me, str(file)) == str(file)
        assert store.pull(name, access=access)
        file.unlink()
        with pytest.raises(RegistryError, match="docker-credential-is-not-there is not installed"):
            store.pull(name, access=access)


@pytest.mark.parametrize(("name", "key"), [("config.json", "https://index.docker.io/v1/"), ("auth.json", "docker.io")])
def test_the_hub_is_spelled_as_the_reader_of_the_file_does(tmp_path: Path, name: str, key: str) -> None:
    from layerfs.registry import query

    assert query._keep("docker.io", Credential("me", "p"), str(tmp_path / name)) == str(tmp_path / name)
    assert list(json.loads((tmp_path / name).read_text())["auths"]) == [key]


def test_tokens(store: Store, certificates: Certificates, layout: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tokens = stack.enter_context(token_server(tmp_path / "tokens", certificates))
        registry = stack.enter_context(registry_server(tmp_path / "registry", auth=tokens.auth))
        known = replace(PLAIN, credential=Credential(tokens.user, tokens.password))
        put(layout, registry.name("public/app:1"), "--dest-creds", f"{tokens.user}:{tokens.password}")
        tokens.asked.clear()
        store.pull(registry.name("public/app:1"), access=PLAIN)
        assert tokens.asked == [{"service": "tests", "scope": "repository:public/app:pull"}]
        with pytest.raises((Unauthorized, Denied)):
            store.push(registry.name("public/app:1"), registry.name("private/app:1"), access=PLAIN)
        wrong = replace(known, credential=Credential(tokens.user, "wrong"))
        with pytest.raises(Unauthorized, match="wrong user or password"):
            store.push(registry.name("public/app:1"), registry.name("private/app:1"), access=wrong)
        store.push(registry.name("public/app:1"), registry.name("private/app:1"), access=known)
        with pytest.raises((Unauthorized, Denied)):
            store.pull(registry.name("private/app:1"), access=PLAIN)
        refresh = replace(PLAIN, credential=Credential("", "", tokens.refresh))
        tokens.asked.clear()
        store.pull(registry.name("private/app:1"), access=refresh)
        assert tokens.asked[0]["grant_type"] == "refresh_token"


def test_a_pull_through_mirror(store: Store, registry: Registry, layout: Path, tmp_path: Path) -> None:
    put(layout, registry.name("team/app:1"))
    with registry_server(tmp_path / "mirror", mirror_of=f"http://{registry.address}") as mirror:
        conf = tmp_path / "registries.conf"
        conf.write_text(
            f'[[registry]]\nprefix = "registry.invalid"\nlocation = "registry.invalid"\n'
            f'[[registry.mirror]]\nlocation = "{mirror.address}"\ninsecure = true\n'
        )
        image = store.pull("registry.invalid/team/app:1", access=Access(registries=(str(conf),), retry_delay=0.01))[0]
    assert image.names == ("registry.invalid/team/app:1",)
    assert store.manifest(image).raw == skopeo_manifest(registry.name("team/app:1"))
    assert_whole(store)


def test_push_keeps_the_digest_with_kept_blobs(store: Store, registry: Registry, layout: Path, tmp_path: Path) -> None:
    put(layout, registry.name("app:1"))
    store.pull(registry.name("app:1"), keep_blobs=True, access=PLAIN)
    with registry_server(tmp_path / "empty") as empty:
        pushed = store.push(registry.name("app:1"), empty.name("copy:1"), access=PLAIN)
        assert skopeo_manifest(empty.name("copy:1")) == skopeo_manifest(registry.name("app:1"))
        assert pushed.manifest_digest == store.resolve(registry.name("app:1")).manifest_digest
    assert_whole(store)


@pytest.mark.parametrize("compression", [None, "none", "gzip", "zstd"])
def test_push_is_read_by_skopeo(
    store: Store, registry: Registry, layout: Path, tmp_path: Path, compression: str | None
) -> None:
    image = store.load(layout)[0]
    name = registry.name(f"team/{compression or 'default'}:1")
    pushed = store.push(image, name, compression=compression, access=PLAIN)  # type: ignore[arg-type]
    skopeo("copy", "--quiet", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path}/dir")
    found = hashlib.sha256((tmp_path / "dir/manifest.json").read_bytes()).hexdigest()
    assert found == pushed.manifest_digest.hex
    skopeo("copy", "--quiet", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/back:app")
    with Store.open(tmp_path / "second", sync=False) as second:
        again = second.load(tmp_path / "back")[0]
        assert again.id == image.id
        assert_whole(second)

    # Once more: everything is there, so nothing is sent.
    seen = Seen()
    assert store.push(image, name, compression=compression, access=PLAIN, progress=seen) == pushed  # type: ignore[arg-type]
    assert {state for _, state, _, _ in seen.events} == {"Waiting", "Layer already exists"}


def test_blobs_are_mounted_from_other_repositories(store: Store, registry: Registry, layout: Path) -> None:
    put(layout, registry.name("one/app:1"))
    store.pull(registry.name("one/app:1"), access=PLAIN)
    seen = Seen()
    store.push(registry.name("one/app:1"), registry.name("two/app:1"), access=PLAIN, progress=seen)
    assert [state for _, state, _, _ in seen.events].count("Mounted from one/app") == 3
    assert skopeo_manifest(registry.name("two/app:1")) == skopeo_manifest(registry.name("one/app:1"))


@pytest.mark.needs_root
def test_push_is_run_by_podman_and_containerd(
    store: Store, registry: Registry, layout: Path, tmp_path: Path, request_stack: ExitStack
) -> None:
    require("podman", "ctr", "containerd")
    image = store.load(layout)[0]
    for compression in ("gzip", "zstd"):
        store.push(image, registry.name(f"{compression}:1"), compression=compression, access=PLAIN)
    for compression in ("gzip", "zstd"):
        # podman wants a short path for its sockets.
        work = Path(request_stack.enter_context(TemporaryDirectory(prefix="p")))
        command = [*request_stack.enter_context(podman(work)), "--storage-driver", "vfs"]
        pulled = subprocess.run(
            [*command, "pull", "--quiet", "--tls-verify=false", registry.name(f"{compression}:1")], check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert pulled.returncode == 0, pulled.stderr
        assert pulled.stdout.strip() == image.id.hex
    with containerd(tmp_path) as (ctr, _):
        name = registry.name("gzip:1")
        pulled = subprocess.run(
            [*ctr, "image", "pull", "--plain-http", "--snapshotter", "native", name], check=False, capture_output=True,
            text=True,
        )  # fmt: skip
        assert pulled.returncode == 0, pulled.stderr
        listed = subprocess.run([*ctr, "image", "ls"], check=True, capture_output=True, text=True).stdout
        assert re.search(rf"{re.escape(name)} .*{hashlib.sha256(skopeo_manifest(name)).hexdigest()}", listed)


def test_delete(store: Store, registry: Registry, layout: Path) -> None:
    from layerfs.formats.reference import Reference
    from layerfs.registry.remote import Registries

    put(layout, registry.name("app:1"))
    with Registries.open(PLAIN) as registries:
        repository = registries.write_to(Reference.parse(registry.name("app")))
        digest = repository.manifest("1").digest
        assert repository.has_manifest(digest)
        repository.delete_manifest(digest)
        assert not repository.has_manifest(digest)
        with pytest.raises(NotFound):
            repository.manifest("1")


def test_progress_of_a_pull(store: Store, registry: Registry, layout: Path) -> None:
    put(layout, registry.name("app:1"))
    progress = Seen()
    store.pull(registry.name("app:1"), access=PLAIN, progress=progress)
    seen: dict[str, list[tuple[str, int, int | None]]] = {}
    for key, state, done, total in progress.events:
        seen.setdefault(key, []).append((state, done, total))
    assert set(seen) == {str(layer.digest) for layer in store.manifest(registry.name("app:1")).layers}
    for states in seen.values():
        words = [state for state, _, _ in states]
        assert words[0] == "Waiting"
        assert words[-1] == "Pull complete"
        assert set(words) <= {"Waiting", "Downloading", "Download complete", "Extracting", "Pull complete"}
        assert all(total is None or done <= total for _, done, total in states)


def test_files_after_a_pull(store: Store, registry: Registry, layout: Path) -> None:
    put(layout, registry.name("app:1"))
    image = store.pull(registry.name("app:1"), access=PLAIN)[0]
    with store.tree(image) as tree, pytest.raises(FileNotFoundError):
        tree.resolve(b"/old")
    assert len(read_file(store, image, b"/top")) == 1_500_000


@pytest.mark.needs_root
def test_zstd_in_a_docker_image_makes_it_one_of_oci(
    store: Store, registry: Registry, layout: Path, request_stack: ExitStack
) -> None:
    """Docker's own format knows no zstd, and podman reads no such manifest."""
    require("podman")
    name = registry.name("docker:1")
    put(layout, name, "--format", "v2s2")
    (image,) = store.pull(name, access=PLAIN)
    store.push(image, registry.name("zstd:1"), compression="zstd", access=PLAIN)
    manifest = json.loads(skopeo_manifest(registry.name("zstd:1")))
    assert manifest["mediaType"] == manifest["config"]["mediaType"].replace("config", "manifest")
    assert {blob["mediaType"].rpartition("+")[2] for blob in manifest["layers"]} == {"zstd"}
    work = Path(request_stack.enter_context(TemporaryDirectory(prefix="p")))
    command = [*request_stack.enter_context(podman(work)), "--storage-driver", "vfs"]
    pulled = subprocess.run(
        [*command, "pull", "--quiet", "--tls-verify=false", registry.name("zstd:1")], check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    assert pulled.stdout.strip() == image.id.hex, pulled.stderr


def test_what_was_pulled_by_digest_is_mounted_from_where_it_came(
    store: Store, registry: Registry, layout: Path
) -> None:
    put(layout, registry.name("one/app:1"))
    digest = hashlib.sha256(skopeo_manifest(registry.name("one/app:1"))).hexdigest()
    name = f"{registry.name('one/app')}@sha256:{digest}"
    store.pull(name, access=PLAIN)
    pushed = store.push(name, registry.name("two/app:1"), access=PLAIN)
    assert pushed.manifest_digest.hex == digest


@pytest.mark.needs_root
def test_a_push_from_a_store_that_nobody_can_write(registry: Registry, layout: Path, tmp_path: Path) -> None:
    put(layout, registry.name("app:1"))
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "disk"], check=True)
    try:
        with Store.open(tmp_path / "disk/store", sync=False) as writable:
            writable.pull(registry.name("app:1"), access=PLAIN)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        with registry_server(tmp_path / "second") as second, Store.open(tmp_path / "disk/store") as frozen:
            frozen.push(registry.name("app:1"), second.name("app:1"), access=PLAIN)
            assert skopeo_manifest(second.name("app:1"))
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)
