"""A store as SpatialData (``.zarr``): pixels, outlines and table together, for squidpy, spatialdata-plot and napari.

::

    labels  nuclei           uint32 pyramid, ids of the store
    labels  classes          uint8 pyramid, class ids; their names are in the table's uns["nucleipan"]
    shapes  nuclei_outlines  polygons, named by the same ids, with the class (SpatialData uses a name once only)
    images  overview         RGB pyramid
    tables  table            as AnnData; annotates the labels ``nuclei`` by ``id``

Everything is placed in two coordinate systems: ``global``, level-0 slide pixels, and ``um``, micrometres. Their origin
is the slide's upper left corner. Levels of planes are the store's. Of a region the planes are cut as they are, so that
a nucleus on the border whose centroid lies outside has pixels here and no row; a cut starts up to 1/512 of its longer
side before the region, where all of its levels have a pixel.

Pixels are copied a shard at a time. SpatialData holds outlines and table in memory, here as wherever it is read: about
2 kB a nucleus. Without nuclei it has no place for either, and only pixels are written.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import geopandas
import numpy as np
import pandas as pd
import shapely
import spatialdata
import xarray as xr
import zarr
from anndata import AnnData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import BaseTransformation, Scale, Translation, set_transformation
from spatialdata.transformations import Sequence as Chain

from nucleipan.errors import DataError, NucleipanError, StoreError, reason
from nucleipan.exports.anndata import nuclei_anndata
from nucleipan.exports.selection import nuclei_in
from nucleipan.exports.tiling import raster_box
from nucleipan.files import whole_folder
from nucleipan.geometry import Box
from nucleipan.ngff import n_levels_for
from nucleipan.store import LabelArray, PanopticStore

_LABELS, _OUTLINES = "nuclei", "nuclei_outlines"


def export_spatialdata(store: PanopticStore, path: Path | str, roi: Box | None = None) -> int:
    """Write ``store``, or what is in ``roi`` (level-0 pixels), to the new folder ``path``; returns how many nuclei.

    Raises:
        RegionError: the region of interest leaves the slide.
        StoreError: the store is damaged or contradicts itself.
        DataError: the folder exists or cannot be written, or SpatialData cannot hold a class name.
    """
    with whole_folder(Path(path)) as temporary:
        nuclei = nuclei_anndata(store, roi)
        try:
            data = spatialdata.SpatialData(images=_images(store, roi), labels=_labels(store, roi))
            if nuclei.n_obs:
                data[_OUTLINES] = _outlines(store, roi, nuclei)
                data["table"] = _table(nuclei)
            temporary.rmdir()  # SpatialData makes its folder itself
            with warnings.catch_warnings():
                # A default of AnnData's that will change; whoever exports can do nothing about it.
                warnings.filterwarnings("ignore", "zarr v3 autosharding")
                data.write(temporary)
        except NucleipanError:
            raise
        except ValueError as error:
            raise DataError(f"{path}: SpatialData cannot hold this store ({reason(error)})") from error
    return nuclei.n_obs


@dataclass(frozen=True)
class _Frame:
    """Where pixels lie: level-0 slide pixels of each, and micrometres of a level-0 slide pixel."""

    level0_per_pixel: float
    level0_mpp: float

    def transformations(self, x: int = 0, y: int = 0) -> dict[str, BaseTransformation]:
        """From pixels that count from ``x``, ``y`` to both coordinate systems."""
        return {
            system: Chain([Translation([x, y], ("x", "y")), Scale([scale, scale], ("x", "y"))])
            for system, scale in (("global", self.level0_per_pixel), ("um", self.level0_per_pixel * self.level0_mpp))
        }


def _level0_mpp(store: PanopticStore) -> float:
    return store.mpp / store.level0_per_pixel


def _labels(store: PanopticStore, roi: Box | None) -> dict[str, xr.DataTree]:
    frame, box = _Frame(store.level0_per_pixel, _level0_mpp(store)), raster_box(store, roi)
    levels = range(store.n_levels)
    return {name: _pyramid([store.array(name, k) for k in levels], box, frame) for name in (_LABELS, "classes")}


def _images(store: PanopticStore, roi: Box | None) -> dict[str, xr.DataTree]:
    levels = [store.image(k) for k in range(store.n_levels)]
    frame = _Frame(_overview_mpp(store) / _level0_mpp(store), _level0_mpp(store))
    whole = Box.of_shape((levels[0].shape[-2], levels[0].shape[-1]))
    box = whole if roi is None else roi.scaled(1 / frame.level0_per_pixel).clipped(whole)
    return {} if box.is_empty else {"overview": _pyramid(levels, box, frame)}


def _overview_mpp(store: PanopticStore) -> float:
    try:
        document: Any = zarr.open_group(str(store.path), mode="r").attrs["ome"]
        scale = document["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
        mpp = float(scale[-1])
        if not 0 < mpp < np.inf:
            raise ValueError(f"scale is {mpp}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StoreError(
            f"{store.path}: its image has no pixel size; segment the slide again with --overwrite"
        ) from error
    return mpp


def _pyramid(levels: Sequence[LabelArray], box: Box, frame: _Frame) -> xr.DataTree:
    """``box`` of the first of ``levels``, each half the one before, as SpatialData's multiscale image; nothing is read.

    ``box`` grows up and to the left to where pixels of all levels begin. Arrays are [y, x] or [c, y, x].
    """
    levels = levels[: n_levels_for(box.shape)]
    step = 2 ** (len(levels) - 1)
    y0, x0 = box.y0 // step * step, box.x0 // step * step
    scales = {}
    for k, level in enumerate(levels):
        rows, columns = slice(y0 >> k, -(-box.y1 // 2**k)), slice(x0 >> k, -(-box.x1 // 2**k))
        chunks = level.shards or level.chunks
        # Cut chunks are uneven; zarr has only even ones.
        pixels = da.from_array(level, chunks=chunks)[..., rows, columns].rechunk(chunks)
        dims, coords = ("c", "y", "x")[-pixels.ndim :], {"c": ["r", "g", "b"]} if pixels.ndim == 3 else {}
        scales[f"scale{k}"] = xr.Dataset({"image": xr.DataArray(pixels, dims=dims, coords=coords)})
    tree = xr.DataTree.from_dict(scales)
    set_transformation(tree, frame.transformations(x0, y0), set_all=True)
    return tree


def _outlines(store: PanopticStore, roi: Box | None, nuclei: AnnData) -> geopandas.GeoDataFrame:
    tables = nuclei_in(store, roi, ["geometry"])
    try:
        polygons = np.concatenate([shapely.from_wkb(table["geometry"].to_numpy()) for table in tables])
    except shapely.errors.ShapelyError as error:
        raise _damaged(store, reason(error)) from error
    if not (shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON).all():
        raise _damaged(store, "an outline is no polygon")
    # A column of plain values: the table's row names are texts, and would be matched with the ids.
    columns = {"class": nuclei.obs["class"].array}
    ids = pd.Index(nuclei.obs["id"].to_numpy(), name="id")
    frame = _Frame(1.0, _level0_mpp(store))
    return ShapesModel.parse(
        geopandas.GeoDataFrame(columns, geometry=polygons, index=ids), transformations=frame.transformations()
    )


def _damaged(store: PanopticStore, why: str) -> StoreError:
    return StoreError(f"{store.path / 'nuclei.parquet'} is damaged ({why}); segment the slide again with --overwrite")


def _table(nuclei: AnnData) -> AnnData:
    nuclei.obs["region"] = pd.Categorical.from_codes(np.zeros(nuclei.n_obs, np.int8), [_LABELS])
    return TableModel.parse(nuclei, region=_LABELS, region_key="region", instance_key="id")
