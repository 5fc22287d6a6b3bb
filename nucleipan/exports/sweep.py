"""Outlines of all regions of a class plane that is too large for memory.

A sweep over the rows of the plane looks at the four pixels around every corner of the grid. Where an outline turns, the
corner is linked to the next one on its ring; rings close across any number of bands, and memory holds one band and the
corners of all outlines, 20 bytes each::

    a | b      a != b: an outline of a's region runs down to the corner. It goes on to the right if a != c,
    --+--      straight on if a == c != d, to the left if a == c == d. The same for b, d and c, turned.
    c | d

Two outlines that bound the same run of pixels in a row bound the same region: a forest over the corners (union-find)
gathers the holes of each.

As in ``nucleipan.polygons``, outlines join the middles of pixel edges. Pixels that touch at a corner, however, do not
belong together (4-connected), since two regions cannot both pass between two others. So rings never touch or cross
themselves or each other: every polygon is valid, and those of different regions share borders but no area. A region of
n pixels with h holes has an area of n - 1/2 + h/2 pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numba
import numpy as np
import shapely

_DOWN, _WEST, _UP, _EAST = range(4)
_X, _Y, _NEXT, _PARENT, _CLASS = range(5)


def trace_regions(bands: Iterable[np.ndarray], min_area: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Regions of a plane that arrives in bands of rows, in raster order of their first pixels.

    Args:
        bands: uint8[h, w] one below the other, w the same for all; 0 belongs to no region.
        min_area: in pixels; smaller regions are left out, smaller holes filled.

    Returns:
        uint8[n], class of each region, and object[n] of ``shapely.Polygon`` in pixels, x first.
    """
    sweep: _Sweep | None = None
    for band in bands:
        sweep = sweep or _Sweep(band.shape[1])
        sweep.add(band)
    if sweep is None:
        return np.empty(0, np.uint8), np.empty(0, object)
    sweep.add(np.zeros((1, len(sweep.above) - 2), np.uint8))
    if sweep.n == 0:
        return np.empty(0, np.uint8), np.empty(0, object)
    rings = _close(sweep.corners[: sweep.n])
    roots, polygons = _polygons(*rings, min_area)
    return sweep.corners[roots, _CLASS].astype(np.uint8), polygons


class _Sweep:
    """Where a sweep has got to.

    Attributes:
        corners: int32[m, 5], of which ``n`` are used: x, y, index of the next one on its ring, parent in the forest
            of regions, class.
        above: uint8[w + 2], the last row with a margin of 0.
        links: int32[2, w + 1], per column the corner that the open outlines down and up this column come from and go
            to.
        y: rows seen.
    """

    def __init__(self, width: int) -> None:
        self.corners, self.n = np.empty((4096, 5), np.int32), 0
        self.above = np.zeros(width + 2, np.uint8)
        self.links = np.full((2, width + 1), -1, np.int32)
        self.y = 0

    def add(self, band: np.ndarray) -> None:
        padded = np.pad(band, ((0, 0), (1, 1)))
        self.corners, self.n = _sweep_rows(padded, self.above, self.links, self.corners, self.n, self.y)
        self.above = padded[-1].copy()
        self.y += len(band)


@numba.njit(cache=True, nogil=True)
def _sweep_rows(
    band: np.ndarray, above: np.ndarray, links: np.ndarray, corners: np.ndarray, n: int, y: int
) -> tuple[np.ndarray, int]:
    """Link the corners on top of each row of ``band``, then join the two outlines beside each of its runs."""
    width = band.shape[1] - 2
    for row in band:
        if n + 4 * (width + 1) > len(corners):
            grown = np.empty((2 * len(corners) + 4 * (width + 1), 5), np.int32)
            grown[:n] = corners[:n]  # the rest takes no memory until it is used
            corners = grown
        n = _link_corners(above, row, links, corners, n, y)
        start = 1
        for x in range(1, width + 1):
            if row[x + 1] != row[x]:
                if row[x]:
                    _join(corners, links[1, start - 1], links[0, x])
                start = x + 1
        above = row
        y += 1
    return corners, n


@numba.njit(cache=True, nogil=True)
def _link_corners(above: np.ndarray, row: np.ndarray, links: np.ndarray, corners: np.ndarray, n: int, y: int) -> int:
    """Add the turns at the corners between two rows.

    Outlines have their region on the right. ``old`` and ``new`` hold a corner for each heading, of the edges on this
    side of the sweep and beyond: where an outline runs down or east, the corner it comes from; where it runs up or
    west, against the sweep, the one it goes to.
    """
    old, new, around = np.empty(4, np.int32), np.full(4, -1, np.int32), np.empty(4, np.uint8)
    for x in range(len(above) - 1):
        around[0], around[1], around[2], around[3] = above[x], above[x + 1], row[x + 1], row[x]  # a, b, d, c
        if around[0] == around[1] and around[1] == around[2] and around[2] == around[3]:
            continue
        old[_DOWN], old[_WEST], old[_UP], old[_EAST] = links[0, x], new[_WEST], links[1, x], new[_EAST]
        new[:] = old
        for heading in range(4):
            own, left = around[heading], around[(heading + 1) % 4]
            ahead_left, ahead_right = around[(heading + 2) % 4], around[(heading + 3) % 4]
            if own == 0 or own == left or (own == ahead_right and own != ahead_left):
                continue
            out = (heading + 1) % 4 if own != ahead_right else (heading + 3) % 4
            corners[n, _X], corners[n, _Y], corners[n, _PARENT], corners[n, _CLASS] = x, y, n, own
            if heading in (_DOWN, _EAST):
                corners[old[heading], _NEXT] = n
            else:
                new[heading] = n
            if out in (_DOWN, _EAST):
                new[out] = n
            else:
                corners[n, _NEXT] = old[out]
            n += 1
        links[0, x], links[1, x] = new[_DOWN], new[_UP]
    return n


