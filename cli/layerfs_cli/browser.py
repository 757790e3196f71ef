"""The terminal browser of ``layerfs explore``: layers on the left; on the right the files of the image, or its lists.

Directories are read when they are opened, the largest first, and only their sizes are kept.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Header, Static, TabbedContent, TabPane, Tree
from textual.widgets.tree import TreeNode

from layerfs.formats.erofs.reader import DIRECTORY_TYPE
from layerfs_cli.text import human_size, printable

if TYPE_CHECKING:
    from layerfs.api import Image, Layer, Store
    from layerfs.changeset.analysis import FileReport, ImageReport
    from layerfs.store.view import ImageTree

__all__ = ["Browser"]

#: Entries of a directory that are shown; the rest is counted.
_MOST_ENTRIES = 2000


@dataclass(frozen=True, slots=True)
class Place:
    """A file or directory of the image."""

    path: bytes
    nid: int


class Browser(App[None]):
    """Shows one image."""

    CSS = """
    #layers { width: 46%; border-right: solid $panel; }
    #places { width: 54%; }
    #detail { height: 5; border-top: solid $panel; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("tab", "focus_next", "Other side"),
        Binding("f", "show('files')", "Files"),
        Binding("w", "show('wasted')", "Wasted"),
        Binding("l", "show('largest')", "Largest"),
    ]

    def __init__(self, store: Store, image: Image, report: ImageReport, tree: ImageTree) -> None:
        """Prepare the browser; the tree stays the caller's to close."""
        super().__init__()
        self._store = store
        self._image = image
        self._report = report
        self._files = tree
        self._directory_bytes: dict[int, int] = {}  # of directories
        self._layers: list[Layer] = store.layers(image)
        name = image.names[0] if image.names else image.id.short
        self.title = f"{name}: efficiency {report.efficiency:.1%}, {human_size(report.wasted)} wasted"

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Header()
        with Horizontal():
            yield DataTable(id="layers", cursor_type="row")
            with TabbedContent(id="places"):
                with TabPane("Files", id="files-pane"):
                    yield Tree[Place]("/", data=Place(b"", self._files.root), id="files")
                for key, title in (("wasted", "Wasted"), ("largest", "Largest")):
                    with TabPane(title, id=f"{key}-pane"):
                        yield DataTable(id=key, cursor_type="row")
        yield Static("", id="detail")
        yield Footer()

    def on_mount(self) -> None:
        """Fill them."""
        table = self.query_one("#layers", DataTable)
        table.add_columns("#", "SIZE", "ADDED", "CHANGED", "HIDES", "WASTED", "CREATED BY")
        for number, (layer, row) in enumerate(zip(self._layers, self._report.layers, strict=True)):
            command = printable(" ".join((layer.command or "").split()))
            table.add_row(
                str(number), human_size(layer.size), str(row.added), str(row.changed), str(row.hidden),
                human_size(row.wasted), Text(command), key=str(number),
            )  # fmt: skip
        for key, rows in (("wasted", self._report.repeated), ("largest", self._report.largest)):
            self._list(self.query_one(f"#{key}", DataTable), rows)
        files = self.query_one("#files", Tree)
        files.root.expand()
        files.focus()

    def action_show(self, key: str) -> None:
        """Bring a list, or the files, to the front."""
        self.query_one("#places", TabbedContent).active = f"{key}-pane"
        self.query_one(f"#{key}").focus()

    @staticmethod
    def _list(table: DataTable[str | Text], rows: Sequence[FileReport]) -> None:
        table.add_columns("SIZE", "LAYERS", "PATH")
        for row in rows:
            path = printable(row.path.decode("utf-8", "surrogateescape"))
            table.add_row(human_size(row.size), ",".join(map(str, row.layers)), Text(path))

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Place]) -> None:
        """Read a directory when it is opened for the first time."""
        node = event.node
        if node.data is None or node.children:
            return
        self._fill(node, node.data)

    def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[Place]) -> None:
        """Say which layers have to do with a path."""
        place = event.node.data
        if place is None or not place.path:
            return
        inode = self._files.inode(place.nid)
        lines = [f"{os.fsdecode(place.path)}  {stat.filemode(inode.mode)}  {inode.uid}:{inode.gid}"]
        rows = self._store.which(self._image, place.path)[:3]
        lines += [f"layer {row.position} {row.role}" for row in rows]
        self.query_one("#detail", Static).update(Text("\n".join(printable(line) for line in lines)))

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show a layer's whole command."""
        if event.data_table.id == "layers" and event.row_key.value is not None:
            layer = self._layers[int(event.row_key.value)]
            text = f"{layer.diff_id}\n{layer.command or ''}"
            self.query_one("#detail", Static).update(Text("\n".join(map(printable, text.splitlines()))))

    def _fill(self, node: TreeNode[Place], place: Place) -> None:
        entries = []
        for name, nid, _ in self._files.readdir(place.nid):
            inode = self._files.inode(nid)
            directory = stat.S_ISDIR(inode.mode)
            size = self._bytes_below(nid) if directory else inode.size
            entries.append((-size, name, nid, directory))
        entries.sort()
        for size, name, nid, directory in entries[:_MOST_ENTRIES]:
            shown = printable(name.decode("utf-8", "surrogateescape"))
            data = Place(place.path + b"/" + name, nid)
            if directory:
                node.add(Text(f"{shown}/  {human_size(-size)}"), data)
            else:
                node.add_leaf(Text(f"{shown}  {human_size(-size)}"), data)
        if len(entries) > _MOST_ENTRIES:
            node.add_leaf(Text(f"and {len(entries) - _MOST_ENTRIES} more"))

    def _bytes_below(self, directory: int) -> int:
        """Return the bytes of all files below a directory; a file with several names counts under each."""
        below: list[tuple[int, list[int], int]] = []
        todo = [directory]
        while todo:
            nid = todo.pop()
            if nid in self._directory_bytes:
                continue
            own, inner = 0, []
            for _, child, kind in self._files.tree.scan(nid):
                if kind == DIRECTORY_TYPE:
                    inner.append(child)
                else:
                    own += self._files.inode(child).size
            below.append((nid, inner, own))
            todo += inner
        for nid, inner, own in reversed(below):
            self._directory_bytes[nid] = own + sum(self._directory_bytes[child] for child in inner)
        return self._directory_bytes[directory]
