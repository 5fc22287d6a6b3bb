"""Phase 2, rows: ``nuclei.parquet``, GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/).

One row per nucleus in the order of ids, which is raster order of the centres: a row group is a band of the slide, and
its statistics (of ``bbox``, which GeoParquet calls the covering) let a reader skip all bands outside a viewport. All
coordinates are level-0 slide pixels, x right and y down, and belong to no coordinate reference system (``crs`` null).
Row groups are written one after the other; memory holds the outlines of about one row of tiles.

Shape is that of the final mask. Stains are those of the mask that the nucleus came with: one that lost pixels to
another keeps them. They are null where no image was given, and in rings without a pixel. ``distance_to_nearest_um`` is
from centroid to centroid, and null for an only nucleus; ``distance_to_tissue_border_um`` is from the centroid to the
nearest pixel of other tissue than the nucleus's own, of one in 8 rows and columns, and `MAX_BORDER_UM` where that is
as far or farther; it is null where the tissue is void. Both know the extent that was segmented and nothing beyond.

``geometry`` outlines the final mask. Where a neighbour seems to cover a nucleus in part (``is_completed``),
``completed_geometry`` outlines what it most plausibly is whole, see ``nucleipan.measure.completion``; else it is null.
Everything else in the row, and every export, is of the mask.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nucleipan.classes import VOID_NAME, PanopticClass, PanopticClasses
from nucleipan.measure import SHAPE_COLUMNS, STAIN_COLUMNS, distance_to_nearest
from nucleipan.stitch.candidates import Candidates
from nucleipan.stitch.outlines import unpacked
from nucleipan.stitch.recent import Recent
from nucleipan.stitch.record import read_columns
from nucleipan.stitch.resolve import Resolution
from nucleipan.stitch.tissue import TissueSamples, distance_to_border

#: Distances to tissue borders are not looked for beyond it.
MAX_BORDER_UM = 500.0

#: Name of the column with the whole shapes of nuclei that others cover in part.
COMPLETED = "completed_geometry"

_TILE_COLUMNS = (
    "probabilities", "scores", "tissue", "outlines", "outline_ends", "completed", "completed_ends", "shapes",
    "stains",
)  # fmt: skip
_LENGTHS = frozenset({"perimeter", "axis_major_length", "axis_minor_length"})


def probability_column(thing: PanopticClass) -> str:
    """Name of the column with the probability of a thing class."""
    return f"probability_{thing.key}"


@dataclass(frozen=True, slots=True)
class TableFrame:
    """What turns counts of view pixels into the table's units."""

    classes: PanopticClasses
    mpp: float
    level0_per_pixel: float


def write_table(
    path: Path, folder: Path, candidates: Candidates, resolution: Resolution, frame: TableFrame, row_group: int
) -> None:
    """Write the rows of all ids to ``path``; tile files are read from ``folder``."""
    schema = _schema(frame, resolution)
    sources = _Sources(
        candidates, resolution, _TileColumns(folder, candidates), TissueSamples(folder, candidates.tiles),
        *_centres(resolution),
    )  # fmt: skip
    # Statistics only where they let a reader skip: they are useless on outlines, and large.
    indexed = ["id", "class_id", "area_um2", *(f"bbox.{side}" for side in ("xmin", "ymin", "xmax", "ymax"))]
    indexed += ["centroid_x", "centroid_y"]
    options = {"compression": "zstd", "compression_level": 1, "write_page_checksum": True}
    with pq.ParquetWriter(path, schema, write_statistics=indexed, **options) as writer:
        for first in range(0, len(sources.centres), row_group):
            part = slice(first, min(first + row_group, len(sources.centres)))
            writer.write_batch(_rows(part, sources, frame, schema), row_group_size=row_group)


@dataclass(frozen=True)
class _Sources:
    """What rows are made of. ``centres`` float64[N, 2] are y and x of all ids in pixels of the view, ``rows`` int64[N]
    the pixel rows that they fall on."""

    candidates: Candidates
    resolution: Resolution
    columns: _TileColumns
    samples: TissueSamples
    centres: np.ndarray
    rows: np.ndarray


def _centres(resolution: Resolution) -> tuple[np.ndarray, np.ndarray]:
    m = resolution.measures.take(resolution.candidate_of_id)
    return np.stack([m.sum_y / m.n_px, m.sum_x / m.n_px], 1), m.sum_y // m.n_px


class _TileColumns(Recent[dict[str, np.ndarray]]):
    """Table columns of recently used tiles, up to a count of candidates."""

    def __init__(self, folder: Path, candidates: Candidates, max_rows: int = 2**17) -> None:
        super().__init__(
            lambda tile: read_columns(folder, candidates.tiles[tile], _TILE_COLUMNS)[1],
            lambda columns: len(columns["scores"]),
            max_rows,
        )


@dataclass(frozen=True)
class _Kept:
    """What the tiles, and contests, say of n nuclei."""

    probabilities: np.ndarray
    scores: np.ndarray
    tissue: np.ndarray
    shapes: np.ndarray
    stains: np.ndarray
    outlines: np.ndarray
    completed: np.ndarray


