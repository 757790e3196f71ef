"""The terminal browser of ``layerfs explore``: layers on the left, the files of the image on the right.

Directories are read when they are opened, so an image of any size starts at once.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Header, Static, Tree
from textual.widgets.tree import TreeNode

from layerfs_cli.text import human_size, printable

if TYPE_CHECKING:
    from layerfs.api import Image, Layer, Store
    from layerfs.changeset.analysis import ImageReport
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
    #files { width: 54%; }
    #detail { height: 5; border-top: solid $panel; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("tab", "focus_next", "Other side"),
    ]

    def __init__(self, store: Store, image: Image, report: ImageReport, tree: ImageTree) -> None:
        """Prepare the browser; the tree stays the caller's to close."""
        super().__init__()
        self._store = store
        self._image = image
        self._report = report
        self._files = tree
        self._layers: list[Layer] = store.layers(image)
        name = image.names[0] if image.names else image.id.short
        self.title = f"{name}: efficiency {report.efficiency:.1%}, {human_size(report.wasted)} wasted"

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Header()
        with Horizontal():
            yield DataTable(id="layers", cursor_type="row")
            yield Tree[Place]("/", data=Place(b"", self._files.root), id="files")
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
        files = self.query_one("#files", Tree)
        files.root.expand()
        files.focus()

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
        if event.row_key.value is not None:
            layer = self._layers[int(event.row_key.value)]
            text = f"{layer.diff_id}\n{layer.command or ''}"
            self.query_one("#detail", Static).update(Text("\n".join(map(printable, text.splitlines()))))

    def _fill(self, node: TreeNode[Place], place: Place) -> None:
        entries = []
        for name, nid, _ in self._files.readdir(place.nid):
            inode = self._files.inode(nid)
            directory = stat.S_ISDIR(inode.mode)
            entries.append((not directory, -inode.size if not directory else 0, name, nid))
        entries.sort()
        for is_file, size, name, nid in entries[:_MOST_ENTRIES]:
            shown = printable(name.decode("utf-8", "surrogateescape"))
            data = Place(place.path + b"/" + name, nid)
            if is_file:
                node.add_leaf(Text(f"{shown}  {human_size(-size)}"), data)
            else:
                node.add(Text(f"{shown}/"), data)
        if len(entries) > _MOST_ENTRIES:
            node.add_leaf(Text(f"and {len(entries) - _MOST_ENTRIES} more"))
