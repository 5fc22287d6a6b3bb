"""Outlines of label masks as valid polygons.

The boundary between a mask and its surroundings is a chain of pixel edges. Joining the middles of consecutive
edges gives the contour at half height that marching squares would give (Lorensen and Cline 1987), without
interpolation: rings never touch or cross themselves or each other, so every polygon is valid by construction::

    .  .  .  .        corners cut by half a pixel: the area is that of the mask less 1/2,
    . /--\\ .         whatever its shape, plus 1/2 for each hole
    . \\--/ .

Pixels that touch at a corner belong together (8-connected). Of a mask in several pieces the largest is traced; what
it encloses without containing becomes an interior ring. In the polygons pixel (row i, column j) covers
x in [j, j + 1] and y in [i, i + 1]: its centre is (j + 0.5, i + 0.5), x first.
"""

from __future__ import annotations

import numba
import numpy as np
import shapely
from scipy import ndimage


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
    coordinates = (points * 0.5 + np.repeat(origins[:, ::-1], np.diff(starts[of_instance]), axis=0)) * scale
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
    """Closed rings: points int32[P, 2] (x, y in half pixels), ring ends, numbers of rings and outer rings of each."""
    n = len(bboxes)
    points, n_points = np.empty((64 * n + 64, 2), np.int32), 0
    ring_ends, n_ends = np.empty(2 * n + 16, np.int64), 0
    n_rings, n_outers = np.zeros(n, np.int64), np.zeros(n, np.int64)
    ring = np.empty((256, 2), np.int32)
    for i in range(n):
        y0, x0, y1, x1 = bboxes[i, 0], bboxes[i, 1], bboxes[i, 2], bboxes[i, 3]
        is_traced = np.zeros((y1 - y0, x1 - x0), np.bool_)
        for y in range(y0, y1):
            for x in range(x0, x1):
                if labels[y, x] != i + 1 or is_traced[y - y0, x - x0]:
                    continue
                if y > y0 and labels[y - 1, x] == i + 1:
                    continue
                ring, length = _follow(labels, bboxes[i], i + 1, y, x, is_traced, ring)
                while n_points + length + 1 > len(points):
                    points = np.concatenate((points, np.empty_like(points)))
                if n_ends == len(ring_ends):
                    ring_ends = np.concatenate((ring_ends, np.empty_like(ring_ends)))
                kept = _without_collinear(ring, length, points, n_points)
                n_outers[i] += _twice_area(points, n_points, kept) > 0
                n_points += kept
                ring_ends[n_ends] = n_points
                n_ends += 1
                n_rings[i] += 1
    return points[:n_points], ring_ends[:n_ends], n_rings, n_outers


@numba.njit(cache=True, nogil=True)
def _follow(
    labels: np.ndarray, bbox: np.ndarray, label: int, y: int, x: int, is_traced: np.ndarray, ring: np.ndarray
) -> tuple[np.ndarray, int]:
    """Walk along pixel edges with the mask to the right, from the top edge of pixel (y, x) eastwards, until back."""
    y0, x0, y1, x1 = bbox[0], bbox[1], bbox[2], bbox[3]
    step_y, step_x = (0, 1, 0, -1), (1, 0, -1, 0)  # east, south, west, north
    # The pixels ahead of a corner, seen in each direction: on the left and on the right.
    left_y, left_x = (-1, 0, 0, -1), (0, 0, -1, -1)
    right_y, right_x = (0, 0, -1, -1), (0, -1, -1, 0)
    cy, cx, heading, length = y, x, 0, 0
    while True:
        if heading == 0:
            if is_traced[cy - y0, cx - x0]:
                return ring, length
            is_traced[cy - y0, cx - x0] = True
        if length == len(ring):
            ring = np.concatenate((ring, np.empty_like(ring)))
        ring[length, 0] = 2 * cx + step_x[heading]
        ring[length, 1] = 2 * cy + step_y[heading]
        length += 1
        cy += step_y[heading]
        cx += step_x[heading]
        ly, lx = cy + left_y[heading], cx + left_x[heading]
        ry, rx = cy + right_y[heading], cx + right_x[heading]
        if y0 <= ly < y1 and x0 <= lx < x1 and labels[ly, lx] == label:
            heading = (heading + 3) % 4
        elif not (y0 <= ry < y1 and x0 <= rx < x1 and labels[ry, rx] == label):
            heading = (heading + 1) % 4


@numba.njit(cache=True, nogil=True)
def _without_collinear(ring: np.ndarray, length: int, points: np.ndarray, start: int) -> int:
    """Copy the ring's corners to ``points[start:]`` and close it; returns the number of points written."""
    n = 0
    for k in range(length):
        before, after = ring[(k - 1) % length], ring[(k + 1) % length]
        if before[0] + after[0] != 2 * ring[k, 0] or before[1] + after[1] != 2 * ring[k, 1]:
            points[start + n] = ring[k]
            n += 1
    points[start + n] = points[start]
    return n + 1


@numba.njit(cache=True, nogil=True)
def _twice_area(points: np.ndarray, start: int, n: int) -> int:
    """Signed; positive when the mask lies inside the ring, negative for the rim of a hole."""
    area = 0
    for k in range(start, start + n - 1):
        area += np.int64(points[k, 0]) * points[k + 1, 1] - np.int64(points[k + 1, 0]) * points[k, 1]
    return area
