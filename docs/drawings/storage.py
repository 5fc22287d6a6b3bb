"""Drawings of what is on disk: the store's layout, and how a run becomes a store."""

from __future__ import annotations

from canvas import BLUE, GREEN, GRID, INK, MONO, ORANGE, PURPLE, SOFT, Canvas

_PARTS = (
    ("slide.ome.zarr/", 0, SOFT, "OME-Zarr 0.5; scales in micrometres"),
    ("zarr.json", 1, SOFT, "slide, model, configuration, classes"),
    ("0, 1, ...", 1, PURPLE, "RGB overview, or the whole image"),
    ("labels/nuclei/0, 1, ...", 1, BLUE, "uint32, id of the nucleus at every pixel"),
    ("labels/classes/0, 1, ...", 1, GREEN, "uint8, class of every pixel"),
    ("nuclei.parquet", 1, ORANGE, "GeoParquet, one row a nucleus"),
    ("checksums.sha256", 1, SOFT, "size and SHA-256 of every file"),
    ("edits/", 1, SOFT, "what people corrected, if anybody did"),
)


def store() -> str:
    """The folder, and how raster, table and outline name one nucleus by one id."""
    c = Canvas(740, 300, "The store's files, and one id in raster, table and outline")
    c.text((20, 28), "one folder", font_weight="bold")
    for k, (name, depth, colour, what) in enumerate(_PARTS):
        y = 54 + k * 29
        c.rect((20 + depth * 18, y - 12), (9, 9), colour, rx=2)
        c.text((36 + depth * 18, y - 3), name, font_family=MONO, font_size=12)
        c.text((36 + depth * 18, y + 11), what, SOFT, font_size=11)
    c.text((350, 28), "one id", font_weight="bold")
    _raster(c, (350, 46))
    _row(c, (350, 210))
    c.line([(462, 142), (462, 206)], INK, has_tip=True, stroke_width=1.4)
    c.text((472, 186), "id = 7, class_id = 1", font_family=MONO, font_size=12)
    return c.svg()


def _raster(c: Canvas, at: tuple[float, float]) -> None:
    """A corner of both label images; pixels of nucleus 7."""
    x, y = at
    ids = ("........", "..777...", ".77777..", ".77777..", "..777...")
    for k, (title, colour, inside, outside) in enumerate(
        (("labels/nuclei", BLUE, "7", "0"), ("labels/classes", GREEN, "1", "9"))
    ):
        left = x + k * 190
        for row, line in enumerate(ids):
            for col, cell in enumerate(line):
                is_on = cell == "7"
                place = (left + col * 20, y + row * 19)
                c.rect(place, (20, 19), colour if is_on else "#ffffff", GRID, fill_opacity=0.25 if is_on else 1)
                number = inside if is_on else outside
                c.text(
                    (place[0] + 10, place[1] + 14), number, INK if is_on else SOFT, text_anchor="middle", font_size=11
                )
        c.text((left, y + 112), title, SOFT, font_family=MONO, font_size=12)


def _row(c: Canvas, at: tuple[float, float]) -> None:
    x, y = at
    cells = (("id", "7"), ("class", "neoplastic"), ("area_um2", "41.3"), ("tissue", "stroma"), ("geometry", "POLYGON"))
    for k, (name, value) in enumerate(cells):
        c.rect((x + k * 74, y), (74, 22), ORANGE, GRID, fill_opacity=0.2)
        c.rect((x + k * 74, y + 22), (74, 22), "#ffffff", GRID)
        c.text((x + k * 74 + 6, y + 15), name, font_size=11, font_family=MONO)
        c.text((x + k * 74 + 6, y + 37), value, font_size=11)
    c.text((x, y + 64), "nuclei.parquet; every export uses the same id", SOFT, font_size=12)


def resume() -> str:
    """The folder's names and contents from the first tile to the finished store."""
    c = Canvas(740, 268, "A run is a .partial folder with one file per tile until a rename makes it a store")
    steps = (
        ("tiles", "slide.ome.zarr.partial/", ("run.json", "tiles/r00000c00000.tile", "tiles/r00000c00001.tile", "...")),
        (
            "assemble",
            "slide.ome.zarr.partial/",
            ("run.json", "tiles/...", "labels/, 0/, nuclei.parquet", "zarr.json (written last)"),
        ),
        ("publish", "slide.ome.zarr/", ("labels/, 0/, nuclei.parquet", "zarr.json", "checksums.sha256", "")),
    )
    for k, (title, folder, files) in enumerate(steps):
        x = 18 + k * 242
        is_done = k == 2
        c.text((x, 28), f"{k + 1}. {title}", font_weight="bold")
        c.rect((x, 40), (218, 112), "#ffffff", GREEN if is_done else GRID, rx=6, stroke_width=2 if is_done else 1)
        c.text((x + 12, 60), folder, GREEN if is_done else INK, font_family=MONO, font_size=12, font_weight="bold")
        c.lines((x + 22, 80), *(f for f in files if f), step=18, font_family=MONO, font_size=11)
        if not is_done:
            c.line([(x + 220, 96), (x + 239, 96)], INK, has_tip=True, stroke_width=1.6)
    c.text((18, 180), "killed here", ORANGE, font_weight="bold")
    c.text((260, 180), "killed here", ORANGE, font_weight="bold")
    c.text((502, 180), "killed here", ORANGE, font_weight="bold")
    small = {"fill": SOFT, "font_size": 12, "step": 16}
    c.lines((18, 200), "the tiles that are there stay,", "the others are computed", **small)
    c.lines((260, 200), "tiles are read again, what was", "half written is written anew", **small)
    c.lines((502, 200), "the next command removes the", "work files and renames", **small)
    c.text((18, 252), "What is called .ome.zarr is whole; two commands never write one store.", INK, font_size=12)
    return c.svg()
