"""Shape of instances, as ``skimage.measure.regionprops`` defines it, at a small part of its cost.

A nucleus is visited inside its bounding box only. One pass gives integer moments and, for each row, the leftmost and
rightmost pixel; border pixels are then judged by their neighbours (perimeter), and the convex hull follows from the
row ends alone (solidity). Instances may be in several pieces; all pixels of a label count.

Perimeter: K. Benkrid and D. Crookes, Design and FPGA Implementation of a Perimeter Estimator.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from nucleipan.measure.moments import covariance

#: Of ``measure_shapes``. The first three are lengths in pixels; ``orientation`` is the angle in radians, -pi/2 to
#: pi/2, from the y axis to the major axis, counter-clockwise as seen on the screen; -pi/4 where no axis is longer.
SHAPE_COLUMNS = ("perimeter", "axis_major_length", "axis_minor_length", "eccentricity", "orientation", "solidity")

NO_POINT = -(2**60)
"""How far a row without a pixel reaches, for ``hull_ends``."""


def measure_shapes(labels: np.ndarray, bboxes: np.ndarray) -> np.ndarray:
    """Shape of all instances of a label plane.

    Args:
        labels: int32[h, w], instances 1..n, each with at least one pixel.
        bboxes: int32[n, 4], half-open y0, x0, y1, x1 around instance ``i + 1`` in the plane.

    Returns:
        float32[n, 6], see ``SHAPE_COLUMNS``.
    """
    if len(bboxes) == 0:
        return np.empty((0, len(SHAPE_COLUMNS)), np.float32)
    heights, widths = bboxes[:, 2] - bboxes[:, 0], bboxes[:, 3] - bboxes[:, 1]
    size = int(((heights + 2).astype(np.int64) * (widths + 2)).max())
    return _measure_all(labels, bboxes, np.empty(size, np.uint8), int(heights.max()))


@numba.njit(cache=True, nogil=True)
def _measure_all(labels: np.ndarray, bboxes: np.ndarray, mask: np.ndarray, tallest: int) -> np.ndarray:
    shapes = np.empty((len(bboxes), 6), np.float32)
    border = np.empty(len(mask), np.int64)
    ends = np.empty((2, tallest), np.int64)
    outline, chain = np.empty(2 * tallest + 1, np.int64), np.empty(2 * tallest + 1, np.int64)
    half_widths = np.empty((2, tallest), np.int64)
    for k in range(len(bboxes)):
        h, w = bboxes[k, 2] - bboxes[k, 0], bboxes[k, 3] - bboxes[k, 1]
        n, sum_y, sum_x, sum_yy, sum_yx, sum_xx = _scan(labels, bboxes[k], k + 1, mask, ends)
        yy, xx = covariance(n, sum_y, sum_y, sum_yy), covariance(n, sum_x, sum_x, sum_xx)
        yx = covariance(n, sum_y, sum_x, sum_yx)
        shapes[k, 0] = _perimeter(mask, border, h, w)
        shapes[k, 1:5] = _axes(yy, yx, xx)
        for side in range(2):
            hull_ends(ends[side, :h], outline, chain, half_widths[side])
        shapes[k, 5] = n / _hull_area(half_widths, h)
    return shapes


@numba.njit(cache=True, nogil=True)
def _scan(labels, bbox, label, mask, ends):
    """Moments about the box's corner: n, sums of y, x, yy, yx, xx.

    Fills ``mask`` with 0 and 1 over the box and one pixel around it, and ``ends`` with the columns of each row's
    leftmost pixel, negated, and rightmost pixel.
    """
    h, w = bbox[2] - bbox[0], bbox[3] - bbox[1]
    mask[: (h + 2) * (w + 2)] = 0
    n, sum_y, sum_x, sum_yy, sum_yx, sum_xx = 0, 0, 0, 0, 0, 0
    for y in range(h):
        first, last, row_n, row_x, row_xx = -1, -1, 0, 0, 0
        at = (y + 1) * (w + 2) + 1
        for x in range(w):
            if labels[bbox[0] + y, bbox[1] + x] == label:
                mask[at + x] = 1
                if first < 0:
                    first = x
                last = x
                row_n += 1
                row_x += x
                row_xx += x * x
        ends[0, y] = -first if row_n else NO_POINT
        ends[1, y] = last if row_n else NO_POINT
        n += row_n
        sum_y += y * row_n
        sum_yy += y * y * row_n
        sum_x += row_x
        sum_yx += y * row_x
        sum_xx += row_xx
    return n, sum_y, sum_x, sum_yy, sum_yx, sum_xx


@numba.njit(cache=True, nogil=True)
def _perimeter(mask: np.ndarray, border: np.ndarray, h: int, w: int) -> float:
    """Length of the chain of border pixels; each counts by how many others lie beside it and at its corners."""
    stride, n_border = w + 2, 0
    for y in range(1, h + 1):
        for at in range(y * stride + 1, y * stride + w + 1):
            if mask[at] and not (mask[at - 1] and mask[at + 1] and mask[at - stride] and mask[at + stride]):
                mask[at] = 2
                border[n_border] = at
                n_border += 1
    straight, diagonal, mixed = 0, 0, 0
    for k in range(n_border):
        at = border[k]
        beside = (mask[at - 1] == 2) + (mask[at + 1] == 2) + (mask[at - stride] == 2) + (mask[at + stride] == 2)
        above, below = at - stride, at + stride
        corner = (mask[above - 1] == 2) + (mask[above + 1] == 2) + (mask[below - 1] == 2) + (mask[below + 1] == 2)
        straight += 2 <= beside <= 3 and corner <= 2
        diagonal += (beside == 0 and corner == 2) or (beside == 1 and corner == 3)
        mixed += beside == 1 and 1 <= corner <= 2
    return straight + diagonal * math.sqrt(2.0) + mixed * (1 + math.sqrt(2.0)) / 2


@numba.njit(cache=True, nogil=True)
def _axes(yy, yx, xx):
    """Axes of the ellipse with these second moments: major, minor length, eccentricity, orientation."""
    spread = math.sqrt((yy - xx) ** 2 + 4 * yx**2)
    major, minor = (yy + xx + spread) / 2, max(0.0, (yy + xx - spread) / 2)
    eccentricity = math.sqrt(1 - minor / major) if major > 0 else 0.0
    orientation = 0.5 * math.atan2(2 * yx, yy - xx)
    if yy == xx and yx <= 0:  # also where no axis is longer
        orientation = -math.pi / 4
    return 4 * math.sqrt(major), 4 * math.sqrt(minor), eccentricity, orientation


@numba.njit(cache=True, nogil=True)
def hull_ends(ends: np.ndarray, outline: np.ndarray, chain: np.ndarray, hull: np.ndarray) -> None:
    """One side of the convex hull: for each row, the last column whose centre it holds.

    ``ends`` int64[h] are the last columns of the rows, ``NO_POINT`` where a row has none; for the other side both are
    negated. ``outline`` and ``chain`` are room for 2h + 1 numbers.

    A pixel counts as the diamond of its four edge middles, as in ``skimage.morphology.convex_hull_image``. In units
    of half a pixel, ``outline`` is how far those points reach on each line: 2i + 1 is the middle of row i, 2i its
    upper edge. ``chain`` holds the lines of the hull's corners; all arithmetic is in integers.
    """
    h = len(ends)
    for i in range(h):
        outline[2 * i + 1] = 2 * ends[i] + 1
        outline[2 * i] = 2 * max(ends[i], ends[i - 1] if i else NO_POINT)
    outline[2 * h] = 2 * ends[h - 1]
    n = 0
    for line in range(2 * h + 1):
        reach = outline[line]
        if reach <= NO_POINT:
            continue
        while n > 1:
            a, b = chain[n - 2], chain[n - 1]
            if (outline[b] - outline[a]) * (line - a) > (reach - outline[a]) * (b - a):
                break
            n -= 1
        chain[n] = line
        n += 1
    at = 0
    for i in range(h):
        line = 2 * i + 1
        if not chain[0] < line < chain[n - 1]:
            hull[i] = NO_POINT
            continue
        while chain[at + 1] < line:
            at += 1
        a, b = chain[at], chain[at + 1]
        hull[i] = (outline[a] * (b - a) + (outline[b] - outline[a]) * (line - a)) // (2 * (b - a))


@numba.njit(cache=True, nogil=True)
def _hull_area(half_widths: np.ndarray, h: int) -> int:
    """Pixels whose centres the convex hull holds; the ends of a row are ``-half_widths[0]`` and ``half_widths[1]``."""
    area = 0
    for i in range(h):
        area += max(0, half_widths[0, i] + half_widths[1, i] + 1)
    return area
