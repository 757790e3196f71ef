"""Copies between all transports: what can stay as it is does, and other tools read the rest."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench.registry import Registry, registry_server
from layerfs.api import Store
from layerfs.api.copying import copy
from layerfs.errors import (
    Conflict,
    FormatError,
    IntegrityError,
    InvalidReference,
    LayerfsError,
    NotFound,
    UnsupportedFormat,
)
from layerfs.formats.reference import Reference
from layerfs.registry.remote import Registries
from tests.cli.conftest import Shell
from tests.faulty_registry import FaultyRegistry, serving
from tests.image_builder import INDEX_TYPE, TestImage, docker_new, docker_old, layer, noise, oci, outer, write_layout
from tests.integration.registry.conftest import IMAGE, PLAIN, put, skopeo
from tests.integration.registry.test_real_registry import skopeo_manifest
from tests.store_audit import assert_whole

DIGEST = f"sha256:{hashlib.sha256(IMAGE.manifest).hexdigest()}"


def test_a_chain_keeps_every_byte(registry: Registry, layout: Path, tmp_path: Path) -> None:
    put(layout, registry.name("one:1"))
    raw = skopeo_manifest(registry.name("one:1"))
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    places = [
        f"docker://{registry.name('one:1')}",
        f"oci:{tmp_path}/layout:some",
        f"dir:{tmp_path}/dir",
        f"oci-archive:{tmp_path}/archive.tar:app:1",
        f"docker://{registry.name('two:2')}",
        f"dir:{tmp_path}/dir2",
        f"docker://{registry.name('three:3')}",
        f"oci-archive:{tmp_path}/archive2.tar",
        f"oci:{tmp_path}/layout:other",
        f"oci:{tmp_path}/layout2",
    ]
    for source, destination in itertools.pairwise(places):
        assert str(copy(source, destination, access=PLAIN)) == digest, destination
    assert skopeo_manifest(registry.name("three:3")) == raw
    for place in places[1:4] + places[-2:]:
        assert skopeo("inspect", "--raw", place) == raw.decode(), place
    names = {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in _entries(tmp_path / "layout")}
    assert names == {"some", "other"}
    # And what skopeo lays down is read.
    skopeo("copy", "--quiet", places[1], f"dir:{tmp_path}/theirs")
    assert str(copy(f"dir:{tmp_path}/theirs", f"oci:{tmp_path}/layout3", access=PLAIN)) == digest
    with pytest.raises(FormatError, match="dir: transport") as caught, Store.open(tmp_path / "other") as store:
        store.load(tmp_path / "theirs")
    assert "layerfs copy" in (caught.value.hint or "")


def test_large_layers_go_from_one_registry_to_another(registry: Registry, tmp_path: Path) -> None:
    """A body that is sent while it comes from elsewhere is watched on both sides."""
    image = TestImage([layer({f"big{number}": noise(9_000_000, number)}) for number in range(3)], ["app"])
    put(write_layout(tmp_path / "large", oci(image)), registry.name("large:1"))
    raw = skopeo_manifest(registry.name("large:1"))
    with registry_server(tmp_path / "other") as other:
        copy(f"docker://{registry.name('large:1')}", f"docker://{other.name('large:2')}", access=PLAIN)
        assert skopeo_manifest(other.name("large:2")) == raw


def _entries(layout: Path) -> list[dict[str, dict[str, str]]]:
    found: list[dict[str, dict[str, str]]] = json.loads((layout / "index.json").read_text())["manifests"]
    return found


@pytest.mark.parametrize("transport", ["docker", "oci", "oci-archive", "docker-archive", "dir"])
def test_out_of_the_store_and_back(
    store: Store, registry: Registry, layout: Path, tmp_path: Path, transport: str
) -> None:
    image = store.load(layout)[0]
    place = {
        "docker": f"docker://{registry.name('copy:1')}",
        "docker-archive": f"docker-archive:{tmp_path}/x.tar:copy:1",
        "dir": f"dir:{tmp_path}/x",
    }.get(transport, f"{transport}:{tmp_path}/x:copy")
    copy(f"store:{image.id}", place, store=store, access=PLAIN)
    options = ["--src-tls-verify=false"] if transport == "docker" else []
    skopeo("copy", "--quiet", *options, place, f"dir:{tmp_path}/theirs")
    with Store.open(tmp_path / "second", sync=False) as second:
        copy(place, "store:team/copied:2", store=second, access=PLAIN)
        again = second.resolve("team/copied:2")
        assert again.id == image.id
        assert_whole(second)


def test_docker_archives(registry: Registry, layout: Path, tmp_path: Path) -> None:
    plain = IMAGE.using(codec="none", names=["app:1"])
    (tmp_path / "in.tar").write_bytes(outer(docker_old(plain)))
    copy(f"docker-archive:{tmp_path}/in.tar", f"docker://{registry.name('app:1')}", access=PLAIN)
    config = skopeo("inspect", "--config", "--raw", "--tls-verify=false", f"docker://{registry.name('app:1')}")
    assert config.encode() == plain.config
    copy(f"docker://{registry.name('app:1')}", f"docker-archive:{tmp_path}/out.tar:back:1", access=PLAIN)
    assert skopeo("inspect", "--config", "--raw", f"docker-archive:{tmp_path}/out.tar").encode() == plain.config
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_docker_archive_with_compressed_layers(tmp_path: Path) -> None:
    image = IMAGE.using(codec="gzip", names=["app:1"])
    (tmp_path / "in.tar").write_bytes(outer(docker_new(image)))
    copy(f"docker-archive:{tmp_path}/in.tar", f"oci:{tmp_path}/out:app", access=PLAIN)
    with Store.open(tmp_path / "store", sync=False) as store:
        (found,) = store.load(tmp_path / "out")
        assert found.id == store.load(tmp_path / "in.tar")[0].id
        assert_whole(store)


def test_images_without_a_name_stand_beside_each_other(layout: Path, tmp_path: Path) -> None:
    other = write_layout(tmp_path / "in", oci(TestImage([layer({"other": b"1"})], ["other"])))
    for source in (f"oci:{layout}:app", f"oci:{other}:other", f"oci:{other}:other"):
        copy(source, f"oci:{tmp_path}/out", access=PLAIN)
    assert len(json.loads((tmp_path / "out/index.json").read_bytes())["manifests"]) == 2


def test_out_of_the_store_the_policy_is_not_asked(store: Store, layout: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    (image,) = store.load(layout)
    for place in (f"dir:{tmp_path}/a:b/out", f"oci:{tmp_path}/oci:x"):
        (tmp_path / "a:b").mkdir(exist_ok=True)
        copy(f"store:{image.id}", place, store=store, access=replace(PLAIN, policy=str(policy)))
    assert (tmp_path / "a:b/out/manifest.json").exists()


def test_an_index_as_a_whole(registry: Registry, tmp_path: Path) -> None:
    arm = TestImage([layer({"arm": b"arm"})], ["multi"], architecture="arm64")
    write_layout(tmp_path / "in", oci(arm, TestImage([layer({"amd": b"amd"})], ["multi"]), nested=True))
    source = f"oci:{tmp_path}/in:multi"
    digest = copy(source, f"docker://{registry.name('multi:1')}", everything=True, access=PLAIN)
    raw = skopeo_manifest(registry.name("multi:1"))
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == str(digest)
    assert len(json.loads(raw)["manifests"]) == 2
    for place in (f"dir:{tmp_path}/dir", f"oci:{tmp_path}/out:x", f"oci-archive:{tmp_path}/out.tar"):
        assert copy(f"docker://{registry.name('multi:1')}", place, everything=True, access=PLAIN) == digest
    assert copy(f"dir:{tmp_path}/dir", f"docker://{registry.name('multi:2')}", everything=True, access=PLAIN) == digest
    one = copy(source, f"oci:{tmp_path}/one", access=PLAIN)
    assert one != digest
    with Store.open(tmp_path / "store", sync=False) as store:
        assert {image.platform.architecture for image in store.pull(f"dir:{tmp_path}/dir", all_platforms=True)} == {
            "arm64", "amd64",
        }  # fmt: skip


def test_errors(store: Store, layout: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    for source, destination, error in (
        (f"oci:{layout}:app", f"oci:{tmp_path}/full", FormatError),
        (f"oci:{layout}:app", f"dir:{tmp_path}/full", FormatError),
        (f"oci:{layout}:nothing", f"oci:{tmp_path}/x", NotFound),
        (f"oci:{tmp_path}/nothing", f"oci:{tmp_path}/x", NotFound),
        (f"oci:{layout}:app", "store:x", InvalidReference),
        (f"oci:{layout}:app", f"oci:{tmp_path}/x:@0", InvalidReference),
        (f"oci:{layout}:app", "docker-daemon:x", UnsupportedFormat),
        (f"oci:{layout}:app", f"oci-archive:{tmp_path}/full/no/x.tar", LayerfsError),
    ):
        with pytest.raises(error):
            copy(source, destination, access=PLAIN)
    blob = next(path for path in (layout / "blobs/sha256").iterdir() if path.stat().st_size > 1_000_000)
    broken = tmp_path / "broken"
    write_layout(broken, oci(IMAGE))
    (broken / "blobs/sha256" / blob.name).write_bytes(bytes(blob.stat().st_size))
    for place in (f"oci:{tmp_path}/y", f"dir:{tmp_path}/z", f"oci-archive:{tmp_path}/w.tar"):
        with pytest.raises(IntegrityError, match="digest is"):
            copy(f"oci:{broken}:app", place, access=PLAIN)
    assert not (tmp_path / "w.tar").exists()
    assert not (tmp_path / "y/index.json").exists()
    assert not (tmp_path / "z/manifest.json").exists()


@pytest.mark.parametrize("transport", ["oci", "dir"])
def test_what_was_interrupted_goes_on(layout: Path, tmp_path: Path, transport: str) -> None:
    place = f"{transport}:{tmp_path}/copy"

    def check() -> None:
        if any(path.is_file() and path.stat().st_size > 100_000 for path in tmp_path.rglob("*")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(f"oci:{layout}:app", place, access=replace(PLAIN, jobs=1), check=check)
    assert not list(tmp_path.rglob("index.json")) + list(tmp_path.rglob("manifest.json"))
    assert str(copy(f"oci:{layout}:app", place, access=PLAIN)) == DIGEST
    assert json.loads(skopeo("inspect", place))["Digest"] == DIGEST


def test_a_copy_has_the_name_that_it_was_given(store: Store, registry: Registry, layout: Path, tmp_path: Path) -> None:
    put(layout, registry.name("app:1"))
    skopeo("copy", "-q", f"oci:{layout}:app", f"docker-archive:{tmp_path}/a.tar:docker.io/library/inner:1")
    kept = TestImage([layer({"kept": b"kept"})], [registry.name("app:1")])
    store.load(write_layout(tmp_path / "kept", oci(kept)))
    for number, source in enumerate(
        (f"docker://{registry.name('app:1')}", f"docker-archive:{tmp_path}/a.tar", f"oci:{layout}:app")
    ):
        copy(source, f"store:copy:{number}", store=store, access=PLAIN)
    assert str(store.resolve(registry.name("app:1")).id).endswith(kept.id.removeprefix("sha256:"))
    assert sorted(store.resolve("copy:0").names) == [f"docker.io/library/copy:{number}" for number in range(3)]


def test_flags_that_cannot_be_followed(store: Store, layout: Path, tmp_path: Path) -> None:
    (image,) = store.load(layout)
    source = f"store:{image.id}"
    copy(source, f"oci:{tmp_path}/x", store=store, platform="linux/amd64")
    with pytest.raises(NotFound, match="platform"):
        copy(source, f"oci:{tmp_path}/y", store=store, platform="linux/arm64")
    with pytest.raises(InvalidReference, match="one platform"):
        copy(source, f"oci:{tmp_path}/y", store=store, everything=True)
    with pytest.raises(UnsupportedFormat, match="no index"):
        copy(f"oci:{layout}:app", f"docker-archive:{tmp_path}/y", everything=True)
    for ends in (("app", f"oci:{tmp_path}/y"), (f"oci:{layout}:app", "backup")):
        with pytest.raises(InvalidReference, match="has no transport"):
            copy(*ends, store=store)
    assert not (tmp_path / "y").exists()
    both = write_layout(tmp_path / "both", oci(IMAGE, TestImage([layer({"other": b"other"})], ["other"])))
    with pytest.raises(FormatError, match="2 images"):
        copy(f"oci:{both}", "store:new", store=store)
    assert len(store.images()) == 1
    copy(f"oci:{both}:other", "store:new", store=store)


def test_command_line(shell: Shell, registry: Registry, layout: Path, tmp_path: Path) -> None:
    shell("load", "-q", "-i", str(layout))
    place = f"docker://{registry.name('app:1')}"
    digest = shell("copy", "-q", f"oci:{layout}:app", place, "--tls-verify=false").strip()
    assert digest == DIGEST
    shell("copy", "-q", place, f"dir:{tmp_path}/dir", "--tls-verify=false", "--digestfile", str(tmp_path / "digest"))
    assert (tmp_path / "digest").read_text() == digest
    shell("copy", "-q", f"dir:{tmp_path}/dir", "store:copied")
    assert shell("images", "-q", "--no-trunc").split() == [IMAGE.id]
    shell.fails(2, "copy", "oci:", f"dir:{tmp_path}/x")
    for place_of_digest, problem in ((f"{tmp_path}/no/d", "no directory"), (str(tmp_path), "is a directory")):
        words = ("copy", f"oci:{layout}:app", f"dir:{tmp_path}/x", "--digestfile", place_of_digest)
        assert problem in shell.fails(2, *words)
    assert not (tmp_path / "x").exists()
    assert shell("copy", "-q", place, f"dir:{tmp_path}/x", "--src-tls-verify=false").strip() == digest
    assert "is about a registry" in shell.fails(2, "copy", f"oci:{layout}:app", place, "--src-creds", "me:x")
    # An ID is no name to push to.
    assert "is no name" in shell.fails(2, "push", IMAGE.id.removeprefix("sha256:")[:12])
    assert "on no registry" in shell.fails(2, "push", "copied", f"oci:{tmp_path}/z")


def docker_layout(layout: Path, registry: Registry) -> str:
    """Let skopeo put the image on a registry in docker's own form; return its name."""
    name = registry.name("docker:1")
    skopeo("copy", "--quiet", "--dest-tls-verify=false", "--format", "v2s2", f"oci:{layout}:app", f"docker://{name}")
    return name


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_a_docker_image_in_a_layout_is_one_of_oci(
    registry: Registry, layout: Path, tmp_path: Path, transport: str
) -> None:
    """No other tool reads docker's manifests there."""
    name = docker_layout(layout, registry)
    place = f"{transport}:{tmp_path}/out:app"
    digest = copy(f"docker://{name}", place, access=PLAIN)
    raw = skopeo("inspect", "--raw", place).encode()
    assert hashlib.sha256(raw).hexdigest() == digest.hex
    manifest, before = json.loads(raw), json.loads(skopeo_manifest(name))
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["digest"] == before["config"]["digest"]
    assert [blob["digest"] for blob in manifest["layers"]] == [blob["digest"] for blob in before["layers"]]
    skopeo("copy", "--quiet", place, f"dir:{tmp_path}/dir")


