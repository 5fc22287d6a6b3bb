r"""Outlines become pixels.

Coordinates are continuous: pixel (row i, column j) covers x in [j, j + 1] and y in [i, i + 1], as in ImageScope,
QuPath and ``nucleipan.polygons``. A pixel belongs to an outline when its centre lies inside::

    +---+---+---+        no rounding of vertices, no fattened rim: of two outlines that share an edge
    | .\|  .| . |        each pixel along it belongs to exactly one, and an outline that ``polygons``
    +---\---+---+        traced comes back as the same pixels. (Neither is true of Pillow's polygons;
    | . |\. | . |        scikit-image's are the same for one ring, but slow for large ones.)
    +---+---+---+

Where outlines overlap, the smaller lies on top, of equal ones the later: a nucleus drawn inside a larger one and a
nest of tumour in a field of stroma are both meant to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nucleipan.errors import DataError
from nucleipan.geometry import Box

_MAX_COORDINATE = 2.0**31
_MAX_CODES = 255
# How often outlines may cover all pixels, and how often their edges, and those of one, may cross rows of pixels.
_MAX_COVERS = 64
_MAX_CROSSINGS, _MAX_CROSSINGS_OF_ONE = 2**26, 2**23


@dataclass(frozen=True, eq=False)
class Outline:
    """A nucleus or a piece of tissue.

    Attributes:
        rings: float64[n, 2] each, x and y of the vertices; closed or not. A point is inside where it lies in an odd
            number of them: parts and holes need no order.
        code: what the annotator called it.
    """

    rings: tuple[np.ndarray, ...]
    code: str | None = None

    @cached_property
    def box(self) -> Box:
        """The smallest box of whole pixels around it."""
        x, y = np.concatenate(self.rings).T
        return Box(math.floor(y.min()), math.floor(x.min()), math.ceil(y.max()), math.ceil(x.max()))

    def is_near(self, box: Box) -> bool:
        """Whether it may reach into ``box``."""
        own = self.box
        return own.y0 <= box.y1 and own.y1 >= box.y0 and own.x0 <= box.x1 and own.x1 >= box.x0

    @cached_property
    def extent(self) -> float:
        """Sum of the areas of its rings, which orders outlines by size."""
        return sum(_area(ring) for ring in self.rings)


def checked_ring(path: Path, vertices: Any) -> np.ndarray:
    """float64[n, 2] of a list of (x, y, ...).

    Raises:
        DataError: that is not what it is, or a coordinate is no finite number below 2**31.
    """
    try:
        ring = np.asarray(vertices)
    except ValueError:  # ragged
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] < 2 or len(ring) == 0 or ring.dtype.kind not in "iuf":
        raise DataError(f"{path}: expected vertices as lists of two numbers; found {str(vertices)[:80]}")
    ring = ring[:, :2].astype(np.float64)
    if not (np.abs(ring) < _MAX_COORDINATE).all():  # False for NaN
        raise DataError(f"{path}: a vertex lies outside any image; found {str(vertices)[:80]}")
    return ring


def draw_ids(outlines: Sequence[Outline], path: Path, box: Box) -> tuple[np.ndarray, dict[int, str]]:
    """int32[h, w], ids of the pixels of ``box``, and the codes of those that have one.

    Ids count the outlines from 1 in their order; those outside ``box`` or hidden by smaller ones do not occur. One
    too thin to hold the centre of a pixel becomes the pixel in its middle.

    Raises:
        DataError: the outlines cover each other so often that drawing them would take minutes.
    """
    check_effort(outlines, path, box)
    ids = np.zeros(box.shape, np.int32)
    for i in _largest_first(outlines):
        part = outlines[i].box.clipped(box)
        inside = fill(outlines[i], part)
        if inside.any():
            ids[part.slices(box)][inside] = i + 1
        else:
            _draw_middle(ids, outlines[i], box, i + 1)
    present = np.unique(ids)
    return ids, {i: code for i in present.tolist() if i and (code := outlines[i - 1].code) is not None}


def draw_regions(outlines: Sequence[Outline], path: Path, box: Box) -> tuple[np.ndarray, tuple[str | None, ...]]:
    """uint8[h, w], region of the pixels of ``box``, and the codes of the regions; 0 and no code outside all outlines
    and inside those without one.

    Raises:
        DataError: there are more than 255 codes, or the outlines are as for ``draw_ids``.
    """
    check_effort(outlines, path, box)
    codes = sorted({o.code for o in outlines if o.code is not None})
    if len(codes) > _MAX_CODES:
        raise DataError(f"{path}: names {len(codes)} kinds of tissue; expected at most {_MAX_CODES}")
    regions = np.zeros(box.shape, np.uint8)
    for i in _largest_first(outlines):
        part = outlines[i].box.clipped(box)
        code = outlines[i].code
        regions[part.slices(box)][fill(outlines[i], part)] = 0 if code is None else 1 + codes.index(code)
    return regions, (None, *codes)


def check_effort(outlines: Sequence[Outline], path: Path, box: Box) -> None:
    """Refuse outlines that would take minutes or gigabytes to draw: a few bytes can ask for all pixels of an image, or
    for cuts through all of its rows.

    Raises:
        DataError: they cover the pixels of ``box``, or cross its rows, too often.
    """
    n_pixels = sum(o.box.clipped(box).area for o in outlines)
    crossings = [sum(_n_crossings(ring, box) for ring in o.rings) for o in outlines]
    is_too_much = sum(crossings) > _MAX_CROSSINGS or max(crossings, default=0) > _MAX_CROSSINGS_OF_ONE
    if is_too_much or n_pixels > _MAX_COVERS * (box.area + len(outlines)):
        raise DataError(
            f"{path}: {len(outlines)} outlines cover {n_pixels:,} pixels, of {box.area:,}, and cross rows "
            f"{sum(crossings):,} times; expected at most {_MAX_COVERS} covers and {_MAX_CROSSINGS:,} crossings"
        )


def fill(outline: Outline, box: Box) -> np.ndarray:
    """bool[h, w], which pixels of ``box`` have their centre inside.

    Every row's centre line is cut by the edges; passing a cut from left to right toggles inside and outside.
    """
    start = np.concatenate(outline.rings)
    stop = np.concatenate([np.roll(ring, -1, axis=0) for ring in outline.rings])
    # From top to bottom, so that outlines that share an edge agree on where it cuts to the last bit.
    goes_down = (start[:, 1] <= stop[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(goes_down, start, stop).T, np.where(goes_down, stop, start).T
    first, last = (np.clip(np.ceil(y - 0.5), box.y0, box.y1).astype(np.int64) for y in (y0, y1))
    n_rows = last - first
    edge = np.repeat(np.arange(len(n_rows)), n_rows)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    x = x0[edge] + (row + 0.5 - y0[edge]) / (y1[edge] - y0[edge]) * (x1[edge] - x0[edge])
    column = np.clip(np.ceil(x - 0.5), box.x0, box.x1).astype(np.int64)
    toggles = np.zeros((box.height, box.width + 1), bool)
    np.logical_xor.at(toggles, (row - box.y0, column - box.x0), True)
    return np.logical_xor.accumulate(toggles, axis=1)[:, :-1]


def _n_crossings(ring: np.ndarray, box: Box) -> int:
    y = np.clip(ring[:, 1], box.y0, box.y1)
    return int(np.abs(y - np.roll(y, -1)).sum())


def _largest_first(outlines: Sequence[Outline]) -> list[int]:
    return sorted(range(len(outlines)), key=lambda i: -outlines[i].extent)


def _draw_middle(ids: np.ndarray, outline: Outline, box: Box, i: int) -> None:
    x, y = outline.rings[0].mean(axis=0)
    pixel = Box(math.floor(y), math.floor(x), math.floor(y) + 1, math.floor(x) + 1)
    if box.contains(pixel):
        ids[pixel.slices(box)] = i


def _area(ring: np.ndarray) -> float:
    """By the shoelace formula, about the first vertex to keep the products small."""
    x, y = (ring - ring[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
