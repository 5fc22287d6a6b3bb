"""Phase 2, rows: ``nuclei.parquet``, GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/).

One row per nucleus in the order of ids, which is raster order of the centres: a row group is a band of the slide, and
its statistics (of ``bbox``, which GeoParquet calls the covering) let a reader skip all bands outside a viewport. All
coordinates are level-0 slide pixels, x right and y down, and belong to no coordinate reference system (``crs`` null).
Row groups are written one after the other; memory holds the outlines of about one row of tiles.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nucleipan.classes import VOID_NAME, PanopticClass, PanopticClasses
from nucleipan.stitch.candidates import Candidates
from nucleipan.stitch.record import read_columns
from nucleipan.stitch.resolve import Resolution

_COLUMNS = ("probabilities", "scores", "tissue", "outlines", "outline_ends")


def probability_column(thing: PanopticClass) -> str:
    """Name of the column with the probability of a thing class."""
    return "probability_" + thing.name.replace(" ", "_").replace("-", "_")


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
    columns = _TileColumns(folder, candidates)
    # Statistics only where they let a reader skip: they are useless on outlines, and large.
    indexed = ["id", "class_id", "area_um2", *(f"bbox.{side}" for side in ("xmin", "ymin", "xmax", "ymax"))]
    indexed += ["centroid_x", "centroid_y"]
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, write_statistics=indexed) as writer:
        for first in range(0, len(resolution.candidate_of_id), row_group):
            ids = np.arange(first + 1, min(first + row_group, len(resolution.candidate_of_id)) + 1, dtype=np.uint32)
            writer.write_batch(_rows(ids, columns, candidates, resolution, frame, schema), row_group_size=row_group)


class _TileColumns:
    """Table columns of recently used tiles, up to a count of candidates."""

    def __init__(self, folder: Path, candidates: Candidates, max_rows: int = 2**17) -> None:
        self._folder, self._candidates, self._max_rows = folder, candidates, max_rows
        self._columns: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self._n_rows = 0

    def get(self, tile: int) -> dict[str, np.ndarray]:
        if tile in self._columns:
            self._columns.move_to_end(tile)
            return self._columns[tile]
        _, columns = read_columns(self._folder, self._candidates.tiles[tile], _COLUMNS)
        self._columns[tile] = columns
        self._n_rows += len(columns["scores"])
        while self._n_rows > self._max_rows and len(self._columns) > 1:
            _, dropped = self._columns.popitem(last=False)
            self._n_rows -= len(dropped["scores"])
        return columns


def _rows(
    ids: np.ndarray, columns: _TileColumns, c: Candidates, r: Resolution, frame: TableFrame, schema: pa.Schema
) -> pa.RecordBatch:
    index = r.candidate_of_id[ids - 1]
    measures, classes, scale = r.measures.take(index), frame.classes, frame.level0_per_pixel
    probabilities = np.empty((len(index), len(classes.things)), np.float32)
    scores, tissue = np.empty(len(index), np.float32), np.empty(len(index), np.uint8)
    outlines = np.empty(len(index), object)
    for tile in np.unique(c.tile_of[index]):
        here = np.flatnonzero(c.tile_of[index] == tile)
        rows, own = index[here] - c.start[tile], columns.get(int(tile))
        probabilities[here], scores[here] = own["probabilities"][rows], own["scores"][rows]
        tissue[here] = own["tissue"][rows]
        starts, blob = np.concatenate([[0], own["outline_ends"]]), own["outlines"].tobytes()
        for k, row in zip(here, rows, strict=True):
            outlines[k] = blob[starts[row] : starts[row + 1]]
    for k in np.flatnonzero(np.isin(index, list(r.new_outlines))):
        outlines[k], tissue[k] = r.new_outlines[int(index[k])], r.new_tissue[int(index[k])]
    class_id = classes.thing_ids[c.best_thing[index]]
    sides = [pa.array(measures.bbox[:, k] * scale) for k in (1, 0, 3, 2)]
    return pa.record_batch(
        [
            pa.array(ids),
            pa.array(class_id),
            _names(class_id, classes),
            pa.array(scores),
            *(pa.array(np.ascontiguousarray(p)) for p in probabilities.T),
            pa.array(measures.n_px * frame.mpp**2),
            pa.array((measures.sum_x / measures.n_px + 0.5) * scale),
            pa.array((measures.sum_y / measures.n_px + 0.5) * scale),
            pa.StructArray.from_arrays(sides, ["xmin", "ymin", "xmax", "ymax"]),
            pa.array(tissue),
            _names(tissue, classes),
            pa.array(outlines, pa.binary()),
        ],
        schema=schema,
    )


def _names(class_ids: np.ndarray, classes: PanopticClasses) -> pa.DictionaryArray:
    names = pa.array([VOID_NAME, *(c.name for c in classes.classes)])
    return pa.DictionaryArray.from_arrays(pa.array(class_ids.astype(np.int32)), names)


def _schema(frame: TableFrame, resolution: Resolution) -> pa.Schema:
    name = pa.dictionary(pa.int32(), pa.string())
    bbox = pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])
    fields = [
        ("id", pa.uint32()), ("class_id", pa.uint8()), ("class", name), ("score", pa.float32()),
        *((probability_column(c), pa.float32()) for c in frame.classes.things),
        ("area_um2", pa.float64()), ("centroid_x", pa.float64()), ("centroid_y", pa.float64()), ("bbox", bbox),
        ("tissue_id", pa.uint8()), ("tissue", name), ("geometry", pa.binary()),
    ]  # fmt: skip
    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None,
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
    }
    bboxes = resolution.measures.bbox[resolution.candidate_of_id] * frame.level0_per_pixel
    if len(bboxes):
        geometry["bbox"] = [*bboxes[:, [1, 0]].min(0).tolist(), *bboxes[:, [3, 2]].max(0).tolist()]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    return pa.schema(fields, metadata={"geo": json.dumps(geo)})
