"""Nuclei as AnnData (``.h5ad``), for scanpy, squidpy and the rest of scverse.

::

    X                float32[nuclei, measurements], every number of the table; NaN where one is missing
    obs              id, class_id, class, tissue_id, tissue, and what is true or false of a nucleus (is_completed); the
                     rows are named by their ids
    var              the rows are named like the table's columns
    obsm["spatial"]  float64[nuclei, 2], centroids in level-0 slide pixels, x first
    uns              class_colors, tissue_colors, in the order of the categories; nucleipan, JSON text of where the
                     numbers come from (slide, model, pixel sizes, classes)

AnnData is a format of memory: the numbers of all nuclei are held at once, and their names as Python strings, as
whoever reads the file will hold them. Outlines and pixels are not in it; SpatialData has them too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa

from nucleipan.classes import VOID_ID, VOID_NAME, PanopticClass
from nucleipan.errors import DataError, StoreError, reason
from nucleipan.exports.selection import nuclei_in
from nucleipan.files import whole_file
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore
from nucleipan.store.columns import is_number

_VOID = PanopticClass(VOID_ID, VOID_NAME, False, (0, 0, 0))
_KEYS = ("id", "class_id", "tissue_id")
_CENTROID = ("centroid_x", "centroid_y")


def export_h5ad(store: PanopticStore, path: Path | str, roi: Box | None = None) -> int:
    """Write the nuclei of ``store``, or those in ``roi`` (level-0 pixels), to ``path``; returns how many.

    Raises:
        RegionError: the region of interest leaves the slide.
        StoreError: a nucleus has a class that the store does not know.
        DataError: the file cannot be written, or HDF5 cannot hold a class name.
    """
    nuclei = nuclei_anndata(store, roi)
    with whole_file(Path(path)) as temporary:
        try:
            nuclei.write_h5ad(temporary, compression="gzip")
        except ValueError as error:
            raise DataError(f"{path}: HDF5 cannot hold these nuclei ({reason(error)}); export csv instead") from error
    return nuclei.n_obs


def nuclei_anndata(store: PanopticStore, roi: Box | None = None) -> anndata.AnnData:
    """The nuclei of ``store``, or those in ``roi`` (level-0 pixels), in memory.

    Raises:
        RegionError: the region of interest leaves the slide.
        StoreError: a nucleus has a class that the store does not know.
    """
    columns = _measurements(store.nuclei_schema())
    flags = [field.name for field in store.nuclei_schema() if pa.types.is_boolean(field.type)]
    read = [*_KEYS, *_CENTROID, *columns, *flags]
    tables = [store.nuclei_schema(read).empty_table(), *nuclei_in(store, roi, read)]
    ids, class_ids, tissue_ids = (np.concatenate([table[key].to_numpy() for table in tables]) for key in _KEYS)
    things, tissues = store.classes.things, (_VOID, *store.classes.stuff)
    obs = pd.DataFrame(
        {
            "id": ids,
            "class_id": class_ids,
            "class": _categories(class_ids, things, store),
            "tissue_id": tissue_ids,
            "tissue": _categories(tissue_ids, tissues, store),
            **{name: np.concatenate([table[name].to_numpy() for table in tables]).astype(bool) for name in flags},
        },
        index=pd.Index(ids.astype(str), dtype=object),
    )
    return anndata.AnnData(
        X=np.concatenate([_matrix(table, columns, np.float32) for table in tables]),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(columns, dtype=object)),
        obsm={"spatial": np.concatenate([_matrix(table, _CENTROID, np.float64) for table in tables])},
        uns={"class_colors": _hex(things), "tissue_colors": _hex(tissues), "nucleipan": _provenance(store)},
    )


def _measurements(schema: pa.Schema) -> list[str]:
    """Columns that hold a number for each nucleus which neither names it nor places it."""
    return [field.name for field in schema if is_number(field.type) and field.name not in (*_KEYS, *_CENTROID)]


def _matrix(table: pa.Table, columns: Sequence[str], dtype: type[np.floating]) -> np.ndarray:
    matrix = np.empty((table.num_rows, len(columns)), dtype)
    for k, name in enumerate(columns):
        matrix[:, k] = table[name].to_numpy()
    return matrix


def _categories(class_ids: np.ndarray, known: Sequence[PanopticClass], store: PanopticStore) -> pd.Categorical:
    """Names of ``class_ids`` (uint8[n]); all of ``known`` are categories, in order, also those that no nucleus has."""
    codes = np.full(256, -1, np.int16)
    codes[[c.id for c in known]] = np.arange(len(known))
    unknown = class_ids[codes[class_ids] < 0]
    if len(unknown):
        raise StoreError(
            f"{store.path / 'nuclei.parquet'}: class {unknown[0]} has no place here; "
            "segment the slide again with --overwrite"
        )
    return pd.Categorical.from_codes(codes[class_ids], [c.name for c in known])


def _hex(classes: Sequence[PanopticClass]) -> np.ndarray:
    return np.array(["#{:02x}{:02x}{:02x}".format(*c.color) for c in classes], object)


def _provenance(store: PanopticStore) -> str:
    return json.dumps(
        {
            "slide": store.slide,
            "model": store.model,
            "corrections": store.corrections,
            "mpp": store.mpp,
            "level0_per_pixel": store.level0_per_pixel,
            "classes": store.classes.to_list(),
        },
        sort_keys=True,
    )
