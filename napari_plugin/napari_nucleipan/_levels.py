"""Slides and label images as napari's pyramids.

napari shows the coarsest level that has a pixel for each pixel of the screen, converts the coarsest of all, whole, with
every redraw, for the list of layers, and takes a single level for no pyramid. So every image gets two levels or more, a
factor of two apart, down to a thumbnail. Slides have levels a factor of four or more apart, or only one; stores end
at a few hundred pixels or earlier. Levels that are not in the file are made of the next finer one, for the window only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from napari_nucleipan._chunks import ChunkCache, ChunkedLevel, LazyLevel
from nucleipan.geometry import Box
from nucleipan.slide import Slide, at_mpp
from nucleipan.store import PanopticStore

_THUMBNAIL_PX = 512
_UNREAD_RGB = np.uint8(128)
# Only ratios count here; the finest pixel size that there may be leaves the most for coarser levels.
_SLIDE_MPP = 0.01


def slide_levels(slide: Slide) -> list[LazyLevel]:
    """Levels of ``slide``, uint8[h, w, 3] each, finest first; the slide is closed when the last of them is gone.

    Levels that the file lacks are means.
    """
    cache = ChunkCache()
    levels: list[LazyLevel] = []
    while not is_pyramid([level.shape for level in levels]):
        view = at_mpp(slide, _SLIDE_MPP * 2 ** len(levels), _SLIDE_MPP)
        level = ChunkedLevel(len(levels), (*view.shape, 3), view.read, cache, _UNREAD_RGB)
        levels.append(LazyLevel(level))
    weakref.finalize(cache, slide.close)
    return levels


def label_levels(store: PanopticStore, read: Callable[[Box, int], np.ndarray], filler: Any) -> list[ChunkedLevel]:
    """Levels of the nuclei or of the class map, finest first.

    In levels that the store lacks, as in those it has, a pixel is the top left one of the four below it.

    Args:
        read: gives a box of a level of the store.
        filler: what pixels hold that cannot be read.
    """
    cache = ChunkCache()
    levels: list[ChunkedLevel] = []
    for index in range(store.n_levels):
        shape = store.array("nuclei", index).shape
        levels.append(ChunkedLevel(index, shape, partial(_of_store, read, index), cache, filler))
    while not is_pyramid([level.shape for level in levels]):
        finer = levels[-1]
        half = ((finer.shape[0] + 1) // 2, (finer.shape[1] + 1) // 2)
        levels.append(ChunkedLevel(len(levels), half, partial(_every_second, finer), cache, filler))
    return levels


def is_pyramid(shapes: list[tuple[int, ...]]) -> bool:
    """Whether levels of these shapes, finest first, are what napari needs."""
    return len(shapes) > 1 and max(shapes[-1]) <= _THUMBNAIL_PX


def _of_store(read: Callable[[Box, int], np.ndarray], index: int, box: Box) -> np.ndarray:
    return read(box, index)


def _every_second(finer: ChunkedLevel, box: Box) -> np.ndarray:
    whole = Box.of_shape((finer.shape[0], finer.shape[1]))
    return finer.region(Box(2 * box.y0, 2 * box.x0, 2 * box.y1, 2 * box.x1).clipped(whole))[::2, ::2]
