"""Everything that is counted, in one pass over the table and one over the class plane.

The table is read a row group at a time and the plane in strips, and only counts are kept: a million nuclei need no
more memory than a thousand. The tissue plane shows the nucleus where there is one, so the area of a tissue is that of
its pixels plus that of the nuclei that lie in it (``tissue_id``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.report.frame import Frame, Grid
from nucleipan.store.columns import is_number

FIELD_UM = 128.0
_MAX_FIELDS = 250_000
_MAX_MAP_BINS = 150
_MIN_MAP_BIN_UM = 10.0
# A larger plane is counted on a coarser level, which holds every second, fourth, ... of its pixels.
_MAX_PLANE_PIXELS = 2**28
_STRIP_PIXELS = 2**24


@dataclass(frozen=True)
class Tally:
    """Counts by thing (T) and tissue (S), in the order of a ``Frame``.

    Attributes:
        counts: int64[T, S], nuclei.
        tissue_mm2: float64[S], with the nuclei in it.
        is_tissue: bool[rows, cols], bins of ``maps`` that hold anything but background and void.
        plane_step: the class plane was counted on every so manieth pixel along each axis.
        maps: the bins of ``by_bin``.
        by_bin: int64[T, rows * cols], nuclei.
        fields: the bins of ``things_by_field`` and ``tissues_by_field``: places to cut examples from.
        things_by_field: int64[T, rows * cols], nuclei by their own class.
        tissues_by_field: int64[S, rows * cols], nuclei by the tissue they lie in.
    """

    counts: np.ndarray
    tissue_mm2: np.ndarray
    is_tissue: np.ndarray
    plane_step: int
    maps: Grid
    by_bin: np.ndarray
    fields: Grid
    things_by_field: np.ndarray
    tissues_by_field: np.ndarray

    @property
    def n_nuclei(self) -> int:
        return int(self.counts.sum())


def count(frame: Frame) -> Tally:
    """Count the nuclei and the tissue of a store.

    Raises:
        StoreError: a nucleus has a class or tissue that the store does not know, or lies nowhere.
    """
    maps, fields = _map_grid(frame), _field_grid(frame)
    n_things, n_tissues = len(frame.things), len(frame.tissues)
    counts = np.zeros(n_things * n_tissues, np.int64)
    nuclei_um2 = np.zeros(n_tissues)
    by_bin = np.zeros(n_things * maps.n_bins, np.int64)
    by_field = [np.zeros(n * fields.n_bins, np.int64) for n in (n_things, n_tissues)]
    for table in frame.store.nuclei_batches(["class_id", "tissue_id", "area_um2", "centroid_x", "centroid_y"]):
        thing, tissue = _class_rows(table, frame)
        y, x = (numbers(table["centroid_" + axis]) / frame.store.level0_per_pixel for axis in "yx")
        area = numbers(table["area_um2"])
        if not (np.isfinite(y).all() and np.isfinite(x).all() and np.isfinite(area).all()):
            raise StoreError(f"{frame.store.path}: a nucleus has no place or no area; segment the slide again")
        counts += np.bincount(thing * n_tissues + tissue, minlength=len(counts))
        nuclei_um2 += np.bincount(tissue, area, minlength=n_tissues)
        by_bin += np.bincount(thing * maps.n_bins + maps.bins(y, x), minlength=len(by_bin))
        place = fields.bins(y, x)
        for rows, plane in ((thing, by_field[0]), (tissue, by_field[1])):
            plane += np.bincount(rows * fields.n_bins + place, minlength=len(plane))
    plane_um2, is_tissue, step = _count_plane(frame, maps)
    return Tally(
        counts.reshape(n_things, n_tissues), (plane_um2 + nuclei_um2) / 1e6, is_tissue, step,
        maps, by_bin.reshape(n_things, -1),
        fields, by_field[0].reshape(n_things, -1), by_field[1].reshape(n_tissues, -1),
    )  # fmt: skip


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64, the values of a numeric column; NaN where one is missing.

    Raises:
        StoreError: it holds something else.
    """
    if not is_number(column.type):
        raise StoreError(f"nuclei.parquet holds {column.type} where numbers belong; segment the slide again")
    return column.cast(pa.float64(), safe=False).to_numpy()


def _map_grid(frame: Frame) -> Grid:
    """Square bins, of which the longer side of the slide takes at most `_MAX_MAP_BINS`."""
    side = max(_MIN_MAP_BIN_UM, _round_up(max(frame.extent_um) / _MAX_MAP_BINS))
    return frame.grid((side, side))


def _field_grid(frame: Frame) -> Grid:
    """Equal bins, as near to a field and not smaller as a whole number of them allows, and at most `_MAX_FIELDS`."""
    height, width = frame.extent_um
    least = max(FIELD_UM, math.sqrt(height * width / _MAX_FIELDS))
    return frame.grid((height / max(1, int(height / least)), width / max(1, int(width / least))))


def _class_rows(table: pa.Table, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for name, rows in (("class_id", frame.row_of_thing), ("tissue_id", frame.row_of_tissue)):
        ids = numbers(table[name])
        is_id = (ids >= 0) & (ids < 256)
        known = np.where(is_id, rows[np.where(is_id, ids, 0).astype(np.int64)], -1)
        if (known < 0).any():
            wrong = ids[known < 0][0]
            raise StoreError(f"{frame.store.path}: a nucleus has {name} {wrong:g}, which the store does not know")
        found.append(known)
    return found[0], found[1]


def _count_plane(frame: Frame, maps: Grid) -> tuple[np.ndarray, np.ndarray, int]:
    """um2 of each tissue in the class plane, where in ``maps`` there is tissue, and the step it was counted with."""
    store = frame.store
    shapes = [store.array("classes", level).shape for level in range(store.n_levels)]
    fits = [level for level, shape in enumerate(shapes) if math.prod(shape) <= _MAX_PLANE_PIXELS]
    level = fits[0] if fits else store.n_levels - 1
    step = 2**level
    box = store.spec.extent.scaled(1 / step).clipped(Box(0, 0, *shapes[level]))
    is_glass = np.ones(256, bool)
    for c in (*frame.things, *frame.tissues[: frame.n_tissues]):
        is_glass[c.id] = False
    counts, in_bins = np.zeros(256, np.int64), np.zeros(maps.shape, bool)
    n_rows = max(1, _STRIP_PIXELS // max(1, box.width))
    cols = maps.cols(np.arange(box.x0, box.x1) * step)
    for y in range(box.y0, box.y1, n_rows):
        strip = store.class_map(Box(y, box.x0, min(y + n_rows, box.y1), box.x1), level)
        counts += np.bincount(strip.ravel(), minlength=256)
        for line, row in zip(strip, maps.rows(np.arange(y, y + len(strip)) * step), strict=True):
            in_bins[row, cols[~is_glass[line]]] = True
    um2 = np.array([counts[c.id] for c in frame.tissues]) * (store.mpp * step) ** 2
    return um2, in_bins, step


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, ... at or above ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= value * (1 - 1e-9))
