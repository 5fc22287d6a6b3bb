"""Regions drawn into one plane: what EfficientPS's fusion (arXiv 2004.02307, section 3.4) does with instances.

From the best to the worst, each region's mask is resized to its box. One that lies for more than half on those before
it is skipped. What is left competes for every pixel of its box with its fused logit (see ``fusion``), against each
other and against the largest stuff logit.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from nucleipan.network.coarse import bilinear, corners, sigmoid

_MOST_COVERED = 0.5


def paint(
    regions: tuple[np.ndarray, np.ndarray, np.ndarray],
    things: np.ndarray,
    best_stuff: np.ndarray,
    stride: int,
    shape: tuple[int, int],
) -> np.ndarray:
    """Draw regions.

    Args:
        regions: best first: float32[n, 4] boxes (y0, x0, y1, x1), float32[n, m, m] mask logits, int[n] class of each.
        things: float32[T, h/s, w/s], logits of the thing classes.
        best_stuff: float32[h/s, w/s], largest stuff logit.
        stride: s.
        shape: (h, w).

    Returns:
        int32[h, w], 0 or 1 + index of the region.
    """
    boxes, masks, thing = regions
    return _paint(boxes, masks, thing.astype(np.int64), things, best_stuff, stride, *shape)


@njit(nogil=True, cache=True)
def _paint(boxes, masks, thing, things, best_stuff, stride, h, w):
    owner, covered = np.zeros((h, w), np.int32), np.zeros((h, w), np.bool_)
    best = np.full((h, w), -np.inf, np.float32)
    above, below, fy = corners(h, stride, things.shape[1])
    left, right, fx = corners(w, stride, things.shape[2])
    for i in range(len(boxes)):
        y_first, logits = _resized(masks[i], boxes[i], h, w)
        x_first = _first(boxes[i, 1])
        there = covered[y_first : y_first + logits.shape[0], x_first : x_first + logits.shape[1]]
        is_mask = logits > 0
        n = is_mask.sum()
        if n == 0 or (is_mask & there).sum() > _MOST_COVERED * n:
            continue
        there |= is_mask
        plane = things[thing[i]]
        for r in range(logits.shape[0]):
            y = y_first + r
            for c in range(logits.shape[1]):
                x = x_first + c
                a = logits[r, c]
                b = bilinear(plane, above[y], below[y], fy[y], left[x], right[x], fx[x])
                fused = (sigmoid(a) + sigmoid(b)) * (a + b)
                if fused > best[y, x]:
                    best[y, x], owner[y, x] = fused, i + 1
    for y in range(h):
        for x in range(w):
            if owner[y, x]:
                stuff = bilinear(best_stuff, above[y], below[y], fy[y], left[x], right[x], fx[x])
                if best[y, x] <= stuff:
                    owner[y, x] = 0
    return owner


@njit(nogil=True, cache=True)
def _first(low):
    """The first pixel whose centre lies at or after ``low``."""
    return max(0, int(np.ceil(low - 0.5)))


@njit(nogil=True, cache=True)
def _resized(mask, box, h, w):
    """First row, and the logits of those pixels of the tile whose centre lies in ``box``."""
    y_first, x_first = _first(box[0]), _first(box[1])
    n_y, n_x = max(0, min(h, _first(box[2])) - y_first), max(0, min(w, _first(box[3])) - x_first)
    out = np.empty((n_y, n_x), np.float32)
    y0, y1, fy = _taps(y_first, n_y, box[0], box[2], mask.shape[0])
    x0, x1, fx = _taps(x_first, n_x, box[1], box[3], mask.shape[1])
    for r in range(n_y):
        for c in range(n_x):
            out[r, c] = bilinear(mask, y0[r], y1[r], fy[r], x0[c], x1[c], fx[c])
    return y_first, out


@njit(nogil=True, cache=True)
def _taps(first, n, low, high, bins):
    """As ``corners``, for ``n`` pixels from ``first`` on over ``bins`` that span ``low`` to ``high``."""
    lower, upper, weight = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.float32)
    for i in range(n):
        at = (np.float32(first + i) + np.float32(0.5) - low) / (high - low) * np.float32(bins) - np.float32(0.5)
        at = min(max(at, np.float32(0)), np.float32(bins - 1))
        lower[i] = np.int64(np.floor(at))
        upper[i], weight[i] = min(lower[i] + 1, bins - 1), at - np.float32(lower[i])
    return lower, upper, weight
