"""Which nucleus of one map lies on which of another: the one table every score is computed from.

A mask per nucleus costs gigabytes on a slide; the table of the pairs that share pixels has a few rows per nucleus. Two
passes over the pixels, run by run, collect it with areas and centroids. Maps are read in blocks of rows, so that beyond
the maps themselves memory grows with the number of nuclei only. Nuclei are ordered by their first pixel in raster
order, never by id: any renumbering of a map gives the same table, bit for bit, ties included.

Legend: n true nuclei, m predicted ones, k pairs that share at least one pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numba import njit

from nucleipan.errors import DataError

#: Larger ids are compacted first; below, two int32 per possible id are cheaper.
_LARGEST_DIRECT_ID = 1 << 26
_BLOCK_PIXELS = 1 << 22


class Rows(Protocol):
    """A plane [h, w] that hands out rows: an array, or what loads or computes the rows it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Segments:
    """The instances of one map, in raster order of their first pixel.

    Attributes:
        ids: int64[n], as they stand in the map.
        areas: int64[n], pixels.
        centroids: float64[n, 2], mean of the pixel indices, yx.
        first_pixels: int64[n], flat (C order) index of the first pixel.
    """

    ids: np.ndarray
    areas: np.ndarray
    centroids: np.ndarray
    first_pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Sparse contingency table of two instance maps of one shape.

    Attributes:
        true: the n instances of the truth.
        pred: the m instances of the prediction.
        pair_true: int64[k], row of ``true`` of every pair, ascending.
        pair_pred: int64[k], row of ``pred``, ascending within a true instance.
        intersections: int64[k], pixels shared.
    """

    true: Segments
    pred: Segments
    pair_true: np.ndarray
    pair_pred: np.ndarray
    intersections: np.ndarray

    @property
    def unions(self) -> np.ndarray:
        """int64[k], pixels of either instance of every pair."""
        return self.true.areas[self.pair_true] + self.pred.areas[self.pair_pred] - self.intersections

    @property
    def ious(self) -> np.ndarray:
        """float64[k], intersection over union of every pair."""
        return self.intersections / self.unions

    @property
    def covered_true(self) -> np.ndarray:
        """int64[n], pixels of every true instance that lie in predictions."""
        return _summed(self.intersections, self.pair_true, len(self.true))

    @property
    def covered_pred(self) -> np.ndarray:
        """int64[m], pixels of every prediction that lie in true instances."""
        return _summed(self.intersections, self.pair_pred, len(self.pred))


def overlaps(pred: Rows, true: Rows) -> Overlaps:
    """Compare two integer instance maps [h, w], arrays or other ``Rows``; 0 is no instance.

    Raises:
        DataError: the shapes differ, a map is not two-dimensional or not of non-negative integers.
    """
    if pred.shape != true.shape or len(pred.shape) != 2:
        raise DataError(f"instance maps must share one shape [h, w]; found prediction {pred.shape}, truth {true.shape}")
    pred_ids, true_ids = _direct_ids(pred, "prediction"), _direct_ids(true, "truth")
    pred_rank, true_rank = (np.zeros(len(ids.originals), np.int32) for ids in (pred_ids, true_ids))
    n_found = np.zeros(2, np.int64)
    n_runs = [
        _rank_by_first_pixel(true_ids[rows], pred_ids[rows], true_rank, pred_rank, n_found)
        for rows in row_blocks(true.shape)
    ]
    n, m = n_found.tolist()
    true_sums, pred_sums = np.zeros((n, 4), np.int64), np.zeros((m, 4), np.int64)
    per_instance = (true_rank, pred_rank, true_sums, pred_sums)
    shared = []
    for rows, size in zip(row_blocks(true.shape), n_runs, strict=True):
        keys, lengths = np.empty(size, np.int64), np.empty(size, np.int64)
        _sum_runs(true_ids[rows], pred_ids[rows], rows.start, *per_instance, keys, lengths)
        shared.append(_summed_by_key(keys, lengths))
    pairs, intersections = _summed_by_key(*(np.concatenate(parts) for parts in zip(*shared, strict=True)))  # [k], [k]
    return Overlaps(
        true=_segments(true_ids.originals, true_rank, true_sums),
        pred=_segments(pred_ids.originals, pred_rank, pred_sums),
        pair_true=pairs // max(m, 1),
        pair_pred=pairs % max(m, 1),
        intersections=intersections,
    )


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices that cut the rows of a plane of ``shape`` into blocks of a few million pixels; at least one."""
    height, width = shape
    step = max(1, _BLOCK_PIXELS // max(1, width))
    for y in range(0, max(1, height), step):
        yield slice(y, min(y + step, height))


@dataclass(frozen=True, eq=False)
class _DirectIds:
    """Rows of a plane as uint32 values that index ``originals``, the ids as they stand in the plane; 0 stays 0."""

    plane: Rows
    originals: np.ndarray
    is_compact: bool

    def __getitem__(self, rows: slice) -> np.ndarray:
        ids = self.plane[rows]
        if self.is_compact:
            ids = np.searchsorted(self.originals, ids)
        return np.ascontiguousarray(ids, np.uint32)


def _direct_ids(plane: Rows, which: str) -> _DirectIds:
    largest = 0
    for rows in row_blocks(plane.shape):
        ids = plane[rows]
        if ids.dtype.kind not in "iub":
            raise DataError(f"the {which}'s instance map must hold integers; found {ids.dtype}")
        if ids.dtype.kind == "i" and int(ids.min(initial=0)) < 0:
            raise DataError(f"the {which}'s instance map must hold ids >= 0; found {int(ids.min())}")
        largest = max(largest, int(ids.max(initial=0)))
    if largest <= _LARGEST_DIRECT_ID:
        return _DirectIds(plane, np.arange(largest + 1, dtype=np.uint32), is_compact=False)
    used = [np.unique(plane[rows]) for rows in row_blocks(plane.shape)]
    zero = np.zeros(1, used[0].dtype)
    return _DirectIds(plane, np.unique(np.concatenate([zero, *used])), is_compact=True)


def _summed_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and the sum of each one's values, int64[k] both."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(inverse, weights=values, minlength=len(distinct)).astype(np.int64)


def _summed(pixels: np.ndarray, of: np.ndarray, n: int) -> np.ndarray:
    """int64[n], ``pixels`` added up by ``of``."""
    return np.bincount(of, weights=pixels, minlength=n).astype(np.int64)


def _segments(ids: np.ndarray, rank: np.ndarray, sums: np.ndarray) -> Segments:
    present = np.flatnonzero(rank)
    ordered = np.empty(len(sums), np.int64)
    ordered[rank[present] - 1] = ids[present].astype(np.int64)
    areas = sums[:, 0]
    return Segments(ordered, areas, sums[:, 1:3] / areas[:, None], sums[:, 3])


@njit(cache=True, nogil=True)
def _rank_by_first_pixel(true, pred, true_rank, pred_rank, n_found):
    """Number new ids on as raster order meets them; return the runs that lie on both maps' instances.

    ``n_found`` int64[2] counts true and predicted instances and is carried from block to block, as are the ranks.
    """
    n_runs = 0
    height, width = true.shape
    for y in range(height):
        last_t, last_p = np.uint32(0), np.uint32(0)
        for x in range(width):
            t, p = true[y, x], pred[y, x]
            if t == last_t and p == last_p:
                continue
            last_t, last_p = t, p
            if t > 0 and true_rank[t] == 0:
                n_found[0] += 1
                true_rank[t] = n_found[0]
            if p > 0 and pred_rank[p] == 0:
                n_found[1] += 1
                pred_rank[p] = n_found[1]
            if t > 0 and p > 0:
                n_runs += 1
    return n_runs


@njit(cache=True, nogil=True)
def _add_run(sums, row, y, x0, x1, width):
    n = x1 - x0
    if sums[row, 0] == 0:
        sums[row, 3] = y * width + x0
    sums[row, 0] += n
    sums[row, 1] += y * n
    sums[row, 2] += (x0 + x1 - 1) * n // 2


@njit(cache=True, nogil=True)
def _sum_runs(true, pred, y0, true_rank, pred_rank, true_sums, pred_sums, keys, lengths):
    """Area, sum of y, sum of x and first pixel per instance; a key (true * m + pred) and a length per shared run.

    The block's first row is row ``y0`` of the plane.
    """
    height, width = true.shape
    m = len(pred_sums)
    run = 0
    for y in range(height):
        start = 0
        for x in range(1, width + 1):
            t, p = true[y, start], pred[y, start]
            if x < width and true[y, x] == t and pred[y, x] == p:
                continue
            if t > 0:
                _add_run(true_sums, true_rank[t] - 1, y0 + y, start, x, width)
            if p > 0:
                _add_run(pred_sums, pred_rank[p] - 1, y0 + y, start, x, width)
            if t > 0 and p > 0:
                keys[run] = np.int64(true_rank[t] - 1) * m + (pred_rank[p] - 1)
                lengths[run] = x - start
                run += 1
            start = x
