"""Stacking layer trees into the one tree that a container sees.

The result has no whiteouts, opaque marks or link markers left. Each step costs as much as the layer has entries,
however large the tree below is.

Sources: OCI image-spec v1.1 layer.md, "Applying Changesets"; Linux Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from collections.abc import Iterator

from layerfs.errors import FormatError
from layerfs.formats.tree import MAX_SYMLINKS, Node, directory
from layerfs.formats.whiteout import IMPLICIT_XATTR, LINK_XATTR, OPAQUE_XATTR

__all__ = ["apply_layer", "empty_tree", "walk"]

#: A directory and the directories above it, innermost first.
_Chain = tuple[Node, "_Chain | None"]


def empty_tree() -> Node:
    """Return the tree below the lowest layer: a root directory that is root's, 0755 and from the epoch."""
    return directory(implicit=False)


def walk(root: Node) -> Iterator[Node]:
    """Yield every node below and including ``root`` once per name; parents before children, without recursion."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        if node.children is not None:
            stack += node.children.values()


def apply_layer(merged: Node, layer: Node) -> None:
    """Put a layer on top of a merged tree, in place.

    Directories of ``layer`` are copied, other nodes are shared between both trees; ``layer`` itself is not changed.

    Args:
        merged: the tree so far, as made by :func:`empty_tree` and earlier calls.
        layer: a finished layer tree, with whiteouts.

    Raises:
        FormatError: a hard link's target is in neither tree.
    """
    links = _resolve_links(merged, layer)
    stack: list[tuple[Node, Node, _Chain]] = [(merged, layer, (merged, None))]
    while stack:
        below, above, chain = stack.pop()
        _update_directory(below, above)
        names = below.children
        assert names is not None
        for name, node in (above.children or {}).items():
            if node.children is not None:
                target = names.get(name)
                if target is None or target.children is None:
                    followed = _follow(target, chain) if target is not None and node.is_implicit else None
                    if followed is None:
                        target = names[name] = directory(implicit=False)
                        followed = (target, chain)
                    stack.append((followed[0], node, followed))
                else:
                    stack.append((target, node, (target, chain)))
            elif node.is_whiteout:
                names.pop(name, None)
            elif node.xattrs is not None and LINK_XATTR in node.xattrs:
                names[name] = links[id(node)]
            else:
                names[name] = node


def _update_directory(below: Node, above: Node) -> None:
    """Let the upper directory's attributes and opaqueness act on the lower one."""
    xattrs = above.xattrs
    if xattrs is not None and OPAQUE_XATTR in xattrs:
        below.children = {}
    if xattrs is not None and IMPLICIT_XATTR in xattrs:
        return
    if xattrs is not None:
        xattrs = {name: value for name, value in xattrs.items() if name != OPAQUE_XATTR} or None
    below.mode, below.uid, below.gid = above.mode, above.uid, above.gid
    below.mtime, below.mtime_ns, below.xattrs = above.mtime, above.mtime_ns, xattrs


def _resolve_links(merged: Node, layer: Node) -> dict[int, Node]:
    """Find what each hard link into lower layers points at, before the layer changes anything."""
    found: dict[int, Node] = {}
    for node in walk(layer):
        if node.xattrs is None or LINK_XATTR not in node.xattrs or id(node) in found:
            continue
        path = node.xattrs[LINK_XATTR]
        parent, _, leaf = path.rpartition(b"/")
        chain = _resolve(parent, (merged, None))
        target = (chain[0].children or {}).get(leaf) if chain is not None else None
        if target is None or target.children is not None:
            problem = "is in no layer" if target is None else "is a directory"
            raise FormatError(f"the target {path[:200]!r} of a hard link {problem}")
        found[id(node)] = target
    return found


def _follow(link: Node, chain: _Chain) -> _Chain | None:
    """Return the directory that a symlink in the innermost directory of ``chain`` leads to, if there is one.

    A path that runs through a symlink of a lower layer without an entry of its own means the symlink's target, as it
    does for every tool that extracts layers one over another.
    """
    return _resolve(link.target, chain) if link.target is not None else None


def _resolve(path: bytes, chain: _Chain) -> _Chain | None:
    """Resolve a path to a directory and those above it; None when it is not there or no directory."""
    todo = _components(path)
    if path.startswith(b"/"):
        chain = _top(chain)
    budget = MAX_SYMLINKS
    while todo:
        name = todo.pop()
        if name == b"..":
            chain = chain[1] or chain
            continue
        node = (chain[0].children or {}).get(name)
        if node is None:
            return None
        if node.target is not None:
            budget -= 1
            if budget < 0:
                return None
            if node.target.startswith(b"/"):
                chain = _top(chain)
            todo += _components(node.target)
        elif node.children is None:
            return None
        else:
            chain = (node, chain)
    return chain


def _components(path: bytes) -> list[bytes]:
    """Return the components last first, so that the next one is popped off the end."""
    return [part for part in path.split(b"/")[::-1] if part and part != b"."]


def _top(chain: _Chain) -> _Chain:
    while chain[1] is not None:
        chain = chain[1]
    return chain
