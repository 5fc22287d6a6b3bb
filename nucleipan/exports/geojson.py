"""Nuclei and tissue as GeoJSON for QuPath (File > Import objects) and anything that reads a FeatureCollection.

Tissue regions come first, as locked annotations, one per connected region (see ``nucleipan.exports.regions``). Nuclei
follow in the order of ids, as detections: QuPath's cells need a boundary around the nucleus, which nobody has measured.
A nucleus carries its class, every number of the table as a measurement, and the tissue it lies in as metadata (shown by
QuPath 0.5 and later). Measurements that are missing are left out.

Coordinates are level-0 slide pixels, as QuPath's own, rounded to a hundredth; otherwise geometries keep to RFC 7946:
rings are closed, exteriors run counterclockwise in x and y as numbers, which is clockwise on a screen where y points
down, and holes the other way. (QuPath writes and accepts either direction.)

Text is made column by column in Arrow, some thousand nuclei at a time, so that a slide of any size takes little memory
and a million nuclei well under a minute. There is one feature per line; a name that ends in ``.gz`` is compressed. The
ids are UUIDs made from the slide, the model, and the nucleus's id or the region's outline: the same store gives the
same file.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from nucleipan.classes import VOID_ID, PanopticClasses
from nucleipan.errors import StoreError, reason
from nucleipan.exports.regions import TissueRegion, tissue_regions
from nucleipan.exports.selection import nuclei_in
from nucleipan.files import open_to_write, whole_file
from nucleipan.geometry import Box
from nucleipan.stitch.table import probability_column
from nucleipan.store import PanopticStore
from nucleipan.store.columns import is_number

_NAMESPACE = uuid.UUID("6f2d3f5e-5d0c-5b5e-9a53-0f6f2f1c7a11")
_ROWS = 4096

# What a feature says elsewhere: as its name, its classification and its metadata.
_NO_MEASUREMENTS = ("id", "class_id", "tissue_id")
_TITLES = {"centroid_x": "Centroid X px", "centroid_y": "Centroid Y px", "orientation": "Orientation rad"}
_UNITS = {"_um2": " µm^2", "_um": " µm", "_mm2": " mm^2", "_px": " px"}
_AREA = "Area µm^2"


def export_geojson(store: PanopticStore, path: Path | str, roi: Box | None = None) -> int:
    """Write nuclei and tissue regions of ``store`` to ``path``; returns how many nuclei.

    With ``roi`` (level-0 pixels): the nuclei whose centroid lies in it, and what is in it of the regions.

    Raises:
        RegionError: the region of interest leaves the slide.
        StoreError: the store is damaged or contradicts itself.
        DataError: the file cannot be written.
    """
    n_nuclei, separator = 0, b""
    namespace = uuid.uuid5(_NAMESPACE, json.dumps([store.slide, store.model, store.config], sort_keys=True))
    regions = tissue_regions(store, roi)
    with whole_file(Path(path)) as temporary, open_to_write(temporary) as file:
        file.write(b'{"type":"FeatureCollection","features":[\n')
        for first in range(0, len(regions), _ROWS):
            file.write(separator)
            file.write(_lines(_annotations(regions[first : first + _ROWS], store.classes, namespace)))
            separator = b",\n"
        for table in _pieces(store, roi):
            file.write(separator)
            file.write(_lines(_detections(table, store, namespace)))
            separator = b",\n"
            n_nuclei += table.num_rows
        file.write(b"\n]}\n")
    return n_nuclei


def _pieces(store: PanopticStore, roi: Box | None) -> Iterator[pa.Table]:
    """Tables of at least one row and at most ``_ROWS``, each column in one chunk."""
    for table in nuclei_in(store, roi):
        for first in range(0, table.num_rows, _ROWS):
            yield table.slice(first, _ROWS).combine_chunks()


def _annotations(regions: Sequence[TissueRegion], classes: PanopticClasses, namespace: uuid.UUID) -> pa.StringArray:
    ids = [uuid.uuid5(namespace, f"{region.class_id} {region.polygon.wkb_hex}") for region in regions]
    return _joined(
        '{"type":"Feature","id":"', pa.array(map(str, ids), pa.string()),
        '","geometry":', _geometries(np.array([region.polygon for region in regions])),
        ',"properties":{"objectType":"annotation","isLocked":true,"classification":',
        _looked_up(pa.array([region.class_id for region in regions], pa.uint8()), _classifications(classes)),
        f',"measurements":{{"{_AREA}":', _numbers(pa.array([region.area_um2 for region in regions])), "}}}",
    )  # fmt: skip


def _detections(table: pa.Table, store: PanopticStore, namespace: uuid.UUID) -> pa.StringArray:
    names = [str(i) for i in table["id"].to_pylist()]
    tissues = {c.id: f'"metadata":{{"tissue":{json.dumps(c.name)}}},' for c in store.classes.stuff} | {VOID_ID: ""}
    measurements = [
        _joined(json.dumps(title, ensure_ascii=False), ":", _numbers(table[column].chunk(0)))
        for column, title in _measurements(table.schema, store.classes)
    ]
    try:
        polygons = shapely.from_wkb(table["geometry"].to_numpy())
        return _joined(
            '{"type":"Feature","id":"', pa.array((str(uuid.uuid5(namespace, name)) for name in names), pa.string()),
            '","geometry":', _geometries(polygons),
            ',"properties":{"objectType":"detection","name":"', pa.array(names, pa.string()),
            '","classification":', _looked_up(table["class_id"].chunk(0), _classifications(store.classes)), ",",
            _looked_up(table["tissue_id"].chunk(0), tissues),
            '"measurements":{', pc.binary_join_element_wise(*measurements, ",", null_handling="skip"), "}}}",
        )  # fmt: skip
    except (shapely.errors.ShapelyError, ValueError) as error:
        raise StoreError(
            f"{store.path / 'nuclei.parquet'}: nuclei {names[0]} to {names[-1]} are damaged ({reason(error)}); "
            "segment the slide again with --overwrite"
        ) from error


def _measurements(schema: pa.Schema, classes: PanopticClasses) -> Iterator[tuple[str, str]]:
    """Names of the columns that hold a number for each nucleus, with what QuPath shows for them."""
    titles = _TITLES | {probability_column(c): f"Probability {c.name}" for c in classes.things}
    for field in schema:
        if is_number(field.type) and field.name not in _NO_MEASUREMENTS:
            yield field.name, titles.get(field.name) or _title(field.name)


def _title(column: str) -> str:
    """``Area µm^2`` for ``area_um2``, as QuPath writes it."""
    suffix = next((s for s in _UNITS if column.endswith(s)), "")
    words = column.removesuffix(suffix).replace("_", " ").replace(" od ", " OD ")
    return words[:1].upper() + words[1:] + _UNITS.get(suffix, "")


def _classifications(classes: PanopticClasses) -> dict[int, str]:
    return {c.id: json.dumps({"name": c.name, "color": c.color}, separators=(",", ":")) for c in classes.classes}


def _looked_up(class_ids: pa.Array, texts: dict[int, str]) -> pa.StringArray:
    """The text of each class.

    Raises:
        ValueError: a class has none.
    """
    ids = class_ids.to_numpy()
    unknown = np.setdiff1d(ids, list(texts))
    if len(unknown):
        raise ValueError(f"class {unknown[0]} has no place here")
    return pa.array([texts.get(i) for i in range(256)], pa.string()).take(pa.array(ids, pa.uint8()))


def _geometries(polygons: np.ndarray) -> pa.StringArray:
    """GeoJSON of ``shapely.Polygon``s.

    Raises:
        ValueError: one is missing, empty or something else, or a coordinate is no finite number.
    """
    kind, points, (ring_ends, polygon_ends) = shapely.to_ragged_array(polygons, include_z=False)
    if kind != shapely.GeometryType.POLYGON or not np.diff(polygon_ends).all() or not np.isfinite(points).all():
        raise ValueError("an outline is no polygon")
    x, y = (pc.cast(pa.array(column), pa.string()) for column in np.ascontiguousarray(points.round(2).T))
    pairs = pc.binary_join_element_wise(x, y, ",")
    rings = _joined("[[", pc.binary_join(_lists(pairs, ring_ends), "],["), "]]")
    return _joined('{"type":"Polygon","coordinates":[', pc.binary_join(_lists(rings, polygon_ends), ","), "]}")


def _numbers(values: pa.Array) -> pa.StringArray:
    """To six digits or hundredths, whichever is more, and 15 decimals at most; null where missing, NaN or infinite."""
    if not pa.types.is_integer(values.type):
        exact = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        is_finite = np.isfinite(exact)
        exact = np.where(is_finite, exact, 0.0)
        digits = np.floor(np.log10(np.abs(exact), where=exact != 0, out=np.zeros_like(exact)))
        scale = 10.0 ** np.where(digits < 13, np.clip(5 - digits, 2, 15), 0)  # larger ones have no hundredths
        values = pa.array(np.round(exact * scale) / scale, mask=~is_finite)
    return values.cast(pa.string())


def _joined(*parts: pa.StringArray | str) -> pa.StringArray:
    return pc.binary_join_element_wise(*parts, "")


def _lists(texts: pa.StringArray, ends: np.ndarray) -> pa.ListArray:
    """``ends`` int[n + 1], 0 first."""
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), texts)


def _lines(features: pa.StringArray) -> memoryview:
    return memoryview(pc.binary_join(_lists(features, np.array([0, len(features)])), ",\n")[0].as_buffer())
