"""Means of square blocks of pixels, compiled: a module of its own, so that what reads no pixels need not load numba."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def box_mean(pixels: np.ndarray, f: int) -> np.ndarray:
    """Mean of f x f blocks of uint8[h, w, c], f up to 4096, rounded half up.

    Blocks that are cut by the lower and right edge average what they have.
    """
    height, width, n_bands = pixels.shape
    n_rows, n_cols = -(-height // f), -(-width // f)
    flat, n_flat = pixels.reshape(height, width * n_bands), width * n_bands
    means = np.empty((n_rows, n_cols, n_bands), np.uint8)
    summed = np.empty(n_flat, np.uint32)  # of one row of blocks, down its columns
    for i in range(n_rows):
        y0, y1 = i * f, min(height, (i + 1) * f)
        for k in range(n_flat):
            summed[k] = flat[y0, k]
        for y in range(y0 + 1, y1):
            for k in range(n_flat):
                summed[k] += flat[y, k]
        for j in range(n_cols):
            x0, x1 = j * f, min(width, (j + 1) * f)
            area = np.uint32((y1 - y0) * (x1 - x0))
            for c in range(n_bands):
                total = area // np.uint32(2)
                for x in range(x0, x1):
                    total += summed[x * n_bands + c]
                means[i, j, c] = total // area
    return means