def _kept(index: np.ndarray, sources: _Sources, n_things: int) -> _Kept:
    c, r, n = sources.candidates, sources.resolution, len(index)
    kept = _Kept(
        np.empty((n, n_things), np.float32), np.empty(n, np.float32), np.empty(n, np.uint8),
        np.empty((n, len(SHAPE_COLUMNS)), np.float32), np.empty((n, len(STAIN_COLUMNS)), np.float32),
        np.empty(n, object), np.empty(n, object),
    )  # fmt: skip
    for tile in np.unique(c.tile_of[index]):
        here = np.flatnonzero(c.tile_of[index] == tile)
        rows, own = index[here] - c.start[tile], sources.columns.get(int(tile))
        for name in ("probabilities", "scores", "tissue", "shapes", "stains"):
            getattr(kept, name)[here] = own[name][rows]
        for name, ends in (("outlines", "outline_ends"), ("completed", "completed_ends")):
            for k, outline in zip(here, unpacked(own[name], own[ends], rows), strict=True):
                getattr(kept, name)[k] = outline
    for k in np.flatnonzero(np.isin(index, list(r.remainders))):
        left = r.remainders[int(index[k])]
        kept.tissue[k], kept.shapes[k] = left.tissue, left.shape
        kept.outlines[k], kept.completed[k] = left.outline, left.completed
    return kept


def _rows(part: slice, sources: _Sources, frame: TableFrame, schema: pa.Schema) -> pa.RecordBatch:
    index = sources.resolution.candidate_of_id[part]
    kept, centres = _kept(index, sources, len(frame.classes.things)), sources.centres[part]
    measures, classes, scale = sources.resolution.measures.take(index), frame.classes, frame.level0_per_pixel
    class_id = classes.thing_ids[sources.candidates.best_thing[index]]
    units = np.array([frame.mpp if name in _LENGTHS else 1.0 for name in SHAPE_COLUMNS])
    to_nearest = distance_to_nearest(sources.centres, sources.rows, part)
    to_border = distance_to_border(sources.samples, centres, kept.tissue, MAX_BORDER_UM / frame.mpp)
    is_completed = np.array([len(outline) > 0 for outline in kept.completed], bool)
    sides = [pa.array(measures.bbox[:, k] * scale) for k in (1, 0, 3, 2)]
    return pa.record_batch(
        [
            pa.array(np.arange(part.start + 1, part.stop + 1, dtype=np.uint32)),
            pa.array(class_id),
            _names(class_id, classes),
            pa.array(kept.scores),
            *_floats(kept.probabilities),
            pa.array(measures.n_px * frame.mpp**2),
            *_floats(kept.shapes * units),
            *_floats(kept.stains),
            pa.array((centres[:, 1] + 0.5) * scale),
            pa.array((centres[:, 0] + 0.5) * scale),
            pa.StructArray.from_arrays(sides, ["xmin", "ymin", "xmax", "ymax"]),
            pa.array(kept.tissue),
            _names(kept.tissue, classes),
            *_floats(np.stack([to_nearest, to_border], 1) * frame.mpp),
            pa.array(is_completed),
            pa.array(kept.completed, pa.binary(), mask=~is_completed),
            pa.array(kept.outlines, pa.binary()),
        ],
        schema=schema,
    )


def _floats(table: np.ndarray) -> list[pa.Array]:
    """The columns of float[n, k] as float32; null where there is no finite number."""
    return [pa.array(column.astype(np.float32), mask=~np.isfinite(column)) for column in table.T]


def shape_column(name: str) -> str:
    """Name of the column with one of ``SHAPE_COLUMNS``."""
    return f"{name}_um" if name in _LENGTHS else name


def _names(class_ids: np.ndarray, classes: PanopticClasses) -> pa.DictionaryArray:
    names = pa.array([VOID_NAME, *(c.name for c in classes.classes)])
    return pa.DictionaryArray.from_arrays(pa.array(class_ids.astype(np.int32)), names)


def _schema(frame: TableFrame, resolution: Resolution) -> pa.Schema:
    name = pa.dictionary(pa.int32(), pa.string())
    bbox = pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])
    fields = [
        ("id", pa.uint32()), ("class_id", pa.uint8()), ("class", name), ("score", pa.float32()),
        *((probability_column(c), pa.float32()) for c in frame.classes.things),
        ("area_um2", pa.float64()),
        *((shape_column(column), pa.float32()) for column in SHAPE_COLUMNS),
        *((column, pa.float32()) for column in STAIN_COLUMNS),
        ("centroid_x", pa.float64()), ("centroid_y", pa.float64()), ("bbox", bbox),
        ("tissue_id", pa.uint8()), ("tissue", name),
        ("distance_to_nearest_um", pa.float32()), ("distance_to_tissue_border_um", pa.float32()),
        ("is_completed", pa.bool_()), (COMPLETED, pa.binary()), ("geometry", pa.binary()),
    ]  # fmt: skip
    polygons = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None, "edges": "planar"}
    geometry = polygons | {
        "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
    }
    bboxes = resolution.measures.bbox[resolution.candidate_of_id] * frame.level0_per_pixel
    if len(bboxes):
        geometry["bbox"] = [*bboxes[:, [1, 0]].min(0).tolist(), *bboxes[:, [3, 2]].max(0).tolist()]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry, COMPLETED: polygons}}
    return pa.schema(fields, metadata={"geo": json.dumps(geo)})
