"""Every form and order of an archive gives the same image, from a file, a directory and a pipe."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from layerfs.api import Store
from layerfs.api.copying import copy
from layerfs.errors import FormatError, InvalidReference, LayerfsError, NotFound, UnsupportedFormat
from layerfs.formats.digest import Digest
from layerfs.formats.oci_form import index_as_oci
from layerfs.formats.platform import Platform
from layerfs.registry.query import fetch_config
from tests.faulty_registry import FaultyRegistry, serving
from tests.image_builder import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Link,
    Members,
    TestImage,
    blob_path,
    digest,
    docker_new,
    docker_old,
    document,
    layer,
    noise,
    oci,
    outer,
    pipe,
    write_layout,
)
from tests.store_audit import assert_whole, contents
from tests.unit.registry.faults import QUICK

SHARED = noise(60_000, "shared")
IMAGE = TestImage(
    [
        layer({"etc/": b"", "etc/one": SHARED, "etc/gone": b"gone", "etc/small": b"x"}),
        layer({"usr/two": SHARED, "etc/.wh.gone": b""}),
        layer({"etc/three": noise(9000, 3)}),
    ],
    ["registry.example/team/app:1.0"],
)
EXPECTED = {
    b"/etc": b"type 40000", b"/etc/one": SHARED, b"/etc/small": b"x", b"/etc/three": noise(9000, 3),
    b"/usr": b"type 40000", b"/usr/two": SHARED,
}  # fmt: skip

FORMS: dict[str, Callable[..., Members]] = {"docker-old": docker_old, "docker-new": docker_new, "oci": oci}
ORDERS: dict[str, Callable[[list[str]], Iterable[str]]] = {
    "written": list,
    "sorted": sorted,
    "reversed": lambda names: names[::-1],
    "random": lambda names: random.Random(7).sample(names, len(names)),
    "documents first": lambda names: sorted(names, key=lambda name: (not name.endswith(".json"), name)),
    "documents last": lambda names: sorted(names, key=lambda name: (name.endswith(".json"), name)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_pipe_may_have_its_members_in_any_order(store: Store, form: str, order: str) -> None:
    for number, codec in enumerate(["none", "gzip", "zstd"]):
        image = IMAGE.using(codec=codec)
        (loaded,) = store.load(pipe(outer(FORMS[form](image), ORDERS[order])))
        assert str(loaded.id) == image.id
        assert loaded.names == ("registry.example/team/app:1.0",)
        assert contents(store, loaded) == EXPECTED
        if not number:
            assert_whole(store)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_a_whole_archive_may_be_compressed(store: Store, tmp_path: Path, form: str, codec: str) -> None:
    for inner in ("none", "gzip"):
        archive = outer(FORMS[form](IMAGE.using(codec=inner)), codec=codec)
        path = tmp_path / "archive"
        path.write_bytes(archive)
        for source in (path, pipe(archive), str(path)):
            (loaded,) = store.load(source)
            assert contents(store, loaded) == EXPECTED
            store.remove_image(str(loaded.id))
    assert not store.images()
    assert_whole(store)


@pytest.mark.parametrize("form", FORMS)
def test_a_directory_is_loaded_from(store: Store, tmp_path: Path, form: str) -> None:
    (loaded,) = store.load(write_layout(tmp_path / "layout", FORMS[form](IMAGE)))
    assert contents(store, loaded) == EXPECTED
    assert_whole(store)


@pytest.mark.parametrize("hard", [False, True])
def test_links_between_members(store: Store, tmp_path: Path, hard: bool) -> None:
    image = TestImage([IMAGE.layers[0], IMAGE.layers[1], IMAGE.layers[0]], ["t:1"], codec="none")
    members = docker_old(image)
    for name, content in members.items():
        if isinstance(content, Link):
            members[name] = Link(content.target, hard)
    assert sum(isinstance(content, Link) for content in members.values()) == 1
    path = tmp_path / "archive"
    for order in ORDERS.values():
        archive = outer(members, order)
        path.write_bytes(archive)
        for source in (path, pipe(archive)):
            (loaded,) = store.load(source)
            assert contents(store, loaded)[b"/etc/gone"] == b"gone"
            assert_whole(store)
            store.remove_image("t:1")


def test_a_real_pipe_is_read_once(store: Store) -> None:
    reading, writing = os.pipe()
    archive = outer(docker_old(IMAGE), ORDERS["documents last"])

    def feed() -> None:
        with open(writing, "wb") as file:
            file.write(archive)

    thread = threading.Thread(target=feed)
    thread.start()
    with open(reading, "rb") as file:
        (loaded,) = store.load(file)
    thread.join()
    assert contents(store, loaded) == EXPECTED


ARM = TestImage([layer({"arm": noise(5000, "arm")})], ["multi"], architecture="arm64")
AMD = TestImage([layer({"amd": noise(5000, "amd")})], ["multi"])


@pytest.fixture
def on_amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that one of the images is for."""
    monkeypatch.setattr(Platform, "host", classmethod(lambda cls: cls("linux", "amd64")))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("source", ["layout", "archive", "pipe"])
