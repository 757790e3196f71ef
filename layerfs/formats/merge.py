"""Stacking layer trees into the one tree that a container sees.

The result has no whiteouts, opaque marks or link markers left. Each step costs as much as the layer has entries,
however large the tree below is.

Sources: OCI image-spec v1.1 layer.md, "Applying Changesets"; Linux Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from collections.abc import Iterator

from layerfs.errors import FormatError, quoted
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

    All that the layer hides goes before anything is added, because two paths of the layer may mean one directory below
    (``lib/x`` and ``usr/lib/.wh.x``, where ``lib`` is a symlink below).

    Directories of ``layer`` are copied, other nodes are shared between both trees; ``layer`` itself is not changed.

    Args:
        merged: the tree so far, as made by :func:`empty_tree` and earlier calls.
        layer: a finished layer tree, with whiteouts.

    Raises:
        FormatError: a hard link's target is in neither tree.
    """
    links, hides = _survey(merged, layer)
    if hides:
        _hide(merged, layer)
    stack: list[tuple[Node, Node, _Chain]] = [(merged, layer, (merged, None))]
    while stack:
        below, above, chain = stack.pop()
        _update_attributes(below, above)
        names = below.children
        assert names is not None
        for name, node in (above.children or {}).items():
            if node.children is not None:
                found = _below(names.get(name), node, chain)
                if found is None:
                    names[name] = target = directory(implicit=False)
                    found = (target, chain)
                stack.append((found[0], node, found))
            elif node.is_whiteout:
                continue
            elif node.xattrs is not None and LINK_XATTR in node.xattrs:
                names[name] = links[id(node)]
            else:
                names[name] = node


def _hide(merged: Node, layer: Node) -> None:
    """Remove from a merged tree what the whiteouts and opaque directories of a layer hide."""
    stack: list[tuple[_Chain, Node]] = [((merged, None), layer)]
    while stack:
        chain, above = stack.pop()
        if above.is_opaque:
            chain[0].children = {}
            continue  # nothing is left below that an inner whiteout could hide
        names = chain[0].children
        assert names is not None
        for name, node in (above.children or {}).items():
            if node.children is not None:
                found = _below(names.get(name), node, chain)
                if found is not None:
                    stack.append((found, node))
            elif node.is_whiteout:
                names.pop(name, None)


def _below(target: Node | None, node: Node, chain: _Chain) -> _Chain | None:
    """Return the merged directory that a layer's directory acts on; None when it replaces whatever is there.

    A path that runs through a symlink of a lower layer without an entry of its own means the symlink's target, as it
    does for every tool that extracts layers one over another.

    Args:
        target: what the merged tree has of that name.
        node: the layer's directory.
        chain: the merged directory that both are in.
    """
    if target is None:
        return None
    if target.children is not None:
        return target, chain
    if target.target is None or not node.is_implicit:
        return None
    return _resolve(target.target, chain)


def _update_attributes(below: Node, above: Node) -> None:
    """Give a directory the attributes of the layer's, where the layer has an entry for it."""
    xattrs = above.xattrs
    if xattrs is not None and IMPLICIT_XATTR in xattrs:
        return
    if xattrs is not None:
        xattrs = {name: value for name, value in xattrs.items() if name != OPAQUE_XATTR} or None
    below.mode, below.uid, below.gid = above.mode, above.uid, above.gid
    below.mtime, below.mtime_ns, below.xattrs = above.mtime, above.mtime_ns, xattrs


def _survey(merged: Node, layer: Node) -> tuple[dict[int, Node], bool]:
    """Find what each hard link into lower layers points at, and whether the layer hides anything at all."""
    found: dict[int, Node] = {}
    hides = False
    for node in walk(layer):
        if node.xattrs is None:
            hides = hides or node.is_whiteout
            continue
        if LINK_XATTR not in node.xattrs:
            hides = hides or node.is_opaque
            continue
        if id(node) in found:
            continue
        path = node.xattrs[LINK_XATTR]
        parent, _, leaf = path.rpartition(b"/")
        chain = _resolve(parent, (merged, None))
        target = (chain[0].children or {}).get(leaf) if chain is not None else None
        if target is None or target.children is not None:
            problem = "is not there" if target is None else "is a directory"
            name = b"/".join(_path_of(layer, node))
            raise FormatError(f"the target {quoted(path)} of the hard link {quoted(name)} {problem}")
        found[id(node)] = target
    return found, hides


def _path_of(root: Node, wanted: Node) -> list[bytes]:
    """Return the names that lead to a node of a tree."""
    stack: list[tuple[Node, list[bytes]]] = [(root, [])]
    while stack:
        node, path = stack.pop()
        if node is wanted:
            return path
        stack += [(child, [*path, name]) for name, child in (node.children or {}).items()]
    return []


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
