"""Images in, looked at, named and removed."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from layerfs_cli.template import Template
from tests.cli.archive import BASE, TOP, Built, digest, layer
from tests.cli.conftest import Shell


def test_load_prints_names_and_then_the_id(shell: Shell, tmp_path: Path) -> None:
    built = Built()
    path = str(built.docker_archive(tmp_path / "a.tar"))
    result = shell.try_("load", "--input", path)
    assert result.stdout == f"Loaded image: {built.name}\n{built.id}\n"
    short = [digest(data)[7:19] for data in (BASE, TOP)]
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == short
    assert all("Load complete" in line for line in result.stderr.splitlines())
    again = shell.try_("load", "-i", path)
    assert again.stderr == "".join(f"{name}: Already exists\n" for name in short)
    assert shell.try_("load", "-q", "-i", path).output == f"{built.id}\n"
    assert shell.try_("-q", "load", "-i", path).stderr == ""


def test_load_from_a_pipe(shell: Shell, tmp_path: Path) -> None:
    built = Built()
    data = built.docker_archive(tmp_path / "a.tar").read_bytes()
    process = shell.process("load", "-q", stdin=-1, stdout=-1, stderr=-1)
    out, err = process.communicate(data, timeout=60)
    assert (process.returncode, out, err) == (0, f"{built.id}\n".encode(), b"")


@pytest.mark.parametrize("transport", ["oci", "docker-archive"])
def test_pull(shell: Shell, tmp_path: Path, transport: str) -> None:
    built = Built()
    path = tmp_path / "x"
    (built.layout if transport == "oci" else built.docker_archive)(path)
    assert shell("pull", f"{transport}:{path}").splitlines()[-1] == built.id
    assert shell("pull", "-q", f"{transport}:{path}:{built.name}").splitlines() == [built.id]


def test_images(shell: Shell, image: Built) -> None:
    lines = shell("images").splitlines()
    assert lines[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert lines[1].split()[:3] == ["example.org/team/app", "1.0", image.id[7:19]]
    assert lines[1].endswith(" years ago  30.7kB")
    assert len(shell("images", "--noheading").splitlines()) == 1
    assert shell("images", "-q") == image.id[7:19] + "\n"
    assert shell("images", "-q", "--no-trunc") == image.id + "\n"
    assert "DIGEST" in shell("images", "--digests").splitlines()[0]
    (document,) = shell.json("images", "--format", "json")
    assert document == {
        "Id": image.id,
        "RepoTags": ["example.org/team/app:1.0"],
        "RepoDigests": [f"example.org/team/app@{document['Digest']}"],
        "Digest": document["Digest"],
        "Created": "2020-09-13T12:26:40.5Z",
        "Size": len(BASE) + len(TOP),
        "Architecture": "amd64",
        "Os": "linux",
        "Variant": None,
        "chain_id": document["chain_id"],
        "layers": 2,
    }
    assert json.loads(shell("images", "--format", "jsonl")) == document
    assert shell("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID | upper}}") == (
        f"example.org/team/app:1.0 {image.id[7:19].upper()}\n"
    )
    each = "{{range $i, $layer := .RootFS.Layers}}{{if $i}}\\n{{end}}{{$layer}}{{end}}"
    layers = json.loads(shell("inspect", image.name))[0]["RootFS"]["Layers"]
    assert shell("inspect", "--format", each, image.name).split() == layers
    assert len(layers) == 2
    assert "block cannot stand there" in shell.fails(2, "inspect", "--format", "{{block .Id}}", image.name)


def test_images_are_filtered_and_sorted(shell: Shell, image: Built, tmp_path: Path) -> None:
    other = Built(name="other:2", label="two", layers=(BASE,))
    shell("load", "-q", "-i", str(other.docker_archive(tmp_path / "o.tar")))
    shell("tag", "other:2", "aaa")

    def ids(*words: str) -> list[str]:
        return shell("images", "-q", "--no-trunc", *words).split()

    assert ids("other") == [other.id]
    assert ids("--filter", "reference=*app*") == [image.id]
    assert ids("-f", "reference=other") == [other.id]
    assert ids("oth*") == ids("docker.io/library/oth*:2") == ids("a[ab]a") == [other.id]
    assert ids("oth*:3") == ids("-f", "reference=nothing") == ids("other", "-f", "reference=aaa") == []
    assert shell("images", "other", "--format", "{{.Repository}}").split() == ["docker.io/library/other"]
    assert len(shell("images", "*", "--format", "{{.Repository}}").split()) == 3
    assert ids("[^ae]ther") == [other.id]
    assert ids("[^o]ther") == ids("-f", "reference=No Name") == ids("-f", "reference=<none>") == []
    assert ids("-f", "label=kind=two") == [other.id]
    assert sorted(ids("-f", "label=kind")) == sorted([image.id, other.id])
    assert ids("-f", "dangling=true") == []
    assert ids("-f", "before=aaa") == []
    assert ids("--sort", "size") == [image.id, other.id]
    assert ids("--sort", "id") == sorted([image.id, other.id])
    names = shell("images", "--sort", "repository", "--format", "{{.Repository}}").split()
    assert names == ["docker.io/library/aaa", "docker.io/library/other", "example.org/team/app"]
    for label in ("first", "second"):
        again = Built(name="again:1", label=label, layers=(BASE,))
        shell("load", "-q", "-i", str(again.docker_archive(tmp_path / label)))
    (dangling,) = ids("-f", "dangling=true")
    assert dangling in ids()
    assert dangling not in ids("*")
    shell.fails(2, "images", "-f", "colour=red")
    shell.fails(2, "images", "-f", "dangling=maybe")
    shell.fails(3, "images", "-f", "before=nothing")


def test_inspect(shell: Shell, image: Built) -> None:
    (document,) = shell.json("inspect", "example.org/team/app:1.0")
    assert document["Id"] == image.id
    assert document["RepoTags"] == [image.name]
    assert document["RepoDigests"] == [f"example.org/team/app@{document['Digest']}"]
    assert (document["Architecture"], document["Os"]) == ("amd64", "linux")
    assert document["RootFS"] == {"Type": "layers", "Layers": [digest(BASE), digest(TOP)]}
    assert document["Config"]["Env"] == ["PATH=/bin"]
    assert document["Labels"] == {"kind": "one"}
    assert document["Size"] == len(BASE) + len(TOP)
    assert [step["empty_layer"] for step in document["History"]] == [False, True, False]
    assert shell("inspect", image.id[:15], "--config", "--raw").encode() == image.config()
    assert shell.json("inspect", image.id, "--config") == json.loads(image.config())
    assert shell.json("inspect", image.id, "--raw")["config"]["digest"] == image.id
    assert shell("inspect", image.id, "--format", "{{.Os}} {{json .Config.Cmd}}") == 'linux ["/bin/sh"]\n'
    assert len(shell.json("inspect", image.id, image.name)) == 2
    shell.fails(2, "inspect", "--raw", image.id, image.id)


def test_history_and_layers(shell: Shell, image: Built) -> None:
    steps = shell.json("history", image.id, "--format", "json")
    assert [step["created_by"] for step in steps] == ["RUN step 1", "ENV PATH", "ADD base\x1b[2J"]
    assert [step["diff_id"] for step in steps] == [digest(TOP), None, digest(BASE)]
    assert [step["size"] for step in steps] == [len(TOP), 0, len(BASE)]
    table = shell("history", image.id, "--no-trunc")
    assert "\x1b" not in table
    assert "\\x1b[2J" in table
    assert shell("history", "-q", image.id).split() == [digest(TOP)[7:19], digest(BASE)[7:19]]
    layers = shell.json("layers", image.id, "--format", "json")
    assert [layer["diff_id"] for layer in layers] == [digest(BASE), digest(TOP)]
    assert [layer["position"] for layer in layers] == [0, 1]
    assert layers[0] | {"entries": 0} == {
        "position": 0, "diff_id": digest(BASE), "size": len(BASE), "shared_size": 0, "entries": 0, "images": 1,
        "created_by": "ADD base\x1b[2J",
    }  # fmt: skip
    assert shell("layers", "-q", "--no-trunc", image.id).split() == [digest(BASE), digest(TOP)]


def test_tag_and_rmi(shell: Shell, image: Built) -> None:
    assert shell("tag", image.name, "one", "localhost/two:x") == ""
    assert "use --force" in shell.fails(6, "rmi", image.id[7:]).lower()
    assert shell("rmi", "--force", "one") == "Untagged: docker.io/library/one:latest\n"
    shell.fails(2, "tag", image.name, "fine", "NotFine")
    assert shell.json("inspect", image.id)[0]["RepoTags"] == [image.name, "localhost/two:x"]
    out = shell("rmi", "-f", image.id[7:])
    assert out.splitlines() == [f"Untagged: {image.name}", "Untagged: localhost/two:x", f"Deleted: {image.id}"]
    assert shell.json("images", "--format", "json") == []
    assert shell("rmi", "-f", "gone") == ""


def test_a_short_name_means_the_one_of_an_archive_for_all_verbs(shell: Shell, tmp_path: Path) -> None:
    """What is found without localhost/ is also removed, moved and saved so, and nothing comes to stand before it."""
    for number, label in enumerate(("first", "second")):
        built = Built(layers=(layer((label, b"x")),), name="localhost/app:latest" if number == 0 else "other:1")
        shell("load", "-q", "-i", str(built.docker_archive(tmp_path / f"{label}.tar")))
    first = shell.json("inspect", "app")[0]["Id"]
    assert shell("tag", "other:1", "app") == ""
    assert shell.json("inspect", "localhost/app")[0]["Id"] == shell.json("inspect", "other:1")[0]["Id"] != first
    names = {f"{line.split()[0]}:{line.split()[1]}" for line in shell("images", "--noheading").splitlines()}
    assert names == {"localhost/app:latest", "docker.io/library/other:1", "<none>:<none>"}
    shell("tag", "other:1", "docker.io/library/app:2", "localhost/app:2")
    shell("save", "app:2", "-o", str(tmp_path / "saved.tar"))
    with tarfile.open(tmp_path / "saved.tar") as tar:
        member = tar.extractfile("manifest.json")
        assert member is not None
        assert json.load(member)[0]["RepoTags"] == ["docker.io/library/app:2"]
    assert shell("rmi", "app") == "Untagged: localhost/app:latest\n"


def test_rmi_goes_on_after_a_failure(shell: Shell, image: Built) -> None:
    result = shell.try_("rmi", "nothing", image.name, "neither")
    assert result.exit_code == 3
    assert f"Deleted: {image.id}" in result.stdout
    assert [line for line in result.stderr.splitlines() if "error" in line] == [
        "layerfs: error: no such image: nothing",
        "layerfs: error: no such image: neither",
    ]


def test_df(shell: Shell, image: Built, tmp_path: Path) -> None:
    shell("load", "-q", "-i", str(Built(name="second", layers=(BASE,)).docker_archive(tmp_path / "b.tar")))
    table = shell("df").splitlines()
    assert table[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert table[1].split()[:3] == ["Images", "2", "0"]
    assert table[2].split() == ["Containers", "0", "0", "0B", "0B"]
    assert "Shared between images: 20.5kB, stored once" in table
    document = shell.json("df", "--format", "json")
    assert document["saved_by_layers"] == len(BASE)
    assert [layer["diff_id"] for layer in document["layers"]] == [digest(BASE), digest(TOP)]
    assert {item["Id"]: item["SharedSize"] for item in document["images"]}[image.id] == len(BASE)
    assert "IN OTHER LAYERS" in shell("df", "-v")
    assert document["partial"] == document["unpacked"] == 0
    assert "Unpacked" not in shell("df")
    received = Path(shell.env["LAYERFS_ROOT"], "partial", "sha256-" + 64 * "0")
    received.write_bytes(bytes(range(256)) * 64)
    assert shell.json("df", "--format", "json")["partial"] == 16384
    assert "Received by interrupted pulls: 16.4kB" in shell("df").splitlines()


def test_check_and_gc(shell: Shell, image: Built) -> None:
    assert shell("check") == ""
    assert shell.json("check", "--format", "json") == []
    assert shell("gc") == "Total reclaimed space: 0B\n"
    tree = next(Path(shell.env["LAYERFS_ROOT"], "images").rglob("*.erofs"), None) or next(
        path for path in Path(shell.env["LAYERFS_ROOT"], "images").rglob("*") if path.is_file()
    )
    tree.write_bytes(b"damage")
    result = shell.try_("check", "--format", "json")
    assert result.exit_code == 1
    assert [problem["kind"] for problem in json.loads(result.stdout)] == ["tree"]
    assert "repaired" in shell("check", "--repair", "--format", "json")
    assert shell("check") == ""
    assert shell("prune", "--format", "{{.space_reclaimed}}") == "0\n"


def test_info(shell: Shell, image: Built) -> None:
    document = shell.json("info", "--format", "json")
    assert (document["root"], document["root_source"]) == (shell.env["LAYERFS_ROOT"], "environment")
    assert (document["images"], document["layers"], document["containers"]) == (1, 2, 0)
    assert {backend["backend"] for backend in document["backends"]} == {"overlay", "fuse"}
    assert "  fuse: " in shell("info")


def test_a_damaged_document_hides_no_other_image(shell: Shell, image: Built, tmp_path: Path) -> None:
    other = Built(name="docker.io/library/other:1", layers=image.layers[:1])
    shell("load", "-q", "-i", str(other.docker_archive(tmp_path / "other.tar")))
    (victim,) = (row["Id"] for row in shell.json("images", "--format", "json") if other.name in row["RepoTags"])
    document = tmp_path / "store" / "blobs" / victim.replace(":", "/")
    document.write_bytes(b"damaged")
    result = shell.try_("images")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3
    assert f"layerfs: warning: image {victim[7:19]}: document {victim} is missing or damaged" in result.stderr
    shell("load", "-q", "-i", str(tmp_path / "other.tar"))
    assert "warning" not in shell.try_("images").stderr


def test_only_names_that_a_load_gives_are_printed(shell: Shell, tmp_path: Path) -> None:
    built = Built()
    path = str(built.docker_archive(tmp_path / "a.tar"))
    shell("load", "-i", path)
    shell("tag", built.name, "another:2")
    assert shell("load", "-i", path) == f"Loaded image: {built.name}\n{built.id}\n"


def test_an_empty_root_is_no_root(shell: Shell) -> None:
    assert "must not be empty" in shell.fails(2, "--root=", "images")


def test_fields_do_not_move_the_cursor_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    template = Template("{{.Author}}\\n")
    data = {"Author": "\x1b[2Jme\ttoo"}
    assert template.render(data) == "\x1b[2Jme\ttoo\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\x1b" not in template.render(data)
    assert template.render(data).endswith("me\ttoo\n")
