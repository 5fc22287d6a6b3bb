"""Ellipses through points, from the sums of their products alone.

R. Halir and J. Flusser, Numerically stable direct least squares fitting of ellipses (1998), for many sets of points at
once. Points are worth most near the origin and within a unit or two of it: sums of fourth powers are taken.
"""

from __future__ import annotations

import numpy as np

_FEWEST_POINTS = 12
_LEAST_SPREAD = 1e-6  # of points off a line: the determinant of their second moments


def fit_ellipses(scatters: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Fit an ellipse to each set of points.

    Args:
        scatters: float64[m, 6, 6], sums of products of (xx, xy, yy, x, y, 1) over the points of a set.
        largest: float64[m], an ellipse of a larger area is refused.

    Returns:
        float64[m, 6], coefficients of (xx, xy, yy, x, y, 1), positive inside the ellipse; zeros where none was found.
    """
    conics = np.zeros((len(scatters), 6))
    n_points, linear = scatters[:, 5, 5], scatters[:, 3:, 3:]
    index = np.flatnonzero((n_points >= _FEWEST_POINTS) & (np.linalg.det(linear) > _LEAST_SPREAD * n_points**3))
    to_linear = -np.linalg.solve(linear[index], scatters[index, 3:, :3])
    reduced = scatters[index, :3, :3] + scatters[index, :3, 3:] @ to_linear
    constrained = np.stack([reduced[:, 2] / 2, -reduced[:, 1], reduced[:, 0] / 2], 1)
    vectors = np.linalg.eig(constrained)[1].real  # [m, 3, 3], in columns; one of them is an ellipse
    best = (4 * vectors[:, 0] * vectors[:, 2] - vectors[:, 1] ** 2).argmax(1)
    squares = np.take_along_axis(vectors, best[:, None, None], 2)
    found = np.concatenate([squares, to_linear @ squares], 1)[:, :, 0]
    middle, area = _middle_and_area(found)
    is_fine = area <= largest[index]
    conics[index[is_fine]] = (found * np.sign(middle)[:, None])[is_fine]
    return conics


def _middle_and_area(conics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value at the centre, and area; infinite for what is no ellipse."""
    a, b, c, d, e, f = conics.T
    root = 4 * a * c - b**2
    is_closed = root > 0
    root = np.where(is_closed, root, 1.0)
    middle = f + (b * d * e - c * d**2 - a * e**2) / root
    is_real = is_closed & (middle * a < 0)
    return middle, np.where(is_real, 2 * np.pi * np.abs(middle) / np.sqrt(root), np.inf)
