"""Distance to the nearest other centre, for a part of a long list at a time."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

_FIRST_REACH = 64.0


def distance_to_nearest(centres: np.ndarray, rows: np.ndarray, part: slice) -> np.ndarray:
    """Distance from each centre of ``part`` to the nearest other one of all.

    Only centres in a band around the part are looked at; the band grows for those that have none within its reach.

    Args:
        centres: float64[n, 2], y and x.
        rows: int64[n], the whole number below each y, ascending.

    Returns:
        float64[len of part], infinite where there is no other centre.
    """
    distances = np.full(part.stop - part.start, np.inf)
    open_ones, reach = np.arange(part.start, part.stop), _FIRST_REACH
    while len(open_ones):
        first = int(np.searchsorted(rows, rows[open_ones[0]] - reach))
        last = int(np.searchsorted(rows, rows[open_ones[-1]] + reach + 1, side="right"))
        # The nearest is the centre itself, or one on the same spot.
        found = cKDTree(centres[first:last]).query(centres[open_ones], k=2)[0][:, 1]
        is_all = first == 0 and last == len(rows)
        is_sure = (found <= reach) | is_all
        distances[open_ones[is_sure] - part.start] = found[is_sure]
        open_ones, reach = open_ones[~is_sure], reach * 4
    return distances
