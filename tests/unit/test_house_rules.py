"""Rules of this code base that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "layerfs").rglob("*.py"))
MODULES = [*LIBRARY, *sorted((ROOT / "cli" / "layerfs_cli").rglob("*.py"))]

#: A module that grew beyond this has two subjects.
MOST_LINES = 600

#: Names that say nothing about what is in a module.
EMPTY_WORDS = {"utils", "util", "helpers", "helper", "common", "manager", "handler", "misc"}


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_module_is_short_and_named_for_its_subject(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
    assert not EMPTY_WORDS & set(path.stem.split("_"))


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=_id)
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "a module needs a docstring"


def _module(path: Path) -> str:
    """The name by which a module is imported."""
    base = ROOT if path in LIBRARY else ROOT / "cli"
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def _public(path: Path) -> set[str] | None:
    """What a module says is for others, or None if it does not say."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(at, ast.Name) and at.id == "__all__" for at in node.targets):
            return set(ast.literal_eval(node.value))
    return None


PUBLIC = {_module(path): _public(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_only_what_is_public_is_imported(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or (public := PUBLIC.get(node.module or "")) is None:
            continue
        for name in node.names:
            found = name.name in public or f"{node.module}.{name.name}" in PUBLIC
            assert found, f"line {node.lineno}: {name.name} is not in __all__ of {node.module}"


_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


@pytest.mark.parametrize("path", LIBRARY, ids=_id)
def test_only_the_command_line_reads_the_environment(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in _ENVIRONMENT, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert _ENVIRONMENT.isdisjoint(name.name for name in node.names), f"line {node.lineno}"
