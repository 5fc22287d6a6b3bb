"""How much haematoxylin and eosin nuclei and their surroundings hold, as optical density.

Light that passes through stains is weakened by factors, so their optical densities, -log10 of transmitted over white
light, add up: those of R, G and B are a mixture of three stain vectors, and the inverse of their matrix gives the
stains (A. C. Ruifrok and D. A. Johnston, Quantification of histochemical staining by color deconvolution, 2001).

Surroundings of a nucleus are the pixels within a distance of it that lie on no nucleus. Near others they may be
shared, or none may be left. Densities are rounded to steps of 2^-14, far below one grey level, and summed as
integers: means and deviations do not depend on the order of pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np

from nucleipan.measure.moments import covariance

#: Rows: optical density of haematoxylin, eosin and the residual in R, G, B (Ruifrok & Johnston 2001).
STAIN_VECTORS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])

#: Of ``measure_stains``: mean and (population) standard deviation inside the nucleus, then in the ring around it.
STAIN_COLUMNS = (
    "haematoxylin_od_mean", "haematoxylin_od_std", "eosin_od_mean", "eosin_od_std",
    "ring_haematoxylin_od_mean", "ring_haematoxylin_od_std", "ring_eosin_od_mean", "ring_eosin_od_std",
)  # fmt: skip

_STEPS = 2**14


@dataclass(frozen=True, slots=True)
class Rings:
    """The nuclei to measure: ``ids`` int32[n] of instances in the plane, ``bboxes`` int32[n, 4] around them (half-open
    y0, x0, y1, x1), and the distance in pixels that surroundings reach, from pixel centre to pixel centre."""

    ids: np.ndarray
    bboxes: np.ndarray
    reach_px: float


def measure_stains(image: np.ndarray, instances: np.ndarray, rings: Rings) -> np.ndarray:
    """Stains inside and around nuclei.

    Args:
        image: uint8[h, w, 3], RGB with white glass at 255; 0 is taken for 1.
        instances: int32[h, w], every nucleus there is, 0 = none; what lies outside the plane counts as nothing.

    Returns:
        float32[n, 8], see ``STAIN_COLUMNS``; NaN for surroundings without a pixel.

    Raises:
        ValueError: the image does not cover the plane or is not uint8.
    """
    if image.shape != (*instances.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"an image uint8{(*instances.shape, 3)} was expected to measure stains on; found {image.dtype}{image.shape}"
        )
    if len(rings.ids) == 0:
        return np.empty((0, len(STAIN_COLUMNS)), np.float32)
    squared = max(1, math.floor(rings.reach_px**2 + 1e-6))
    half_widths = np.array([math.isqrt(squared - dy**2) for dy in range(math.isqrt(squared) + 1)], np.int64)
    sizes = rings.bboxes[:, 2:].astype(np.int64) - rings.bboxes[:, :2] + 2 * len(half_widths)
    cover = np.empty(int(sizes.prod(1).max()), np.int32)
    return _measure_all(np.ascontiguousarray(image), instances, rings.ids, rings.bboxes, half_widths, _table(), cover)


def _table() -> np.ndarray:
    """int32[3, 256, 2]: what the value of a channel adds to the steps of haematoxylin and eosin."""
    density = -np.log10(np.maximum(np.arange(256), 1) / 255)
    to_stains = np.linalg.inv(STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True))
    return np.rint(density[None, :, None] * to_stains[:, None, :2] * _STEPS).astype(np.int32)


@numba.njit(cache=True, nogil=True)
def _measure_all(image, instances, ids, bboxes, half_widths, table, cover):
    stains = np.empty((len(ids), 8), np.float32)
    reach = len(half_widths) - 1
    sums = np.empty((2, 5), np.int64)
    for k in range(len(ids)):
        bbox = bboxes[k]
        y0, x0 = max(0, bbox[0] - reach), max(0, bbox[1] - reach)
        y1, x1 = min(instances.shape[0], bbox[2] + reach), min(instances.shape[1], bbox[3] + reach)
        window = (y0, x0, y1, x1)
        sums[:] = 0
        cover[: (y1 - y0) * (x1 - x0 + 1)] = 0
        _sum_inside(image, instances, ids[k], bbox, table, sums[0], window, half_widths, cover)
        _sum_around(image, instances, table, sums[1], window, cover)
        for part in range(2):
            stains[k, 4 * part : 4 * part + 4] = _statistics(sums[part])
    return stains


@numba.njit(cache=True, nogil=True)
def _sum_inside(image, instances, label, bbox, table, sums, window, half_widths, cover):
    """Add up the nucleus, and mark the disc around each of its border pixels in ``cover``."""
    height, width = instances.shape
    for y in range(bbox[0], bbox[2]):
        for x in range(bbox[1], bbox[3]):
            if instances[y, x] != label:
                continue
            _add(image, y, x, table, sums)
            is_inner = (
                0 < y < height - 1 and 0 < x < width - 1
                and instances[y - 1, x] == label and instances[y + 1, x] == label
                and instances[y, x - 1] == label and instances[y, x + 1] == label
            )  # fmt: skip
            if not is_inner:
                _mark(y, x, window, half_widths, cover)


@numba.njit(cache=True, nogil=True)
def _mark(y, x, window, half_widths, cover):
    """Add a disc to ``cover``, which holds for each row of the window where discs begin (+1) and end (-1)."""
    y0, x0, y1, x1 = window
    reach = len(half_widths) - 1
    for row in range(max(y0, y - reach), min(y1, y + reach + 1)):
        half = half_widths[abs(row - y)]
        at = (row - y0) * (x1 - x0 + 1) - x0
        cover[at + max(x0, x - half)] += 1
        cover[at + min(x1, x + half + 1)] -= 1


@numba.njit(cache=True, nogil=True)
def _sum_around(image, instances, table, sums, window, cover):
    y0, x0, y1, x1 = window
    at = 0
    for y in range(y0, y1):
        depth = 0
        for x in range(x0, x1):
            depth += cover[at]
            at += 1
            if depth > 0 and instances[y, x] == 0:
                _add(image, y, x, table, sums)
        at += 1


@numba.njit(cache=True, nogil=True)
def _add(image, y, x, table, sums):
    r, g, b = image[y, x, 0], image[y, x, 1], image[y, x, 2]
    haematoxylin = np.int64(table[0, r, 0] + table[1, g, 0] + table[2, b, 0])
    eosin = np.int64(table[0, r, 1] + table[1, g, 1] + table[2, b, 1])
    sums[0] += 1
    sums[1] += haematoxylin
    sums[2] += haematoxylin * haematoxylin
    sums[3] += eosin
    sums[4] += eosin * eosin


@numba.njit(cache=True, nogil=True)
def _statistics(sums):
    """Mean and deviation of haematoxylin, then of eosin."""
    n = sums[0]
    if n == 0:
        return np.nan, np.nan, np.nan, np.nan
    h, e = covariance(n, sums[1], sums[1], sums[2]), covariance(n, sums[3], sums[3], sums[4])
    return sums[1] / n / _STEPS, math.sqrt(h) / _STEPS, sums[3] / n / _STEPS, math.sqrt(e) / _STEPS
