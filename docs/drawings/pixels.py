"""Drawings about pixels: things, stuff and void; one pixel grid; tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from canvas import BLUE, GREEN, GRID, INK, MONO, ORANGE, SOFT, Canvas

from nucleipan.classes import DEFAULT_CLASSES, PanopticClass
from nucleipan.geometry import Box
from nucleipan.slide import ArraySlide, at_mpp
from nucleipan.tiles import TileGrid

# Middle x and y, half axes, class: nuclei of the first drawing, in its field of 200 x 150.
_NUCLEI = (
    ((40, 36), (19, 14), "neoplastic"),
    ((84, 30), (20, 16), "neoplastic"),
    ((62, 74), (17, 20), "neoplastic"),
    ((150, 96), (24, 8), "connective"),
    ((128, 128), (22, 8), "connective"),
    ((176, 60), (9, 9), "inflammatory"),
    ((164, 38), (9, 9), "inflammatory"),
)


def panoptic() -> str:
    """A field three times: what its pixels are, which nucleus they are, and both."""
    c = Canvas(
        740, 262, "Tissue classes and nuclei of one field; together every pixel has a class and, on a nucleus, an id"
    )
    for k, title in enumerate(("class of every pixel", "id of the nucleus", "panoptic: both")):
        x = 20 + k * 242
        c.text((x, 28), title, font_weight="bold")
        _field(c, (x, 42), has_classes=k != 1, has_ids=k > 0)
    c.lines((20, 216), "labels/classes", "stuff, with the things on top", fill=SOFT, font_size=12)
    c.lines((262, 216), "labels/nuclei", "by row of the centre; 0 = none", fill=SOFT, font_size=12)
    c.lines((504, 216), "value of a pixel = (class, id)", "black: void, not judged", fill=SOFT, font_size=12)
    return c.svg()


def _field(c: Canvas, at: tuple[float, float], has_classes: bool, has_ids: bool) -> None:
    x0, y0 = at
    epithelium, stroma = DEFAULT_CLASSES.by_name("tumour epithelium"), DEFAULT_CLASSES.by_name("stroma")
    void, blank = "#000000", "#ffffff"
    c.rect(at, (200, 150), void if has_classes else blank, GRID)
    c.rect(at, (186, 150), _rgb(stroma) if has_classes else blank)
    c.rect(at, (112, 104), _rgb(epithelium) if has_classes else blank)
    order = sorted(range(len(_NUCLEI)), key=lambda i: (_NUCLEI[i][0][1], _NUCLEI[i][0][0]))
    for number, i in enumerate(order, 1):
        (x, y), radii, name = _NUCLEI[i]
        fill = _rgb(DEFAULT_CLASSES.by_name(name)) if has_classes else "#c7d2fe"
        c.ellipse((x0 + x, y0 + y), radii, fill, INK if has_ids else "none", stroke_width=1.2)
        if has_ids:
            c.text(
                (x0 + x, y0 + y + 4), str(number), "#ffffff" if has_classes else INK, text_anchor="middle", font_size=12
            )


def _rgb(of: PanopticClass) -> str:
    return "#{:02x}{:02x}{:02x}".format(*of.color)


def pixel_grid() -> str:
    """Two slides of different pixel size, and the view of both at 0.5 µm per pixel."""
    c = Canvas(740, 310, "Slides of 0.25 and 0.499 micrometres per pixel both become views of 0.5")
    c.text((20, 28), "slides come at any pixel size", font_weight="bold")
    c.text((520, 28), "a view has one", font_weight="bold")
    for mpp, y, side in ((0.25, 48, 12), (0.499, 178, 24)):
        pixels = np.zeros((96 // side, 192 // side, 3), np.uint8)
        with ArraySlide(Path("slide"), pixels, mpp=mpp) as slide:
            view = at_mpp(slide, 0.5)
        _squares(c, (20, y), pixels.shape[:2], round(view.scale), BLUE)
        _squares(c, (520, y), view.shape, 1, GREEN)
        how = "the exact mean of 2 x 2 pixels" if view.scale == 2 else "within 5 %: the pixels as they are"
        c.line([(228, y + 48), (504, y + 48)], SOFT, has_tip=True, stroke_width=1.5)
        c.text((366, y + 38), "at_mpp(slide, 0.5)", text_anchor="middle", font_family=MONO, font_size=12)
        c.text((366, y + 68), how, SOFT, text_anchor="middle", font_size=12)
        c.text((20, y + 114), f"{mpp} µm per pixel", SOFT, font_size=12)
        facts = f"mpp {view.mpp:g}, level0_per_pixel {view.level0_per_pixel:g}"
        c.text((520, y + 114), facts, SOFT, font_size=12)
    return c.svg()


def _squares(c: Canvas, at: tuple[float, float], shape: tuple[int, int], block: int, stroke: str) -> None:
    """Pixels; blocks that become one pixel of the view are shaded alike."""
    side = 24 / block
    for row in range(shape[0]):
        for col in range(shape[1]):
            shade = "#e0e7ff" if (row // block + col // block) % 2 else "#ffffff"
            c.rect((at[0] + col * side, at[1] + row * side), (side, side), shade, stroke, stroke_width=0.8)


def tiles() -> str:
    """A real grid of tiles: cores, and the outer boxes of one in the middle and one at the border."""
    grid = TileGrid((1920, 2784), Box.of_shape((1920, 2784)), 1024, 128)
    scale = 0.14
    c = Canvas(740, 330, "Cores partition the slide; a tile is read with a margin around its core")

    def drawn(box: Box, fill: str, stroke: str, **style: str | float) -> None:
        at = (24 + box.x0 * scale, 34 + box.y0 * scale)
        c.rect(at, (box.width * scale, box.height * scale), fill, stroke, **style)

    middle, last = grid.tile(0, 1), grid.tile(1, 2)
    for tile in grid:
        drawn(tile.core, "#ffffff", INK, stroke_width=1.4)
    for tile, colour in ((middle, BLUE), (last, ORANGE)):
        drawn(tile.outer, colour, colour, fill_opacity=0.16, stroke_dasharray="5 3", stroke_width=1.4)
        drawn(tile.core, colour, colour, fill_opacity=0.28, stroke_width=2)
    for tile in grid:
        x, y = (tile.core.x0 + tile.core.width / 2) * scale, (tile.core.y0 + tile.core.height / 2) * scale
        c.text((24 + x, 38 + y), f"core ({tile.row}, {tile.col})", text_anchor="middle", font_size=12)
    height, width = grid.slide_shape
    c.text((24, 22), f"a slide of {width} x {height} pixels, cores of at most 1024, margin 128", SOFT, font_size=12)
    _legend(c, grid)
    return c.svg()


def _legend(c: Canvas, grid: TileGrid) -> None:
    core = grid.tile(0, 0).core
    x = 440
    c.rect((x, 44), (18, 14), BLUE, BLUE, fill_opacity=0.4, stroke_width=2)
    c.lines((x + 28, 56), "core: the pixels that a tile", "answers for; cores partition the slide")
    c.rect((x, 94), (18, 14), BLUE, BLUE, fill_opacity=0.16, stroke_dasharray="5 3")
    c.lines((x + 28, 106), "margin: context, computed", "and thrown away")
    c.rect((x, 144), (18, 14), ORANGE, ORANGE, fill_opacity=0.4, stroke_width=2)
    c.lines((x + 28, 156), "at the slide's border the outer box", "is shifted inwards: all have one size")
    c.lines(
        (x, 214),
        f"all cores {core.width} x {core.height}, divided evenly",
        "all start at multiples of 64",
        f"{grid.redundancy:.2f} pixels computed for each kept",
        fill=SOFT, font_size=12,
    )  # fmt: skip
