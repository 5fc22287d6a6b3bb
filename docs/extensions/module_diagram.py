"""A drawing of the package's layers and imports, and a table of what each unit is; both made from the source.

    ```{module-diagram}
    ```

    ```{module-table}
    ```

The layers are those that ``tests/test_architecture.py`` enforces. Drawn are the imports that do not follow from
others (the transitive reduction), less than half. A unit under the pointer shows its own lines.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from html import escape

from docutils import nodes
from layers import LAYERS, PACKAGE, layer, ours, trees, unit
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_WIDTH, _BOX_W, _BOX_H = 760, 96, 26
_ROW, _GAP, _TITLE, _ASIDE = 46, 26, 22, 180


@cache
def imports_of_units() -> dict[str, frozenset[str]]:
    """Units that each unit imports."""
    found: dict[str, set[str]] = {name: set() for each in LAYERS for name in each.units}
    for i in ours():
        found[unit(i.module)].add(unit(i.target))
    return {name: frozenset(targets) for name, targets in found.items()}


@cache
def reached(name: str) -> frozenset[str]:
    """Units that ``name`` imports, directly or not."""
    direct = imports_of_units()[name]
    return direct.union(*(reached(other) for other in direct))


def drawn(name: str) -> list[str]:
    """Imports of ``name`` that do not follow from its other imports."""
    direct = imports_of_units()[name]
    return sorted(other for other in direct if not any(other in reached(via) for via in direct))


@dataclass(frozen=True)
class Place:
    """Middle of a box, in pixels of the drawing."""

    x: float
    y: float


def rows_of(index: int) -> list[list[str]]:
    """The units of a layer, those that others of it import in the lower (later) rows."""

    def height(name: str) -> int:
        within = [other for other in imports_of_units()[name] if layer(other) == index]
        return 1 + max((height(other) for other in within), default=-1)

    by_height: dict[int, list[str]] = defaultdict(list)
    for name in sorted(LAYERS[index].units):
        by_height[height(name)].append(name)
    return [by_height[h] for h in sorted(by_height, reverse=True)]


def placed() -> tuple[dict[str, Place], list[tuple[str, float, float]], float]:
    """Places of all units, title with top and height of each layer's band, and the height of the drawing."""
    places: dict[str, Place] = {}
    bands, y = [], 0.0
    for index in reversed(range(len(LAYERS))):
        top = y
        y += _TITLE + _BOX_H / 2 + 4
        rows = rows_of(index)
        for k, row in enumerate(rows):
            # Rows that build on each other are set off, so that lines go past them.
            aside = (k - (len(rows) - 1) / 2) * _ASIDE
            for name, x in zip(_ordered(row, places), _spread(len(row), aside), strict=True):
                places[name] = Place(x, y)
            y += _ROW
        y += _BOX_H / 2 + 8 - _ROW
        bands.append((LAYERS[index].title, top, y - top))
        y += _GAP
    return places, bands, y - _GAP


def _spread(n: int, aside: float) -> list[float]:
    """Middles of ``n`` boxes in a row, the row moved by ``aside`` as far as there is room."""
    step = min(_BOX_W + 34.0, (_WIDTH - 16) / n)
    room = (_WIDTH - 16 - n * step) / 2
    middle = _WIDTH / 2 + max(-room, min(room, aside))
    return [middle + (k - (n - 1) / 2) * step for k in range(n)]


def _ordered(row: list[str], above: dict[str, Place]) -> list[str]:
    """Units below the mean of those that import them, so that fewer lines cross."""

    def wanted(name: str) -> float:
        xs = [place.x for importer, place in above.items() if name in drawn(importer)]
        return sum(xs) / len(xs) if xs else _WIDTH / 2

    return sorted(row, key=lambda name: (wanted(name), name))


def diagram() -> str:
    """The drawing as SVG; colours are the page's."""
    places, bands, height = placed()
    parts = [f'<svg class="modules" viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="Modules and imports">']
    for title, top, tall in bands:
        parts.append(f'<rect class="band" x="0" y="{top:g}" width="{_WIDTH}" height="{tall:g}" rx="6"/>')
        parts.append(f'<text class="layer" x="10" y="{top + 16:g}">{escape(title)}</text>')
    parts += [f'<g class="lines">{"".join(_line(places[a], places[b]) for a in places for b in drawn(a))}</g>']
    parts += [_unit(name, places) for name in places]
    return "\n".join([*parts, "</svg>"])


def _unit(name: str, places: dict[str, Place]) -> str:
    """A box, with its own lines that show while the pointer is on it."""
    at = places[name]
    lines = "".join(_line(at, places[other]) for other in drawn(name))
    lines += "".join(_line(places[other], at) for other in places if name in drawn(other))
    return (
        f'<g class="unit"><title>{escape(summary(name))}</title><g class="own">{lines}</g>'
        f'<rect x="{at.x - _BOX_W / 2:g}" y="{at.y - _BOX_H / 2:g}" width="{_BOX_W}" height="{_BOX_H}" rx="4"/>'
        f'<text x="{at.x:g}" y="{at.y + 4:g}">{name}</text></g>'
    )


def _line(upper: Place, lower: Place) -> str:
    y0, y1 = upper.y + _BOX_H / 2, lower.y - _BOX_H / 2
    bend = (y1 - y0) / 2
    return f'<path d="M{upper.x:g} {y0:g}C{upper.x:g} {y0 + bend:g} {lower.x:g} {y1 - bend:g} {lower.x:g} {y1:g}"/>'


def summary(name: str) -> str:
    """The first line of a unit's docstring."""
    docstring = ast.get_docstring(trees()[f"{PACKAGE.name}.{name}"])
    assert docstring, f"{name} does not say what it is"
    return docstring.partition("\n\n")[0]


class ModuleDiagram(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", diagram(), format="html")]


class ModuleTable(SphinxDirective):
    """Every unit with the first line of its docstring and all that it imports."""

    def run(self) -> list[nodes.Node]:
        lines = ["| layer | unit | what it is | imports |", "|---|---|---|---|"]
        for each in reversed(LAYERS):
            for k, name in enumerate(sorted(each.units)):
                targets = ", ".join(f"`{t}`" for t in sorted(imports_of_units()[name], key=lambda t: (-layer(t), t)))
                what = " ".join(summary(name).split()).replace("|", "\\|").replace("``", "`")
                lines.append(f"| {'' if k else each.title} | `{name}` | {what} | {targets} |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("module-diagram", ModuleDiagram)
    app.add_directive("module-table", ModuleTable)
    return {"parallel_read_safe": True}
