"""The nuclei table as CSV, for spreadsheets and statistics, and as GeoParquet, for all that reads columns.

CSV leaves the outlines out and gives each side of the bounding box a column. A missing value is an empty cell. Class
names come from a weights file, and a spreadsheet runs a cell that looks like a formula: an apostrophe is put before a
text, or a column's name, that begins like one. Numbers stay as they are.
A name that ends in ``.gz`` is compressed, without a time stamp: the same store gives the same file.

GeoParquet is the store's own file, byte for byte; of a region, its rows, in row groups that are parts of the store's
and with the bounding box of what is left. Both are written a row group at a time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from nucleipan.errors import StoreError
from nucleipan.exports.selection import nuclei_in
from nucleipan.files import FORMULA, defused, open_to_write, whole_file
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore
from nucleipan.store.columns import is_number

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def export_csv(store: PanopticStore, path: Path | str, roi: Box | None = None) -> int:
    """Write the nuclei of ``store``, or those in ``roi`` (level-0 pixels), to ``path``; returns how many.

    Raises:
        RegionError: the region of interest leaves the slide.
        DataError: the file cannot be written.
    """
    columns = [field.name for field in store.nuclei_schema() if not pa.types.is_binary(field.type)]
    schema = _flat(store.nuclei_schema(columns).empty_table()).schema
    n = 0
    with (
        whole_file(Path(path)) as temporary,
        open_to_write(temporary) as file,
        pyarrow.csv.CSVWriter(file, schema) as writer,
    ):
        for table in nuclei_in(store, roi, columns):
            writer.write_table(_flat(table))
            n += table.num_rows
    return n


def export_parquet(store: PanopticStore, path: Path | str, roi: Box | None = None) -> int:
    """As ``export_csv``, in GeoParquet 1.1.

    Raises:
        RegionError: the region of interest leaves the slide.
        StoreError: the store's table is no GeoParquet.
        DataError: the file cannot be written.
    """
    with whole_file(Path(path)) as temporary:
        if roi is not None or store.corrections:
            return _write_part(store, temporary, roi)
        shutil.copyfile(store.path / "nuclei.parquet", temporary)
        return store.n_nuclei


def _flat(table: pa.Table) -> pa.Table:
    """Structs as columns of their own, texts as plain and harmless ones."""
    names, columns = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_struct(field.type):
            names += [f"{field.name}_{child.name}" for child in field.type]
            columns += [pc.struct_field(column, [k]) for k in range(field.type.num_fields)]
        else:
            names.append(field.name)
            columns.append(_defused(column) if _is_text(field.type) else column)
    return pa.table(columns, [defused(name) for name in names])


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _defused(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(texts.cast(pa.string()), pattern=FORMULA, replacement=r"'\1")


def _write_part(store: PanopticStore, path: Path, roi: Box | None) -> int:
    schema = store.nuclei_schema()
    schema = schema.with_metadata(schema.metadata | {b"geo": json.dumps(_geo(store, roi)).encode()})
    # As in the store: statistics of outlines and names are large, and let no reader skip anything.
    indexed = [field.name for field in schema if is_number(field.type)]
    indexed += [f"bbox.{side}" for side in _SIDES]
    n = 0
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, write_statistics=indexed) as writer:
        for table in nuclei_in(store, roi):
            if table.num_rows:
                writer.write_table(table, row_group_size=table.num_rows)
                n += table.num_rows
    return n


def _geo(store: PanopticStore, roi: Box | None) -> dict[str, Any]:
    """The GeoParquet metadata of the nuclei in ``roi``; without nuclei they name no bounding box."""
    try:
        geo = json.loads(store.nuclei_schema().metadata[b"geo"])
        geometry = geo["columns"][geo["primary_column"]]
        geometry.pop("bbox", None)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{store.path / 'nuclei.parquet'} is no GeoParquet: its metadata 'geo' are missing or malformed; "
            "segment the slide again with --overwrite"
        ) from error
    bounds = [_bounds(table["bbox"]) for table in nuclei_in(store, roi, ["bbox"]) if table.num_rows]
    if bounds:
        xmin, ymin, xmax, ymax = zip(*bounds, strict=True)
        geometry["bbox"] = [min(xmin), min(ymin), max(xmax), max(ymax)]
    return geo


def _bounds(bbox: pa.ChunkedArray) -> tuple[float, float, float, float]:
    xmin, ymin, xmax, ymax = (pc.struct_field(bbox, side) for side in _SIDES)
    return pc.min(xmin).as_py(), pc.min(ymin).as_py(), pc.max(xmax).as_py(), pc.max(ymax).as_py()
