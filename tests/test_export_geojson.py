"""GeoJSON holds every nucleus once and the tissue under them, as QuPath reads it, and is the same every time."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from scipy import ndimage
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.datasets import read_qupath
from nucleipan.errors import DataError, RegionError, StoreError
from nucleipan.exports import geojson
from nucleipan.exports.geojson import export_geojson
from nucleipan.exports.regions import tissue_regions
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

SHAPE = (200, 240)
EVERYWHERE = np.ones((3, 3))
Features = list[dict[str, Any]]


def store_of(folder: Path, level0_per_pixel: float) -> PanopticStore:
    context = StitchContext(TileGrid(SHAPE, Box.of_shape(SHAPE), 100, 64, 1), level0_per_pixel)
    store = stitch_oracle(folder / "slide.ome.zarr", random_truth(SHAPE, 180), context)[0]
    height, width = (round(side * level0_per_pixel) for side in SHAPE)
    return replace(store, spec=replace(store.spec, slide={"name": "slide.svs", "height": height, "width": width}))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    return store_of(tmp_path_factory.mktemp("geojson"), 1.37)


def exported(store: PanopticStore, path: Path, roi: Box | None = None) -> tuple[Features, Features]:
    """Detections and annotations."""
    n = export_geojson(store, path, roi)
    document = json.loads(path.read_text())
    assert list(document) == ["type", "features"]
    assert document["type"] == "FeatureCollection"
    kinds = [f["properties"]["objectType"] for f in document["features"]]
    n_regions = len(kinds) - n
    assert kinds == ["annotation"] * n_regions + ["detection"] * n
    return document["features"][n_regions:], document["features"][:n_regions]


def polygons_of(features: Features) -> np.ndarray:
    return np.array([shapely.geometry.shape(f["geometry"]) for f in features])


def largest_pieces(ids: np.ndarray) -> np.ndarray:
    """Without what an outline leaves out: all but the largest piece of nuclei that are torn."""
    kept = np.zeros_like(ids)
    for k in range(1, int(ids.max()) + 1):
        labels, _ = ndimage.label(ids == k, EVERYWHERE)
        kept[labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])] = k
    return kept


def with_table(store: PanopticStore, folder: Path, change: Callable[[pa.Table], pa.Table]) -> PanopticStore:
    """A copy whose table is changed."""
    copy = replace(store, path=Path(shutil.copytree(store.path, folder / store.path.name)))
    pq.write_table(change(store.nuclei()), copy.path / "nuclei.parquet", row_group_size=50)
    return copy


# -- Nuclei -------------------------------------------------------------------------------------------------------


def test_every_nucleus_is_a_detection(store: PanopticStore, tmp_path: Path) -> None:
    detections, _ = exported(store, tmp_path / "nuclei.geojson")
    table = store.nuclei()
    exact = shapely.from_wkb(table["geometry"].to_numpy())
    for row, polygon, feature in zip(table.to_pylist(), exact, detections, strict=True):
        assert uuid.UUID(feature["id"]).version == 5
        properties = feature["properties"]
        thing = store.classes.by_id(row["class_id"])
        assert properties["name"] == str(row["id"])
        assert properties["classification"] == {"name": thing.name, "color": list(thing.color)}
        assert properties.get("metadata") == ({"tissue": row["tissue"]} if row["tissue_id"] else None)
        found = shapely.geometry.shape(feature["geometry"])
        assert found.is_valid
        np.testing.assert_allclose(shapely.get_coordinates(found), shapely.get_coordinates(polygon), atol=0.0051)
        np.testing.assert_array_equal(shapely.get_coordinates(found), shapely.get_coordinates(found).round(2))
    assert len({feature["id"] for feature in detections}) == table.num_rows


def test_every_number_of_the_table_is_a_measurement(store: PanopticStore, tmp_path: Path) -> None:
    detections, _ = exported(store, tmp_path / "nuclei.geojson")
    schema = store.nuclei_schema()
    numbers = [f.name for f in schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    expected = [name for name in numbers if name not in ("id", "class_id", "tissue_id")]
    for row, feature in zip(store.nuclei(expected).to_pylist(), detections, strict=True):
        known = [value for value in row.values() if value is not None and math.isfinite(value)]
        found = list(feature["properties"]["measurements"].values())
        assert found == pytest.approx(known, rel=1e-5, abs=1e-12)
    assert "Area µm^2" in detections[0]["properties"]["measurements"]
    assert "Probability non-neoplastic epithelial" in detections[0]["properties"]["measurements"]


COLUMNS = {
    "perimeter_um": (pa.array([12.3456789, 0.1, 1e-7]), "Perimeter µm", [12.3457, 0.1, 1e-7]),
    "eccentricity": (pa.array([0.5, math.nan, math.inf]), "Eccentricity", [0.5, None, None]),
    "centroid_x": (pa.array([123456.789, -0.25, 0.0]), "Centroid X px", [123456.79, -0.25, 0]),
    "eosin_od_mean": (pa.array([0.123456789, None, 1e-20], pa.float32()), "Eosin OD mean", [0.123457, None, 0]),
    "n_neighbours": (pa.array([7, None, 2**40]), "N neighbours", [7, None, 2**40]),
    "density_mm2": (pa.array([1.7e308, -1e15, 1e14]), "Density mm^2", [1.7e308, -1e15, 1e14]),
    "of_text": (pa.array(["a", "b", "c"]), None, []),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_become_measurements_with_units(name: str, store: PanopticStore, tmp_path: Path) -> None:
    """What is missing, or no number, is left out: QuPath reads neither null nor NaN."""
    values, title, expected = COLUMNS[name]

    def change(table: pa.Table) -> pa.Table:
        return table.slice(0, 3).select([c for c in table.column_names if c != name]).append_column(name, values)

    copy = with_table(store, tmp_path, change)
    detections = detections_only(copy, tmp_path / "a.geojson")
    found = [f["properties"]["measurements"] for f in detections]
    if title is None:
        assert found == [f["properties"]["measurements"] for f in exported(store, tmp_path / "b.geojson")[0][:3]]
    else:
        assert [measurements.get(title) for measurements in found] == expected


def detections_only(store: PanopticStore, path: Path) -> Features:
    """Of a store whose planes no longer fit its table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geojson, "tissue_regions", lambda *_: [])
        return exported(store, path)[0]


