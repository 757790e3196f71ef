"""Comparing, committing and sending images out, from the command line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.cli.archive import BASE, TOP, Built, layer
from tests.cli.conftest import Shell

CHANGED = layer(("etc", None), ("etc/hostname", b"other\n"), ("etc/.wh.link", b""), ("new", b"new"))


@pytest.fixture
def pair(shell: Shell, tmp_path: Path) -> Shell:
    """Two images that share their lowest layer."""
    for name, layers in (("old", (BASE, TOP)), ("new", (BASE, CHANGED))):
        built = Built(layers=layers, name=f"{name}:1", label=name)
        shell("load", "-q", "-i", str(built.docker_archive(tmp_path / f"{name}.tar")))
    return shell


def container(shell: Shell, image: str, name: str) -> None:
    """Make a container without mounting it."""
    from layerfs.api import Store
    from layerfs.store.image import find_image
    from layerfs.store.snapshot import create_snapshot

    with Store.open(shell.env["LAYERFS_ROOT"]) as store:
        create_snapshot(store._handle, find_image(store._handle, image), name)


def test_diff_of_two_images(pair: Shell) -> None:
    lines = pair("diff", "old:1", "new:1").splitlines()
    assert lines[:4] == ["C /etc", "C /etc/hostname", "D /etc/link", "A /etc/motd"]
    assert "A /new" in lines
    assert any(line.startswith("D /srv") for line in lines)
    assert pair("diff", "old:1", "old:1") == ""
    document = pair.json("diff", "old:1", "new:1", "--format", "json")
    assert document["added"] == ["/etc/motd", "/new"]
    assert pair("diff", "old:1", "new:1", "--name-only", "-z").split("\0")[0] == "/etc"


def test_diff_exit_code(pair: Shell) -> None:
    assert pair.try_("diff", "old:1", "new:1", "--exit-code").exit_code == 1
    assert pair.try_("diff", "old:1", "old:1", "--exit-code").exit_code == 0


def test_diff_details(pair: Shell) -> None:
    content = pair("diff", "old:1", "new:1", "--content")
    assert "--- a/etc/hostname\n+++ b/etc/hostname\n@@ -1 +1 @@\n-top\n+other\n" in content
    metadata = pair("diff", "old:1", "new:1", "--metadata")
    assert "    size: 4 -> 6\n" in metadata
    documents = pair.json("diff", "old:1", "new:1", "--metadata", "--format", "json")
    assert {"kind": "C", "path": "/etc/hostname", "changes": {"size": [4, 6]}} in documents
    stat = pair("diff", "old:1", "new:1", "--stat")
    assert stat.splitlines()[-1].startswith("2 added, 1 changed, 2 deleted in 2 directories, ")
    rows = pair.json("diff", "old:1", "new:1", "--stat", "--format", "json")
    assert rows[1]["path"] == "/etc"
    assert (rows[1]["added"], rows[1]["changed"], rows[1]["deleted"]) == (1, 1, 1)


def test_diff_of_a_layer(pair: Shell) -> None:
    top = pair("layers", "new:1", "-q", "--no-trunc").split()[-1]
    lines = pair("diff", "--layer", top).splitlines()
    assert lines == ["A /etc", "A /etc/hostname", "D /etc/link", "A /new"]
    assert pair("diff", "--layer", top.partition(":")[2][:12]) == pair("diff", "--layer", top)
    pair.fails(3, "diff", "--layer", "sha256:" + "0" * 64)


def test_diff_of_a_layer_with_an_entry_for_the_root(shell: Shell, tmp_path: Path) -> None:
    tar = layer(("./", None), ("a", b"a"))
    shell("load", "-q", "-i", str(Built(layers=(tar,), name="r:1").docker_archive(tmp_path / "r.tar")))
    (name,) = shell("layers", "r:1", "-q", "--no-trunc").split()
    assert shell("diff", "--layer", name) == "A /a\n"
    assert shell("diff", "--metadata", "--layer", name) == "A /a\n"
    assert shell.json("diff", "--format", "json", "--layer", name) == {"changed": [], "added": ["/a"], "deleted": []}
    assert shell.try_("diff", "--exit-code", "--layer", name).exit_code == 1
    shell("diff", "-o", str(tmp_path / "out.tar"), "--layer", name)
    with tarfile.open(tmp_path / "out.tar") as written:
        assert len(written.getnames()) == 2  # the root's attributes belong to the layer all the same


@pytest.mark.parametrize(
    "words",
    [["diff"], ["diff", "a", "b", "c"], ["diff", "a", "--layer", "b"], ["diff", "a", "--stat", "--content"],
     ["diff", "a", "--content", "--format", "json"], ["diff", "a", "--stat", "-z"]],
)  # fmt: skip
def test_diff_usage(shell: Shell, words: list[str]) -> None:
    shell.fails(2, *words)


def test_diff_as_a_layer_applied_to_a_container(pair: Shell, tmp_path: Path) -> None:
    layer_tar = tmp_path / "layer.tar"
    pair("diff", "old:1", "new:1", "-o", str(layer_tar))
    again = tmp_path / "again.tar"
    pair("diff", "old:1", "new:1", "-o", str(again))
    assert layer_tar.read_bytes() == again.read_bytes()
    if os.geteuid():
        pytest.skip("a container's files have owners")
    container(pair, "old:1", "box")
    pair("apply", "box", str(layer_tar))
    assert pair("diff", "box") == pair("diff", "old:1", "new:1")
    assert pair("diff", "box", "new:1") == ""
    made = pair("commit", "box", "made", "-m", "hello", "-a", "me", "-c", 'CMD ["a"]', "-c", "ENV X=1").strip()
    assert pair("diff", "made", "new:1") == ""
    (document,) = pair.json("inspect", "made")
    assert document["Id"] == made
    config = pair.json("inspect", "--config", "made")
    assert config["config"]["Cmd"] == ["a"]
    assert config["config"]["Env"] == ["PATH=/bin", "X=1"]
    assert (config["history"][-1]["comment"], config["author"]) == ("hello", "me")
    assert pair("commit", "box", "made", "-m", "hello", "-a", "me", "-c", 'CMD ["a"]', "-c", "ENV X=1").strip() == made
    assert "is the name of image" in pair.fails(6, "commit", "box", "made", "-m", "other")
    pair("commit", "box", "made", "-m", "other", "--force")
    pair.fails(2, "commit", "box", "-c", "RUN x")
    pair.fails(3, "commit", "nobody")
    assert pair("check") == ""


def test_a_layer_that_leaves_its_root_changes_nothing(pair: Shell, tmp_path: Path) -> None:
    container(pair, "old:1", "box")
    hostile = tmp_path / "hostile.tar"
    hostile.write_bytes(layer(("fine", b"x"), ("../../outside", b"y")))
    assert "'..'" in pair.fails(1, "apply", "box", str(hostile))
    hostile.write_bytes(b"no tar at all" * 100)
    pair.fails(1, "apply", "box", str(hostile))
    pair.fails(3, "apply", "box", str(tmp_path / "missing"))
    assert pair("diff", "box") == ""
    assert pair("check") == ""


def test_a_file_called_like_a_whiteout_cannot_be_committed(pair: Shell) -> None:
    container(pair, "old:1", "box")
    root = Path(pair.env["LAYERFS_ROOT"])
    (snapshot,) = (root / "snapshots").iterdir()
    (snapshot / "dressed").touch()
    (snapshot / "upper/.wh.odd").write_text("x")
    assert "its name means that something is removed" in pair.fails(1, "commit", "box", "x")


def test_a_committed_name_is_the_one_that_is_found(pair: Shell, tmp_path: Path) -> None:
    container(pair, "old:1", "box")
    pair("tag", "old:1", "localhost/here")
    assert "is the name of image" in pair.fails(6, "commit", "box", "here", "-m", "x")
    made = pair("commit", "box", "here", "-m", "x", "--force").strip()
    assert pair.json("inspect", "localhost/here")[0]["Id"] == made


def test_files_that_went_with_a_directory_are_shown(shell: Shell, tmp_path: Path) -> None:
    old = layer(
        ("d", None), ("d/sub", None), ("d/sub/text", b"gone\n"), ("d/bytes", b"\0"), ("e", None), ("e/f", b"f\n")
    )  # fmt: skip
    new = layer((".wh.d", b""), (".wh.e", b""), ("e", b"now a file\n"))
    for name, layers in (("old", (old,)), ("new", (old, new))):
        built = Built(layers=layers, name=f"{name}:1", label=name)
        shell("load", "-q", "-i", str(built.docker_archive(tmp_path / f"{name}.tar")))
    content = shell("diff", "old:1", "new:1", "--content")
    assert content == (
        "Binary files a/d/bytes and /dev/null differ\n"
        "--- a/d/sub/text\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone\n"
        "--- a/e/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-f\n"
        "--- /dev/null\n+++ b/e\n@@ -0,0 +1 @@\n+now a file\n"
    )
    assert "0 A      1 C      1 D" in shell("diff", "old:1", "new:1", "--stat")


def dress(shell: Shell, name: str) -> Path:
    """Return the upper directory of a container, as after its first mount."""
    (snapshot,) = (Path(shell.env["LAYERFS_ROOT"]) / "snapshots").iterdir()
    (snapshot / "dressed").touch()
    return snapshot / "upper"


def test_what_changed_of_directories_alone(pair: Shell) -> None:
    container(pair, "old:1", "box")
    assert pair("diff", "box") == ""
    upper = dress(pair, "box")
    assert pair("diff", "box").split() in (["C", "/"], [])  # a new upper directory has attributes of its own
    os.chmod(upper, 0o711)
    (upper / "etc").mkdir()
    assert pair("diff", "box") == "C /\nC /etc\n"
    assert pair("diff", "box", "--name-only", "-z") == "/\0/etc\0"
    assert "mode: 0755 -> 0711" in pair("diff", "box", "--metadata")
    pair("commit", "box", "made")
    assert pair("diff", "old:1", "made") == "C /\nC /etc\n"


def test_a_layer_that_the_store_has_can_be_applied(pair: Shell, tmp_path: Path) -> None:
    raw = tmp_path / "layer.tar"
    raw.write_bytes(CHANGED)
    container(pair, "old:1", "box")
    pair("apply", "box", str(raw))
    assert "C /etc/hostname" in pair("diff", "box").splitlines()
    hole = layer(("hole", bytes(3 << 20) + b"end"))
    raw.write_bytes(hole)
    pair("apply", "box", str(raw))
    (snapshot,) = (Path(pair.env["LAYERFS_ROOT"]) / "snapshots").iterdir()
    assert (snapshot / "upper/hole").read_bytes() == bytes(3 << 20) + b"end"
    assert (snapshot / "upper/hole").stat().st_blocks * 512 < 1 << 20
    raw.write_bytes(b"")
    assert "empty" in pair.fails(1, "apply", "box", str(raw))


def test_a_layer_that_does_not_fit_changes_nothing(pair: Shell, tmp_path: Path) -> None:
    container(pair, "old:1", "box")
    upper = dress(pair, "box")
    for links in ({"zz": "etc/nosuch"}, {"zz": "etc/hostname"}):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for name in ("etc/.wh.hostname", "etc/aaa"):
                tar.addfile(tarfile.TarInfo(name))
            for name, target in links.items():
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.LNKTYPE, target
                tar.addfile(member)
        (tmp_path / "layer.tar").write_bytes(raw.getvalue())
        said = pair.fails(1, "apply", "box", str(tmp_path / "layer.tar"))
        assert "which is no file of the container" in said
        assert "b'" not in said
        assert list(upper.iterdir()) == []


def test_opaque_directories_that_a_layer_has_no_entry_for(pair: Shell, tmp_path: Path) -> None:
    raw = layer(("etc/.wh..wh..opq", b""), (".wh.opt", b""))
    built = Built(layers=(BASE, raw), name="opaque:1", label="opaque")
    pair("load", "-q", "-i", str(built.docker_archive(tmp_path / "opaque.tar")))
    top = pair("layers", "opaque:1", "-q", "--no-trunc").split()[-1]
    assert pair("diff", "--layer", top) == "C /etc\nD /opt\n"
    pair("diff", "--layer", top, "-o", str(tmp_path / "out.tar"))
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert sorted(tar.getnames()) == [".wh.opt", "etc/.wh..wh..opq"]


def test_text_is_split_at_newlines_and_names_are_quoted(shell: Shell, tmp_path: Path) -> None:
    old = layer(("cr", b"a\rb\n"), ("kind", b"file\n"))
    new = layer(("cr", b"a\rc"), (".wh.kind", b""), ("new\nline", b"x\n"))
    for name, layers in (("old", (old,)), ("new", (old, new))):
        built = Built(layers=layers, name=f"{name}:1", label=name)
        shell("load", "-q", "-i", str(built.docker_archive(tmp_path / f"{name}.tar")))
    assert shell("diff", "old:1", "new:1", "--content") == (
        "--- a/cr\n+++ b/cr\n@@ -1 +1 @@\n-a\rb\n+a\rc\n\\ No newline at end of file\n"
        "--- a/kind\n+++ /dev/null\n@@ -1 +0,0 @@\n-file\n"
        '--- /dev/null\n+++ "b/new\\nline"\n@@ -0,0 +1 @@\n+x\n'
    )


def test_names_that_would_be_ids_are_refused(pair: Shell) -> None:
    container(pair, "old:1", "box")
    for name in ("sha256:9d39817065c8", "ab" * 32):
        assert "image ID" in pair.fails(2, "commit", "box", name)
        assert "image ID" in pair.fails(2, "tag", "old:1", name)


def test_diff_of_one_image_says_what_is_missing(pair: Shell) -> None:
    assert "layerfs diff BASE old:1" in pair.fails(3, "diff", "old:1")


def test_a_page_goes_where_it_is_told(pair: Shell, tmp_path: Path) -> None:
    assert "<html" in pair("report", "new:1", "-o", "-")
    page = tmp_path / "page.html"
    lenient = ("--ci", "--lowest-efficiency", "0", "--highest-user-wasted-percent", "1")
    assert pair("report", "new:1", *lenient, "-o", str(page)).count("PASS") == 2
    assert "<html" in page.read_text("utf-8")
    assert pair.try_("report", "new:1", "--ci", "--highest-wasted-bytes", "0", "-o", str(page)).exit_code == 1
    assert "No space left" in pair.fails(1, "report", "new:1", "-o", "/dev/full")
    assert not Path("/dev/full").is_file()
    pair.fails(2, "report", "new:1", "--lowest-efficiency", "0.5")
    pair.fails(2, "report", "new:1", "--ci", "--format", "json")


def test_a_plain_tree_loses_no_names(shell: Shell, tmp_path: Path) -> None:
    for name in ("etc/.wh.foo", "etc/.wh..wh..opq"):
        (tmp_path / "tree.tar").write_bytes(layer(("etc", None), (name, b"x")))
        assert "its name means that something is removed" in shell.fails(1, "import", str(tmp_path / "tree.tar"), "x")


def test_squash_and_rebase(pair: Shell, tmp_path: Path) -> None:
    pair("squash", "old:1", "flat")
    assert pair("diff", "old:1", "flat") == ""
    assert len(pair("layers", "flat", "-q").split()) == 1
    pair("squash", "old:1", "upper", "--from", "1")
    assert pair("layers", "upper", "-q").split()[0] == pair("layers", "old:1", "-q").split()[0]
    pair.fails(2, "squash", "old:1", "x", "--from", "7")
    base = Built(layers=(BASE,), name="base:1", label="base")
    other = Built(layers=(layer(("etc", None), ("etc/hostname", b"new base")),), name="base:2", label="base2")
    for number, built in enumerate((base, other)):
        pair("load", "-q", "-i", str(built.docker_archive(tmp_path / f"base{number}.tar")))
    pair("rebase", "new:1", "rebased", "--onto", "base:2")
    assert pair("layers", "rebased", "-q").split() == [
        *pair("layers", "base:2", "-q").split(), pair("layers", "new:1", "-q").split()[-1],
    ]  # fmt: skip
    assert pair("cat", "rebased:/new") == "new"
    assert "stands on" in pair.fails(2, "rebase", "new:1", "--onto", "base:1")
    assert "is not the base" in pair.fails(2, "rebase", "new:1", "--onto", "base:1", "--from", "base:2")
    assert pair("check") == ""


def test_import_and_export(shell: Shell, tmp_path: Path) -> None:
    tree = tmp_path / "rootfs.tar"
    tree.write_bytes(BASE)
    shell("import", str(tree), "imported", "-c", "CMD sh", "-m", "by hand")
    assert shell.json("inspect", "--config", "imported")["config"]["Cmd"] == ["/bin/sh", "-c", "sh"]
    assert shell("cat", "imported:/etc/hostname") == "base\n"
    exported = tmp_path / "out.tar"
    shell("export", "imported", "-o", str(exported))
    assert shell.process("export", "imported", stdout=subprocess.PIPE).communicate()[0] == exported.read_bytes()
    with tarfile.open(exported) as tar:
        assert tar.getnames()[:2] == [".", "bin"]
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/file").write_text("x")
    first = shell("import", str(folder), "folder", "--source-date-epoch", "1000")
    assert shell("import", str(folder), "folder", "--source-date-epoch", "1000") == first
    assert shell.json("ls", "folder:/sub/file", "--format", "json")[0]["mtime"] == "1970-01-01T00:16:40Z"
    assert "is the name of image" in shell.fails(6, "import", str(tree), "folder")
    (tmp_path / "text").write_text("no tar")
    shell.fails(1, "import", str(tmp_path / "text"), "x")
    shell.fails(3, "import", str(tmp_path / "nothing"), "x")
    (tmp_path / "empty").touch()
    assert "the archive is empty" in shell.fails(1, "import", str(tmp_path / "empty"), "x")


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_save_to_a_file_and_a_pipe(pair: Shell, tmp_path: Path, form: str) -> None:
    saved = tmp_path / "saved.tar"
    pair("save", "old:1", "new:1", "-o", str(saved), "--format", form)
    piped = pair.process("save", "old:1", "new:1", "--format", form, stdout=subprocess.PIPE).communicate()[0]
    assert piped == saved.read_bytes()
    other = Shell(tmp_path / "other")
    other("load", "-q", "-i", str(saved))
    assert {row["Id"] for row in other.json("images", "--format", "json")} == {
        row["Id"] for row in pair.json("images", "--format", "json")
    }
    assert other("diff", "old:1", "new:1") == pair("diff", "old:1", "new:1")


def test_save_keeps_manifests_with_their_blobs(shell: Shell, tmp_path: Path) -> None:
    layout = Built().layout(tmp_path / "layout")
    shell("load", "-q", "--keep-blobs", "-i", str(layout))
    shell("save", "example.org/team/app:1.0", "--format", "oci", "-o", str(tmp_path / "out"))
    indexes = [json.loads((folder / "index.json").read_bytes()) for folder in (layout, tmp_path / "out")]
    assert len({index["manifests"][0]["digest"] for index in indexes}) == 1
    # The same again finds everything there; another compression is another manifest of the same image.
    shell("save", "example.org/team/app:1.0", "--format", "oci", "-o", str(tmp_path / "out"))
    shell("save", "example.org/team/app:1.0", "--format", "oci-archive", "--compression", "zstd",
          "-o", str(tmp_path / "zstd.tar"))  # fmt: skip
    piped = shell.process(
        "save", "example.org/team/app:1.0", "--format", "oci-archive", "--compression", "zstd", stdout=subprocess.PIPE
    ).communicate()[0]
    assert piped == (tmp_path / "zstd.tar").read_bytes()
    other = Shell(tmp_path / "other")
    other("load", "-q", "-i", str(tmp_path / "zstd.tar"))
    assert other("images", "-q", "--no-trunc") == shell("images", "-q", "--no-trunc")


def test_save_refusals(pair: Shell, tmp_path: Path) -> None:
    pair.fails(3, "save", "nothing", "-o", str(tmp_path / "x"))
    pair.fails(2, "save", "old:1", "--format", "oci")
    pair.fails(2, "save", "old:1", "--compression", "gzip", "-o", str(tmp_path / "x"))
    pair.fails(1, "save", "old:1", "-o", str(tmp_path / "no/such/place"))
    assert not list(tmp_path.glob("x*"))
    root = Path(pair.env["LAYERFS_ROOT"])
    victim = next((root / "layers").glob("*/*/layer.tar"))
    raw = bytearray(victim.read_bytes())
    raw[600] ^= 1
    victim.write_bytes(raw)
    pair.fails(4, "save", "old:1", "new:1", "-o", str(tmp_path / "x"))
    assert not list(tmp_path.glob("*x*")), "an archive appears when it is complete"


def test_extract(pair: Shell, tmp_path: Path) -> None:
    pair("extract", "old:1", str(tmp_path / "all"))
    assert (tmp_path / "all/etc/hostname").read_text("utf-8") == "top\n"
    assert os.readlink(tmp_path / "all/etc/link") == "hostname"
    pair("extract", "old:1:/etc", str(tmp_path / "etc"))
    assert (tmp_path / "etc/hostname").read_text("utf-8") == "top\n"
    pair("extract", "old:1:/etc/hostname", str(tmp_path / "one"))
    assert (tmp_path / "one/hostname").read_text("utf-8") == "top\n"
    assert "is not empty" in pair.fails(6, "extract", "old:1", str(tmp_path / "all"))
    pair.fails(3, "extract", "old:1:/nothing", str(tmp_path / "none"))


def test_report(pair: Shell, tmp_path: Path) -> None:
    document = pair.json("report", "old:1", "--format", "json")
    assert document["wasted"] == 8000 + 5
    assert {row["path"] for row in document["repeated"]} == {"/etc/motd", "/etc/hostname"}
    assert document["stored"] == 5 + 8000 + 2 + 4 + 1
    assert document["efficiency"] == pytest.approx((4 + 2 + 1) / document["stored"], abs=1e-6)
    page = tmp_path / "report.html"
    pair("report", "old:1", "-o", str(page))
    text = page.read_text("utf-8")
    assert "\x1b" not in text
    data = json.loads(text.partition("const D=")[2].partition(";\n")[0])
    assert data["id"] == document["id"]
    assert "http" not in text.replace("http-equiv", "")
    assert "FAIL  efficiency" in pair.try_("report", "old:1", "--ci").stdout
    assert pair.try_("report", "old:1", "--ci").exit_code == 1
    limits = ["--lowest-efficiency", "0", "--highest-user-wasted-percent", "1", "--highest-wasted-bytes", "9kB"]
    assert pair.try_("report", "old:1", "--ci", *limits).exit_code == 0
    pair.fails(2, "report", "old:1", "--ci", "--highest-wasted-bytes", "many")
    pair.fails(3, "report", "nothing")
    assert {row["name"] for row in pair.json("report", "--format", "json")} >= {"docker.io/library/old:1"}
    assert "efficiency" in pair("report", "old:1")


def test_a_hostile_name_cannot_leave_the_pages_script(shell: Shell, tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo(name.replace("/", "%"))
        info.size = 100_000
        tar.addfile(info, io.BytesIO(bytes(100_000)))
        info = tarfile.TarInfo("<b>")
        info.size = 5000
        tar.addfile(info, io.BytesIO(bytes(5000)))
    (tmp_path / "tree.tar").write_bytes(raw.getvalue())
    shell("import", str(tmp_path / "tree.tar"), "hostile")
    shell("report", "hostile", "-o", str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text("utf-8").count("<script>") == 1


def test_explore_needs_a_terminal(pair: Shell) -> None:
    assert "needs a terminal" in pair.fails(2, "explore", "old:1")


def test_explore_shows_layers_and_files(pair: Shell) -> None:
    import asyncio

    pytest.importorskip("textual")
    from textual.widgets import DataTable, Tree

    from layerfs.api import Store
    from layerfs_cli.browser import Browser
    from layerfs_cli.text import human_size

    async def look() -> None:
        with Store.open(pair.env["LAYERFS_ROOT"]) as store:
            image = store.resolve("old:1")
            with store.tree(image) as tree:
                app = Browser(store, image, store.analyze(image), tree)
                async with app.run_test() as pilot:
                    await pilot.pause()
                    assert app.query_one("#layers", DataTable).row_count == 2
                    files = app.query_one("#files", Tree)
                    labels = [str(node.label) for node in files.root.children]
                    assert sorted(label.split()[0] for label in labels) == ["bin/", "etc/", "srv/"]
                    sizes: dict[str, int] = {}
                    for path, nid, kind in tree.walk():
                        top = path.split(b"/")[1].decode()
                        sizes[top] = sizes.get(top, 0) + (tree.inode(nid).size if kind != 2 else 0)
                    assert set(labels) == {f"{name}/  {human_size(size)}" for name, size in sizes.items()}
                    assert labels[0].startswith(max(sizes, key=lambda name: sizes[name]))
                    etc = next(node for node in files.root.children if str(node.label).startswith("etc"))
                    etc.expand()
                    await pilot.pause()
                    assert [str(node.label) for node in etc.children] == ["link  8B", "hostname  4B"]
                    await pilot.press("w")
                    await pilot.pause()
                    wasted = app.query_one("#wasted", DataTable)
                    assert wasted.has_focus
                    assert [str(cell) for cell in wasted.get_row_at(0)][1:] == ["0", "/etc/motd"]
                    await pilot.press("l")
                    await pilot.pause()
                    assert app.query_one("#largest", DataTable).row_count > 0

    asyncio.run(look())
