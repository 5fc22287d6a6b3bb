"""Outlines of label masks as valid polygons that differ from their masks by less than a twentieth.

The boundary between a mask and its surroundings is a chain of pixel edges. Joining the middles of consecutive
edges gives the contour at half height that marching squares would give (Lorensen and Cline 1987), without
interpolation: rings never touch or cross themselves or each other, so every polygon is valid by construction::

    .  .  .  .        corners cut by half a pixel: the area is that of the mask less 1/2,
    . /--\\ .         whatever its shape, plus 1/2 for each hole
    . \\--/ .

Each corner moves an eighth of a pixel to the other side. That smooths a large mask, and is much of a small or ragged
one: where the IoU of polygon and mask, by area, would fall below 0.95, corners are cut by a quarter or an eighth of a
pixel instead. By pixel centres polygons hold exactly the mask, whatever the cut.

Pixels that touch at a corner belong together (8-connected). Of a mask in several pieces the largest is traced; what
it encloses without containing becomes an interior ring. In the polygons pixel (row i, column j) covers
x in [j, j + 1] and y in [i, i + 1]: its centre is (j + 0.5, i + 0.5), x first.
"""

from __future__ import annotations

import numba
import numpy as np
import shapely
from scipy import ndimage

_LEAST_IOU = 0.95
_STEP_Y, _STEP_X = (0, 1, 0, -1), (1, 0, -1, 0)  # east, south, west, north


def trace(mask: np.ndarray, origin: tuple[int, int] = (0, 0), scale: float = 1.0) -> shapely.Polygon:
    """Outline of the largest piece of ``mask`` (bool[h, w]); ``origin`` and ``scale`` as for ``trace_labels``.

    Raises:
        ValueError: the mask is empty.
    """
    plane = (np.asarray(mask) != 0).astype(np.int32)
    if plane.ndim != 2 or not plane.any():
        raise ValueError(f"a mask to trace needs two axes and at least one pixel; found shape {plane.shape}")
    return trace_labels(plane, np.array([[0, 0, *plane.shape]], np.int32), origin, scale)[0]


def trace_labels(
    labels: np.ndarray, bboxes: np.ndarray, origin: tuple[int, int] | np.ndarray = (0, 0), scale: float = 1.0
) -> np.ndarray:
    """Outlines of all instances of a label plane.

    Args:
        labels: int32[h, w], instances 1..n, each with at least one pixel.
        bboxes: int32[n, 4], half-open y0, x0, y1, x1 of instance ``i + 1`` in the plane.
        origin: row and column of the plane's first pixel in the grid the polygons are wanted in; int[n, 2] where
            each instance has its own.
        scale: factor on all coordinates, after the origin.

    Returns:
        object[n] of ``shapely.Polygon``.
    """
    if len(bboxes) == 0:
        return np.empty(0, object)
    points, ring_ends, n_rings, n_outers = _trace_all(labels, bboxes)
    starts = np.concatenate([[0], ring_ends])
    of_instance = np.concatenate([[0], np.cumsum(n_rings)])
    origins = np.broadcast_to(origin, (len(bboxes), 2))
    coordinates = (points * 0.125 + np.repeat(origins[:, ::-1], np.diff(starts[of_instance]), axis=0)) * scale
    polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, coordinates, (starts, of_instance))
    for i in np.flatnonzero(n_outers > 1):  # rare: an instance in pieces
        polygons[i] = _trace_largest(labels, bboxes[i], int(i) + 1, (int(origins[i, 0]), int(origins[i, 1])), scale)
    return polygons


def _trace_largest(
    labels: np.ndarray, bbox: np.ndarray, label: int, origin: tuple[int, int], scale: float
) -> shapely.Polygon:
    y0, x0, y1, x1 = (int(v) for v in bbox)
    pieces, _ = ndimage.label(labels[y0:y1, x0:x1] == label, np.ones((3, 3)))
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return trace(pieces == largest, (origin[0] + y0, origin[1] + x0), scale)


