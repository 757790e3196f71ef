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
from functools import partial
from pathlib import Path

from bench.corpus import CorpusImage, image
from bench.debian import run
from bench.load import layerfs_command, store_environment
from bench.measure import (
    Report,
    Sample,
    command,
    common_options,
    fresh_directory,
    fresh_filesystem,
    image_name,
    interleave,
    output,
    prepare,
    settle,
    shell,
    warm,
)
from bench.peers import containerd, podman, with_daemon

__all__ = ["change", "main"]

#: Reading and digesting the docker archive, with the processor's own instructions.
_FLOOR = "openssl sha256"

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
        "layerfs save to a pipe": lambda: shell(f"{shlex.join(saved)} > >(cat > /dev/null)", env=environment),
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
            "podman save": lambda: shell(f"{shlex.join([*tool, 'save', loaded])} > >(cat > /dev/null)"),
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
    with containerd(work) as (ctr, pid):
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
        plain = ["--media-type", "application/vnd.oci.image.layer.v1.tar"]
        words = shlex.join([*ctr, "snapshots", "diff", *plain, "box"])
        yield {"ctr snapshots diff": lambda: with_daemon(lambda: shell(f"{words} > /dev/null"), pid)}


@contextmanager
def _skopeo(found: CorpusImage, work: Path) -> Iterator[dict[str, Callable[[], Sample]]]:
    def copy() -> Sample:
        target = work / "saved.tar"
        target.unlink(missing_ok=True)
        settle()
        place = f"docker-archive:{target}:localhost/{found.name}:latest"
        return command(["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{found.oci}:latest", place])

    yield {"skopeo copy to a docker-archive": copy}


#: What is compared with what: title, base, and the words that variants of the table have in their names.
_TABLES = (
    ("start alone", "layerfs --version", ("--version",)),
    ("a verb that opens the store", "layerfs ps", (" ps",)),
    ("the names of a container's changes", "layerfs diff CONTAINER", ("diff CONTAINER", "podman diff")),
    ("a container's changes as a layer tar", "layerfs diff -o (layer tar)", ("diff -o", "snapshots diff")),
    ("diff of two images", "layerfs diff IMAGE IMAGE", ("diff IMAGE IMAGE",)),
    ("commit", "layerfs commit", ("commit", "repack")),
    ("save", _FLOOR, ("save", "skopeo copy", _FLOOR)),
)

_TOOLS = {
    "layerfs": _layerfs, "podman": _podman, "buildah": _buildah, "umoci": _umoci, "ctr": _containerd,
    "skopeo": _skopeo,
}  # fmt: skip


#: What a tool is missed for, by the names of its variants.
_VERBS = {
    "layerfs": ("ps", "diff CONTAINER", "commit", "save"), "podman": ("diff", "save"), "buildah": ("commit",),
    "umoci": ("repack",), "ctr": ("snapshots diff",), "skopeo": ("copy to a docker-archive",),
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("changes", __doc__, rounds=5)
    parser.add_argument("--image", default="python-app", type=image_name)
    parser.add_argument("--scratch", type=Path, help="measure in an existing file system, not in a fresh one")
    options = parser.parse_args(arguments)
    found = image(options.image)
    report = Report("changes", vars(options))
    with ExitStack() as stack:
        place = stack.enter_context(fresh_directory(options.scratch) if options.scratch else fresh_filesystem())
        warm(found.docker_archive)
        variants: dict[str, Callable[[], Sample]] = {
            _FLOOR: lambda: shell(f"openssl dgst -sha256 {shlex.quote(str(found.docker_archive))}")
        }
        broken: dict[str, str] = {}
        wanted = [word.strip().split()[0] for word in (options.on or "").split(",") if word.strip()]
        for name, make in _TOOLS.items():
            if wanted and not any(name in word or word in name for word in wanted):
                continue
            work = place / name[:2]  # podman takes no long paths
            work.mkdir()
            ready = prepare(stack, name, partial(make, found, work), broken, needs=None if name == "layerfs" else name)
            variants |= ready or {}
        settle()
        samples, failed = interleave(variants, options.rounds, report.on)
        failed |= {f"{name} {verb}": said for name, said in broken.items() for verb in _VERBS[name]}
        for title, base, words in _TABLES:
            report.table(
                f"{found.name}, 1,000 changed files: {title}",
                {name: rows for name, rows in samples.items() if any(word in name for word in words)},
                base=base,
                failed={name: message for name, message in failed.items() if any(word in name for word in words)},
                unit=("ms", 1e3),
            )
    report.write()