def test_outlines_hold_the_pixels_of_their_nucleus(store: PanopticStore, tmp_path: Path) -> None:
    """Judged by pixel centres, as QuPath fills; all of a nucleus, unless it is torn, and nothing else."""
    detections, _ = exported(store, tmp_path / "nuclei.geojson")
    ids = store.instances()
    pieces = largest_pieces(ids)
    centre_y, centre_x = (np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5) * store.level0_per_pixel
    n_large = 0
    for k, polygon in enumerate(polygons_of(detections), 1):
        found = shapely.contains_xy(polygon, centre_x, centre_y)
        np.testing.assert_array_equal(found, pieces == k)
        mask = ids == k
        if mask.sum() > 50 and (pieces == k).sum() == mask.sum():
            n_large += 1
            assert (found & mask).sum() / (found | mask).sum() >= 0.95
            assert polygon.area == pytest.approx(mask.sum() * store.level0_per_pixel**2, rel=0.02)
    assert n_large > 100


# -- Tissue -------------------------------------------------------------------------------------------------------


def test_every_tissue_region_is_an_annotation(store: PanopticStore, tmp_path: Path) -> None:
    _, annotations = exported(store, tmp_path / "nuclei.geojson")
    regions = tissue_regions(store)
    assert len(regions) > 5
    for region, polygon, feature in zip(regions, polygons_of(annotations), annotations, strict=True):
        stuff = store.classes.by_id(region.class_id)
        assert uuid.UUID(feature["id"]).version == 5
        assert polygon.is_valid
        assert polygon.area == pytest.approx(region.polygon.area, rel=1e-3)
        assert feature["properties"] == {
            "objectType": "annotation",
            "isLocked": True,
            "classification": {"name": stuff.name, "color": list(stuff.color)},
            "measurements": {"Area µm^2": pytest.approx(region.area_um2, rel=1e-5)},
        }
    assert len({feature["id"] for feature in annotations}) == len(regions)


# -- The file -----------------------------------------------------------------------------------------------------


def test_geometries_keep_to_rfc_7946(store: PanopticStore, tmp_path: Path) -> None:
    detections, annotations = exported(store, tmp_path / "nuclei.geojson")
    n_holes = 0
    for feature in detections + annotations:
        assert list(feature) == ["type", "id", "geometry", "properties"]
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        for k, ring in enumerate(feature["geometry"]["coordinates"]):
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert shapely.LinearRing(ring).is_ccw == (k == 0)
            n_holes += k > 0
    assert n_holes > 0