def test_platforms(store: Store, tmp_path: Path, nested: bool, source: str, on_amd64: None) -> None:
    members = oci(ARM, AMD, nested=nested)
    archive = outer(members)

    def load(**options: Any) -> list[str]:
        if source == "layout":
            path = tmp_path / "multi"
            what: BinaryIO | Path = path if path.exists() else write_layout(path, members)
        elif source == "archive":
            (tmp_path / "multi").write_bytes(archive)
            what = tmp_path / "multi"
        else:
            what = pipe(archive)
        return [str(image.id) for image in store.load(what, **options)]

    host = AMD
    assert load() == [host.id]
    assert len(store.usage().layers) == 1
    assert load(platform=Platform.parse("linux/arm64")) == [ARM.id]
    assert load(all_platforms=True) == [ARM.id, AMD.id]
    with pytest.raises(NotFound):
        load(platform=Platform.parse("linux/s390x"))
    assert_whole(store)


def test_one_archive_of_one_foreign_image_is_loaded(store: Store) -> None:
    foreign = TestImage([layer({"f": b"f"})], ["t:1"], architecture="s390x")
    assert str(store.load(pipe(outer(docker_old(foreign))))[0].id) == foreign.id
    with pytest.raises(NotFound):
        store.load(pipe(outer(docker_old(foreign))), platform=Platform.parse("linux/amd64"))


def test_several_images_and_selecting_one(store: Store, tmp_path: Path) -> None:
    one = TestImage([IMAGE.layers[0]], ["one:1", "one:latest"])
    two = TestImage([IMAGE.layers[0], IMAGE.layers[1]], ["two:2"])
    path = tmp_path / "archive.tar"
    path.write_bytes(outer(docker_old(one, two)))
    (loaded,) = store.load(path, reference="two:2")
    assert str(loaded.id) == two.id
    (loaded,) = store.load(path, position=0)
    assert loaded.names == ("docker.io/library/one:1", "docker.io/library/one:latest")
    assert len(store.load(path)) == 2
    with pytest.raises(NotFound, match="three"):
        store.load(path, reference="three:3")
    with pytest.raises(NotFound, match="@2"):
        store.load(path, position=2)


def test_transports(store: Store, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    layout = write_layout(tmp_path / "layout", oci(IMAGE.using(names=["v1"])))
    archive.write_bytes(outer(docker_old(IMAGE)))
    assert str(store.pull(f"docker-archive:{archive}")[0].id) == IMAGE.id
    (loaded,) = store.pull(f"oci:{layout}:v1")
    assert "localhost/layout:v1" in loaded.names
    archive.write_bytes(outer(oci(IMAGE)))
    assert store.pull(f"oci-archive:{archive}")
    with pytest.raises(InvalidReference):
        store.pull(f"oci:{archive}")
    with pytest.raises(NotFound):
        store.pull(f"oci:{tmp_path}/missing")
    with pytest.raises(NotFound):
        store.load(tmp_path / "missing")
    with pytest.raises(UnsupportedFormat):
        store.pull("docker-daemon:alpine")


def test_an_image_without_layers(store: Store) -> None:
    for form in FORMS.values():
        (loaded,) = store.load(pipe(outer(form(TestImage([], ["empty:1"])))))
        assert contents(store, loaded) == {}
        assert_whole(store)


@pytest.mark.parametrize("empty", [b"", bytes(1024), bytes(10240)])
@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_an_empty_layer(store: Store, tmp_path: Path, empty: bytes, codec: str) -> None:
    image = TestImage([empty, layer({"a": b"a"})], ["t:1"], codec=codec)
    for form in FORMS.values():
        path = tmp_path / "archive"
        path.write_bytes(outer(form(image)))
        for source in (path, pipe(path.read_bytes())):
            assert contents(store, store.load(source)[0]) == {b"/a": b"a"}
            assert_whole(store)
            store.remove_image("t:1")


def without_platforms(members: Members, *, nested: bool) -> Members:
    """Return a layout of one index that says nothing of platforms; its images are indexes that do, if ``nested``."""
    entries = []
    for entry in json.loads(document(members, "index.json"))["manifests"]:
        plain = entry
        if nested:
            raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}).encode()
            members[blob_path(digest(raw))] = raw
            plain = {"mediaType": INDEX_TYPE, "digest": digest(raw), "size": len(raw)}
        entries.append({name: plain[name] for name in ("mediaType", "digest", "size")})
    raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}).encode()
    members[blob_path(digest(raw))] = raw
    entry = {
        "mediaType": INDEX_TYPE, "digest": digest(raw), "size": len(raw),
        "annotations": {"org.opencontainers.image.ref.name": "multi"},
    }  # fmt: skip
    members["index.json"] = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}).encode()
    return members


