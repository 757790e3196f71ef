"""Archives that want to do harm, and the cases that other tools get wrong."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest
import zstandard

from layerfs.api import Store
from layerfs.api.copying import copy
from layerfs.errors import FormatError, IntegrityError, LayerfsError, NotFound, UnsafePath, UnsupportedFormat
from layerfs.registry import members as places
from tests.image_builder import (
    END,
    Link,
    Members,
    TestImage,
    blob_path,
    compress,
    digest,
    docker_new,
    docker_old,
    document,
    entry,
    header,
    layer,
    noise,
    oci,
    outer,
    pipe,
    write_layout,
)
from tests.store_audit import assert_clean, assert_whole, contents, disk

LOWER = layer(
    {"a/": b"", "a/one": b"one", "a/two": noise(5000, 2), "top": b"top", "b/": b"", "b/c/": b"", "b/c/deep": b"deep"}
)


def _load(store: Store, *tars: bytes, codec: str = "gzip") -> dict[bytes, bytes]:
    """Load an image from a pipe and from a layout, compare, and return its files."""
    image = TestImage(tars, ["t:1"], codec=codec)
    found = contents(store, store.load(pipe(outer(docker_old(image))))[0])
    assert_whole(store)
    store.remove_image("t:1")
    again = contents(store, store.load(pipe(outer(oci(image))))[0])
    assert again == found
    return found


def test_an_opaque_marker_at_the_root_hides_everything(store: Store) -> None:
    assert _load(store, LOWER, layer({".wh..wh..opq": b"", "new": b"new"})) == {b"/new": b"new"}
    assert _load(store, LOWER, layer({"new": b"new", ".wh..wh..opq": b""})) == {b"/new": b"new"}


def test_an_opaque_marker_hides_its_directory_only(store: Store) -> None:
    found = _load(store, LOWER, layer({"a/": b"", "a/new": b"n", "a/.wh..wh..opq": b""}))
    assert {path for path in found if path.startswith(b"/a")} == {b"/a", b"/a/new"}
    assert found[b"/top"] == b"top"


def test_a_hard_link_to_a_file_of_a_lower_layer(store: Store) -> None:
    link = layer([entry("a/linked", kind=b"1", link="a/two"), entry("other", kind=b"1", link="a/linked")])
    found = _load(store, LOWER, link)
    assert found[b"/a/linked"] == found[b"/a/two"] == found[b"/other"] == noise(5000, 2)
    with store.tree("t:1") as tree:
        nodes = {tree.resolve(path) for path in (b"a/linked", b"a/two", b"other")}
        assert len(nodes) == 1
        assert tree.inode(nodes.pop()).nlink == 3


def test_a_hard_link_into_nowhere_is_refused(store: Store) -> None:
    with pytest.raises(FormatError, match="is not there"):
        _load(store, LOWER, layer([entry("x", kind=b"1", link="a/none")]))
    assert_clean(store)


def test_of_duplicates_the_last_wins(store: Store) -> None:
    shared = noise(9000, "shared")
    tar = layer([entry("f", shared), entry("f", b"last"), entry("g", b"first"), entry("g", shared)])
    found = _load(store, layer({"s": shared}), tar, layer([entry("d", kind=b"5"), entry("d", b"file")]))
    assert found[b"/f"] == b"last"
    assert found[b"/g"] == shared
    assert found[b"/d"] == b"file"


def test_a_whiteout_and_a_file_of_one_name(store: Store) -> None:
    for parts in (["top", ".wh.top"], [".wh.top", "top"]):
        found = _load(store, LOWER, layer({name: b"" if name.startswith(".wh.") else b"new" for name in parts}))
        assert found[b"/top"] == b"new"
    found = _load(store, LOWER, layer([entry(".wh.b"), entry("b", kind=b"5"), entry("b/mine", b"m")]))
    assert {path for path in found if path.startswith(b"/b")} == {b"/b", b"/b/mine"}


def test_private_xattrs_never_reach_an_image(store: Store) -> None:
    private = [
        "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "user.overlay.opaque",
        "user.fuseoverlayfs.opaque", "user.containers.override_stat", "trusted.overlay.overlay.opaque",
    ]  # fmt: skip
    xattrs = dict.fromkeys(private, b"y") | {"user.kept": b"kept"}
    tar = layer(
        [
            entry("a", kind=b"5", xattrs=xattrs), entry("a/f", b"data", xattrs=xattrs),
            entry(".", kind=b"5", xattrs=xattrs), entry("l", kind=b"2", link="a", xattrs=xattrs),
            entry("c", b"", pax={"LIBARCHIVE.xattr.trusted.overlay.opaque": b"eQ"}),
        ]
    )  # fmt: skip
    found = _load(store, LOWER, tar)
    assert b"/a/one" in found
    with store.tree("t:1") as tree:
        for path in (b"", b"a", b"a/f", b"l", b"c"):
            xattrs_found = tree.xattrs(tree.resolve(path, follow=False))
            assert set(xattrs_found) <= {b"user.kept"}
        assert tree.xattrs(tree.resolve(b"a"))[b"user.kept"] == b"kept"


@pytest.mark.parametrize(
    "member",
    [
        entry("null", kind=b"3", major=0, minor=0),
        entry("../escape", b"x"),
        entry("a/../../escape", b"x"),
        entry(b"a/\xff/../..", b"x"),
        entry(".wh...", b""),
        entry(".wh..", b""),
        entry(".wh.", b""),
        entry("a/.wh...", b""),
        entry("f", b"x", uid=-1),
        entry("f", b"x", uid=2**32 - 1),
        entry("f", b"x", gid=2**32),
        entry("f", b"x", pax={"uid": b"4294967295"}),
        entry("f", b"x", pax={"uid": b"-1"}),
        entry("f", b"x", pax={"gid": b"99999999999999999999"}),
        entry("d", kind=b"5", uid=2**32 - 1),
        entry("l", kind=b"1", link="../../etc/passwd"),
        entry("", b"x"),
        entry("x" * 256, b"x"),
        entry("f", b"x", kind=b"Z"),
        entry("f", b"x", pax={"path": b"a\0b"}),
        entry("f", b"x", pax={"size": b"12x"}),
        entry("link", kind=b"2", link=""),
        header(b"f", b"0", -5),
    ],
)
def test_members_that_are_refused(store: Store, member: bytes) -> None:
    for form in (docker_old, oci):
        with pytest.raises(FormatError) as caught:
            store.load(pipe(outer(form(TestImage([layer([entry("before", noise(9000)), member])], ["t:1"])))))
        assert "\n" not in str(caught.value)
    assert_clean(store)
    assert not store.images()


def test_names_with_a_leading_slash_stay_inside(store: Store) -> None:
    assert _load(store, layer([entry("/etc/x", b"x"), entry("./y", b"y")])) == {
        b"/etc": b"type 40000", b"/etc/x": b"x", b"/y": b"y",
    }  # fmt: skip


def test_a_symlink_as_parent_stays_inside(store: Store) -> None:
    tar = layer([entry("out", kind=b"2", link="/etc"), entry("out/x", b"x"), entry("up", kind=b"2", link="../../.."),
                 entry("up/y", b"y")])  # fmt: skip
    found = _load(store, tar)
    assert found[b"/etc/x"] == b"x"
    assert found[b"/y"] == b"y"


def test_a_huge_sparse_file_costs_no_disk(store: Store, tmp_path: Path) -> None:
    size = 1 << 40
    start, end = b"start" * 200, b"end" * 300
    begin = size - len(end)
    pax = {
        "GNU.sparse.major": b"0", "GNU.sparse.minor": b"1", "GNU.sparse.name": b"huge",
        "GNU.sparse.size": b"%d" % size, "GNU.sparse.map": b"0,%d,%d,%d" % (len(start), begin, len(end)),
    }  # fmt: skip
    tar = layer([entry("GNUSparseFile.0/huge", start + end, pax=pax), entry("after", noise(5000))])
    (loaded,) = store.load(pipe(outer(docker_old(TestImage([tar], ["t:1"])))))
    with store.tree(loaded) as tree:
        nid = tree.resolve(b"huge")
        assert tree.inode(nid).size == size
        assert tree.read(nid, 0, 1100) == start + bytes(100)
        assert tree.read(nid, begin - 10, 5000) == bytes(10) + end
        assert tree.read(nid, size // 2, 4096) == bytes(4096)
    assert disk(tmp_path / "store" / "layers") < 100_000
    assert_clean(store)


def test_several_files_too_large_for_any_disk_are_refused(store: Store, tmp_path: Path) -> None:
    size = 1 << 40
    parts = []
    for number in range(3):
        pax = {
            "GNU.sparse.major": b"0", "GNU.sparse.minor": b"1", "GNU.sparse.name": b"huge%d" % number,
            "GNU.sparse.size": b"%d" % size, "GNU.sparse.map": b"0,5",
        }  # fmt: skip
        parts.append(entry("f", b"start", pax=pax))
    with pytest.raises(FormatError, match="too large"):
        store.load(pipe(outer(docker_old(TestImage([layer(parts)], ["t:1"])))))
    assert_clean(store)


def test_a_member_that_claims_more_than_there_is(store: Store) -> None:
    for size in (10_000, 1 << 40, 1 << 62):
        tar = layer([entry("f", noise(600), size=size)])
        with pytest.raises(FormatError, match=r"truncated|larger|ends"):
            store.load(pipe(outer(docker_old(TestImage([tar], ["t:1"])))))
    assert_clean(store)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"schemaVersion": 2, "schemaVersion": 2, "manifests": []}',
        b'{"schemaVersion": NaN}',
        b"\xef\xbb\xbf{}",
        b'{"schemaVersion": 2, "manifests": [' + b",".join([b"{}"] * 100_000) + b"]}",
        b'{"schemaVersion": 2, "manifests": [], "x": "' + b"a" * (5 << 20) + b'"}',
        b'{"schemaVersion": 2, "manifests": [], "layers": []}',
        b"[]",
        b"null",
        b"",
        b"\xff\xfe",
        b'{"schemaVersion": ' + b"9" * 10_000 + b"}",
    ],
)
@pytest.mark.parametrize("name", ["index.json", "manifest.json", "oci-layout"])
def test_documents_that_want_to_do_harm(store: Store, tmp_path: Path, raw: bytes, name: str) -> None:
    members = docker_new(TestImage([LOWER], ["t:1"])) | {name: raw}
    (tmp_path / "archive").write_bytes(outer(members))
    for source in (pipe(outer(members)), tmp_path / "archive", write_layout(tmp_path / "layout", members)):
        message = ""
        try:
            store.load(source)
        except LayerfsError as error:
            message = str(error)
        assert not store.images()  # an index that lists nothing selects nothing, and is no error
        assert "\n" not in message
        assert len(message) < 500
    assert_clean(store)


def test_a_config_that_wants_to_do_harm(store: Store) -> None:
    for config in (
        b"[" * 100_000,
        b"{}",
        b'{"rootfs": {"type": "x"}}',
        b'{"rootfs": {"type": "layers", "diff_ids": 3}}',
    ):
        members = docker_old(TestImage([LOWER], ["t:1"]))
        members["config.json"] = config
        listed = json.loads(document(members, "manifest.json"))
        listed[0]["Config"] = "config.json"
        members["manifest.json"] = json.dumps(listed).encode()
        with pytest.raises(LayerfsError):
            store.load(pipe(outer(members)))
    assert_clean(store)


@pytest.mark.parametrize("name", ["../manifest.json", "/../x", "blobs/../../x", "a/\0b", "\udcff"])
def test_outer_members_that_leave_the_archive(store: Store, tmp_path: Path, name: str) -> None:
    members = docker_old(TestImage([LOWER], ["t:1"]))
    raw = outer(members)[: -len(END)] + entry("x", b"", pax={"path": name.encode(errors="surrogateescape")}) + END
    (tmp_path / "archive").write_bytes(raw)
    for source in (pipe(raw), tmp_path / "archive"):
        with pytest.raises(UnsafePath):
            store.load(source)
    assert_clean(store)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", "../..", "loop", ""])
def test_outer_links_that_lead_nowhere_good(store: Store, tmp_path: Path, target: str) -> None:
    members = docker_old(TestImage([LOWER], ["t:1"], codec="none"))
    place = next(name for name in members if name.endswith("layer.tar"))
    members[place] = Link(target)
    (tmp_path / "archive").write_bytes(outer(members))
    for source in (pipe(outer(members)), tmp_path / "archive"):
        with pytest.raises((UnsafePath, NotFound)):
            store.load(source)
    members[place] = Link(f"../{place}")
    with pytest.raises((UnsafePath, NotFound)):
        store.load(pipe(outer(members)))
    assert_clean(store)


def test_two_members_of_one_name_are_refused(store: Store, tmp_path: Path) -> None:
    members = docker_old(TestImage([LOWER], ["t:1"]))
    raw = outer(members)[: -len(END)] + entry("./manifest.json", document(members, "manifest.json")) + END
    (tmp_path / "archive").write_bytes(raw)
    for source in (pipe(raw), tmp_path / "archive"):
        with pytest.raises(FormatError, match="two members"):
            store.load(source)


def test_a_layout_whose_blobs_are_no_files(store: Store, tmp_path: Path) -> None:
    image = TestImage([LOWER], ["t:1"])
    secret = tmp_path / "secret"
    secret.write_bytes(image.blobs[0])
    place = blob_path(digest(image.blobs[0]))
    for number, kind in enumerate(["fifo", "directory", "absolute", "relative", "device"]):
        layout = write_layout(tmp_path / f"layout{number}", oci(image))
        (layout / place).unlink()
        if kind == "fifo":
            os.mkfifo(layout / place)
        elif kind == "directory":
            (layout / place).mkdir()
        elif kind == "absolute":
            (layout / place).symlink_to(secret)
        elif kind == "relative":
            (layout / place).symlink_to("../../../secret")
        else:
            (layout / place).symlink_to("/dev/zero")
        with pytest.raises((FormatError, NotFound, UnsafePath)):
            store.load(layout)
    assert_clean(store)


def test_a_layout_that_may_not_be_read_is_not_called_incomplete(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_root: int, path: bytes, _flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    layout = write_layout(tmp_path / "layout", oci(TestImage([LOWER], ["t:1"])))
    monkeypatch.setattr(places, "open_in_root", refuse)
    with pytest.raises(LayerfsError, match="Permission denied") as caught:
        store.load(layout)
    assert not isinstance(caught.value, NotFound)
    with pytest.raises(LayerfsError, match="Permission denied") as caught:
        copy(f"oci:{layout}", f"oci:{tmp_path}/copy")
    assert not isinstance(caught.value, NotFound)


def test_a_layout_may_link_its_blobs_within_itself(store: Store, tmp_path: Path) -> None:
    image = TestImage([LOWER], ["t:1"])
    layout = write_layout(tmp_path / "layout", oci(image))
    place = layout / blob_path(digest(image.blobs[0]))
    place.rename(layout / "kept")
    place.symlink_to("../../kept")
    assert contents(store, store.load(layout)[0])[b"/top"] == b"top"


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0" * 10, b"not an archive", bytes(10240), b"PK\3\4" + bytes(600), b"\x7fELF" + bytes(2000), b"BZh91AY"],
)
def test_what_is_no_archive(store: Store, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "file").write_bytes(raw)
    for source in (pipe(raw), pipe(gzip.compress(raw)), tmp_path / "file"):
        with pytest.raises(FormatError) as caught:
            store.load(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="no image archive"):
        store.load(tmp_path)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/wasm",
    ],
)
def test_layer_types_that_are_not_supported_are_named(store: Store, media_type: str) -> None:
    image = TestImage([LOWER], ["t:1"])
    members = oci(image)
    manifest = json.loads(image.manifest)
    manifest["layers"][0]["mediaType"] = media_type
    raw = json.dumps(manifest).encode()
    members[blob_path(digest(raw))] = raw
    index = json.loads(document(members, "index.json"))
    index["manifests"][0] |= {"digest": digest(raw), "size": len(raw)}
    members["index.json"] = json.dumps(index).encode()
    with pytest.raises(UnsupportedFormat) as caught:
        store.load(pipe(outer(members)))
    assert media_type in str(caught.value)


_MEASURED = """
import sys
from pathlib import Path
from layerfs.api import Store
from layerfs.errors import LayerfsError
folder = Path(sys.argv[1])
with Store.open(folder / "store", sync=False) as store, open(folder / "archive", "rb") as file:
    try:
        store.load(file)
    except LayerfsError as error:
        print(type(error).__name__, error)
    else:
        print("loaded")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def _measured(folder: Path) -> tuple[str, int]:
    """Load an archive in a process of its own; return what came of it and the peak of its memory in bytes."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEASURED), folder], check=True, capture_output=True, text=True
    )
    result, peak = run.stdout.splitlines()
    return result, int(peak) * 1024


def _bomb_layer(codec: str, size: int, fill: bytes) -> tuple[bytes, str]:
    """Return a blob that expands to a layer with one file of so many equal bytes, and its diffID."""

    hasher = hashlib.sha256()
    parts = []

    encoder = zstandard.ZstdCompressor(3).compressobj() if codec == "zstd" else zlib.compressobj(9, zlib.DEFLATED, 31)
    head = header(b"bomb", b"0", size)
    piece = fill * (1 << 20)
    for data in (head, *[piece] * (size >> 20), END):
        hasher.update(data)
        parts.append(encoder.compress(data))
    parts.append(encoder.flush())
    return b"".join(parts), f"sha256:{hasher.hexdigest()}"


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("fill", [b"\0", b"a"])
def test_a_bomb_costs_no_memory_and_zeros_cost_no_disk(tmp_path: Path, codec: str, fill: bytes) -> None:
    size = 160 << 20 if fill == b"\0" else 64 << 20
    blob, diff_id = _bomb_layer(codec, size, fill)
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    ).encode()
    listed = [{"Config": "config.json", "RepoTags": ["bomb:1"], "Layers": ["layer.tar"]}]
    members: Members = {"layer.tar": blob, "config.json": config, "manifest.json": json.dumps(listed).encode()}
    (tmp_path / "archive").write_bytes(outer(members))
    result, peak = _measured(tmp_path)
    assert result == "loaded"
    assert peak < 200_000_000
    if fill == b"\0":
        assert disk(tmp_path / "store" / "layers") < 3 << 20
    with Store.open(tmp_path / "store", sync=False) as store:
        with store.tree("bomb:1") as tree:
            assert tree.read(tree.resolve(b"bomb"), size - 5) == fill * 5
        assert_clean(store)


def test_an_archive_inside_compressions_is_a_bomb_that_stays_small(tmp_path: Path) -> None:
    """The whole archive is compressed, and its layer again: neither is ever held."""
    blob, _ = _bomb_layer("gzip", 96 << 20, b"\0")
    (tmp_path / "archive").write_bytes(compress(outer({"a/layer.tar": blob, "b/layer.tar": blob * 3}), "gzip"))
    result, peak = _measured(tmp_path)
    assert result.startswith("FormatError")
    assert peak < 200_000_000
    assert disk(tmp_path / "store" / "layers") < 1 << 20


def test_documents_do_not_fill_the_memory(tmp_path: Path) -> None:
    members: Members = {f"d{number}.json": b"{" + b" " * (4 << 20) for number in range(30)}
    members = {name: document(members, name)[: 4 << 20] for name in members}
    (tmp_path / "archive").write_bytes(outer(members, codec="gzip"))
    result, peak = _measured(tmp_path)
    assert result.startswith("LimitExceeded")
    assert peak < 200_000_000


def test_many_members_do_not_fill_the_memory(tmp_path: Path) -> None:
    name = "n" * 4000
    parts = b"".join(entry(f"{number}/{name}", b"") for number in range(2000))
    (tmp_path / "archive").write_bytes(gzip.compress(parts * 1 + END, 1))
    few, _ = _measured(tmp_path)
    assert few.startswith("FormatError")

    # Thirty thousand long names: more than any image has.
    with gzip.open(tmp_path / "archive", "wb", 1) as file:
        for number in range(30_000):
            file.write(entry(f"{number}/{name}", b""))
    result, peak = _measured(tmp_path)
    assert result.startswith("LimitExceeded")
    assert peak < 200_000_000


def test_a_zstd_window_beyond_the_limit_is_refused(store: Store) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    blob = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    raw = blob.compress(layer({"a": noise(9000)})) + blob.flush()
    members = docker_old(TestImage([layer({"a": noise(9000)})], ["t:1"], codec="none"))
    place = next(name for name in members if name.endswith("layer.tar"))
    members[place] = raw
    with pytest.raises(FormatError, match="zstd"):
        store.load(pipe(outer(members)))
    assert_clean(store)


def test_what_was_refused_is_not_known_later(store: Store) -> None:
    """A blob whose load failed must not count as present."""
    tar = layer([entry("f", noise(9000)), entry("../x", b"x")])
    image = TestImage([tar], ["t:1"])
    for _ in range(2):
        with pytest.raises(UnsafePath):
            store.load(pipe(outer(oci(image))))
    other = TestImage([layer({"f": noise(9000)}), tar], ["t:1"])
    with pytest.raises((UnsafePath, IntegrityError)):
        store.load(pipe(outer(oci(other))))
    assert_clean(store)
    assert not store.usage().layers


def test_modes_and_special_files_survive(store: Store) -> None:
    tar = layer(
        [
            entry("suid", b"x", mode=0o4755, uid=1000, gid=2**32 - 2), entry("fifo", kind=b"6"),
            entry("block", kind=b"4", major=8, minor=1), entry("sticky", kind=b"5", mode=0o1777),
        ]
    )  # fmt: skip
    _load(store, tar)
    with store.tree("t:1") as tree:
        inode = tree.inode(tree.resolve(b"suid"))
        assert (inode.mode & 0o7777, inode.uid, inode.gid) == (0o4755, 1000, 2**32 - 2)
        assert stat.S_ISFIFO(tree.inode(tree.resolve(b"fifo")).mode)
        assert tree.inode(tree.resolve(b"block")).rdev == os.makedev(8, 1)
        assert tree.inode(tree.resolve(b"sticky")).mode & 0o7777 == 0o1777


def test_an_archive_that_pads_for_ever_is_not_read_for_ever(store: Store) -> None:
    with open("/dev/zero", "rb", buffering=0) as endless, pytest.raises(FormatError, match="no image archive"):
        store.load(endless)
