"""Phase 1: reduce a segmented tile to what must survive, in one file.

A tile's *candidates* are the nuclei it may have to answer for: centre in its core, or within ``seam_px`` of it (a
neighbour may have put the same nucleus on this side). Everything about a candidate that does not depend on its
neighbours is settled here, where tiles run in parallel and their pixels are at hand: exact sums of its pixel
coordinates in the grid of the view (so its centre does not depend on where the tile was cut), outline, shape, stains,
tissue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np

from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.measure import STAIN_COLUMNS, Rings, measure_shapes, measure_stains
from nucleipan.panoptic import PanopticTile
from nucleipan.stitch.outlines import packed, visible_outlines, whole_outlines
from nucleipan.stitch.tile_file import read_arrays, write_arrays
from nucleipan.tiles import Tile, TileGrid

#: Every so many rows and columns of the view, the tissue of a pixel is kept on its own.
SAMPLE_STEP = 8

_RING_UM = 2.0


@dataclass(frozen=True, slots=True)
class StitchContext:
    """What tiles must agree on to be joined.

    Attributes:
        grid: the tiles, the extent they cover and the slide they lie in.
        level0_per_pixel: level-0 slide pixels per pixel of the view; scales the outlines.
        seam_px: how far from a core's edge, on both sides, two tiles may disagree about a nucleus's centre.
        mpp: micrometres per pixel of the view; only stains need it, for the width of the ring around a nucleus.
    """

    grid: TileGrid
    level0_per_pixel: float = 1.0
    seam_px: int = 8
    mpp: float | None = None


@dataclass(frozen=True)
class Measures:
    """Exact integer geometry of n nuclei in the grid of the view.

    Attributes:
        n_px: int64[n], pixels.
        sum_y, sum_x: int64[n], sums of pixel rows and columns; the centre is (sum_y / n_px, sum_x / n_px).
        bbox: int32[n, 4], half-open y0, x0, y1, x1.
        first_x: int32[n], column of the leftmost pixel of the topmost row.
    """

    n_px: np.ndarray
    sum_y: np.ndarray
    sum_x: np.ndarray
    bbox: np.ndarray
    first_x: np.ndarray

    def take(self, index: np.ndarray) -> Measures:
        return Measures(self.n_px[index], self.sum_y[index], self.sum_x[index], self.bbox[index], self.first_x[index])

    def order(self) -> np.ndarray:
        """Canonical order: raster order of the pixel the centre falls on, then exact centre, then first pixel."""
        centre_y, centre_x = self.sum_y / self.n_px, self.sum_x / self.n_px
        row, col = self.sum_y // self.n_px, self.sum_x // self.n_px
        return np.lexsort((self.first_x, self.bbox[:, 0], centre_x, centre_y, col, row))

    def is_centre_in(self, box: Box) -> np.ndarray:
        """bool[n], exact: the mean of integer coordinates against half-open edges, without division."""
        n, y, x = self.n_px, self.sum_y, self.sum_x
        return (y >= box.y0 * n) & (y < box.y1 * n) & (x >= box.x0 * n) & (x < box.x1 * n)


@dataclass(frozen=True)
class TileRecord:
    """What a tile keeps. Rows of the tables are candidates in canonical order; row i is instance i + 1.

    Attributes:
        tile: the tile.
        box: what the planes cover: the core and every candidate whole.
        stuff: uint8[h, w] over ``box``.
        instances: int32[h, w] over ``box``, candidates only.
        measures: geometry of the candidates.
        is_cut: bool[n], touches a side of the outer box that is not the slide's border: its rest was not seen.
        tissue: uint8[n], most frequent stuff id under the nucleus (the smaller of equals).
        probabilities: float32[n, T] and scores: float32[n], as the tile gave them.
        outlines: uint8[b], WKB polygons in level-0 slide pixels one after the other; ``outline_ends`` int64[n].
        completed: uint8[c], the same of the whole shapes of nuclei that others cover; nothing for the rest.
        shapes: float32[n, 6], ``nucleipan.measure.SHAPE_COLUMNS``, lengths in pixels.
        stains: float32[n, 8], ``nucleipan.measure.STAIN_COLUMNS``; NaN where not measured.
        samples: uint8[a, b], stuff id of the core's pixels whose row and column are multiples of `SAMPLE_STEP`.
    """

    tile: Tile
    box: Box
    stuff: np.ndarray
    instances: np.ndarray
    measures: Measures
    is_cut: np.ndarray
    tissue: np.ndarray
    probabilities: np.ndarray
    scores: np.ndarray
    outlines: np.ndarray
    outline_ends: np.ndarray
    completed: np.ndarray
    completed_ends: np.ndarray
    shapes: np.ndarray
    stains: np.ndarray
    samples: np.ndarray


def tile_record(panoptic: PanopticTile, context: StitchContext, image: np.ndarray | None = None) -> TileRecord:
    """Find the candidates of a tile and settle all that needs no neighbour.

    ``image`` is uint8[h, w, 3] over ``tile.outer``, RGB as scanned; without it stains are not measured.

    Raises:
        ValueError: an instance has no row in the tile's table; the image has another shape, or the context no mpp.
    """
    tile, instances = panoptic.tile, np.ascontiguousarray(panoptic.instances, np.int32)
    n_rows = len(panoptic.scores)
    found = _measure(instances, n_rows, tile.outer.y0, tile.outer.x0)
    if found is None:
        raise ValueError(f"instances of tile ({tile.row}, {tile.col}) go beyond the {n_rows} rows of its table")
    measures = Measures(*found)
    wanted = tile.core.grown(context.seam_px).clipped(context.grid.extent)
    index = np.flatnonzero((measures.n_px > 0) & measures.is_centre_in(wanted))
    index = index[measures.take(index).order()]
    measures = measures.take(index)

    box = _covering(tile.core, measures.bbox)
    new_label = np.zeros(n_rows + 1, np.int32)
    new_label[index + 1] = np.arange(1, len(index) + 1)
    inside = box.slices(tile.outer)
    stuff = np.ascontiguousarray(panoptic.stuff[inside], np.uint8)
    labels, tissue = _relabel(np.ascontiguousarray(instances[inside]), stuff, new_label, len(index))
    scale, numbers = context.level0_per_pixel, (index + 1).astype(np.int32)
    seen = visible_outlines(labels, measures.bbox, (box.y0, box.x0), scale)
    whole = whole_outlines(instances, numbers, measures.bbox, (tile.outer.y0, tile.outer.x0), scale)
    return TileRecord(
        tile, box, stuff, labels, measures, _is_cut(measures.bbox, tile.outer, context.grid.slide_shape), tissue,
        np.asarray(panoptic.probabilities, np.float32)[index], np.asarray(panoptic.scores, np.float32)[index],
        *packed(seen), *packed([whole.get(k, b"") for k in range(len(index))]),
        measure_shapes(labels, _within(measures.bbox, box)),
        _stains(image, instances, index, _within(measures.bbox, tile.outer), context.mpp),
        panoptic.stuff[_every_step(tile.core, tile.outer)],
    )  # fmt: skip


def sampled(box: Box) -> Box:
    """The samples whose pixels lie in ``box``, counted in samples."""
    return Box(*(-(-side // SAMPLE_STEP) for side in (box.y0, box.x0, box.y1, box.x1)))


def tile_path(folder: Path, tile: Tile) -> Path:
    return folder / f"r{tile.row:05d}c{tile.col:05d}.tile"


def write_record(folder: Path, record: TileRecord) -> Path:
    """Write a tile's file; from then on the tile is done."""
    m = record.measures
    narrow = np.uint16 if len(m.n_px) < 2**16 else np.uint32
    arrays = {
        "n_px": m.n_px, "sum_y": m.sum_y, "sum_x": m.sum_x, "bbox": m.bbox, "first_x": m.first_x,
        "is_cut": record.is_cut, "tissue": record.tissue, "probabilities": record.probabilities,
        "scores": record.scores, "outlines": record.outlines, "outline_ends": record.outline_ends,
        "completed": record.completed, "completed_ends": record.completed_ends,
        "shapes": record.shapes, "stains": record.stains, "samples": record.samples,
        "stuff": record.stuff, "instances": record.instances.astype(narrow),
    }  # fmt: skip
    path = tile_path(folder, record.tile)
    write_arrays(path, _meta(record.tile) | {"box": list(_corners(record.box))}, arrays)
    return path


