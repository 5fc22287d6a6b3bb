"""A slide as napari's multiscale image.

Slides have levels a factor of four or more apart, or only one. napari shows the coarsest level that has a pixel for
each pixel of the screen, so between far levels it would load sixteen times too many. Here every slide gets a pyramid
of factor two, down to a thumbnail, which napari keeps in memory: levels that the file lacks are averages of the next
finer one that it has, made for the window only.
"""

from __future__ import annotations

import weakref

import numpy as np

from napari_nucleipan._chunks import THUMBNAIL_PX, ChunkCache, LazyLevel
from nucleipan.slide import Slide, at_mpp

_COARSEST_MPP = 100.0
# Only ratios count where a slide has no pixel size.
_NOMINAL_MPP = 0.1


def slide_levels(slide: Slide) -> list[LazyLevel]:
    """Levels of ``slide``, uint8[h, w, 3] each, finest first; the slide is closed when the last of them is gone."""
    cache = ChunkCache()
    mpp = slide.mpp or _NOMINAL_MPP
    levels: list[LazyLevel] = []
    # At least two: napari takes a single one for no pyramid.
    while len(levels) < 2 or (max(levels[-1].shape) > THUMBNAIL_PX and mpp * 2 ** len(levels) <= _COARSEST_MPP):
        view = at_mpp(slide, mpp * 2 ** len(levels), mpp)
        levels.append(LazyLevel(len(levels), (*view.shape, 3), view.read, cache, np.uint8(128)))
    weakref.finalize(cache, slide.close)
    return levels
