"""Agreement of two class planes, pixel by pixel: the scores of the tissue classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from nucleipan.errors import DataError


@dataclass(frozen=True, eq=False)
class PixelConfusion:
    """Pixel counts; ``+`` pools images.

    ``counts`` is int64[K, K + 1]: row t - 1 is true class t, column p is predicted class p, column 0 a prediction of
    none of the K classes. Pixels the truth leaves open are not in it.
    """

    counts: np.ndarray

    def __add__(self, other: PixelConfusion) -> PixelConfusion:
        return PixelConfusion(self.counts + other.counts)

    @property
    def _right(self) -> np.ndarray:
        return np.diagonal(self.counts[:, 1:])  # [K]

    @property
    def n_pixels(self) -> int:
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Share of the pixels predicted right; nan without pixels."""
        return float(self._right.sum() / self.n_pixels) if self.n_pixels else float("nan")

    @property
    def recalls(self) -> tuple[float, ...]:
        """Per class, share of its true pixels predicted right; nan for a class the truth lacks."""
        return _ratios(self._right, self.counts.sum(axis=1))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that the truth holds."""
        known = [r for r in self.recalls if r == r]
        return sum(known) / len(known) if known else float("nan")

    @property
    def dices(self) -> tuple[float, ...]:
        """Per class, Dice = pixel F1; nan for a class in neither truth nor prediction."""
        total = self.counts.sum(axis=1) + self.counts[:, 1:].sum(axis=0)
        return _ratios(2 * self._right, total)


def pixel_confusion(pred: np.ndarray, true: np.ndarray, n_classes: int) -> PixelConfusion:
    """Compare uint8 class planes [h, w] with ids 1..n_classes; 0 is unknown in the truth, none in the prediction.

    Raises:
        DataError: the shapes differ or a plane holds a higher id.
    """
    if pred.shape != true.shape or pred.ndim != 2:
        raise DataError(f"class planes must share one shape [h, w]; found prediction {pred.shape}, truth {true.shape}")
    counts = _count_pairs(np.ascontiguousarray(pred, np.uint8), np.ascontiguousarray(true, np.uint8))
    n = n_classes + 1
    if counts[n:].any() or counts[:, n:].any():
        raise DataError(f"a class plane holds an id above {n_classes}, the number of classes")
    return PixelConfusion(counts[1:n, :n])


@njit(cache=True, nogil=True)
def _count_pairs(pred, true):
    counts = np.zeros((256, 256), np.int64)
    height, width = true.shape
    for y in range(height):
        for x in range(width):
            counts[true[y, x], pred[y, x]] += 1
    return counts


def _ratios(part: np.ndarray, whole: np.ndarray) -> tuple[float, ...]:
    return tuple(float(p / w) if w else float("nan") for p, w in zip(part, whole, strict=True))
