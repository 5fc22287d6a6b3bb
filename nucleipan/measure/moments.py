"""Central moments from sums of integers, exact until the last division."""

from __future__ import annotations

import numba


@numba.njit(cache=True, nogil=True)
def covariance(n: int, sum_a: int, sum_b: int, sum_ab: int) -> float:
    """Mean of (a - mean a)(b - mean b) over ``n`` > 0 pairs of integers.

    Sums are first moved, in integers, to the whole numbers below the means: what is left to subtract in floating
    point is small, and the same wherever the origin was.
    """
    a, b = sum_a // n, sum_b // n
    rest_a, rest_b = sum_a - n * a, sum_b - n * b
    rest_ab = sum_ab - a * sum_b - b * sum_a + n * a * b
    return rest_ab / n - (rest_a / n) * (rest_b / n)