@numba.njit(cache=True, nogil=True)
def _trace_all(labels: np.ndarray, bboxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Closed rings: points int32[P, 2] (x, y in eighths of pixels), ring ends, numbers of rings and of outer rings."""
    n = len(bboxes)
    points, n_points = np.empty((64 * n + 64, 2), np.int32), 0
    ring_ends, n_ends = np.empty(2 * n + 16, np.int64), 0
    n_rings, n_outers = np.zeros(n, np.int64), np.zeros(n, np.int64)
    turns, ends = np.empty((256, 4), np.int32), np.empty(16, np.int64)
    for i in range(n):
        turns, ends, n_rings[i], n_px = _follow_all(labels, bboxes[i], i + 1, turns, ends)
        n_turns = ends[n_rings[i] - 1]
        cut = _widest_cut(turns[:n_turns], n_px)
        while n_points + 2 * n_turns + n_rings[i] > len(points):
            points = np.concatenate((points, np.empty_like(points)))
        while n_ends + n_rings[i] > len(ring_ends):
            ring_ends = np.concatenate((ring_ends, np.empty_like(ring_ends)))
        first = 0
        for ring in range(n_rings[i]):
            n_kept = _cut_corners(turns[first : ends[ring]], cut, points[n_points:])
            n_outers[i] += _twice_area(points, n_points, n_kept) > 0
            n_points += n_kept
            ring_ends[n_ends] = n_points
            n_ends += 1
            first = ends[ring]
    return points[:n_points], ring_ends[:n_ends], n_rings, n_outers


@numba.njit(cache=True, nogil=True)
def _follow_all(labels, bbox, label, turns, ends):
    """All rings of an instance: their turns (see ``_follow``), where each ends in them, how many; and its pixels."""
    y0, x0, y1, x1 = bbox[0], bbox[1], bbox[2], bbox[3]
    is_traced = np.zeros((y1 - y0, x1 - x0), np.bool_)
    n_turns, n_rings, n_px = 0, 0, 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            if labels[y, x] != label:
                continue
            n_px += 1
            if is_traced[y - y0, x - x0] or (y > y0 and labels[y - 1, x] == label):
                continue
            turns, n_turns = _follow(labels, bbox, label, (y, x), is_traced, turns, n_turns)
            if n_rings == len(ends):
                ends = np.concatenate((ends, np.empty_like(ends)))
            ends[n_rings] = n_turns
            n_rings += 1
    return turns, ends, n_rings, n_px


@numba.njit(cache=True, nogil=True)
def _follow(labels, bbox, label, start, is_traced, turns, n_turns):
    """Walk along pixel edges with the mask to the right, from the top edge of pixel ``start`` eastwards, until back.

    Appends the corners at which the walk turns, rows x, y, heading before, heading after; headings count clockwise
    from east. Returns the turns, which may have been moved for more room, and how many they are.
    """
    y0, x0, y1, x1 = bbox[0], bbox[1], bbox[2], bbox[3]
    # The pixels ahead of a corner, seen in each direction: on the left and on the right.
    left_y, left_x = (-1, 0, 0, -1), (0, 0, -1, -1)
    right_y, right_x = (0, 0, -1, -1), (0, -1, -1, 0)
    cy, cx, heading = start[0], start[1], 0
    while True:
        if heading == 0:
            if is_traced[cy - y0, cx - x0]:
                return turns, n_turns
            is_traced[cy - y0, cx - x0] = True
        cy += _STEP_Y[heading]
        cx += _STEP_X[heading]
        ly, lx = cy + left_y[heading], cx + left_x[heading]
        ry, rx = cy + right_y[heading], cx + right_x[heading]
        after = heading
        if y0 <= ly < y1 and x0 <= lx < x1 and labels[ly, lx] == label:
            after = (heading + 3) % 4
        elif not (y0 <= ry < y1 and x0 <= rx < x1 and labels[ry, rx] == label):
            after = (heading + 1) % 4
        if after != heading:
            if n_turns == len(turns):
                turns = np.concatenate((turns, np.empty_like(turns)))
            turns[n_turns, 0], turns[n_turns, 1] = cx, cy
            turns[n_turns, 2], turns[n_turns, 3] = heading, after
            n_turns += 1
        heading = after


@numba.njit(cache=True, nogil=True)
def _widest_cut(turns, n_px):
    """How far from a corner its edges are joined, in eighths of a pixel: as far as ``_LEAST_IOU`` permits."""
    n_right = 0
    for k in range(len(turns)):
        n_right += (turns[k, 3] - turns[k, 2]) % 4 == 1
    for cut in (4, 2):
        triangle = (cut / 8) ** 2 / 2  # lost at a corner of the mask, won at one of its surroundings
        if n_px - n_right * triangle >= _LEAST_IOU * (n_px + (len(turns) - n_right) * triangle):
            return cut
    return 1


@numba.njit(cache=True, nogil=True)
def _cut_corners(turns, cut, points):
    """Write a closed ring to ``points``, without those on the line between their neighbours; returns how many."""
    n = 0
    for k in range(len(turns)):
        x, y, before, after = turns[k]
        n = _append(points, n, 8 * x - cut * _STEP_X[before], 8 * y - cut * _STEP_Y[before])
        n = _append(points, n, 8 * x + cut * _STEP_X[after], 8 * y + cut * _STEP_Y[after])
    if n > 1 and points[n - 1, 0] == points[0, 0] and points[n - 1, 1] == points[0, 1]:
        n -= 1
    first = 0
    while _is_between(points[n - 1], points[first], points[first + 1]):
        first += 1
    while _is_between(points[n - 2], points[n - 1], points[first]):
        n -= 1
    for k in range(first, n):
        points[k - first] = points[k]
    n -= first
    points[n] = points[0]
    return n + 1


@numba.njit(cache=True, nogil=True)
def _append(points, n, x, y):
    """Add a point unless it is there already; the last one goes if it lies between. Returns how many there are."""
    if n and points[n - 1, 0] == x and points[n - 1, 1] == y:
        return n
    points[n, 0], points[n, 1] = x, y
    if n > 1 and _is_between(points[n - 2], points[n - 1], points[n]):
        points[n - 1] = points[n]
        return n
    return n + 1


@numba.njit(cache=True, nogil=True)
def _is_between(a, b, c):
    """Whether the way over ``b`` from ``a`` to ``c`` is straight. No ring turns back on itself."""
    return (b[0] - a[0]) * (c[1] - b[1]) == (b[1] - a[1]) * (c[0] - b[0])


@numba.njit(cache=True, nogil=True)
def _twice_area(points: np.ndarray, start: int, n: int) -> int:
    """Signed; positive when the mask lies inside the ring, negative for the rim of a hole."""
    area = 0
    for k in range(start, start + n - 1):
        area += np.int64(points[k, 0]) * points[k + 1, 1] - np.int64(points[k + 1, 0]) * points[k, 1]
    return area