@pytest.mark.parametrize("nested", [False, True])
def test_platforms_that_only_the_images_themselves_say(
    store: Store, tmp_path: Path, nested: bool, on_amd64: None
) -> None:
    members = without_platforms(oci(ARM, AMD), nested=nested)
    path = write_layout(tmp_path / "multi", members)
    host = AMD
    assert [str(image.id) for image in store.load(path)] == [host.id]
    for name, image in (("amd64", AMD), ("arm64", ARM)):
        assert [str(found.id) for found in store.load(path, platform=f"linux/{name}")] == [image.id]
        assert copy(f"oci:{path}:multi", f"oci:{tmp_path}/{name}", platform=f"linux/{name}") == Digest.of(
            image.manifest
        )
    assert len(store.load(path, all_platforms=True)) == 2
    with pytest.raises(NotFound) as caught:
        store.load(path, platform="linux/s390x")
    assert "linux/amd64" in str(caught.value.hint)
    # One that cannot be looked into keeps nobody from the others.
    other = ARM if host is AMD else AMD
    (path / "blobs/sha256" / digest(other.config).partition(":")[2]).unlink()
    assert [str(image.id) for image in store.load(path)] == [host.id]


def test_names_of_255_bytes_can_be_hidden(store: Store) -> None:
    long = "n" * 255
    image = TestImage(
        [layer({long: b"1", f"d/{long}": b"2"}), layer({f".wh.{long}": b"", f"d/.wh.{long}": b""})], ["l:1"]
    )
    (loaded,) = store.load(pipe(outer(oci(image))))
    assert contents(store, loaded) == {b"/d": b"type 40000"}


def test_a_layout_without_an_image(store: Store) -> None:
    for entries in ([], [{"mediaType": MANIFEST_TYPE, "digest": digest(b""), "size": 0, "artifactType": "a/b"}]):
        members = oci(AMD)
        members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        with pytest.raises(FormatError, match="lists no image"):
            store.load(pipe(outer(members)))


def test_deeply_nested_indexes(store: Store) -> None:
    members = oci(AMD)
    index = json.loads(document(members, "index.json"))
    for _ in range(4):
        raw = json.dumps(index).encode()
        members[blob_path(digest(raw))] = raw
        entry = {"mediaType": INDEX_TYPE, "digest": digest(raw), "size": len(raw)}
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}
        members["index.json"] = json.dumps(index).encode()
    assert str(store.load(pipe(outer(members)))[0].id) == AMD.id
    raw = json.dumps(index).encode()
    members[blob_path(digest(raw))] = raw
    entry = {"mediaType": INDEX_TYPE, "digest": digest(raw), "size": len(raw)}
    members["index.json"] = json.dumps(index | {"manifests": [entry]}).encode()
    with pytest.raises(FormatError, match="nested"):
        store.load(pipe(outer(members)))


def test_two_platforms_by_manifest_in_one_archive_keep_their_layers_apart(store: Store) -> None:
    both = TestImage([AMD.layers[0], ARM.layers[0]], ["both:1"])
    (loaded,) = store.load(pipe(outer(oci(both))))
    assert set(contents(store, loaded)) == {b"/amd", b"/arm"}
    assert MANIFEST_TYPE in store.manifest(loaded).raw.decode()


def test_130_layers(store: Store) -> None:
    tars = [layer({f"dir/f{number}": noise(5000, number), "top": b"%d" % number}) for number in range(130)]
    image = TestImage(tars, ["many:1"])
    for form in FORMS.values():
        (loaded,) = store.load(pipe(outer(form(image))))
        assert loaded.layers == 130
        found = contents(store, loaded)
        assert found[b"/top"] == b"129"
        assert all(found[b"/dir/f%d" % number] == noise(5000, number) for number in range(130))
    assert_whole(store)


