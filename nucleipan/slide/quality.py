"""Which tissue can be judged: what is under pen, folded or out of focus is not.

A network finds nuclei in anything. Where the slide does not show them, saying nothing is the honest answer: such places
become void. The slide is looked at once, at 1 µm per pixel and on tissue only, and judged in cells of 8 µm:

- *pen*: ink absorbs red more than green (blue, green), or all colours alike (black), as neither haematoxylin nor eosin
  does. Melanin and blood absorb red least, dense nuclei blue. Red pen looks like eosin and blood,
  thin blue pen over tissue like haematoxylin: neither is recognised.
- *folded*: two layers absorb what both do, in all colours and between nuclei too, where single tissue, however dense,
  is pale. How much is much is told by the slide itself, whose stains and thickness nobody knows. A fold of pale
  tissue is as dense as other tissue and is not recognised.
- *out of focus*: see ``_focus``.

Folds and focus are not judged on slides coarser than 1.25 µm per pixel, which show no single nucleus.
Limits are set so that good tissue stays: what is smaller than a marker's dot or a blurred field of view is left alone.
The map depends on the slide alone, never on how it is tiled.
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

GLASS, USABLE, PEN, OUT_OF_FOCUS, FOLDED = range(5)
#: What cannot be judged, as stores and summaries call it.
UNUSABLE = {"pen": PEN, "folded": FOLDED, "out_of_focus": OUT_OF_FOCUS}

_BLOCK_CELLS = 128
_COARSEST_MPP = 1.25
_MIN_DENSITY = 0.05
# By how much the density of red exceeds that of green, and that of red. No place of _MIN_PEN_UM2 in the development
# images has as much as 0.04 of the first; glass may be tinted, but absorbs little.
_MIN_INK, _MIN_INK_RED = 0.08, 0.2
# Grey: what absorbs green this much, and red and blue nearly as much. Such places there have a third of _MIN_PEN_UM2 at
# most, but for one image with black ink.
_MIN_GREY, _GREY_SHARE = 0.4, 0.8
# What even the palest tenth of a cell's pixels absorb is, in a fold, this many times what it is at most in nine tenths
# of the tissue, of all colours and of red, and this share of the mean. Only folds have all that on the development
# slides; of the images of other laboratories, laid side by side, one: compact bone among fat.
_PALEST, _USUAL = 0.1, 0.9
_FOLD_DENSITY, _FOLD_RED, _FOLD_EVENNESS = 1.4, 1.2, 0.7
# Tissue that absorbs less than this share of the densest, as fat does, says nothing about what is usual.
_FAINT = 0.25
_MIN_PEN_UM2, _MIN_FOLD_UM2, _MIN_BLUR_UM2 = 10_000.0, 5_000.0, 20_000.0
_GROW_PEN_UM, _GROW_FOLD_UM = 16.0, 8.0


@dataclass(frozen=True)
class QualityMap:
    """What a view shows, in cells of about 8 µm.

    Attributes:
        kinds: uint8[h, w], ``GLASS``, ``USABLE``, ``PEN``, ``OUT_OF_FOCUS`` or ``FOLDED``. Glass here is what absorbs
            nothing, also within the rim of a ``TissueMask``.
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
    colours, palest, found = _look(fine, tissue, scale)
    where = nearest(tissue.mask, tissue.scale / scale, Box(0, 0, *colours.shape[:2]))
    cell_mpp = CELL * fine.mpp
    density, least = _density(colours), _density(palest)
    is_tissue = where & (density.max(-1) > _MIN_DENSITY)
    pen = _pen(density, where, cell_mpp)
    kinds = np.where(is_tissue, USABLE, GLASS).astype(np.uint8)
    if fine.mpp <= _COARSEST_MPP:
        kinds[_large(is_blurred(found, is_tissue & ~pen), _MIN_BLUR_UM2 / cell_mpp**2)] = OUT_OF_FOCUS
        kinds[_folded(density, least, is_tissue & ~pen, cell_mpp)] = FOLDED
    kinds[pen] = PEN
    usable = density[kinds == USABLE]
    r, g, b = (float(v) for v in usable.mean(0)) if len(usable) else (0.0, 0.0, 0.0)
    return QualityMap(kinds, (r, g, b) if len(usable) else None, scale, cell_mpp)


def _look(fine: SlideView, tissue: TissueMask, scale: float) -> tuple[np.ndarray, np.ndarray, Detail]:
    """Of every cell: mean colour, float32[h, w, 3]; what its palest tenth exceeds, uint8[h, w, 3]; detail.

    What holds no tissue is not looked at and white.
    """
    n_rows, n_cols = (-(-side // CELL) for side in fine.shape)
    colours, palest = (np.full((n_rows, n_cols, 3), 255, kind) for kind in (np.float32, np.uint8))
    found = Detail(*(np.zeros((n_rows, n_cols), np.float32) for _ in range(3)))
    for cells in _blocks(n_rows, n_cols):
        if not tissue.any_in(cells.scaled(scale)):
            continue
        rgb, inner = _read(fine, cells)
        here, index = detail(rgb), cells.slices(Box(0, 0, n_rows, n_cols))
        colours[index], palest[index] = block_means(rgb, CELL)[inner], _palest(rgb)[inner]
        for plane, part in ((found.at_1, here.at_1), (found.at_4, here.at_4), (found.density, here.density)):
            plane[index] = part[inner]
    return colours, palest, found


def _palest(rgb: np.ndarray) -> np.ndarray:
    """uint8[h, w, 3], what a tenth of each cell's pixels exceed, channel by channel."""
    h, w = rgb.shape[0] // CELL, rgb.shape[1] // CELL
    pixels = rgb.reshape(h, CELL, w, CELL, 3).transpose(0, 2, 4, 1, 3).reshape(h, w, 3, CELL**2)
    rank = round((1 - _PALEST) * CELL**2)
    return np.partition(pixels, rank, axis=-1)[..., rank]


def _density(colours: np.ndarray) -> np.ndarray:
    """Optical density, float32[h, w, 3]."""
    return -np.log10(np.maximum(colours, 1) / 255, dtype=np.float32)


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
    return _grown(is_pen, _GROW_PEN_UM / cell_mpp) & where


def _folded(density: np.ndarray, least: np.ndarray, where: np.ndarray, cell_mpp: float) -> np.ndarray:
    """bool[h, w], what absorbs as two layers do; ``least`` is the density of the palest pixels."""
    if not where.any():
        return where
    least, mean = (ndimage.uniform_filter(plane, (3, 3, 1), mode="nearest") for plane in (least, density))
    in_all, in_red = least.sum(-1), least[..., 0]
    is_told = where & (in_all > _FAINT * np.quantile(in_all[where], 0.99))
    if not is_told.any():
        return is_told
    is_folded = where & (in_all > _FOLD_EVENNESS * mean.sum(-1))
    for plane, times in ((in_all, _FOLD_DENSITY), (in_red, _FOLD_RED)):
        is_folded &= plane > times * np.quantile(plane[is_told], _USUAL)
    return _grown(_large(is_folded, _MIN_FOLD_UM2 / cell_mpp**2), _GROW_FOLD_UM / cell_mpp) & where


def _grown(mask: np.ndarray, by_cells: float) -> np.ndarray:
    return ndimage.maximum_filter(mask, size=2 * max(1, round(by_cells)) + 1)


def _large(mask: np.ndarray, min_cells: float) -> np.ndarray:
    """Connected parts of ``mask`` of at least so many cells."""
    labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
    if n == 0:
        return mask
    is_kept = np.bincount(labels.ravel()) >= min_cells
    is_kept[0] = False
    return is_kept[labels]
