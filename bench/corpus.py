"""The images that demo, tests and benchmarks work on, made from real packages by tools that are not ours.

``python -m bench.corpus NAME...`` builds what is missing and prints where it is; ``list`` tells the names. Each image
is kept in ``CACHE/layerfs/corpus/NAME`` (``CACHE`` is ``$XDG_CACHE_HOME`` or ``~/.cache``) in three forms: ``oci``
(layout directory, reference ``latest``), ``oci.tar`` (OCI archive) and ``docker.tar`` (docker-archive, as skopeo writes
it). An image appears there by one rename, so a build that was interrupted leaves nothing half done.

Building needs root (chroot, owners, device nodes) and the Debian mirror that apt on this machine uses.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.debian import base_tar, enter, python_wheels, run
from bench.synthetic import DeepShape, compressible, files_layer, write_deep, write_image

__all__ = ["CorpusImage", "cache_directory", "image", "main", "names"]


@dataclass(frozen=True, slots=True)
class CorpusImage:
    """One built image: ``directory`` holds ``oci``, ``oci.tar`` and ``docker.tar``."""

    name: str
    directory: Path

    @property
    def oci(self) -> Path:
        """The OCI layout directory."""
        return self.directory / "oci"

    @property
    def oci_archive(self) -> Path:
        """The OCI layout as one tar."""
        return self.directory / "oci.tar"

    @property
    def docker_archive(self) -> Path:
        """The image as ``docker save`` would write it, layers uncompressed."""
        return self.directory / "docker.tar"

    def zstd_archive(self) -> Path:
        """The OCI layout as one tar with layers in zstd, made when it is first asked for."""
        final = self.directory / "zstd.tar"
        if not final.exists():
            made = self.directory / ".zstd.tar"
            made.unlink(missing_ok=True)
            zstd = ["--dest-compress", "--dest-compress-format", "zstd"]
            place = f"oci-archive:{made}:localhost/{self.name}:latest"
            run(["skopeo", "copy", "--quiet", *zstd, f"oci:{self.oci}:latest", place])
            made.rename(final)
        return final

    def layers(self) -> list[Path]:
        """The compressed layer blobs, bottom first."""
        index = json.loads((self.oci / "index.json").read_bytes())
        manifest = json.loads(self._blob(index["manifests"][0]["digest"]).read_bytes())
        return [self._blob(layer["digest"]) for layer in manifest["layers"]]

    def _blob(self, digest: str) -> Path:
        algorithm, _, hexadecimal = digest.partition(":")
        return self.oci / "blobs" / algorithm / hexadecimal


def cache_directory() -> Path:
    """Where built images are kept between runs."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "layerfs" / "corpus"


def image(name: str, *, say: Callable[[str], None] = print) -> CorpusImage:
    """Return the image called ``name``, building it first when the cache lacks it."""
    revision, recipe = _RECIPES[name]
    home = cache_directory()
    final = home / name
    stamp = final / "revision"
    if stamp.is_file() and stamp.read_text().strip() == str(revision):
        return CorpusImage(name, final)
    home.mkdir(parents=True, exist_ok=True)
    say(f"==> building the image {name}, once, into {final}")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=home) as scratch:
        work = Path(scratch)
        made = CorpusImage(name, work / "image")
        made.directory.mkdir()
        recipe(work, made.oci, say)
        local = f"localhost/{name}:latest"
        run(["skopeo", "copy", "--quiet", f"oci:{made.oci}:latest", f"oci-archive:{made.oci_archive}:{local}"])
        run(["skopeo", "copy", "--quiet", f"oci:{made.oci}:latest", f"docker-archive:{made.docker_archive}:{local}"])
        (made.directory / "revision").write_text(f"{revision}\n")
        shutil.rmtree(final, ignore_errors=True)
        made.directory.rename(final)
    return CorpusImage(name, final)


def names() -> list[str]:
    """The names of all images that can be built."""
    return sorted(_RECIPES)


