"""The drawing of stitching: what may happen to a nucleus at the seam between the cores of two tiles."""

from __future__ import annotations

from dataclasses import dataclass

from canvas import BLUE, GREEN, GRID, INK, ORANGE, SOFT, Canvas

_PANEL, _SEAM = (224, 118), 112
# Middle x and y, half axes.
_Seen = tuple[float, float, float, float]


@dataclass(frozen=True)
class Case:
    """A nucleus, or two, as the tiles A and B see it, and what becomes of it."""

    title: str
    by_a: _Seen
    by_b: _Seen | None
    notes: tuple[str, str]


_CASES = (
    Case("owned", (92, 58, 44, 26), None, ("its centre is in A's core: A keeps it", "whole, also beyond the seam")),
    Case(
        "seen twice, kept once", (108, 58, 30, 24), (117, 60, 30, 24),
        ("each tile finds its centre in its own", "core; most pixels are common"),
    ),
    Case(
        "fallen between, kept once", (117, 58, 28, 24), (107, 60, 28, 24),
        ("each tile finds its centre in the", "other's core; seen by both"),
    ),
    Case(
        "contested", (84, 58, 40, 22), (138, 64, 40, 26),
        ("two nuclei claim the same pixels: the", "first in raster order gets them"),
    ),
)  # fmt: skip


def stitching() -> str:
    """Owned; seen twice; fallen between; contested; and the ids that follow."""
    c = Canvas(740, 402, "Four cases at the seam of two tiles, and ids by raster order of the centres")
    for at, case in zip(((18, 36), (258, 36), (498, 36), (18, 230)), _CASES, strict=True):
        _panel(c, at, case)
    _ids(c, (258, 230))
    return c.svg()


def _panel(c: Canvas, at: tuple[float, float], case: Case) -> None:
    x, y = at
    c.text((x, y - 12), case.title, font_weight="bold")
    c.rect((x, y), _PANEL, "#ffffff", GRID)
    c.rect((x + _SEAM - 8, y), (16, _PANEL[1]), "#fef3c7")
    c.line([(x + _SEAM, y), (x + _SEAM, y + _PANEL[1])], INK, stroke_width=1.4)
    c.text((x + 8, y + 18), "core of A", BLUE, font_size=12)
    c.text((x + _PANEL[0] - 8, y + 18), "core of B", ORANGE, font_size=12, text_anchor="end")
    for seen, colour in ((case.by_a, BLUE), (case.by_b, ORANGE)):
        if seen:
            middle, radii = (x + seen[0], y + seen[1] + 8), seen[2:]
            c.ellipse(middle, radii, colour, colour, fill_opacity=0.18, stroke_width=1.6)
            c.circle(middle, 3, colour)
    c.lines((x, y + _PANEL[1] + 17), *case.notes, step=15, fill=SOFT, font_size=12)


def _ids(c: Canvas, at: tuple[float, float]) -> None:
    """Nuclei of several tiles, numbered as the finished store numbers them."""
    x, y = at
    c.text((x, y - 12), "canonical ids, whatever the tiles were", font_weight="bold")
    c.rect((x, y), (464, _PANEL[1]), "#ffffff", GRID)
    c.line([(x + 232, y), (x + 232, y + _PANEL[1])], GRID, stroke_width=1.4)
    c.line([(x, y + 60), (x + 464, y + 60)], GRID, stroke_width=1.4)
    centres = [(60, 30), (180, 22), (226, 70), (330, 38), (420, 26), (100, 88), (300, 98), (400, 82)]
    for number, (cx, cy) in enumerate(sorted(centres, key=lambda p: (p[1], p[0])), 1):
        c.ellipse((x + cx, y + cy), (21, 15), GREEN, GREEN, fill_opacity=0.15, stroke_width=1.5)
        c.text((x + cx, y + cy + 4), str(number), text_anchor="middle", font_size=12)
    c.lines(
        (x, y + _PANEL[1] + 17),
        "1, 2, 3, ... by the row of the centre, then its column: size and order of tiles,",
        "workers, interruption and resume cannot change them",
        step=15, fill=SOFT, font_size=12,
    )  # fmt: skip
