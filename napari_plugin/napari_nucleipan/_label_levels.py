"""A store's label images level by level, for napari."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from napari_nucleipan._chunks import THUMBNAIL_PX, ChunkCache, LazyLevel
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore


def label_levels(store: PanopticStore, read: Callable[[Box, int], np.ndarray], filler: Any) -> list[LazyLevel]:
    """Levels of the nuclei or of the class map, finest first: the store's, and coarser ones down to a thumbnail.

    There are at least two: napari takes a single one for no pyramid. It converts the coarsest, whole, with every
    redraw, for the list of layers: that has to be a small one.

    ``read`` gives a box of a level of the store, ``filler`` is what pixels hold that cannot be read.
    """
    cache = ChunkCache()
    shapes = [store.array("nuclei", level).shape for level in range(store.n_levels)]
    levels = [LazyLevel(level, shape, partial(_read, read, level), cache, filler) for level, shape in enumerate(shapes)]
    while len(levels) < 2 or max(levels[-1].shape) > THUMBNAIL_PX:
        height, width = levels[-1].shape
        half = ((height + 1) // 2, (width + 1) // 2)
        levels.append(LazyLevel(len(levels), half, partial(_every_second, levels[-1]), cache, filler))
    return levels


def _read(read: Callable[[Box, int], np.ndarray], level: int, box: Box) -> np.ndarray:
    return read(box, level)


def _every_second(level: LazyLevel, box: Box) -> np.ndarray:
    """As the store makes its own levels: a coarse pixel is its top-left fine one."""
    whole = Box.of_shape((level.shape[0], level.shape[1]))
    return level.region(Box(2 * box.y0, 2 * box.x0, 2 * box.y1, 2 * box.x1).clipped(whole))[::2, ::2]