def _demo(work: Path, layout: Path, say: Callable[[str], None]) -> None:
    """Two layers by umoci: Debian's base, then Python and a few packages."""
    base = base_tar(cache_directory().parent, say)
    reference = f"{layout}:latest"
    bundle = work / "bundle"
    say("==> umoci: the base layer, then python3 and a few packages on top")
    run(["umoci", "init", "--layout", layout])
    run(["umoci", "new", "--image", reference])
    run(["umoci", "raw", "add-layer", "--image", reference, base])
    run(["umoci", "config", "--image", reference, "--config.cmd", "/bin/sh", "--config.env", "LANG=C.UTF-8"])
    run(["umoci", "unpack", "--image", reference, bundle])
    root = bundle / "rootfs"
    enter(root, _apt_install("python3", "python3-requests", "curl", "iputils-ping", "git"))
    enter(root, "rm -rf /usr/share/doc /var/lib/apt/lists && mkdir -p /usr/share/doc /var/lib/apt/lists")
    run(["umoci", "repack", "--image", reference, bundle])
    run(["umoci", "gc", "--layout", layout])


def _apt_install(*packages: str) -> str:
    words = " ".join(packages)
    return (
        "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update && "
        f"apt-get -qq -y install --no-install-recommends {words} && apt-get clean"
    )


#: One layer per row, as a Dockerfile would make them: what is said, and the shell lines run inside the image.
_PYTHON_APP: tuple[tuple[str, str], ...] = (
    ("apt: python3", _apt_install("python3", "python3-venv", "ca-certificates", "netbase", "tzdata")),
    ("apt: compilers and tools", _apt_install("build-essential", "curl", "libpq-dev", "iputils-ping")),
    ("venv", "python3 -m venv /opt/venv"),
    ("pip: numpy", "/opt/venv/bin/pip install -q --no-index --find-links /wheels numpy"),
    ("pip: pandas", "/opt/venv/bin/pip install -q --no-index --find-links /wheels pandas"),
    ("pip: django", "/opt/venv/bin/pip install -q --no-index --find-links /wheels django sympy networkx faker babel"),
    (
        "remove compilers: whiteouts",
        """
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq -y purge --autoremove build-essential libpq-dev
        apt-get clean
        rm -rf /var/lib/apt/lists && mkdir /var/lib/apt/lists
        """,
    ),
    (
        "tidy: directories removed and made again are opaque",
        """
        rm -rf /usr/share/doc && mkdir /usr/share/doc && echo none >/usr/share/doc/README
        tests=/opt/venv/lib/python3.11/site-packages/numpy/_core/tests
        rm -rf $tests && mkdir $tests && touch $tests/__init__.py
        """,
    ),
    (
        "users, capabilities, hard links",
        """
        useradd --create-home --uid 1000 app
        cp /usr/bin/python3.11 /usr/local/bin/python-net
        setcap cap_net_bind_service+ep /usr/local/bin/python-net
        cp -al /opt/venv/lib/python3.11/site-packages/django /opt/django-links
        """,
    ),
    (
        "the application",
        """
        mkdir -p /srv && cd /srv && /opt/venv/bin/django-admin startproject shop
        chown -R app:app shop && chmod 2775 shop && mkfifo shop/events
        """,
    ),
)

_WHEELS = ("numpy", "pandas", "django", "sympy", "networkx", "faker", "babel")


def _python_app(work: Path, layout: Path, say: Callable[[str], None]) -> None:
    """Eleven layers by buildah: Debian, python3, compilers that go away again, numpy, pandas, django, a project."""
    wheels = python_wheels(cache_directory().parent, _WHEELS, say)
    _build_with_buildah(work, layout, say, _PYTHON_APP, binds={"/wheels": wheels})


_NODE_PACKAGES = (
    "nodejs", "npm", "webpack", "node-typescript", "eslint", "gulp", "mocha", "rollup", "node-express", "node-d3",
    "node-lodash", "node-react",
)  # fmt: skip

#: Copies the larger modules that Debian ships into a project, each made different by its first line, so that no two
#: layers hold the same file.
_NODE_PROJECT = """
mkdir -p /srv/{name}/node_modules
cd /usr/share/nodejs
find . -type f -size +2k -size -400k > /tmp/list
cpio --quiet -pdm /srv/{name}/node_modules < /tmp/list
cd /srv/{name}/node_modules
xargs -d '\\n' sed -i '1s|^|/* {name} */ |' < /tmp/list
rm /tmp/list
"""


def _node_like(work: Path, layout: Path, say: Callable[[str], None]) -> None:
    """Six layers by buildah: Debian, node and its modules, then four projects; tens of thousands of small files."""
    steps = [("apt: node and modules", _apt_install("cpio", *_NODE_PACKAGES))]
    steps += [(f"project {name}", _NODE_PROJECT.format(name=name)) for name in ("api", "web", "admin", "jobs")]
    _build_with_buildah(work, layout, say, steps)


