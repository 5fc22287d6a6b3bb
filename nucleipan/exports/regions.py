"""Tissue regions: every connected piece of a stuff class as one polygon with holes, however large the slide.

The class plane is read in bands of rows at the coarsest level whose pixels are at most about 2 um wide, so that
outlines lie within about a micrometre of the plane's. Nuclei in it are filled with the tissue that the table names for
them: regions have no nucleus-shaped holes. Each region is one polygon, not a part of a MultiPolygon per class: in
QuPath it is then an annotation that can be picked, measured or deleted on its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely

from nucleipan.classes import GLASS_NAME
from nucleipan.errors import StoreError
from nucleipan.exports.selection import view_box
from nucleipan.exports.sweep import trace_regions
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

#: Smaller regions and holes are left out: these outlines are for looking at, counting in and correcting by hand.
MIN_REGION_UM2 = 500.0

# A little over 2 um, because pixels of 0.2528 um, say, are not finer by intention.
_PIXEL_UM = 2.1


@dataclass(frozen=True, eq=False)
class TissueRegion:
    """A connected piece of tissue; ``polygon`` is in level-0 slide pixels, its exterior counterclockwise in x, y."""

    class_id: int
    polygon: shapely.Polygon
    area_um2: float


def tissue_regions(store: PanopticStore, roi: Box | None = None) -> list[TissueRegion]:
    """Regions of all stuff classes but background, cut at ``roi`` (level-0 pixels), in raster order of their tops.

    Regions smaller than ``MIN_REGION_UM2`` are left out and holes smaller than that are filled, with what lies in them.

    Raises:
        RegionError: the region of interest leaves the slide.
        StoreError: the class plane shows a nucleus that the table does not have.
    """
    level = max(k for k in range(store.n_levels) if k == 0 or store.mpp * 2**k <= _PIXEL_UM)
    step, box = 2**level, view_box(store, roi)
    samples = Box(*(-(-side // step) for side in (box.y0, box.x0, box.y1, box.x1)))
    if samples.is_empty:
        return []
    min_area = MIN_REGION_UM2 / (store.mpp * step) ** 2
    class_ids, polygons = trace_regions(_bands(store, samples, level), min_area)
    if len(polygons) == 0:
        return []
    polygons = shapely.transform(polygons, _Frame(samples, box, step, store.level0_per_pixel).to_level0)
    areas = shapely.area(polygons) * (store.mpp / store.level0_per_pixel) ** 2
    rows = zip(class_ids.tolist(), polygons, areas.tolist(), strict=True)
    return [TissueRegion(class_id, polygon, area) for class_id, polygon, area in rows]


@dataclass(frozen=True)
class _Frame:
    """Where the samples of a level lie on the slide.

    The pixel of a level is the first of ``step`` x ``step`` pixels of the view. An outline passes half-way between
    samples; only where ``box`` ends, it ends there.
    """

    samples: Box
    box: Box
    step: int
    level0_per_pixel: float

    def to_level0(self, xy: np.ndarray) -> np.ndarray:
        """float64[n, 2], level-0 slide pixels of points that count samples from the first one's corner."""
        samples, box = self.samples, self.box
        placed = (xy + np.array([samples.x0, samples.y0])) * self.step + (1 - self.step) / 2
        placed = np.where(xy == 0, (box.x0, box.y0), placed)
        placed = np.where(xy == (samples.width, samples.height), (box.x1, box.y1), placed)
        return placed * self.level0_per_pixel


def _bands(store: PanopticStore, samples: Box, level: int) -> Iterator[np.ndarray]:
    """uint8[h, w] of ``samples`` at a level, a row of chunks at a time: tissue with nuclei filled in, 0 elsewhere."""
    tissue_of_id = _tissue_of_id(store)
    wanted = np.zeros(256, np.uint8)
    for tissue in store.classes.stuff:
        wanted[tissue.id] = 0 if tissue.name == GLASS_NAME else tissue.id
    height = store.array("classes", level).chunks[0]
    for y in range(samples.y0 // height * height, samples.y1, height):
        band = Box(y, samples.x0, y + height, samples.x1).clipped(samples)
        ids = store.instances(band, level)
        if int(ids.max()) >= len(tissue_of_id):
            raise StoreError(
                f"{store.path} shows nucleus {ids.max()}, its table has {len(tissue_of_id) - 1}; "
                "segment the slide again with --overwrite"
            )
        yield wanted[np.where(ids > 0, tissue_of_id[ids], store.class_map(band, level))]


def _tissue_of_id(store: PanopticStore) -> np.ndarray:
    """uint8[N + 1], stuff class that each nucleus lies in, 0 first."""
    tissue_of_id = np.zeros(store.last_id + 1, np.uint8)
    for table in store.nuclei_batches(["id", "tissue_id"]):
        tissue_of_id[table["id"].to_numpy()] = table["tissue_id"].to_numpy()
    return tissue_of_id
