"""Semantic logits on their coarse grid, read bilinearly at pixels of the tile.

Compiled for one thread; the interpreter is free meanwhile. Pixels are areas, as everywhere: a coarse pixel's value is
that of its centre, and beyond the outermost centres the outermost value holds.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def corners(size, stride, n):
    """For each of ``size`` fine pixels its two neighbours among ``n`` coarse ones and the weight of the second.

    Pixels are areas (half-pixel centres); beyond the outermost centres the outermost value holds.
    """
    low, high, weight = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.float32)
    for i in range(size):
        position = (np.float32(i) + np.float32(0.5)) / np.float32(stride) - np.float32(0.5)
        position = min(max(position, np.float32(0)), np.float32(n - 1))
        low[i] = np.int64(np.floor(position))
        high[i], weight[i] = min(low[i] + 1, n - 1), position - np.float32(low[i])
    return low, high, weight


@njit(nogil=True, cache=True)
def bilinear(plane, y0, y1, fy, x0, x1, fx):
    one = np.float32(1)
    top = plane[y0, x0] * (one - fx) + plane[y0, x1] * fx
    bottom = plane[y1, x0] * (one - fx) + plane[y1, x1] * fx
    return top * (one - fy) + bottom * fy


@njit(nogil=True, cache=True)
def sigmoid(x):
    return np.float32(1) / (np.float32(1) + np.exp(-x))


@njit(nogil=True, cache=True)
def upsample_argmax(logits, labels, ids, stride, h, w):
    """``ids`` at the argmax of the bilinearly upsampled logits, uint8[h, w]; ``labels`` is it on the coarse grid."""
    out = np.empty((h, w), np.uint8)
    above, below, fy = corners(h, stride, labels.shape[0])
    left, right, fx = corners(w, stride, labels.shape[1])
    for y in range(h):
        y0, y1 = above[y], below[y]
        start = 0
        while start < w:  # a run of pixels between the same coarse ones
            x0, x1 = left[start], right[start]
            stop = start + 1
            while stop < w and left[stop] == x0:
                stop += 1
            c = labels[y0, x0]
            if c == labels[y0, x1] and c == labels[y1, x0] and c == labels[y1, x1]:
                out[y, start:stop] = ids[c]
            else:
                for x in range(start, stop):
                    out[y, x] = ids[_best(logits, y0, y1, fy[y], x0, x1, fx[x])]
            start = stop
    return out


@njit(nogil=True, cache=True)
def _best(logits, y0, y1, fy, x0, x1, fx):
    best, c = bilinear(logits[0], y0, y1, fy, x0, x1, fx), 0
    for k in range(1, logits.shape[0]):
        v = bilinear(logits[k], y0, y1, fy, x0, x1, fx)
        if v > best:
            best, c = v, k
    return c
