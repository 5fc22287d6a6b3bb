"""Which tissue can be judged: what is under pen or out of focus is not.

A network finds nuclei in anything. Where the slide does not show them, saying nothing is the honest answer: such places
become void. The slide is looked at once, at 1 µm per pixel and on tissue only, and judged in cells of 8 µm:

- *pen*: ink absorbs red more than green (blue, green), or all colours alike (black), as neither haematoxylin nor eosin
  does. Melanin and blood absorb red least, dense nuclei blue. Red pen looks like eosin and blood,
  thin blue pen over tissue like haematoxylin: neither is recognised.
- *out of focus*: see ``_focus``. It is not judged on slides coarser than 1.25 µm per pixel.

Limits are set so that good tissue stays: what is smaller than a marker's dot or a blurred field of view is left alone.
The map depends on the slide alone, never on how it is tiled. Folds look like dense tissue and are not recognised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nucleipan.geometry import Box
from nucleipan.slide._focus import CELL, CONTEXT, FINE_MPP, Detail, block_means, detail, is_blurred
from nucleipan.slide.tissue import TissueMask, nearest
from nucleipan.slide.view import SlideView, at_mpp

GLASS, USABLE, PEN, OUT_OF_FOCUS = range(4)

_BLOCK_CELLS = 128
_COARSEST_MPP = 1.25
_MIN_DENSITY = 0.05
# By how much the density of red exceeds that of green, and that of red. No place of _MIN_PEN_UM2 in the development
# images has as much as 0.04 of the first; glass may be tinted, but absorbs little.
_MIN_INK, _MIN_INK_RED = 0.08, 0.2
# Grey: what absorbs green this much, and red and blue nearly as much. Such places there have a third of _MIN_PEN_UM2 at
# most, but for one image with black ink.
_MIN_GREY, _GREY_SHARE = 0.4, 0.8
_MIN_PEN_UM2, _MIN_BLUR_UM2 = 10_000.0, 20_000.0
_GROW_PEN_UM = 16.0


@dataclass(frozen=True)
class QualityMap:
    """What a view shows, in cells of about 8 µm.

    Attributes:
        kinds: uint8[h, w], ``GLASS``, ``USABLE``, ``PEN`` or ``OUT_OF_FOCUS``. Glass here is what absorbs nothing, also
            within the rim of a ``TissueMask``.
        density: mean optical density of usable tissue in R, G, B; None where there is none.
        scale: view pixels per cell.
        mpp: micrometres per cell.
    """

    kinds: np.ndarray
    density: tuple[float, float, float] | None
    scale: float
    mpp: float

    def void(self, box: Box) -> np.ndarray:
        """bool[h, w], the pixels of ``box``, in the view's grid, whose tissue cannot be judged."""
        return nearest(self.kinds, self.scale, box) > USABLE

    def has_void(self, box: Box) -> bool:
        """Whether there are any such pixels near ``box``."""
        near = box.scaled(1 / self.scale).grown(1).clipped(Box.of_shape(self._shape))
        return bool((self.kinds[near.y0 : near.y1, near.x0 : near.x1] > USABLE).any())

    def area_mm2(self, kind: int, box: Box) -> float:
        """Area of a kind in ``box``, in the view's grid."""
        inside = box.scaled(1 / self.scale).clipped(Box.of_shape(self._shape))
        n = np.count_nonzero(self.kinds[inside.y0 : inside.y1, inside.x0 : inside.x1] == kind)
        return n * self.mpp**2 / 1e6

    @property
    def _shape(self) -> tuple[int, int]:
        return self.kinds.shape[0], self.kinds.shape[1]