def _build_with_buildah(
    work: Path,
    layout: Path,
    say: Callable[[str], None],
    steps: Sequence[tuple[str, str]],
    *,
    binds: dict[str, Path] | None = None,
) -> None:
    """The base, then one committed layer per step, then the image as an OCI layout with gzip layers."""
    base = base_tar(cache_directory().parent, say)
    buildah = ["buildah", "--root", f"{work}/storage", "--runroot", f"{work}/run", "--storage-driver", "overlay"]

    def query(*words: str) -> str:
        return subprocess.run([*buildah, *words], check=True, capture_output=True, text=True).stdout.strip()

    container = query("from", "scratch")
    try:
        run(["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", base, "-C", query("mount", container)])
        parent = query("commit", "--quiet", "--rm", container)
        for title, script in steps:
            say(f"==> buildah: a layer: {title}")
            container = query("from", "--pull-never", parent)
            enter(Path(query("mount", container)), script, binds=binds)
            parent = query("commit", "--quiet", "--rm", container)
        say("==> buildah: push as an OCI layout")
        run([*buildah, "push", "--quiet", "--format", "oci", parent, f"oci:{layout}:latest"])
    finally:
        # Leaves no mount behind in the scratch directory, whatever happened.
        subprocess.run([*buildah, "rm", "--all"], check=False, capture_output=True)
        for mount in (f"{work}/storage/overlay", f"{work}/run"):
            subprocess.run(["umount", "--quiet", "--recursive", mount], check=False, capture_output=True)


def _big(_work: Path, layout: Path, say: Callable[[str], None]) -> None:
    """One gigabyte in eight files that compress by a half, and a small one."""
    say("==> eight files of 128 MiB in one layer")
    files = [(f"data/{number}", b"".join(compressible(f"big {number}", 128 << 20))) for number in range(8)]
    write_image(layout, [files_layer([("etc/hostname", b"big\n"), *files])])


def _deep(layers: int) -> Callable[[Path, Path, Callable[[str], None]], None]:
    def build(_work: Path, layout: Path, say: Callable[[str], None]) -> None:
        say(f"==> {layers} small layers")
        write_deep(layout, DeepShape(layers=layers))

    return build


def _spread(layers: int) -> Callable[[Path, Path, Callable[[str], None]], None]:
    """Of every layer something can be seen: the dearest kind of depth."""

    def build(_work: Path, layout: Path, say: Callable[[str], None]) -> None:
        say(f"==> {layers} layers with a file each")
        write_image(layout, (files_layer([(f"files/{number}", b"%d" % number * 500)]) for number in range(layers)))

    return build


def _flat(name: str) -> Callable[[Path, Path, Callable[[str], None]], None]:
    def build(work: Path, layout: Path, say: Callable[[str], None]) -> None:
        deep = image(name, say=say)
        say(f"==> {name} in one layer")
        run(["umoci", "unpack", "--image", f"{deep.oci}:latest", work / "bundle"])
        tar = work / "flat.tar"
        run(["tar", "--numeric-owner", "--sort=name", "-cf", tar, "-C", work / "bundle" / "rootfs", "."])
        run(["umoci", "init", "--layout", layout])
        run(["umoci", "new", "--image", f"{layout}:latest"])
        run(["umoci", "raw", "add-layer", "--image", f"{layout}:latest", tar])

    return build


#: What makes each image, and the recipe's revision: a higher one than in the cache makes the image again.
_RECIPES: dict[str, tuple[int, Callable[[Path, Path, Callable[[str], None]], None]]] = {
    "demo": (1, _demo),
    "python-app": (2, _python_app),
    "node-like": (2, _node_like),
    "big": (1, _big),
    "deep-1": (1, _deep(1)),
    "deep-101": (1, _deep(101)),
    "deep-101-flat": (1, _flat("deep-101")),
    "deep-256": (1, _deep(256)),
    "deep-499": (1, _deep(499)),
    "spread-499": (1, _spread(499)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the images named on the command line and print their directories."""
    parser = argparse.ArgumentParser(prog="python -m bench.corpus", description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="+", choices=[*names(), "all", "list"])
    wanted: list[str] = parser.parse_args(arguments).name
    if "list" in wanted:
        print("\n".join(names()))
        return 0
    for name in names() if "all" in wanted else wanted:
        print(image(name, say=lambda text: print(text, file=sys.stderr, flush=True)).directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
