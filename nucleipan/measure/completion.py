"""The whole shape of a nucleus that a neighbour covers in part.

In the raster a pixel belongs to one nucleus. Where two lie over each other, the covered one is left with a dent that
has the neighbour in it; nuclei that only touch have none, or a shallow one. So a nucleus counts as covered by a
neighbour that shares an edge with it and has at least 3 % of its area, and five pixels, inside its convex hull. What
it most plausibly has under that neighbour is the rest of its hull, and of the ellipse through its free border::

     visible       with the hull    and the ellipse
     .####.           .####.            .####.        Nothing is added but pixels of covering neighbours: where nobody
     ###oo.           #####.            ######        lies over it, a nucleus is what is seen of it. The hull alone is
     .##oo.           .###..            .####.        too small: what lies beyond the chord of a dent is missing.

What is looked at lies within the nucleus's own box, grown by half of its longer side. Of a nucleus in pieces that stay
apart, the piece around the largest is kept. If less than half of the result is visible, too little is seen to tell, and
the nucleus is not completed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy import ndimage

from nucleipan.measure.ellipses import fit_ellipses
from nucleipan.measure.shape import NO_POINT, hull_ends

_DENT, _DENT_PX = 0.03, 5
_MOST_TOUCHING = 8
_LEAST_VISIBLE = 0.5
# Larger ellipses, in hulls, follow the noise of a short border.
_LARGEST = 2.0


@dataclass(frozen=True)
class Completed:
    """Whole shapes of those nuclei of a plane that neighbours cover.

    Attributes:
        index: int64[m], which of the nuclei that were asked for.
        labels: int32[h, w], shape i + 1 inside ``bboxes[i]``; shapes are kept one below the other.
        bboxes: int32[m, 4], half-open y0, x0, y1, x1 in ``labels``.
        corners: int32[m, 2], row and column, in the plane that was given, of the first pixel of ``labels`` when shape
            i + 1 lies where it belongs.
    """

    index: np.ndarray
    labels: np.ndarray
    bboxes: np.ndarray
    corners: np.ndarray


def complete_covered(labels: np.ndarray, numbers: np.ndarray, bboxes: np.ndarray) -> Completed:
    """Find the nuclei that neighbours cover in part, and what they look like whole.

    Args:
        labels: int32[h, w], instances; 0 = none.
        numbers: int32[n], label of each nucleus that is asked for; all others are neighbours.
        bboxes: int32[n, 4], half-open y0, x0, y1, x1 of each in the plane.
    """
    index, coverers, hull_areas, scatters = _find_dents(labels, numbers, bboxes)
    numbers, bboxes = numbers[index], bboxes[index]
    half_sides = np.maximum(bboxes[:, 2] - bboxes[:, 0], bboxes[:, 3] - bboxes[:, 1]) / 2
    conics = fit_ellipses(scatters, _LARGEST * hull_areas / half_sides**2)
    windows = _windows(bboxes, labels.shape)
    heights, widths = windows[:, 2] - windows[:, 0], windows[:, 3] - windows[:, 1]
    ends = np.cumsum(heights)
    placed = np.stack([ends - heights, np.zeros_like(ends), ends, widths], 1).astype(np.int32)
    shapes = np.zeros((int(heights.sum()), int(widths.max(initial=0))), np.int32)
    kept: list[int] = []
    for k in range(len(index)):
        y0, _, y1, x1 = placed[k]
        shape, (top, left, bottom, right) = shapes[y0:y1, :x1], windows[k]
        visible = labels[top:bottom, left:right] == numbers[k]
        _paint(labels, numbers[k], bboxes[k], windows[k], coverers[k], conics[k], shape, len(kept) + 1)
        _keep_main_piece(shape, visible)
        if visible.sum() >= _LEAST_VISIBLE * np.count_nonzero(shape):
            kept.append(k)
        else:
            shape[:] = 0
    return Completed(index[kept], shapes, placed[kept], windows[kept, :2] - placed[kept, :2])


def _windows(bboxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """int32[m, 4], boxes grown by half of their longer side, inside the plane."""
    more = np.maximum(bboxes[:, 2] - bboxes[:, 0], bboxes[:, 3] - bboxes[:, 1])[:, None] // 2
    lower, upper = np.maximum(bboxes[:, :2] - more, 0), np.minimum(bboxes[:, 2:] + more, shape)
    return np.concatenate([lower, upper], 1).astype(np.int32)


def _keep_main_piece(shape: np.ndarray, visible: np.ndarray) -> None:
    """Of a shape in several pieces, leave the one that holds the largest piece of what is visible (8-connected)."""
    pieces, n_pieces = ndimage.label(shape, np.ones((3, 3)))
    if n_pieces > 1:
        parts, _ = ndimage.label(visible, np.ones((3, 3)))
        largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
        shape[pieces != pieces[parts == largest][0]] = 0


@numba.njit(cache=True, nogil=True)
def _find_dents(labels, numbers, bboxes):
    """Which nuclei have neighbours in their dents.

    Returns:
        int64[m] their indices, int32[m, 8] the labels of those neighbours and zeros, float64[m] the areas of convex
        hulls, float64[m, 6, 6] what ``fit_ellipses`` takes of the free borders, in the frame of ``_frame``.
    """
    index, n_found = np.empty(len(numbers), np.int64), 0
    coverers = np.zeros((len(numbers) + 1, _MOST_TOUCHING), np.int32)
    hull_areas, scatters = np.empty(len(numbers)), np.zeros((len(numbers), 6, 6))
    for k in range(len(numbers)):
        _touching(labels, bboxes[k], numbers[k], coverers[n_found])
        if coverers[n_found, 0] == 0:
            continue
        n_px, hull = _hull(labels, bboxes[k], numbers[k])
        least = max(_DENT_PX, _DENT * n_px)
        hull_areas[n_found] = _keep_coverers(labels, bboxes[k], hull, coverers[n_found], least)
        if coverers[n_found, 0] == 0:
            continue
        _add_free_edges(labels, bboxes[k], numbers[k], scatters[n_found])
        index[n_found] = k
        n_found += 1
    return index[:n_found], coverers[:n_found], hull_areas[:n_found], scatters[:n_found]


@numba.njit(cache=True, nogil=True)
def _touching(labels, bbox, number, found):
    """Fill ``found`` with the labels that share an edge with a nucleus, and zeros."""
    found[:] = 0
    n_found, last_y, last_x = 0, labels.shape[0] - 1, labels.shape[1] - 1
    for y in range(bbox[0], bbox[2]):
        above, below = max(y - 1, 0), min(y + 1, last_y)
        for x in range(bbox[1], bbox[3]):
            if labels[y, x] != number:
                continue
            left, right = labels[y, max(x - 1, 0)], labels[y, min(x + 1, last_x)]
            for other in (left, right, labels[above, x], labels[below, x]):
                if other == number or other == 0 or n_found == len(found) or (found == other).any():
                    continue
                found[n_found] = other
                n_found += 1


@numba.njit(cache=True, nogil=True)
def _hull(labels, bbox, number):
    """Pixels of a nucleus, and the ends of its convex hull's rows, [2, h]: negated first columns, last columns."""
    h = bbox[2] - bbox[0]
    ends, hull = np.full((2, h), NO_POINT), np.empty((2, h), np.int64)
    outline, chain = np.empty(2 * h + 1, np.int64), np.empty(2 * h + 1, np.int64)
    n_px = 0
    for y in range(h):
        for x in range(bbox[3] - bbox[1]):
            if labels[bbox[0] + y, bbox[1] + x] == number:
                ends[0, y], ends[1, y] = max(ends[0, y], -x), x
                n_px += 1
    for side in range(2):
        hull_ends(ends[side], outline, chain, hull[side])
    return n_px, hull


