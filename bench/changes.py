"""changes: diff, commit and save of a container with 1,000 changed files on a large image, beside the peers.

Every tool gets the image in a storage of its own and the same change made through its own mount: 700 files written to,
150 removed, 150 new. Then each asks for what was changed, and makes an image of it. Before each commit one more file is
changed, outside the clock: a second commit of the same layer would find it in the storage.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.corpus import CorpusImage, image
from bench.debian import run
from bench.load import layerfs_command, store_environment
from bench.measure import (
    Report,
    Sample,
    chosen,
    command,
    common_options,
    fresh_directory,
    fresh_filesystem,
    interleave,
    output,
    settle,
)
from bench.peers import containerd, podman

__all__ = ["change", "main"]

#: Reading and digesting the docker archive.
_FLOOR = "cat, sha256sum"

_WRITTEN, _REMOVED, _NEW = 700, 150, 150


def change(top: Path) -> None:
    """Change 1,000 files below a directory, the same ones every time."""
    files = [
        Path(folder) / name
        for folder, _, names in os.walk(top / "usr/lib")
        for name in names
        if (Path(folder) / name).is_file() and not (Path(folder) / name).is_symlink()
    ]
    files = sorted(path for path in files if path.stat().st_nlink == 1)[:: max(1, len(files) // 1200)]
    for number, path in enumerate(files[: _WRITTEN + _REMOVED + _NEW]):
        if number < _WRITTEN:
            with path.open("ab") as file:
                file.write(b"# changed\n")
        elif number < _WRITTEN + _REMOVED:
            path.unlink()
        else:
            path.with_name(f"{path.name}.new").write_text(f"new {number}\n")


def _change_once_more(top: Path) -> None:
    (top / "usr/lib/once-more").write_bytes(os.urandom(64))


@contextmanager
def _layerfs(found: CorpusImage, work: Path) -> Iterator[dict[str, Callable[[], Sample]]]:
    environment = store_environment(work)
    tool = layerfs_command()
    target = work / "target"
    target.mkdir()
    command([tool, "load", "-q", "-i", found.oci_archive], env=environment)
    command([tool, "mount", found.name, target, "--name", "box"], env=environment)
    change(target)
    command([tool, "umount", "box"], env=environment)
    command([tool, "commit", "box", "changed"], env=environment)
    command([tool, "ls", "changed"], env=environment)  # makes its tree

    def commit(*options: str) -> Sample:
        subprocess.run([tool, "rmi", "-f", "again"], env=environment, check=False, capture_output=True)
        command([tool, "mount", found.name, target, "--name", "box"], env=environment)
        _change_once_more(target)
        command([tool, "umount", "box"], env=environment)
        settle()
        return command([tool, *options, "commit", "box", "again", "-m", "again"], env=environment)

    saved = [tool, "save", found.name]
    yield {
        "layerfs --version": lambda: command([tool, "--version"], env=environment),
        "layerfs ps": lambda: command([tool, "ps"], env=environment),
        "layerfs diff CONTAINER": lambda: command([tool, "diff", "box"], env=environment),
        "layerfs diff -o (layer tar)": lambda: command([tool, "diff", "box", "-o", "/dev/null"], env=environment),
        "layerfs diff IMAGE IMAGE": lambda: command([tool, "diff", found.name, "changed"], env=environment),
        "layerfs commit": commit,
        "layerfs --no-sync commit": lambda: commit("--no-sync"),
        "layerfs save to a pipe": lambda: _shell(f"{shlex.join(saved)} > >(cat > /dev/null)", environment),
    }


@contextmanager
def _podman(found: CorpusImage, work: Path) -> Iterator[dict[str, Callable[[], Sample]]]:
    with podman(work) as tool:
        loaded = output([*tool, "load", "--quiet", "--input", found.docker_archive]).split()[-1]
        container = output([*tool, "create", loaded, "sh"])
        change(Path(output([*tool, "mount", container])))
        run([*tool, "umount", container])
        yield {
            "podman --version": lambda: command(["podman", "--version"]),
            "podman diff": lambda: command([*tool, "diff", container]),
        }


@contextmanager
def _buildah(found: CorpusImage, work: Path) -> Iterator[dict[str, Callable[[], Sample]]]:
    with podman(work, "buildah") as tool:
        container = output([*tool, "from", f"oci-archive:{found.oci_archive}"])
        change(Path(output([*tool, "mount", container])))
        run([*tool, "umount", container])

        def commit() -> Sample:
            _change_once_more(Path(output([*tool, "mount", container])))
            run([*tool, "umount", container])
            settle()
            return command([*tool, "commit", "--quiet", container, "localhost/changed"])

        yield {"buildah commit": commit}


@contextmanager
def _umoci(found: CorpusImage, work: Path) -> Iterator[dict[str, Callable[[], Sample]]]:
    layout, bundle = work / "layout", work / "bundle"
    shutil.copytree(found.oci, layout)
    run(["umoci", "unpack", "--image", f"{layout}:latest", bundle])
    change(bundle / "rootfs")

    def repack() -> Sample:
        _change_once_more(bundle / "rootfs")
        settle()
        return command(["umoci", "repack", "--image", f"{layout}:changed", bundle])

    yield {"umoci repack": repack}


@contextmanager
def _containerd(found: CorpusImage, work: Path) -> Iterator[dict[str, Callable[[], Sample]]]:
    with containerd(work) as (ctr, _):
        name = f"localhost/{found.name}:latest"
        run([*ctr, "images", "import", "--base-name", f"localhost/{found.name}", found.oci_archive])
        config = json.loads(output(["skopeo", "inspect", "--config", f"oci-archive:{found.oci_archive}"]))
        from layerfs.formats.digest import Digest, chain_id

        parent = str(chain_id([Digest.parse(text) for text in config["rootfs"]["diff_ids"]]))
        target = work / "target"
        target.mkdir()
        for line in output([*ctr, "snapshots", "prepare", "--target", target, "box", parent]).splitlines():
            run(shlex.split(line))
        change(target)
        run(["umount", target])
        del name
        yield {"ctr snapshots diff": lambda: _shell(shlex.join([*ctr, "snapshots", "diff", "box"]) + " > /dev/null")}


def _shell(script: str, environment: dict[str, str] | None = None) -> Sample:
    return command(["bash", "-euo", "pipefail", "-c", script], env=environment)


#: What is compared with what: title, base, and the words that variants of the table have in their names.
_TABLES = (
    ("start alone", "layerfs --version", ("--version",)),
    ("a verb that opens the store", "layerfs ps", (" ps",)),
    ("diff of a container", "layerfs diff CONTAINER", ("diff CONTAINER", "diff -o", "podman diff", "snapshots diff")),
    ("diff of two images", "layerfs diff IMAGE IMAGE", ("diff IMAGE IMAGE",)),
    ("commit", "layerfs commit", ("commit", "repack")),
    ("save", _FLOOR, ("save", "cat, ")),
)

_TOOLS = {"podman": _podman, "buildah": _buildah, "umoci": _umoci, "ctr": _containerd}


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("changes", __doc__, rounds=5)
    parser.add_argument("--image", default="python-app")
    parser.add_argument("--scratch", type=Path, help="measure in an existing file system, not in a fresh one")
    options = parser.parse_args(arguments)
    found = image(options.image)
    report = Report("changes", vars(options) | {"scratch": str(options.scratch)})
    with ExitStack() as stack:
        place = stack.enter_context(fresh_directory(options.scratch) if options.scratch else fresh_filesystem())
        variants = {_FLOOR: lambda: _shell(f"cat {shlex.quote(str(found.docker_archive))} | sha256sum > /dev/null")}
        for name, prepare in {"layerfs": _layerfs, **_TOOLS}.items():
            if name != "layerfs" and not (shutil.which(name) and chosen({name: None}, options.on)):
                continue
            work = place / name[0]  # podman takes no long paths
            work.mkdir()
            variants |= stack.enter_context(prepare(found, work))
        settle()
        samples, failed = interleave(variants, options.rounds, report.on)
        for title, base, words in _TABLES:
            report.table(
                f"{found.name}, 1,000 changed files: {title}",
                {name: rows for name, rows in samples.items() if any(word in name for word in words)},
                base=base,
                failed={name: message for name, message in failed.items() if any(word in name for word in words)},
                unit=("ms", 1e3),
            )
    report.write()
