"""How far points of one class are from the nearest pixel of another.

Columns of the class plane are looked at outwards from the point. In a column that has the point's own class there,
the nearest other class is where the run ends, which is known for all pixels in advance; so a column costs one look,
and the search ends as soon as columns are farther away than what was found.
"""

from __future__ import annotations

import math

import numba
import numpy as np


def distance_to_other_class(plane: np.ndarray, points: np.ndarray, own: np.ndarray, cap: float) -> np.ndarray:
    """Distance from points to the centre of the nearest pixel of another class.

    Args:
        plane: uint8[h, w], class ids; 0 = void, which is no class.
        points: float64[n, 2], y and x; the pixel in row i and column j has its centre at (i, j).
        own: uint8[n], class of each point, whatever the pixel that it lies on.
        cap: distances beyond it are not looked for.

    Returns:
        float64[n], ``cap`` where there is none within it, NaN for points of class 0.
    """
    return _search(plane, _run_ends(plane, False), _run_ends(plane, True), points, own, cap)


@numba.njit(cache=True, nogil=True)
def _run_ends(plane: np.ndarray, is_below: bool) -> np.ndarray:
    """int32[h, w], row of the nearest pixel above or below that has another class (any class, for void pixels).

    Where there is none, the row beyond the plane's side.
    """
    height, width = plane.shape
    beyond = height if is_below else -1
    ends = np.empty(plane.shape, np.int32)
    current = np.zeros(width, np.uint8)  # the last class in each column,
    seen = np.full(width, beyond, np.int32)  # where it was seen last,
    other = np.full(width, beyond, np.int32)  # and where another was before it
    for n in range(height):
        i = height - 1 - n if is_below else n
        for j in range(width):
            c = plane[i, j]
            if c == 0:
                ends[i, j] = seen[j]
                continue
            if c != current[j]:
                current[j], other[j] = c, seen[j]
            ends[i, j] = other[j]
            seen[j] = i
    return ends


@numba.njit(cache=True, nogil=True)
def _search(plane, above, below, points, own, cap):
    height, width = plane.shape
    distances = np.empty(len(points), np.float64)
    for k in range(len(points)):
        if own[k] == 0:
            distances[k] = np.nan
            continue
        y, x = points[k, 0], points[k, 1]
        row, col = min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)
        best = cap * cap
        for step in (-1, 1):
            j = col if step < 0 else col + 1
            while 0 <= j < width and (j - x) * (j - x) < best:
                across, here = (j - x) * (j - x), plane[row, j]
                if here == own[k]:
                    up, down = above[row, j], below[row, j]
                elif here == 0:  # runs of void end at any class
                    up, down = above[row, j], below[row, j]
                    up = above[up, j] if up >= 0 and plane[up, j] == own[k] else up
                    down = below[down, j] if down < height and plane[down, j] == own[k] else down
                else:
                    up, down = row, height
                if up >= 0:
                    best = min(best, across + (up - y) * (up - y))
                if down < height:
                    best = min(best, across + (down - y) * (down - y))
                j += step
        distances[k] = math.sqrt(best)
    return distances