@numba.njit(cache=True, nogil=True)
def _keep_coverers(labels, bbox, hull, touching, least):
    """Drop neighbours with fewer than ``least`` pixels in the hull; returns how many pixels that has."""
    area, n_inside = 0, np.zeros(len(touching), np.int64)
    for y in range(hull.shape[1]):
        for x in range(-hull[0, y], hull[1, y] + 1):
            area += 1
            label = labels[bbox[0] + y, bbox[1] + x]
            for j in range(len(touching)):
                n_inside[j] += label != 0 and touching[j] == label
    n_kept = 0
    for j in range(len(touching)):
        other, touching[j] = touching[j], 0
        if n_inside[j] >= least:
            touching[n_kept] = other
            n_kept += 1
    return area


@numba.njit(cache=True, nogil=True)
def _frame(bbox):
    """Middle (y, x) of a box's pixels and half of its longer side: origin and unit of the ellipses."""
    half = max(bbox[2] - bbox[0], bbox[3] - bbox[1]) / 2
    return (bbox[0] + bbox[2] - 1) / 2, (bbox[1] + bbox[3] - 1) / 2, half


@numba.njit(cache=True, nogil=True)
def _terms(y, x, frame):
    v, u = (y - frame[0]) / frame[2], (x - frame[1]) / frame[2]
    return np.array((u * u, u * v, v * v, u, v, 1.0))


@numba.njit(cache=True, nogil=True)
def _add_free_edges(labels, bbox, number, scatter):
    """Sum up the middles of edges between nucleus and tissue, but for pixels that are next to another nucleus."""
    frame = _frame(bbox)
    for y in range(bbox[0], bbox[2]):
        for x in range(bbox[1], bbox[3]):
            if labels[y, x] != number or _is_next_to_another(labels, y, x, number):
                continue
            for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0)):
                if not (0 <= y + dy < labels.shape[0] and 0 <= x + dx < labels.shape[1]):
                    continue
                if labels[y + dy, x + dx] == 0:
                    terms = _terms(y + dy / 2, x + dx / 2, frame)
                    scatter += np.outer(terms, terms)


@numba.njit(cache=True, nogil=True)
def _is_next_to_another(labels, y, x, number):
    for i in range(max(0, y - 1), min(labels.shape[0], y + 2)):
        for j in range(max(0, x - 1), min(labels.shape[1], x + 2)):
            if labels[i, j] != 0 and labels[i, j] != number:
                return True
    return False


@numba.njit(cache=True, nogil=True)
def _paint(labels, number, bbox, window, coverers, conic, shape, value):
    """Write ``value`` into ``shape``, which covers ``window``, where the whole nucleus is."""
    _, hull = _hull(labels, bbox, number)
    frame = _frame(bbox)
    for y in range(window[0], window[2]):
        for x in range(window[1], window[3]):
            label, row, col = labels[y, x], y - bbox[0], x - bbox[1]
            if label == number:
                shape[y - window[0], x - window[1]] = value
            elif label != 0 and (coverers == label).any():
                is_in_hull = 0 <= row < hull.shape[1] and -hull[0, row] <= col <= hull[1, row]
                if is_in_hull or (_terms(y, x, frame) * conic).sum() > 0:
                    shape[y - window[0], x - window[1]] = value