def quality_map(view: SlideView, tissue: TissueMask) -> QualityMap:
    """Judge the ``tissue`` of ``view``. Memory is bounded by the size of the map.

    Raises:
        SlideError: the slide is damaged.
    """
    base_mpp = view.mpp / view.level0_per_pixel
    fine = at_mpp(view.slide, max(FINE_MPP, base_mpp), slide_mpp=base_mpp)
    scale = CELL * fine.level0_per_pixel / view.level0_per_pixel
    colours, found = _look(fine, tissue, scale)
    where = nearest(tissue.mask, tissue.scale / scale, Box(0, 0, *colours.shape[:2]))
    cell_mpp = CELL * fine.mpp
    density = -np.log10(np.maximum(colours, 1) / 255)  # [h, w, 3]
    is_tissue = where & (density.max(-1) > _MIN_DENSITY)
    pen = _pen(density, where, cell_mpp)
    kinds = np.where(is_tissue, USABLE, GLASS).astype(np.uint8)
    if fine.mpp <= _COARSEST_MPP:
        kinds[_large(is_blurred(found, is_tissue & ~pen), _MIN_BLUR_UM2 / cell_mpp**2)] = OUT_OF_FOCUS
    kinds[pen] = PEN
    usable = density[kinds == USABLE]
    r, g, b = (float(v) for v in usable.mean(0)) if len(usable) else (0.0, 0.0, 0.0)
    return QualityMap(kinds, (r, g, b) if len(usable) else None, scale, cell_mpp)


def _look(fine: SlideView, tissue: TissueMask, scale: float) -> tuple[np.ndarray, Detail]:
    """Mean colour, float32[h, w, 3], and detail of every cell; what holds no tissue is not looked at and white."""
    n_rows, n_cols = (-(-side // CELL) for side in fine.shape)
    colours = np.full((n_rows, n_cols, 3), 255, np.float32)
    found = Detail(*(np.zeros((n_rows, n_cols), np.float32) for _ in range(3)))
    for cells in _blocks(n_rows, n_cols):
        if not tissue.any_in(cells.scaled(scale)):
            continue
        rgb, inner = _read(fine, cells)
        here, index = detail(rgb), cells.slices(Box(0, 0, n_rows, n_cols))
        colours[index] = block_means(rgb, CELL)[inner]
        for plane, part in ((found.at_1, here.at_1), (found.at_4, here.at_4), (found.density, here.density)):
            plane[index] = part[inner]
    return colours, found


def _blocks(n_rows: int, n_cols: int) -> Iterator[Box]:
    for y in range(0, n_rows, _BLOCK_CELLS):
        for x in range(0, n_cols, _BLOCK_CELLS):
            yield Box(y, x, y + _BLOCK_CELLS, x + _BLOCK_CELLS).clipped(Box(0, 0, n_rows, n_cols))


def _read(fine: SlideView, cells: Box) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Pixels of ``cells`` with context, repeated beyond the slide's end to whole cells, and where the cells are."""
    wanted = Box(cells.y0 * CELL, cells.x0 * CELL, cells.y1 * CELL, cells.x1 * CELL).grown(CONTEXT)
    box = wanted.clipped(Box.of_shape(fine.shape))
    (y0, x0), (h, w) = (box.y0, box.x0), box.shape
    rgb = np.pad(fine.read(box), ((0, -h % CELL), (0, -w % CELL), (0, 0)), mode="edge")
    return rgb, cells.slices(Box(y0 // CELL, x0 // CELL, cells.y1 + 1, cells.x1 + 1))


def _pen(density: np.ndarray, where: np.ndarray, cell_mpp: float) -> np.ndarray:
    """bool[h, w], ink and what lies within its fading rim."""
    smooth = ndimage.gaussian_filter(density, (1, 1, 0), mode="nearest")
    r, g, b = (smooth[..., channel] for channel in range(3))
    is_coloured = (r - g > _MIN_INK) & (r > _MIN_INK_RED)
    is_grey = (g > _MIN_GREY) & (np.minimum(r, b) > _GREY_SHARE * g)
    is_pen = _large((is_coloured | is_grey) & where, _MIN_PEN_UM2 / cell_mpp**2)
    radius = max(1, round(_GROW_PEN_UM / cell_mpp))
    return ndimage.maximum_filter(is_pen, size=2 * radius + 1) & where


def _large(mask: np.ndarray, min_cells: float) -> np.ndarray:
    """Connected parts of ``mask`` of at least so many cells."""
    labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
    if n == 0:
        return mask
    is_kept = np.bincount(labels.ravel()) >= min_cells
    is_kept[0] = False
    return is_kept[labels]