def test_a_transport_means_the_form_that_it_names(store: Store, tmp_path: Path) -> None:
    image = TestImage([layer({"a": b"a"})], ["both:1"])
    (tmp_path / "oci.tar").write_bytes(outer(oci(image)))
    (tmp_path / "docker.tar").write_bytes(outer(docker_old(image)))
    with pytest.raises(FormatError, match="no docker archive"):
        store.pull(f"docker-archive:{tmp_path}/oci.tar")
    with pytest.raises(FormatError, match="no OCI archive"):
        store.pull(f"oci-archive:{tmp_path}/docker.tar")
    assert store.images() == []
    assert store.pull(f"oci-archive:{tmp_path}/oci.tar") == store.pull(f"docker-archive:{tmp_path}/docker.tar")


def test_a_received_manifest_outlives_a_docker_archive(store: Store) -> None:
    image = TestImage([layer({"a": b"a"})], ["kept:1"])
    (received,) = store.load(pipe(outer(oci(image))))
    (again,) = store.load(pipe(outer(docker_old(image))))
    assert again.manifest_digest == received.manifest_digest
    assert store.manifest(again).raw == image.manifest


def test_a_name_that_moves_is_said(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.load(pipe(outer(oci(TestImage([layer({"a": b"a"})], ["moves:1"])))))
    assert not caplog.records
    store.load(pipe(outer(oci(TestImage([layer({"b": b"b"})], ["moves:1"])))))
    (record,) = caplog.records
    assert "docker.io/library/moves:1 now means image" in record.getMessage()


def test_an_archive_is_read_from_a_named_pipe(store: Store, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    archive = outer(oci(TestImage([layer({"a": b"a"})], ["a:1"])))
    for _ in range(10):
        writer = threading.Thread(target=fifo.write_bytes, args=(archive,))
        writer.start()
        (image,) = store.load(fifo)
        writer.join()
        store.remove_image(image)


@pytest.mark.parametrize(
    ("source", "destination", "error", "message"),
    [
        ("dir:{0}/file", "oci:{0}/o", InvalidReference, "needs a directory"),
        ("oci:{0}/file", "oci:{0}/o", InvalidReference, "needs a directory"),
        ("oci:{0}/layout", "dir:{0}/no/such/x", None, ""),
        ("oci:{0}/layout", "oci:{0}/file", LayerfsError, "cannot write oci:"),
        ("oci:{0}/layout", "docker-archive:{0}/no/such/x.tar", LayerfsError, "cannot write"),
        ("store:a:1", "dir:{0}/no/such/x", None, ""),
        ("store:a:1", "dir:{0}/file/x", LayerfsError, "cannot write"),
    ],
)
def test_copying_from_and_to_what_cannot_be(
    store: Store, tmp_path: Path, source: str, destination: str, error: type[LayerfsError] | None, message: str
) -> None:
    layout = write_layout(tmp_path / "layout", oci(TestImage([layer({"a": b"a"})], ["a:1"])))
    store.load(layout)
    (tmp_path / "file").write_text("x")
    arguments = source.format(tmp_path), destination.format(tmp_path)
    if error is None:
        copy(*arguments, store=store)
        return
    with pytest.raises(error, match=message):
        copy(*arguments, store=store)


def test_what_a_check_of_a_copy_raises_stays_that(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", oci(TestImage([layer({"a": noise(100_000)})], ["a:1"])))

    def late() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        copy(f"oci:{layout}", f"oci:{tmp_path}/copy", check=late)


def test_positions_mean_images_and_no_signatures(store: Store, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", oci(TestImage([layer({"a": b"a"})], ["a:1"])))
    path = layout / "index.json"
    index = json.loads(path.read_bytes())
    signature = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": "application/x-signature",
                 "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2},
                 "layers": []}  # fmt: skip
    raw = json.dumps(signature).encode()
    for blob in (raw, b"{}"):
        (layout / blob_path(digest(blob))).write_bytes(blob)
    entry = {"mediaType": MANIFEST_TYPE, "artifactType": "application/x-signature", "digest": digest(raw),
             "size": len(raw)}  # fmt: skip
    index["manifests"].insert(0, entry)
    path.write_text(json.dumps(index))
    (image,) = store.load(layout)
    for source in (f"oci:{layout}", f"oci:{layout}:@0"):
        assert copy(source, f"oci:{tmp_path}/copy") == image.manifest_digest


@pytest.mark.parametrize(("depth", "fits"), [(5, True), (6, False)])
def test_how_deep_indexes_may_lie(tmp_path: Path, depth: int, fits: bool) -> None:
    made = FaultyRegistry()
    image = TestImage([layer({"a": b"a"})])
    made.add(image)
    raw, media_type = image.manifest, MANIFEST_TYPE
    for _ in range(depth):
        entry = {"mediaType": media_type, "digest": digest(raw), "size": len(raw)}
        raw, media_type = (
            json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}).encode(),
            (INDEX_TYPE),
        )
        made.add_manifest(raw, media_type, "deep")
    with serving(made), Store.open(tmp_path / "store", sync=False) as store:
        name = f"{made.address}/team/app:deep"
        works: list[Callable[[], object]] = [
            lambda: store.pull(name, access=QUICK),
            lambda: copy(f"docker://{name}", f"oci:{tmp_path}/one", access=QUICK),
            lambda: copy(f"docker://{name}", f"oci:{tmp_path}/all", access=QUICK, everything=True),
            lambda: fetch_config(QUICK, name, Platform.host()),
        ]
        for work in works:
            if fits:
                work()
                continue
            with pytest.raises(FormatError, match="nested more than 4 deep"):
                work()


@pytest.mark.parametrize("save", [False, True])
def test_a_layout_that_several_write_to_at_a_time(store: Store, tmp_path: Path, save: bool) -> None:
    names = [f"localhost/image:{number}" for number in range(8)]
    for number, name in enumerate(names):
        image = TestImage([layer({"a": noise(100, number)})], [name])
        store.load(write_layout(tmp_path / f"layout{number}", oci(image)))

    def write(number: int) -> None:
        if save:
            store.save(names[number], tmp_path / "layout", form="oci")
        else:
            copy(f"oci:{tmp_path}/layout{number}", f"oci:{tmp_path}/layout:{names[number]}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listed = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    assert sorted(entry["annotations"]["org.opencontainers.image.ref.name"] for entry in listed) == names


def test_a_layout_that_was_interrupted_is_gone_on_with(store: Store, tmp_path: Path) -> None:
    store.load(write_layout(tmp_path / "layout", oci(TestImage([layer({"a": noise(3_000_000)})], ["a:1"]))))

    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save("a:1", tmp_path / "saved", form="oci", check=check)
    (left,) = (tmp_path / "saved/blobs").iterdir()
    (left / ".blob.0123456789ab").write_bytes(b"of a killed process")
    store.save("a:1", tmp_path / "saved", form="oci")
    assert not list((tmp_path / "saved").rglob(".blob.*"))
    assert len(store.load(tmp_path / "saved")) == 1


def test_what_is_under_way_in_a_directory_is_no_other_content(store: Store, tmp_path: Path) -> None:
    store.load(write_layout(tmp_path / "layout", oci(TestImage([layer({"a": b"a"})], ["a:1"]))))
    for kind, marker in (("dir", "version"), ("oci", "oci-layout")):
        place = tmp_path / kind
        place.mkdir()
        (place / f".{marker}.0123456789ab").write_text("of a process that was killed, or goes on")
        copy("store:a:1", f"{kind}:{place}", store=store)
        other = tmp_path / f"{kind}-other"
        other.mkdir()
        (other / ".git").mkdir()
        with pytest.raises(FormatError, match="is not empty"):
            copy("store:a:1", f"{kind}:{other}", store=store)


def test_lists_become_indexes_whose_references_hold() -> None:
    old, attested = Digest.of(b"docker"), Digest.of(b"attestation")
    entries = [
        {"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "digest": str(old), "size": 6,
         "data": "ZG9ja2Vy"},
        {"mediaType": MANIFEST_TYPE, "digest": str(attested), "size": 11,
         "annotations": {"vnd.docker.reference.digest": str(old), "x": "y"}},
    ]  # fmt: skip
    raw = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    found = json.loads(index_as_oci(raw, {old: b"of oci"}))
    new = str(Digest.of(b"of oci"))
    assert found["mediaType"] == INDEX_TYPE
    assert found["manifests"] == [
        {"mediaType": MANIFEST_TYPE, "digest": new, "size": 6},
        {"mediaType": MANIFEST_TYPE, "digest": str(attested), "size": 11,
         "annotations": {"vnd.docker.reference.digest": new, "x": "y"}},
    ]  # fmt: skip
