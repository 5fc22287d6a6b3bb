"""What the instance head should say: offsets to the centre, and how much each nucleus counts."""

from __future__ import annotations

import numpy as np


def offset_targets(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets to the centroid and the weight that makes every nucleus count the same.

    Args:
        ids: int[h, w], 0 = none.

    Returns:
        float32[2, h, w] offsets (dy, dx) in pixels, zero off nuclei; float32[h, w] weights, 1 / size on nuclei.
    """
    offsets = np.zeros((2, *ids.shape), np.float32)
    weights = np.zeros(ids.shape, np.float32)
    y, x = np.nonzero(ids)
    if len(y) == 0:
        return offsets, weights
    _, index, size = np.unique(ids[y, x], return_inverse=True, return_counts=True)
    offsets[0, y, x] = (np.bincount(index, y) / size)[index] - y
    offsets[1, y, x] = (np.bincount(index, x) / size)[index] - x
    weights[y, x] = 1.0 / size[index]
    return offsets, weights