def test_qupath_layout_reads_it_back(tmp_path: Path) -> None:
    """The reader of QuPath's own exports finds the store's pixels: ids, classes, tissue."""
    store = store_of(tmp_path, 1.0)
    store = replace(store, spec=replace(store.spec, mpp=2.0))
    folder = tmp_path / "qupath"
    folder.mkdir()
    tifffile.imwrite(folder / "slide.tif", np.zeros((*SHAPE, 3), np.uint8))
    export_geojson(store, folder / "slide.geojson.gz")
    (item,) = read_qupath(folder)
    found = item.load()
    ids = store.instances()
    np.testing.assert_array_equal(found.ids, largest_pieces(ids))
    assert found.code_of_id == dict(
        store.nuclei(["id", "class"]).select(["id", "class"]).to_pandas().to_numpy().tolist()
    )
    assert found.regions is not None
    codes = np.array([code or "" for code in found.region_codes])[found.regions]
    names = np.array(["", *(c.name for c in store.classes.classes)])
    tissue = names[store.class_map()]
    tissue[ids > 0] = np.array(["", *store.nuclei(["tissue"])["tissue"].to_pylist()])[ids[ids > 0]]
    tissue[tissue == "background"] = ""
    assert (codes == tissue).mean() > 0.97, "but for pieces and holes that are too small"
    regions = tissue_regions(store)
    for stuff in store.classes.stuff:
        own = [region for region in regions if region.class_id == stuff.id]
        n_pixels = (codes == stuff.name).sum()
        assert sum(r.area_um2 for r in own) == pytest.approx(n_pixels * store.mpp**2, abs=10 * store.mpp**2)


def test_compressed_and_plain_are_the_same_and_repeatable(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.geojson", "a.geojson.gz", "b.geojson.gz"):
        export_geojson(store, tmp_path / name)
    assert gzip.decompress((tmp_path / "a.geojson.gz").read_bytes()) == (tmp_path / "a.geojson").read_bytes()
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.geojson", "a.geojson.gz", "b.geojson.gz"]
    monkeypatch.setattr(geojson, "_ROWS", 7)
    export_geojson(store, tmp_path / "b.geojson")
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes(), "however it is cut in pieces"


def test_each_feature_has_a_line(store: PanopticStore, tmp_path: Path) -> None:
    detections, annotations = exported(store, tmp_path / "nuclei.geojson")
    lines = (tmp_path / "nuclei.geojson").read_text().splitlines()[1:-1]
    assert [json.loads(line.removesuffix(",")) for line in lines] == annotations + detections


def test_a_part(store: PanopticStore, tmp_path: Path) -> None:
    roi = Box(40, 50, 200, 260)
    detections, annotations = exported(store, tmp_path / "part.geojson", roi)
    whole, _ = exported(store, tmp_path / "whole.geojson")
    x, y = (store.nuclei([name])[name].to_numpy() for name in ("centroid_x", "centroid_y"))
    inside = (y >= roi.y0) & (y < roi.y1) & (x >= roi.x0) & (x < roi.x1)
    assert 0 < inside.sum() < len(whole)
    assert detections == [feature for feature, is_in in zip(whole, inside, strict=True) if is_in]
    assert len(annotations) == len(tissue_regions(store, roi)) > 0
    left, top, right, bottom = shapely.total_bounds(polygons_of(annotations))
    assert left >= roi.x0 - 2
    assert top >= roi.y0 - 2
    assert right <= roi.x1 + 2
    assert bottom <= roi.y1 + 2


def test_a_part_without_anything_is_an_empty_collection(store: PanopticStore, tmp_path: Path) -> None:
    assert exported(store, tmp_path / "nothing.geojson", Box(0, 0, 1, 1)) == ([], [])


# -- What goes wrong ----------------------------------------------------------------------------------------------


def test_a_folder_that_is_missing(store: PanopticStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        export_geojson(store, tmp_path / "missing" / "a.geojson")


def test_a_region_outside_the_slide(store: PanopticStore, tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="not inside the slide"):
        export_geojson(store, tmp_path / "a.geojson", Box(0, 0, 9999, 10))
    assert list(tmp_path.iterdir()) == []


NO_OUTLINES = [shapely.Point(1, 2), shapely.Polygon([(0, 0), (1, 0), (1, math.inf)]), shapely.Polygon()]
DAMAGED = {
    "geometry": [b"\x01\x02", None, *(outline.wkb for outline in NO_OUTLINES)],
    "class_id": [200, 0],
    "tissue_id": [1, 250],
}


@pytest.mark.parametrize(("column", "value"), [(c, v) for c, values in DAMAGED.items() for v in values])
def test_a_damaged_table_is_refused(column: str, value: object, store: PanopticStore, tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        k = table.schema.get_field_index(column)
        values = table[column].to_pylist()
        values[60] = value
        return table.set_column(k, table.schema.field(k), pa.array(values, table.schema.field(k).type))

    copy = with_table(store, tmp_path, change)
    with pytest.raises(StoreError, match=r"nuclei\.parquet: nuclei 51 to 100 are damaged"):
        export_geojson(copy, tmp_path / "a.geojson")
    assert [p.name for p in tmp_path.iterdir()] == [store.path.name]
