"""A drawing as SVG text, with the few shapes that the drawings of the documentation need.

Drawings have a light ground of their own, so that they read the same on light and dark pages and where SVGs are shown
as pictures. Numbers are rounded to a tenth: the same drawing gives the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

INK, SOFT, GRID, PAPER = "#1f2937", "#6b7280", "#d1d5db", "#fbfbf9"
BLUE, ORANGE, GREEN, PURPLE, RED, YELLOW = "#2563eb", "#d97706", "#15803d", "#7c3aed", "#c2261f", "#f3d54e"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', monospace"

Point = tuple[float, float]
"""x, y in pixels, from the upper left corner."""


class Canvas:
    """Shapes in the order in which they are drawn; ``description`` is for who cannot see them."""

    def __init__(self, width: int, height: int, description: str) -> None:
        self.width, self.height = width, height
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="{FONT}" font-size="13">',
            f"<title>{escape(description)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="context-stroke"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        ]

    def svg(self) -> str:
        return "\n".join([*self._parts, "</svg>\n"])

    def rect(self, at: Point, size: Point, fill: str = "none", stroke: str = "none", **style: str | float) -> None:
        place = f'x="{_n(at[0])}" y="{_n(at[1])}" width="{_n(size[0])}" height="{_n(size[1])}"'
        self._parts.append(f'<rect {place} fill="{fill}" stroke="{stroke}"{_style(style)}/>')

    def circle(self, at: Point, radius: float, fill: str = "none", stroke: str = "none", **style: str | float) -> None:
        self.ellipse(at, (radius, radius), fill, stroke, **style)

    def ellipse(self, at: Point, radii: Point, fill: str = "none", stroke: str = "none", **style: str | float) -> None:
        place = f'cx="{_n(at[0])}" cy="{_n(at[1])}" rx="{_n(radii[0])}" ry="{_n(radii[1])}"'
        self._parts.append(f'<ellipse {place} fill="{fill}" stroke="{stroke}"{_style(style)}/>')

    def line(self, points: Sequence[Point], stroke: str = INK, has_tip: bool = False, **style: str | float) -> None:
        path = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        tip = ' marker-end="url(#tip)"' if has_tip else ""
        self._parts.append(f'<path d="M{path}" fill="none" stroke="{stroke}"{_style(style)}{tip}/>')

    def text(self, at: Point, text: str, fill: str = INK, **style: str | float) -> None:
        place = f'x="{_n(at[0])}" y="{_n(at[1])}" fill="{fill}"'
        self._parts.append(f"<text {place}{_style(style)}>{escape(text)}</text>")

    def lines(self, at: Point, *texts: str, step: float = 17, fill: str = INK, **style: str | float) -> None:
        """Texts below each other."""
        for k, text in enumerate(texts):
            self.text((at[0], at[1] + k * step), text, fill, **style)


def _style(style: dict[str, str | float]) -> str:
    return "".join(
        f' {name.replace("_", "-")}="{value if isinstance(value, str) else _n(value)}"' for name, value in style.items()
    )


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
