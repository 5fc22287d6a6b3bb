"""What the raster says of nuclei: one pass over all levels, a shard of the finest at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numba
import numpy as np

from nucleipan.errors import StoreError, reason
from nucleipan.geometry import Box
from nucleipan.ngff import n_levels_for
from nucleipan.progress import Progress
from nucleipan.store import Finding, PanopticStore, StoredArray
from nucleipan.verify.rows import Rows

#: Levels by name, finest first.
Pyramids = dict[str, list[StoredArray]]

_DTYPES = {"nuclei": np.uint32, "classes": np.uint8}
# Ids that exceed the length of the table by more than this are not counted one by one.
_MOST_BEYOND = 2**16
_PIXELS, _SUM_Y, _SUM_X, _Y0, _X0, _Y1, _X1, _CLASS, _OTHERS = range(9)


def open_pyramids(store: PanopticStore) -> tuple[Pyramids | None, list[Finding]]:
    """All levels of labels; None if one is missing or of a wrong kind, and what is wrong."""
    pyramids: Pyramids = {name: [] for name in _DTYPES}
    found = []
    for name, levels in pyramids.items():
        for level in range(n_levels_for(store.shape)):
            document = f"labels/{name}/{level}/zarr.json"
            expected = tuple(-(-side // 2**level) for side in store.shape), np.dtype(_DTYPES[name])
            try:
                array = StoredArray.open(store.path / "labels" / name / str(level))
            except StoreError as error:
                found.append(Finding(document, f"describes no array ({reason(error.__cause__ or error)})"))
                continue
            if (array.shape, array.dtype) != expected:
                found.append(Finding(document, f"says {array.dtype} {array.shape}, not {expected[1]} {expected[0]}"))
            levels.append(array)
    return (None if found else pyramids), found


@dataclass
class PixelCount:
    """Nuclei as the raster shows them, counted while ``run`` goes over it.

    Attributes:
        table: int64[M + 1, 9] by id: pixels, sums of their rows and columns, half-open bounding box, class in the
            table, pixels of another class.
        beyond: ids larger than M.
        findings: by file: what cannot be read, shows classes astray, or is no copy of the finest level.
        is_complete: the whole of the finest level could be read.
    """

    store: PanopticStore
    pyramids: Pyramids
    table: np.ndarray
    beyond: set[int] = field(default_factory=set)
    findings: dict[str, Finding] = field(default_factory=dict)
    is_complete: bool = True

    @classmethod
    def of(cls, store: PanopticStore, pyramids: Pyramids, rows: Rows) -> PixelCount:
        """Nothing counted yet, and room for the ids in ``rows``."""
        last_id = min(int(rows.ids.max(initial=0)), len(rows.ids) + _MOST_BEYOND)
        table = np.zeros((last_id + 1, 9), np.int64)
        is_known = (rows.ids > 0) & (rows.ids <= last_id)
        table[rows.ids[is_known], _CLASS] = rows.class_id[is_known]
        return cls(store, pyramids, table)

    @property
    def n_px(self) -> np.ndarray:
        return self.table[:, _PIXELS]

    @property
    def centroids(self) -> np.ndarray:
        """float64[M + 1, 2], y and x, of pixel indices; NaN without pixels."""
        n = np.where(self.n_px > 0, self.n_px, np.nan)
        return self.table[:, [_SUM_Y, _SUM_X]] / n[:, None]

    @property
    def bboxes(self) -> np.ndarray:
        """int64[M + 1, 4], half-open y0, x0, y1, x1."""
        return self.table[:, [_Y0, _X0, _Y1, _X1]]

    @property
    def n_others(self) -> np.ndarray:
        """int64[M + 1], pixels of another class than the table's."""
        return self.table[:, _OTHERS]

    def run(self, progress: Progress) -> None:
        """Go over all levels."""
        boxes = list(_boxes(self.pyramids["nuclei"][0]))
        for n, box in enumerate(boxes, 1):
            ids, classes = (self._read(levels[0], box) for levels in self.pyramids.values())
            if ids is None or classes is None:
                self.is_complete = False
            else:
                self._count(ids, classes, box)
            self._compare("nuclei", ids, box)
            self._compare("classes", classes, box)
            progress(n, len(boxes), "pixels")

    def _count(self, ids: np.ndarray, classes: np.ndarray, box: Box) -> None:
        is_ground = np.isin(np.arange(256), [0, *self.store.classes.stuff_ids])
        n_astray, largest = _count(ids, classes, (box.y0, box.x0), is_ground, self.table)
        if n_astray:
            what = f"{n_astray:,} pixels outside all nuclei have a class of nuclei, or none of the store's"
            self._add(self.pyramids["classes"][0], box, what)
        if largest >= len(self.table) and len(self.beyond) < _MOST_BEYOND:
            self.beyond.update(np.unique(ids[ids >= len(self.table)]).tolist())

    def _compare(self, name: str, finest: np.ndarray | None, box: Box) -> None:
        """Read the part of the coarser levels whose pixels are those of ``box``."""
        for level, array in enumerate(self.pyramids[name][1:], 1):
            step = 2**level
            part = Box(*(-(-side // step) for side in (box.y0, box.x0, box.y1, box.x1)))
            if part.is_empty:
                continue
            plane = self._read(array, part)
            if plane is None or finest is None:
                continue
            different = np.argwhere(plane != finest[-box.y0 % step :: step, -box.x0 % step :: step])
            if len(different):
                y, x = (int(v) for v in different[0])
                where = Box(part.y0 + y, part.x0 + x, part.y1, part.x1)
                self._add(array, where, "differs from the finest level, of which it should be a strided copy")

    def _read(self, array: StoredArray, box: Box) -> np.ndarray | None:
        try:
            return array[box.y0 : box.y1, box.x0 : box.x1]
        except StoreError as error:
            self._add(array, box, f"cannot be read ({reason(error.__cause__ or error)})")
            return None

    def _add(self, array: StoredArray, box: Box, what: str) -> None:
        """Note what is wrong with the file that holds the corner of ``box``, unless something else is."""
        file = array.file_of(box.y0, box.x0).relative_to(self.store.path).as_posix()
        self.findings.setdefault(file, Finding(file, what))


def _boxes(array: StoredArray) -> Iterator[Box]:
    """Shards, row by row."""
    height, width = array.shape
    down, across = array.shards or array.chunks
    for y in range(0, height, down):
        for x in range(0, width, across):
            yield Box(y, x, min(y + down, height), min(x + across, width))


@numba.njit(cache=True, nogil=True)
def _count(ids, classes, corner, is_ground, table):
    """Add the pixels of a box to ``PixelCount.table``.

    Returns how many pixels without an id have a class that is no ground (bool[256]), and the largest id.
    """
    n_astray, largest = 0, np.uint32(0)
    for i in range(ids.shape[0]):
        y = corner[0] + i
        for j in range(ids.shape[1]):
            k = ids[i, j]
            if k == 0:
                n_astray += not is_ground[classes[i, j]]
                continue
            largest = max(largest, k)
            if k >= table.shape[0]:
                continue
            row, x = table[k], corner[1] + j
            if row[_PIXELS] == 0:
                row[_Y0], row[_X0], row[_Y1], row[_X1] = y, x, y + 1, x + 1
            row[_PIXELS] += 1
            row[_SUM_Y] += y
            row[_SUM_X] += x
            row[_Y0], row[_X0] = min(row[_Y0], y), min(row[_X0], x)
            row[_Y1], row[_X1] = max(row[_Y1], y + 1), max(row[_X1], x + 1)
            row[_OTHERS] += classes[i, j] != row[_CLASS]
    return n_astray, largest
