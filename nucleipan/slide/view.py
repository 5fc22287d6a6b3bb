"""A slide in one pixel grid.

Models work at one pixel size, slides come at any. ``at_mpp`` picks the pyramid level to start from and fixes how
its pixels become the view's, in one of three ways::

    level pixels per view pixel is within 5 % of      |  each view pixel is
    an integer f                                      |  the mean of f x f level pixels (f = 1: the pixel itself)
    no integer, above 1                               |  the mean of the area it covers, by area
    no integer, below 1 (the slide is too coarse)     |  interpolated bilinearly; ``is_upsampled``

The guarantee: a pixel's value depends on its position in the view alone, never on the box it was read with. All
weights are integers derived from absolute positions and all sums are exact, so this holds to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nucleipan.errors import MissingPixelSizeError, RegionError, SlideError
from nucleipan.geometry import Box
from nucleipan.slide._types import Slide

_TOLERANCE = 0.05
_MAX_UPSAMPLING = 4.2
_MIN_MPP, _MAX_MPP = 0.01, 100.0
_MAX_MM = 500
# Fractional positions are counted in 1/256 of a level pixel. Sums of weighted pixels then fit in uint32: scales
# that are no integer within 5 % lie below 10, and 255 * (256 * 10) ** 2 < 2 ** 32.
_STEPS = 256
_MAX_SOURCE_PIXELS = 1 << 24
"""Level pixels read at once; larger boxes are read in strips."""


def at_mpp(slide: Slide, mpp: float, slide_mpp: float | None = None) -> SlideView:
    """``slide`` in a grid of ``mpp`` micrometres per pixel.

    The coarsest level that is not coarser than ``mpp`` (by more than 5 %) is the source. ``slide_mpp`` is the pixel
    size of level 0 and overrules the slide's own.

    Raises:
        MissingPixelSizeError: the slide carries no pixel size and none is given.
        SlideError: a pixel size is not a number from 0.01 to 100, the slide is more than 4.2 times too coarse,
            or longer than half a metre.
    """
    base = slide.mpp if slide_mpp is None else slide_mpp
    if base is None:
        raise MissingPixelSizeError(
            f"{slide.path}: carries no usable pixel size; "
            "pass the micrometres per pixel of its full resolution with --mpp"
        )
    for value, what in ((mpp, "wanted"), (base, "slide's")):
        if not (math.isfinite(value) and _MIN_MPP <= value <= _MAX_MPP):
            raise SlideError(
                f"{slide.path}: the {what} pixel size is {value} um; expected {_MIN_MPP} to {_MAX_MPP}; check --mpp"
            )
    _check_extent(slide, base)
    level = max((i for i, lv in enumerate(slide.levels) if base * lv.downsample <= mpp * (1 + _TOLERANCE)), default=0)
    level_mpp = base * slide.levels[level].downsample
    scale = mpp / level_mpp
    if scale * _MAX_UPSAMPLING < 1:
        raise SlideError(
            f"{slide.path}: has {base:.4g} um per pixel, too coarse for {mpp:.4g}: nuclei would be invented; "
            f"scan at {mpp * _MAX_UPSAMPLING:.4g} um or finer, or check --mpp"
        )
    factor = max(1, round(scale))
    if abs(scale - factor) <= _TOLERANCE * factor:
        scale = float(factor)
    return SlideView(slide, level, scale, level_mpp * scale)


def _check_extent(slide: Slide, mpp: float) -> None:
    """Refuse a size in space that no glass slide has: work and memory grow with it."""
    height_mm, width_mm = (side * mpp / 1000 for side in slide.levels[0].shape)
    if max(height_mm, width_mm) > _MAX_MM:
        raise SlideError(
            f"{slide.path}: would be {height_mm:,.0f} x {width_mm:,.0f} mm large with {mpp:.4g} um per pixel; "
            f"expected at most {_MAX_MM} mm; check --mpp, or the file is damaged"
        )


@dataclass(frozen=True)
class SlideView:
    """A slide in one pixel grid; made by ``at_mpp``. Does not own the slide: close that.

    Attributes:
        slide: where the pixels come from.
        level: the level they are read from.
        scale: level pixels per view pixel and axis; below 1 where the slide is upsampled.
        mpp: micrometres per view pixel: within 5 % of what was asked for, so that pixels can be used as they are.
    """

    slide: Slide
    level: int
    scale: float
    mpp: float

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), rounded: a last row or column exists where it covers at least half a pixel, and is then
        the mean of what exists."""
        h, w = self.slide.levels[self.level].shape
        return max(1, math.floor(h / self.scale + 0.5)), max(1, math.floor(w / self.scale + 0.5))

    @property
    def level0_per_pixel(self) -> float:
        """Level-0 pixels per view pixel and axis: multiply view coordinates by this."""
        return self.slide.levels[self.level].downsample * self.scale

    @property
    def is_upsampled(self) -> bool:
        """Whether the slide is coarser than the view: detail is missing and results are worse."""
        return self.scale < 1

    def read(self, box: Box) -> np.ndarray:
        """uint8[h, w, 3], RGB of ``box``. May be called from several threads at once.

        Raises:
            RegionError: ``box`` is empty or not inside the view.
            SlideError: the slide is damaged there.
        """
        whole = Box.of_shape(self.shape)
        if box.is_empty or not whole.contains(box):
            raise RegionError(f"{self.slide.path}: {box} is not a part of the view, which spans {whole}")
        if self.scale == 1:
            return self.slide.read(self.level, box)
        width = max(1.0, box.width * self.scale)
        rows = max(1, int(_MAX_SOURCE_PIXELS / width / max(1.0, self.scale)))
        if rows >= box.height:
            return self._resampled(box)
        out = np.empty((*box.shape, 3), np.uint8)
        for y in range(box.y0, box.y1, rows):
            part = Box(y, box.x0, min(y + rows, box.y1), box.x1)
            out[part.slices(box)] = self._resampled(part)
        return out

    def _resampled(self, box: Box) -> np.ndarray:
        h, w = self.slide.levels[self.level].shape
        if self.scale > 1 and self.scale.is_integer():
            f = int(self.scale)
            source = Box(box.y0 * f, box.x0 * f, min(box.y1 * f, h), min(box.x1 * f, w))
            from nucleipan.slide._box_mean import box_mean

            return box_mean(np.ascontiguousarray(self.slide.read(self.level, source)), f)
        taps = _area_taps if self.scale > 1 else _bilinear_taps
        rows, cols = taps(box.y0, box.y1, self.scale, h), taps(box.x0, box.x1, self.scale, w)
        source = Box(rows.start, cols.start, rows.stop, cols.stop)
        pixels = self.slide.read(self.level, source)
        summed = _weighted(_weighted(pixels, rows, axis=0), cols, axis=1)
        area = (rows.total[:, None] * cols.total[None, :])[..., None]
        return ((summed + area // 2) // area).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Taps:
    """Along one axis, the level pixels ``start + index`` and weights that make up every output pixel.

    ``index`` is int[K, n], ``weight`` uint32[K, n] and ``total`` its sum over K; pixels outside weigh nothing.
    """

    start: int
    stop: int
    index: np.ndarray
    weight: np.ndarray
    total: np.ndarray


def _make_taps(index: np.ndarray, weight: np.ndarray, size: int) -> _Taps:
    index = np.clip(index, 0, size - 1)
    start, stop = int(index.min()), int(index.max()) + 1
    return _Taps(start, stop, index - start, weight.astype(np.uint32), weight.sum(0).astype(np.uint32))


def _area_taps(first: int, last: int, scale: float, size: int) -> _Taps:
    """Pixel i covers [i * scale, (i + 1) * scale), cut at the image's end."""
    edges = np.rint(np.arange(first, last + 1) * (scale * _STEPS)).astype(np.int64)
    edges = np.minimum(edges, size * _STEPS)
    lo, hi = edges[:-1], edges[1:]
    index = lo // _STEPS + np.arange(math.ceil(scale) + 1)[:, None]
    weight = np.minimum(hi, (index + 1) * _STEPS) - np.maximum(lo, index * _STEPS)
    return _make_taps(index, np.maximum(weight, 0), size)


def _bilinear_taps(first: int, last: int, scale: float, size: int) -> _Taps:
    """Pixel i lies at (i + 0.5) * scale - 0.5 between level pixels; the border pixels reach outwards."""
    at = np.rint(((np.arange(first, last) + 0.5) * scale - 0.5) * _STEPS).astype(np.int64)
    at = np.clip(at, 0, (size - 1) * _STEPS)
    low, fraction = at // _STEPS, at % _STEPS
    return _make_taps(np.stack([low, low + 1]), np.stack([_STEPS - fraction, fraction]), size)


def _weighted(pixels: np.ndarray, taps: _Taps, axis: int) -> np.ndarray:
    """uint32, sum over the taps along ``axis`` (0 or 1)."""
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    total: np.ndarray | None = None
    for index, weight in zip(taps.index, taps.weight, strict=True):
        term = np.take(pixels, index, axis=axis) * weight.reshape(shape)
        total = term if total is None else np.add(total, term, out=total)
    assert total is not None
    return total
