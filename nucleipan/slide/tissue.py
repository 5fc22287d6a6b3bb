"""Where on a slide there is tissue.

Half of a typical slide is glass, and segmenting it is wasted time. At a few micrometres per pixel tissue differs from
glass in that it absorbs light in at least one channel: the optical density of the darkest channel sees both dark
nuclei and pale eosin. Missing tissue costs nuclei, keeping glass costs only time, so the threshold is low, just above
the noise of glass: the walls of fat cells, thinner than a pixel of the mask, absorb little more. (Otsu's threshold,
between dense tissue and the rest, lost four fifths of a field of fat.) The density is smoothed first and the mask grown
by 50 um.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nucleipan.errors import SlideError
from nucleipan.geometry import Box
from nucleipan.slide.view import SlideView, at_mpp

_GROW_UM = 50.0
_MIN_DENSITY = 0.015
_BLOCK = 512
_MAX_MASK_PIXELS = 2**26
_MAX_MASK_MPP = 64.0
_MAX_READ_PIXELS = 2**37


@dataclass(frozen=True)
class TissueMask:
    """A low-resolution mask of a view.

    Attributes:
        mask: bool[h, w], True on tissue.
        scale: view pixels per mask pixel.
        mpp: micrometres per mask pixel.
        view_shape: (height, width) of the view.
    """

    mask: np.ndarray
    scale: float
    mpp: float
    view_shape: tuple[int, int]

    def any_in(self, box: Box) -> bool:
        """Whether ``box``, in pixels of the view, holds any tissue; what lies outside the view holds none."""
        box = box.clipped(Box.of_shape(self.view_shape))
        if box.is_empty:
            return False
        here = box.scaled(1 / self.scale)
        # The mask's size is rounded: its last row and column also stand for what lies beyond them.
        h, w = self.mask.shape
        return bool(self.mask[min(here.y0, h - 1) : here.y1, min(here.x0, w - 1) : here.x1].any())

    def cut(self, box: Box) -> np.ndarray:
        """bool[h, w], the mask over ``box`` at the view's resolution: each pixel takes what its centre lies in."""
        return nearest(self.mask, self.scale, box)

    @property
    def fraction(self) -> float:
        """Share of the view that is tissue."""
        return float(self.mask.mean())


def nearest(plane: np.ndarray, scale: float, box: Box) -> np.ndarray:
    """[h, w], ``plane`` over ``box`` of a grid with ``scale`` pixels per pixel of the plane."""
    rows, cols = (
        ((np.arange(start, stop) + 0.5) / scale).astype(int).clip(0, n - 1)
        for start, stop, n in zip((box.y0, box.x0), (box.y1, box.x1), plane.shape, strict=True)
    )
    return plane[np.ix_(rows, cols)]


def tissue_mask(view: SlideView, mpp: float = 8.0) -> TissueMask:
    """Find the tissue of ``view``, looking at about ``mpp`` micrometres per pixel (at the view's own if coarser).

    Reads the slide's coarse levels; where it has none, the fine one strip by strip, so memory is bounded by the size
    of the mask.

    Raises:
        SlideError: the slide is damaged, or far too large to be looked at without coarse levels.
    """
    # The mask of a large whole mount is coarser: its memory is bounded.
    n_pixels = view.shape[0] * view.shape[1] * (view.mpp / mpp) ** 2
    mpp *= max(1.0, math.sqrt(n_pixels / _MAX_MASK_PIXELS))
    low = at_mpp(view.slide, min(_MAX_MASK_MPP, max(mpp, view.mpp)), slide_mpp=view.mpp / view.level0_per_pixel)
    n_read = math.prod(view.slide.levels[low.level].shape)
    if n_read > _MAX_READ_PIXELS:
        raise SlideError(
            f"{view.slide.path}: has no coarse level; {n_read:,} pixels would have to be read to find the tissue, "
            f"expected at most {_MAX_READ_PIXELS:,}; convert it to a pyramidal TIFF"
        )
    density = _density(low)
    glass = ndimage.gaussian_filter(density, sigma=8.0 / low.mpp)
    radius = max(1, round(_GROW_UM / low.mpp))
    grown = ndimage.maximum_filter(glass > _MIN_DENSITY, size=2 * radius + 1)
    return TissueMask(grown, low.level0_per_pixel / view.level0_per_pixel, low.mpp, view.shape)


def _density(view: SlideView) -> np.ndarray:
    """float32[h, w], optical density of the channel that absorbs most, relative to the glass."""
    h, w = view.shape
    rgb = np.empty((h, w, 3), np.uint8)
    for y in range(0, h, _BLOCK):
        rgb[y : y + _BLOCK] = view.read(Box(y, 0, min(y + _BLOCK, h), w))
    out = np.zeros((h, w), np.float32)
    values = np.maximum(np.arange(256), 1)
    for channel in range(3):
        # Glass is bright in every slide; without any glass the brightest tissue must not be taken for it.
        white = np.clip(np.percentile(rgb[..., channel], 99), 225, 255)
        np.maximum(out, np.log10(white / values).astype(np.float32)[rgb[..., channel]], out=out)
    return out