@numba.njit(cache=True, nogil=True)
def _join(corners: np.ndarray, i: int, j: int) -> None:
    i, j = _root(corners, i), _root(corners, j)
    corners[max(i, j), _PARENT] = min(i, j)


@numba.njit(cache=True, nogil=True)
def _root(corners: np.ndarray, i: int) -> int:
    """The first corner of the region of corner ``i``, which is the first of its exterior."""
    while corners[i, _PARENT] != i:
        corners[i, _PARENT] = corners[corners[i, _PARENT], _PARENT]
        i = corners[i, _PARENT]
    return i


@numba.njit(cache=True, nogil=True)
def _close(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rings in the order of their first corners: points int32[P, 2] (x, y in half pixels), ring ends, areas in pixels
    (negative for holes), roots of their regions."""
    n = len(corners)
    points, n_points = np.empty((2 * n + n // 4, 2), np.int32), 0
    ends, areas, firsts = np.empty(n // 4, np.int64), np.empty(n // 4), np.empty(n // 4, np.int64)
    n_rings = 0
    is_closed = np.zeros(n, np.bool_)
    for first in range(n):
        if is_closed[first]:
            continue
        i, start = first, n_points
        while not is_closed[i]:
            is_closed[i] = True
            j = corners[i, _NEXT]
            _join(corners, i, j)
            step_x, step_y = np.sign(corners[j, _X] - corners[i, _X]), np.sign(corners[j, _Y] - corners[i, _Y])
            points[n_points] = 2 * corners[i, _X] + step_x, 2 * corners[i, _Y] + step_y
            points[n_points + 1] = 2 * corners[j, _X] - step_x, 2 * corners[j, _Y] - step_y
            n_points += 2
            i = j
        n_points = start + _without_collinear(points[start:n_points])
        points[n_points] = points[start]
        n_points += 1
        ends[n_rings], areas[n_rings], firsts[n_rings] = n_points, _area(points[start:n_points]), first
        n_rings += 1
    for k in range(n_rings):
        firsts[k] = _root(corners, firsts[k])
    return points[:n_points], ends[:n_rings], areas[:n_rings], firsts[:n_rings]


@numba.njit(cache=True, nogil=True)
def _without_collinear(ring: np.ndarray) -> int:
    """Move the corners of an open ring to its front; returns how many there are."""
    n = 0
    before_x, before_y = np.int64(ring[-1, 0]), np.int64(ring[-1, 1])
    first_x, first_y = ring[0, 0], ring[0, 1]
    for k in range(len(ring)):
        x, y = np.int64(ring[k, 0]), np.int64(ring[k, 1])
        after_x, after_y = (ring[k + 1, 0], ring[k + 1, 1]) if k + 1 < len(ring) else (first_x, first_y)
        if (x, y) == (after_x, after_y):  # both ends of an edge of one pixel
            continue
        if (x - before_x) * (after_y - y) != (y - before_y) * (after_x - x):
            ring[n, 0], ring[n, 1] = x, y
            n += 1
        before_x, before_y = x, y
    return n


@numba.njit(cache=True, nogil=True)
def _area(ring: np.ndarray) -> float:
    """In pixels, of a ring in half pixels; exact, as integers below 2**53 are."""
    area = 0
    for k in range(len(ring) - 1):
        area += np.int64(ring[k, 0]) * ring[k + 1, 1] - np.int64(ring[k + 1, 0]) * ring[k, 1]
    return area / 8


def _polygons(
    points: np.ndarray, ends: np.ndarray, areas: np.ndarray, roots: np.ndarray, min_area: float
) -> tuple[np.ndarray, np.ndarray]:
    """Roots and polygons of the regions that are large enough, of what ``_close`` gives."""
    of_region = np.argsort(roots, kind="stable")  # the exterior is the first ring of its region
    of_region = of_region[(areas[of_region] > 0) | (-areas[of_region] >= min_area)]
    roots, firsts, n_rings = np.unique(roots[of_region], return_index=True, return_counts=True)
    is_large = np.add.reduceat(areas[of_region], firsts) >= min_area
    of_region = of_region[np.repeat(is_large, n_rings)]
    lengths = np.diff(ends, prepend=0)
    n_points = lengths[of_region]
    ring_ends = np.cumsum(n_points)
    index = np.arange(n_points.sum()) + np.repeat(ends[of_region] - ring_ends, n_points)
    offsets = tuple(np.concatenate([[0], np.cumsum(n)]) for n in (n_points, n_rings[is_large]))
    return roots[is_large], shapely.from_ragged_array(shapely.GeometryType.POLYGON, points[index] / 2, offsets)