def test_foreign_layers_stay_where_they_are(tmp_path: Path) -> None:
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    manifest = json.loads(IMAGE.manifest)
    away = {"mediaType": foreign, "digest": f"sha256:{'12' * 32}", "size": 5, "urls": ["http://vendor.invalid/layer"]}
    manifest["layers"].append(away)
    raw = json.dumps(manifest).encode()
    registry = FaultyRegistry()
    registry.add(IMAGE)
    registry.add_manifest(raw, manifest["mediaType"], "foreign")
    with serving(registry):
        copy(f"docker://{registry.address}/app:foreign", f"oci:{tmp_path}/out:app", access=PLAIN)
    assert skopeo("inspect", "--raw", f"oci:{tmp_path}/out:app") == raw.decode()


def test_a_directory_that_had_another_image(registry: Registry, layout: Path, tmp_path: Path) -> None:
    """What is left of it, signatures above all, would be taken for the new one's."""
    other = TestImage([layer({"other": noise(5000, "other")})], ["app"])
    copy(f"oci:{write_layout(tmp_path / 'other', oci(other))}:app", f"dir:{tmp_path}/dir")
    (tmp_path / "dir/signature-1").write_bytes(b"of the other one")
    copy(f"oci:{layout}:app", f"dir:{tmp_path}/dir")
    skopeo("copy", "--quiet", "--src-tls-verify=false", f"oci:{layout}:app", f"dir:{tmp_path}/theirs")
    names = [sorted(path.name for path in (tmp_path / place).iterdir()) for place in ("dir", "theirs")]
    assert names[0] == names[1]


