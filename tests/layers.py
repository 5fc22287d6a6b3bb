"""The layers of the package, and which module imports which: what ``test_architecture`` enforces and the docs draw.

Layers are written here once. A unit is a top-level module or package; it may import units of lower layers, and
nothing of its own layer but what ``CHAINS`` grants.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "nucleipan"


@dataclass(frozen=True)
class Layer:
    """Units that do not know each other; ``title`` is for people."""

    title: str
    units: frozenset[str]


def _layer(title: str, units: str) -> Layer:
    return Layer(title, frozenset(units.split()))


#: From the bottom. A module that is in none fails the test, so that a new one must be placed.
LAYERS = (
    _layer("values", "errors geometry classes files documents progress"),
    _layer("arithmetic and documents", "tiles ngff"),
    _layer("images in, tiles out", "measure slide panoptic polygons synthetic sample"),
    _layer("one job each", "network transforms stitch store plausible metrics datasets"),
    _layer(
        "jobs put together",
        "pipeline segment again cluster evaluate edits exports overlay report describe training verify",
    ),
    _layer("configuration", "config"),
    _layer("what users call", "summary batch cli"),
)
#: In each chain, a unit may import those before it.
CHAINS = (
    ("errors", "geometry", "classes"),
    ("errors", "files"),
    ("synthetic", "sample"),
    ("store", "plausible"),
    ("pipeline", "segment", "cluster"),
    ("segment", "again"),
    ("edits", "exports", "describe"),
    ("overlay", "training"),
    ("summary", "batch", "cli"),
)


@dataclass(frozen=True)
class Import:
    """``module`` of ours imports ``target``, at ``line``; also where only type checkers see it."""

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


@cache
def trees() -> dict[str, ast.Module]:
    """Syntax trees by dotted module name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


@cache
def imports() -> tuple[Import, ...]:
    return tuple(i for module, tree in trees().items() for i in imports_of(module, tree))


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}:{node.lineno}: relative import"
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            for alias in node.names:
                # `from package import module` imports the module, `from module import name` the module it is in.
                inner = f"{node.module}.{alias.name}"
                yield Import(module, inner if inner in trees() else node.module, node.lineno)


def unit(module: str) -> str:
    """Top-level part of a module of ours; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def layer(name: str) -> int:
    return next(i for i, each in enumerate(LAYERS) if name in each.units)


def is_granted(importer: str, imported: str) -> bool:
    """Whether a chain lets ``importer`` import ``imported``, of the same layer."""
    return any(
        importer in chain and imported in chain and chain.index(imported) < chain.index(importer) for chain in CHAINS
    )


def ours() -> list[Import]:
    """Imports from one unit into another."""
    return [
        i for i in imports() if i.target.split(".")[0] == PACKAGE.name and unit(i.target) not in ("", unit(i.module))
    ]
