"""A small union over each kind of lower, as whoever runs the tests."""

from __future__ import annotations

import gc
import os
import resource
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerfs.formats.erofs.reader import Tree
from layerfs.formats.erofs.writer import Device, write_tree
from layerfs.formats.tree import Node, directory
from layerfs.formats.whiteout import USER_PREFIX
from layerfs.union.attribute import Attributes
from layerfs.union.change import Changes
from layerfs.union.image import ImageLower
from layerfs.union.lower import LowerTree
from layerfs.union.node import ROOT
from layerfs.union.stack import StackLower
from layerfs.union.union import Union
from layerfs.union.upper import Upper

#: What is below: directories, and files with their content.
FILES = {"a/f": b"hello", "a/b/deep": b"deep", "top": b"x" * 5000, "empty": b""}
BLOCK = 512


class failing:  # noqa: N801 - reads like pytest.raises
    """Expect an errno."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> bool:
        assert isinstance(error, OSError), f"expected an OSError, not {error!r}"
        assert error.errno == self._number, error
        return True


@dataclass
class Caller:
    """Whoever runs the tests."""

    uid: int = 0
    gid: int = 0
    umask: int = 0o022


@dataclass
class Work:
    """A union with its directories, and paths instead of numbers."""

    union: Union
    upper: Path
    caller: Caller

    def unfinished(self) -> list[str]:
        """Return what lies in the work directory, but for the whiteout that others are links to."""
        place = self.upper.parent / "work/work"
        return [path.name for path in place.iterdir() if not path.is_char_device()]

    def find(self, path: str) -> Attributes | None:
        """Look a path up."""
        found: Attributes | None = self.union.getattr(ROOT)
        for name in filter(None, path.split("/")):
            assert found is not None
            found = self.union.lookup(found.ino, name.encode())
            if found is None:
                return None
        return found

    def at(self, path: str) -> Attributes:
        found = self.find(path)
        assert found is not None, path
        return found

    def read(self, path: str) -> bytes:
        return self.union.read(self.at(path).ino, 0, 1 << 20)

    def write(self, path: str, data: bytes, *, truncate: bool = False) -> None:
        ino = self.at(path).ino
        if truncate:
            self.union.setattr(ino, Changes(size=0))
        assert self.union.write(ino, 0, data) == len(data)

    def create(self, directory: str, name: str, data: bytes = b"") -> Attributes:
        found = self.union.create(self.at(directory).ino, name.encode(), 0o644, self.caller)
        self.union.write(found.ino, 0, data)
        return found

    def names(self, path: str) -> list[str]:
        return sorted(name for name, _ in self.entries(path) if name not in {".", ".."})

    def entries(self, path: str) -> list[tuple[str, Attributes]]:
        found: list[tuple[str, Attributes]] = []
        last = -1
        place = 0
        while place != last:  # an answer without an entry is the end
            last = place
            for name, attributes, after in self.union.readdir(self.at(path).ino, place):
                found.append((name.decode(), attributes))
                place = after
        return found


@pytest.fixture(autouse=True)
def _own_umask() -> Iterator[None]:
    """A union sets the umask of its process, which is that of all tests here."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def make_directories(folder: Path) -> list[str]:
    """Return two layers, top first: together they show FILES and a link pair."""
    top, bottom = folder / "top-layer", folder / "bottom-layer"
    for layer in (top, bottom):
        layer.mkdir()
    for path, content in FILES.items():
        place = (top if path == "a/b/deep" else bottom) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (bottom / "a").mkdir(exist_ok=True)
    (bottom / "gone").write_bytes(b"whited out")
    os.mknod(top / "gone", stat.S_IFCHR, 0)
    (bottom / "opaque").mkdir()
    (bottom / "opaque/hidden").write_bytes(b"")
    (top / "opaque").mkdir()
    os.setxattr(top / "opaque", "user.overlay.opaque", b"y")
    (bottom / "one").write_bytes(b"linked")
    os.link(bottom / "one", bottom / "a/two")
    (bottom / "link").symlink_to("a/f")
    return [str(top), str(bottom)]


def image_of(root: Node, content: bytes, tar: Path, device: str | None = None) -> ImageLower:
    """Return the image of a tree of one layer, "0", which is written to ``tar`` and looked for in ``device``."""
    tar.write_bytes(content)
    image = write_tree(root, [Device("0", b"0" * 64, len(content) // BLOCK)], bytes(16))
    return ImageLower(Tree(image), [device or str(tar)], os.open(tar, os.O_RDONLY | os.O_CLOEXEC))


def make_image(folder: Path, device: str = "layer.tar") -> ImageLower:
    """Return an image with the same content, whose bytes are looked for in a file of this name."""
    tar = folder / "layer.tar"
    content = bytearray(BLOCK)
    root = directory(implicit=False)

    def regular(data: bytes) -> Node:
        node = Node(stat.S_IFREG | 0o644, mtime=1_000_000_000)
        node.uid = node.gid = os.geteuid()
        node.device, node.offset, node.size = "0", len(content), len(data)
        content.extend(data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0"))
        return node

    def place(path: str, node: Node) -> None:
        at = root
        *above, name = path.encode().split(b"/")
        for one in above:
            assert at.children is not None
            at = at.children.setdefault(one, directory(implicit=False))
        assert at.children is not None
        at.children[name] = node

    for path, data in FILES.items():
        place(path, regular(data))
    place("opaque", directory(implicit=False))
    linked = regular(b"linked")
    place("one", linked)
    place("a/two", linked)
    link = Node(stat.S_IFLNK | 0o777)
    link.target = b"a/f"
    place("link", link)
    return image_of(root, bytes(content), tar, str(folder / device))


Make = Callable[[], Work]


@pytest.fixture(params=["directories", "image"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a union; a second one continues on the same upper directory."""
    made: list[Union] = []
    layers = make_directories(tmp_path) if request.param == "directories" else []
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()

    def build() -> Work:
        while made:
            made.pop().close()
        top = Upper(str(upper), str(work), USER_PREFIX)
        lower: LowerTree = make_image(tmp_path) if not layers else StackLower(layers, USER_PREFIX, device=top.device)
        made.append(Union(lower, top))
        return Work(made[-1], upper, Caller(os.geteuid(), os.getegid()))

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # as the server does: removed files take one each
    gc.collect()  # what other tests have left to it would be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    yield build
    while made:
        made.pop().close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def work(make: Make) -> Work:
    return make()