def test_a_docker_archive_that_is_there_is_not_replaced(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(b"somebody's images")
    with pytest.raises(Conflict, match="exists"):
        copy(f"oci:{layout}:app", f"docker-archive:{tmp_path}/archive.tar:app:1")
    assert (tmp_path / "archive.tar").read_bytes() == b"somebody's images"


def test_an_index_without_images(tmp_path: Path) -> None:
    registry = FaultyRegistry()
    registry.add_manifest(json.dumps({"schemaVersion": 2, "manifests": []}).encode(), INDEX_TYPE, "latest")
    with serving(registry), pytest.raises(FormatError, match="lists no image"):
        copy(f"docker://{registry.address}/app", f"oci:{tmp_path}/out", access=PLAIN)


@pytest.mark.parametrize("form", ["oci", "oci-archive"])
def test_a_docker_image_that_is_saved_is_one_of_oci(
    store: Store, registry: Registry, layout: Path, tmp_path: Path, form: str
) -> None:
    name = docker_layout(layout, registry)
    store.pull(name, access=PLAIN, keep_blobs=True)
    store.save(name, tmp_path / "saved", form=form)
    place = f"{form}:{tmp_path}/saved:{name}"
    assert json.loads(skopeo("inspect", "--raw", place))["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    copy(f"store:{name}", f"dir:{tmp_path}/dir", store=store)
    raw = json.loads((tmp_path / "dir/manifest.json").read_bytes())
    assert raw["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json", "a directory holds any"


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_a_docker_list_in_a_layout_is_an_index_of_oci(registry: Registry, tmp_path: Path, transport: str) -> None:
    entries = []
    for architecture in ("amd64", "arm64"):
        image = TestImage([layer({"for": architecture.encode()})], ["app"], architecture=architecture)
        name = registry.name(f"list:{architecture}")
        put(write_layout(tmp_path / architecture, oci(image)), name, "--format", "v2s2")
        raw = skopeo_manifest(name)
        entries.append({
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "size": len(raw),
            "digest": f"sha256:{hashlib.sha256(raw).hexdigest()}",
            "platform": {"os": "linux", "architecture": architecture},
        })  # fmt: skip
    media_type = "application/vnd.docker.distribution.manifest.list.v2+json"
    listed = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()
    with Registries.open(PLAIN) as registries:
        repository = registries.write_to(Reference.parse(registry.name("list:all")))
        repository.put_manifest("all", listed, media_type)
    copy(f"docker://{registry.name('list:all')}", f"{transport}:{tmp_path}/copy:all", access=PLAIN, everything=True)
    for entry in json.loads(skopeo("inspect", "--raw", f"{transport}:{tmp_path}/copy:all"))["manifests"]:
        assert entry["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    skopeo("copy", "--all", f"{transport}:{tmp_path}/copy:all", f"dir:{tmp_path}/theirs")


def test_a_place_by_digest(registry: Registry, layout: Path) -> None:
    put(layout, registry.name("one:1"))
    source = f"docker://{registry.name('one:1')}"
    assert str(copy(source, f"docker://{registry.name('two')}@{DIGEST}", access=PLAIN)) == DIGEST
    assert skopeo_manifest(f"{registry.name('two')}@{DIGEST}") == IMAGE.manifest
    with pytest.raises(InvalidReference, match="a tag and a digest"):
        copy(source, f"docker://{registry.name('two:new')}@{DIGEST}", access=PLAIN)
    with pytest.raises(InvalidReference, match="the digest of something else"):
        copy(source, f"docker://{registry.name('two')}@sha256:{'0' * 64}", access=PLAIN)


@pytest.mark.needs_root
def test_an_ordinary_user_can_unpack_an_archive(layout: Path, store: Store) -> None:
    (image,) = store.load(layout)
    with TemporaryDirectory(dir="/tmp") as folder:  # that of the test is root's alone
        os.chmod(folder, 0o755)
        saved, copied = f"{folder}/saved.tar", f"{folder}/copied.tar"
        store.save(image, saved, form="oci-archive")
        copy(f"oci:{layout}:app", f"oci-archive:{copied}:app")
        for path in (saved, copied):
            os.chmod(path, 0o644)
            done = subprocess.run(
                ["skopeo", "--insecure-policy", "inspect", "--config", f"oci-archive:{path}"], check=False,
                capture_output=True, text=True, user="daemon", group="daemon", extra_groups=[], cwd="/",
                env={**os.environ, "HOME": folder},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