def read_columns(folder: Path, tile: Tile, names: Iterable[str] | None = None) -> tuple[Box, dict[str, np.ndarray]]:
    """The box of a tile's planes and its arrays called ``names`` (all by default).

    Raises:
        StoreError: the file is missing, damaged, or of a tile cut differently.
    """
    path = tile_path(folder, tile)
    meta, arrays = read_arrays(path, names)
    if any(meta.get(key) != value for key, value in _meta(tile).items()):
        raise StoreError(f"{path} belongs to another tiling ({meta}); run again to compute the tile anew")
    return Box(*meta["box"]), arrays


def finished_tiles(folder: Path, grid: TileGrid) -> list[Tile]:
    """Tiles whose files are there and whole, in raster order; damaged files are removed, so their tiles run again."""
    finished = []
    for tile in grid:
        if not tile_path(folder, tile).exists():
            continue
        try:
            read_columns(folder, tile)
        except StoreError:
            tile_path(folder, tile).unlink(missing_ok=True)
        else:
            finished.append(tile)
    return finished


def _meta(tile: Tile) -> dict[str, Any]:
    return {"core": list(asdict(tile.core).values()), "outer": list(asdict(tile.outer).values())}


def _corners(box: Box) -> tuple[int, int, int, int]:
    return box.y0, box.x0, box.y1, box.x1


