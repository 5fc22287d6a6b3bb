"""Bringing a prediction to the grid of its truth.

The truth's grid is the one scored: a truth pixel takes what the predicted pixel says that its centre lies in, so ids
stay exact and no pixel is invented.
"""

from __future__ import annotations

import numpy as np

from nucleipan.errors import DataError


def nearest_pixels(
    pred_shape: tuple[int, int], true_shape: tuple[int, int], level0_per_pixel: float | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """For every row and column of the truth, the predicted one that its centre lies in; and truth pixels per predicted.

    Both grids cover the same image from the same corner. One factor must explain both axes up to a pixel of the coarser
    grid, which is what rounding a shape can lose. It is ``level0_per_pixel`` where that explains them, as for truth
    drawn on the slide itself, else the ratio of the shapes.

    Raises:
        DataError: there is no such factor.
    """
    if pred_shape == true_shape:
        return np.arange(true_shape[0]), np.arange(true_shape[1]), 1.0
    lowest, highest = _possible_factors(pred_shape, true_shape)
    # A hair of tolerance: two quotients that are equal on paper need not be in floats.
    if lowest > highest * (1 + 1e-9):
        raise DataError(
            f"the prediction's shape {pred_shape} fits the truth's {true_shape} at no scale; are they of one image?"
        )
    if level0_per_pixel is not None and lowest <= level0_per_pixel <= highest:
        factors = (level0_per_pixel, level0_per_pixel)
    else:
        factors = (true_shape[0] / pred_shape[0], true_shape[1] / pred_shape[1])
    rows, cols = (
        np.minimum(((np.arange(t) + 0.5) / f).astype(np.int64), p - 1)
        for p, t, f in zip(pred_shape, true_shape, factors, strict=True)
    )
    return rows, cols, (factors[0] + factors[1]) / 2


def _possible_factors(pred_shape: tuple[int, int], true_shape: tuple[int, int]) -> tuple[float, float]:
    """Range of truth pixels per predicted one that both axes allow; empty (low > high) if none."""
    is_finer = pred_shape[0] * pred_shape[1] > true_shape[0] * true_shape[1]
    coarse, fine = (true_shape, pred_shape) if is_finer else (pred_shape, true_shape)
    lowest = max(f / (c + 1) for f, c in zip(fine, coarse, strict=True))
    highest = min(f / max(c - 1, 1e-9) for f, c in zip(fine, coarse, strict=True))
    return (1 / highest, 1 / lowest) if is_finer else (lowest, highest)
