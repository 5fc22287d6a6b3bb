"""Where table and raster differ."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nucleipan.store import Finding, PanopticStore
from nucleipan.verify.pixels import PixelCount
from nucleipan.verify.rows import TABLE, Rows, some

# Both sides are computed from the same integers; what is less than a thousandth of a pixel is rounding.
_ROUNDING = 1e-3


def disagreements(store: PanopticStore, rows: Rows, count: PixelCount) -> list[Finding]:
    """What the table says otherwise than the raster, one finding for each kind."""
    return [Finding(TABLE, what) for what in (*_ids(store, rows, count), *_values(store, rows, count))]


def _ids(store: PanopticStore, rows: Rows, count: PixelCount) -> Iterator[str]:
    ids, times = np.unique(rows.ids, return_counts=True)
    shown = np.union1d(np.flatnonzero(count.n_px), np.array(sorted(count.beyond), np.int64))
    if (times > 1).any():
        yield f"more than one row: {some(ids[times > 1].tolist())}"
    for these, what in ((np.setdiff1d(shown, ids), "in the raster, no row"), (np.setdiff1d(ids, shown), "no pixel")):
        if len(these):
            yield f"{what}: {some(these.tolist())}"
    n = len(rows.ids)
    if not np.array_equal(rows.ids, np.arange(1, n + 1)):
        yield f"its ids are not 1, 2, 3, ... to {n:,}, in this order"
    recorded = (store.attributes.get("stitching") or {}).get("n_nuclei", n)
    if recorded != n:
        yield f"has {n:,} rows, {recorded} were written"


def _values(store: PanopticStore, rows: Rows, count: PixelCount) -> Iterator[str]:
    """Of ids that both have."""
    index = np.flatnonzero((rows.ids > 0) & (rows.ids < len(count.n_px)))
    index = index[count.n_px[rows.ids[index]] > 0]
    ids, scale = rows.ids[index], store.level0_per_pixel
    n_px = count.n_px[ids]
    differs = {
        "class": count.n_others[ids] > 0,
        "area": ~(np.abs(rows.area_um2[index] / store.mpp**2 - n_px) < _ROUNDING),
        "bounding box": _is_apart(rows.bbox[index] / scale, count.bboxes[ids]),
        "centroid": _is_apart(rows.centroid[index] / scale - 0.5, count.centroids[ids]),
    }
    for what, is_different in differs.items():
        if is_different.any():
            yield f"{what} is not that of the raster: {some(ids[is_different].tolist())}"


def _is_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """bool[n], of float64[n, k]; NaN is apart from all."""
    return ~(np.abs(a - b) < _ROUNDING).all(1)