def _covering(core: Box, bbox: np.ndarray) -> Box:
    if len(bbox) == 0:
        return core
    y0, x0 = (int(v) for v in bbox[:, :2].min(0))
    y1, x1 = (int(v) for v in bbox[:, 2:].max(0))
    return Box(min(y0, core.y0), min(x0, core.x0), max(y1, core.y1), max(x1, core.x1))


def _is_cut(bbox: np.ndarray, outer: Box, slide_shape: tuple[int, int]) -> np.ndarray:
    return (
        ((bbox[:, 0] <= outer.y0) & (outer.y0 > 0))
        | ((bbox[:, 1] <= outer.x0) & (outer.x0 > 0))
        | ((bbox[:, 2] >= outer.y1) & (outer.y1 < slide_shape[0]))
        | ((bbox[:, 3] >= outer.x1) & (outer.x1 < slide_shape[1]))
    )


def _within(bbox: np.ndarray, box: Box) -> np.ndarray:
    """int32[n, 4], bounding boxes relative to the corner of ``box``."""
    return bbox - np.array([box.y0, box.x0, box.y0, box.x0], np.int32)


def _every_step(core: Box, outer: Box) -> tuple[slice, slice]:
    """Index of the core's samples into a plane over ``outer``."""
    first, n = sampled(core), SAMPLE_STEP
    return slice(first.y0 * n - outer.y0, core.y1 - outer.y0, n), slice(first.x0 * n - outer.x0, core.x1 - outer.x0, n)


def _stains(
    image: np.ndarray | None, instances: np.ndarray, index: np.ndarray, bbox: np.ndarray, mpp: float | None
) -> np.ndarray:
    if image is None:
        return np.full((len(index), len(STAIN_COLUMNS)), np.nan, np.float32)
    if mpp is None:
        raise ValueError("stains are measured in a ring of so many micrometres; give the StitchContext an mpp")
    return measure_stains(image, instances, Rings((index + 1).astype(np.int32), bbox, _RING_UM / mpp))


@numba.njit(cache=True, nogil=True)
def _measure(instances: np.ndarray, n: int, y0: int, x0: int):  # type: ignore[no-untyped-def]
    """The arrays of ``Measures`` for labels 1..n, or None where a label lies outside them."""
    n_px, sum_y, sum_x = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    bbox, first_x = np.zeros((n, 4), np.int32), np.zeros(n, np.int32)
    for i in range(instances.shape[0]):
        for j in range(instances.shape[1]):
            k = instances[i, j] - 1
            if k == -1:
                continue
            if k < -1 or k >= n:
                return None
            y, x = y0 + i, x0 + j
            if n_px[k] == 0:
                first_x[k] = x
                bbox[k, 0], bbox[k, 1], bbox[k, 3] = y, x, x + 1
            n_px[k] += 1
            sum_y[k] += y
            sum_x[k] += x
            bbox[k, 1] = min(bbox[k, 1], x)
            bbox[k, 3] = max(bbox[k, 3], x + 1)
            bbox[k, 2] = y + 1
    return n_px, sum_y, sum_x, bbox, first_x


@numba.njit(cache=True, nogil=True)
def _relabel(instances: np.ndarray, stuff: np.ndarray, new_label: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Instances under their new labels (0 = dropped), and the most frequent stuff id under each."""
    counts = np.zeros((n, 256), np.int32)
    labels = np.empty_like(instances)
    for i in range(instances.shape[0]):
        for j in range(instances.shape[1]):
            label = new_label[instances[i, j]]
            labels[i, j] = label
            if label:
                counts[label - 1, stuff[i, j]] += 1
    tissue = np.empty(n, np.uint8)
    for k in range(n):
        tissue[k] = np.argmax(counts[k])
    return labels, tissue
