"""The table reads the same from CSV, GeoParquet and AnnData as from the store, and a spreadsheet runs none of it."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.errors import DataError, RegionError, StoreError
from nucleipan.exports.table import export_csv, export_parquet
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

SHAPE = (200, 240)
SCALE = 1.37
SLIDE = {"name": "slide.svs", "width": 329, "height": 274, "mpp": 0.365, "fingerprint": "ab12"}
ROI = Box(31, 50, 207, 301)
WITHOUT_NUCLEI = Box(0, 0, 1, 1)
SIDES = ("xmin", "ymin", "xmax", "ymax")
FORMULAS = ('=HYPERLINK("http://x.example","y")', "+1+1", "-1+1", "@SUM(1)", "\t=1+1", "\r=1+1", "\n=1+1")
HARMLESS = ("plain", 'quoted "name", with\nlines', "a=b", "'apostrophe", "größe")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    context = StitchContext(TileGrid(SHAPE, Box.of_shape(SHAPE), 100, 64, 1), SCALE, mpp=0.5)
    path = tmp_path_factory.mktemp("tables") / "slide.ome.zarr"
    found = stitch_oracle(path, random_truth(SHAPE, 180), context)[0]
    return replace(found, spec=replace(found.spec, slide=SLIDE))


def altered(store: PanopticStore, folder: Path, change: Callable[[pa.Table], pa.Table]) -> PanopticStore:
    """A copy of the store with another table."""
    shutil.copytree(store.path, folder / "altered.ome.zarr")
    pq.write_table(change(store.nuclei()), folder / "altered.ome.zarr" / "nuclei.parquet", row_group_size=50)
    return replace(PanopticStore.open(folder / "altered.ome.zarr"), spec=store.spec)


def with_column(name: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    """Put ``values`` in the place of the column ``name``, or before the last one where there is none."""

    def change(table: pa.Table) -> pa.Table:
        if name in table.column_names:
            return table.set_column(table.column_names.index(name), name, values)
        return table.add_column(table.num_columns - 1, name, values)

    return change


def rows_in(store: PanopticStore, roi: Box) -> pa.Table:
    table = store.nuclei()
    x, y = table["centroid_x"].to_numpy(), table["centroid_y"].to_numpy()
    return table.filter(pa.array((x >= roi.x0) & (x < roi.x1) & (y >= roi.y0) & (y < roi.y1)))


def numbers_of(table: pa.Table) -> list[str]:
    """Columns with plain numbers."""
    is_number = (pa.types.is_integer, pa.types.is_floating)
    return [field.name for field in table.schema if any(is_kind(field.type) for is_kind in is_number)]


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


# CSV


def test_csv_has_every_value_of_the_table(store: PanopticStore, tmp_path: Path) -> None:
    assert export_csv(store, tmp_path / "a.csv") == store.n_nuclei
    header, rows = read_csv(tmp_path / "a.csv")
    table = store.nuclei()
    geometries = {"geometry", "completed_geometry"}
    assert set(header) == set(table.column_names) - geometries - {"bbox"} | {f"bbox_{side}" for side in SIDES}
    assert len(rows) == table.num_rows > 150
    cells = dict(zip(header, zip(*rows, strict=True), strict=True))
    for name in numbers_of(table):
        exact = table[name].to_numpy()
        read = np.array([float(cell or "nan") for cell in cells[name]]).astype(exact.dtype)
        np.testing.assert_array_equal(read, exact, name)
    for side in SIDES:
        assert [float(cell) for cell in cells[f"bbox_{side}"]] == [box[side] for box in table["bbox"].to_pylist()]
    for name in ("class", "tissue"):
        assert list(cells[name]) == table[name].to_pylist()


def test_csv_leaves_missing_values_empty(store: PanopticStore, tmp_path: Path) -> None:
    values = pa.array([None if k % 3 else k / 7 for k in range(store.n_nuclei)], pa.float32())
    export_csv(altered(store, tmp_path, with_column("score", values)), tmp_path / "a.csv")
    header, rows = read_csv(tmp_path / "a.csv")
    column = header.index("score")
    assert [row[column] == "" for row in rows] == [bool(k % 3) for k in range(store.n_nuclei)]


def test_csv_is_compressed_the_same_every_time(store: PanopticStore, tmp_path: Path) -> None:
    for name in ("a.csv", "a.csv.gz", "b.csv.gz"):
        export_csv(store, tmp_path / name)
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()) == (tmp_path / "a.csv").read_bytes()
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.csv.gz", "b.csv.gz"]


def test_spreadsheets_run_no_class_name(store: PanopticStore, tmp_path: Path) -> None:
    names = [*FORMULAS, *HARMLESS]
    codes = np.arange(store.n_nuclei, dtype=np.int32) % len(names)
    column = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names))
    hostile = altered(store, tmp_path, with_column("class", column))
    export_csv(hostile, tmp_path / "a.csv")
    header, rows = read_csv(tmp_path / "a.csv")
    expected = [f"'{name}" for name in FORMULAS] + list(HARMLESS)
    assert [row[header.index("class")] for row in rows] == [expected[code] for code in codes]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_spreadsheets_run_no_other_text(store: PanopticStore, tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array([FORMULAS[k % len(FORMULAS)] for k in range(store.n_nuclei)], kind)
    export_csv(altered(store, tmp_path, with_column("=note", texts)), tmp_path / "a.csv")
    header, rows = read_csv(tmp_path / "a.csv")
    column = header.index("'=note")
    assert [row[column] for row in rows] == [f"'{text}" for text in texts.to_pylist()]


# GeoParquet


def geoparquet_faults(path: Path) -> list[str]:
    """Rules of GeoParquet 1.1 that a file with polygons in WKB breaks, https://geoparquet.org/releases/v1.1.0/."""
    file = pq.ParquetFile(path)
    geo = json.loads(file.metadata.metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    leaf = next(
        file.schema.column(k)
        for k in range(len(file.schema.names))
        if file.schema.column(k).path == geo["primary_column"]  # "MUST be at the root of the schema"
    )
    polygons = shapely.from_wkb(file.read([geo["primary_column"]])[0].to_numpy())
    kinds = {polygon.geom_type + (" Z" if polygon.has_z else "") for polygon in polygons}
    rules = {
        "version": geo["version"] == "1.1.0",
        "encoding": column["encoding"] == "WKB" and leaf.physical_type == "BYTE_ARRAY",
        "repetition": leaf.max_repetition_level == 0,
        "geometry_types": kinds <= set(column["geometry_types"]) and len(set(column["geometry_types"])) < 2,
        "crs": column["crs"] is None,
        "edges": column.get("edges", "planar") in ("planar", "spherical"),
        "bbox": bounds_fit(column.get("bbox"), polygons),
        "covering": covering_fits(column["covering"]["bbox"], file, polygons),
    }
    return [name for name, is_kept in rules.items() if not is_kept]


def bounds_fit(bbox: list[float] | None, polygons: np.ndarray) -> bool:
    """Outlines cut half a pixel off the corners of masks, which the boxes hold."""
    if bbox is None or len(polygons) == 0:
        return bbox is None and len(polygons) == 0
    return bool(np.allclose(bbox, shapely.total_bounds(polygons), rtol=0, atol=SCALE))


def covering_fits(covering: dict[str, list[str]], file: pq.ParquetFile, polygons: np.ndarray) -> bool:
    """ "The paths [...] MUST be of the same struct", of one floating type each, and boxes hold their geometries."""
    if {path[0] for path in covering.values()} != {"bbox"} or any(covering[side] != ["bbox", side] for side in SIDES):
        return False
    kind = file.schema_arrow.field("bbox").type
    if len({child.type for child in kind}) != 1 or kind.field("xmin").type not in (pa.float32(), pa.float64()):
        return False
    boxes = np.array([[box[side] for side in SIDES] for box in file.read(["bbox"])["bbox"].to_pylist()]).reshape(-1, 4)
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    return bool((boxes[:, :2] <= bounds[:, :2] + 1e-9).all() and (boxes[:, 2:] >= bounds[:, 2:] - 1e-9).all())


@pytest.mark.parametrize("roi", [None, ROI, WITHOUT_NUCLEI])
def test_parquet_is_geoparquet(store: PanopticStore, tmp_path: Path, roi: Box | None) -> None:
    n = export_parquet(store, tmp_path / "a.parquet", roi)
    assert (n > 0) == (roi != WITHOUT_NUCLEI)
    assert geoparquet_faults(tmp_path / "a.parquet") == []


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [
        ("encoding", "encoding", "WKT"),
        ("geometry_types", "geometry_types", ["Point"]),
        ("crs", "crs", {"type": "ProjectedCRS"}),
        ("bbox", "bbox", [0.0, 0.0, 10.0, 10.0]),
        ("covering", "covering", {"bbox": {side: ["bbox", "xmin"] for side in SIDES}}),
    ],
)
def test_faults_of_geoparquet_are_found(store: PanopticStore, tmp_path: Path, rule: str, key: str, value: Any) -> None:
    table = store.nuclei()
    geo = json.loads(table.schema.metadata[b"geo"])
    geo["columns"]["geometry"][key] = value
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "a.parquet")
    assert geoparquet_faults(tmp_path / "a.parquet") == [rule]


def test_parquet_of_everything_is_the_stores_own(store: PanopticStore, tmp_path: Path) -> None:
    assert export_parquet(store, tmp_path / "a.parquet") == store.n_nuclei
    assert (tmp_path / "a.parquet").read_bytes() == (store.path / "nuclei.parquet").read_bytes()


def test_parquet_of_a_region_has_its_rows_and_bounds(store: PanopticStore, tmp_path: Path) -> None:
    expected = rows_in(store, ROI)
    assert export_parquet(store, tmp_path / "a.parquet", ROI) == expected.num_rows < store.n_nuclei
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.schema_arrow.equals(store.nuclei_schema())
    assert file.read().equals(expected)
    geometry = json.loads(file.metadata.metadata[b"geo"])["columns"]["geometry"]
    boxes = np.array([[box[side] for side in SIDES] for box in expected["bbox"].to_pylist()])
    assert geometry["bbox"] == [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]
    assert geometry["bbox"] != json.loads(store.nuclei_schema().metadata[b"geo"])["columns"]["geometry"]["bbox"]


def test_row_groups_of_a_region_are_parts_of_the_stores(store: PanopticStore, tmp_path: Path) -> None:
    export_parquet(store, tmp_path / "a.parquet", ROI)
    file = pq.ParquetFile(tmp_path / "a.parquet")
    groups = [file.read_row_group(k, ["id"])["id"].to_pylist() for k in range(file.num_row_groups)]
    of_store = [set(table["id"].to_pylist()) for table in store.nuclei_batches(["id"])]
    assert len(groups) > 1
    homes = [[k for k, ids in enumerate(of_store) if ids.issuperset(group)] for group in groups]
    assert all(len(home) == 1 for home in homes)
    assert len({home[0] for home in homes}) == len(groups)
    statistics = {c["path_in_schema"]: c["statistics"] for c in file.metadata.row_group(0).to_dict()["columns"]}
    assert statistics["bbox.xmin"]["has_min_max"]
    assert not (statistics["geometry"] or {}).get("has_min_max")


@pytest.mark.parametrize("metadata", [None, {"geo": "{"}, {"geo": "[]"}, {"geo": '{"primary_column": "geometry"}'}])
def test_a_region_of_a_table_without_geo_metadata_is_refused(
    store: PanopticStore, tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    damaged = altered(store, tmp_path, lambda table: table.replace_schema_metadata(metadata))
    with pytest.raises(StoreError, match="no GeoParquet"):
        export_parquet(damaged, tmp_path / "a.parquet", ROI)
    assert not (tmp_path / "a.parquet").exists()


@pytest.mark.parametrize("roi", [None, ROI])
def test_geopandas_reads_the_parquet(store: PanopticStore, tmp_path: Path, roi: Box | None) -> None:
    geopandas = pytest.importorskip("geopandas")
    export_parquet(store, tmp_path / "a.parquet", roi)
    frame = geopandas.read_parquet(tmp_path / "a.parquet")
    expected = store.nuclei() if roi is None else rows_in(store, roi)
    assert frame.crs is None
    assert frame["id"].tolist() == expected["id"].to_pylist()
    assert frame["class"].tolist() == expected["class"].to_pylist()
    assert shapely.equals(frame.geometry.to_numpy(), shapely.from_wkb(expected["geometry"].to_numpy())).all()
    window = (100.0, 90.0, 160.0, 150.0)  # found through the covering
    boxes = np.array([[box[side] for side in SIDES] for box in expected["bbox"].to_pylist()])
    meets = (boxes[:, :2] <= window[2:]).all(1) & (boxes[:, 2:] >= window[:2]).all(1)
    found = geopandas.read_parquet(tmp_path / "a.parquet", bbox=window)
    assert found["id"].tolist() == expected["id"].to_numpy()[meets].tolist()
    assert 0 < meets.sum() < len(meets)


# AnnData


@pytest.mark.parametrize("roi", [None, ROI])
def test_h5ad_has_every_number_of_the_table(store: PanopticStore, tmp_path: Path, roi: Box | None) -> None:
    anndata = pytest.importorskip("anndata")
    from nucleipan.exports.anndata import export_h5ad

    expected = store.nuclei() if roi is None else rows_in(store, roi)
    assert export_h5ad(store, tmp_path / "a.h5ad", roi) == expected.num_rows
    nuclei = anndata.read_h5ad(tmp_path / "a.h5ad")
    places = {"id", "class_id", "tissue_id", "centroid_x", "centroid_y"}
    assert list(nuclei.var_names) == [name for name in numbers_of(expected) if name not in places]
    assert {"area_um2", "score", "solidity", "haematoxylin_od_mean"} < set(nuclei.var_names)
    assert nuclei.X.dtype == np.float32
    for k, name in enumerate(nuclei.var_names):
        np.testing.assert_array_equal(nuclei.X[:, k], expected[name].to_numpy().astype(np.float32), name)
    assert nuclei.obs_names.tolist() == [str(i) for i in expected["id"].to_pylist()]
    for name in ("id", "class_id", "class", "tissue_id", "tissue", "is_completed"):
        assert nuclei.obs[name].tolist() == expected[name].to_pylist()
    assert nuclei.obs["is_completed"].dtype == bool
    assert nuclei.obsm["spatial"].dtype == np.float64
    np.testing.assert_array_equal(nuclei.obsm["spatial"][:, 0], expected["centroid_x"].to_numpy())
    np.testing.assert_array_equal(nuclei.obsm["spatial"][:, 1], expected["centroid_y"].to_numpy())


def test_h5ad_colours_follow_the_categories(store: PanopticStore, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    from nucleipan.exports.anndata import export_h5ad

    export_h5ad(store, tmp_path / "a.h5ad", ROI)
    nuclei = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert nuclei.obs["class"].cat.categories.tolist() == [c.name for c in store.classes.things]
    assert nuclei.obs["tissue"].cat.categories.tolist() == ["void", *(c.name for c in store.classes.stuff)]
    for name in ("class", "tissue"):
        colors = nuclei.uns[f"{name}_colors"]
        for category, color in zip(nuclei.obs[name].cat.categories, colors, strict=True):
            rgb = (0, 0, 0) if category == "void" else store.classes.by_name(category).color
            assert tuple(bytes.fromhex(color.removeprefix("#"))) == rgb


def test_h5ad_says_where_it_comes_from(store: PanopticStore, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    from nucleipan.exports.anndata import export_h5ad

    export_h5ad(store, tmp_path / "a.h5ad")
    source = json.loads(anndata.read_h5ad(tmp_path / "a.h5ad").uns["nucleipan"])
    assert source == {
        "slide": SLIDE,
        "model": store.model,
        "corrections": {},
        "mpp": store.mpp,
        "level0_per_pixel": SCALE,
        "classes": store.classes.to_list(),
    }


def test_h5ad_takes_up_new_measurements(store: PanopticStore, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    from nucleipan.exports.anndata import export_h5ad

    mitoses = pa.array([None if k == 3 else k for k in range(store.n_nuclei)], pa.int16())
    export_h5ad(altered(store, tmp_path, with_column("n_mitoses", mitoses)), tmp_path / "a.h5ad")
    nuclei = anndata.read_h5ad(tmp_path / "a.h5ad")
    expected = [np.nan if k == 3 else k for k in range(store.n_nuclei)]
    np.testing.assert_array_equal(nuclei[:, "n_mitoses"].X.ravel(), expected)


def test_h5ad_may_hold_no_nuclei(store: PanopticStore, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    from nucleipan.exports.anndata import export_h5ad

    assert export_h5ad(store, tmp_path / "a.h5ad", WITHOUT_NUCLEI) == 0
    nuclei = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert nuclei.shape == (0, len(nuclei.var_names))
    assert "area_um2" in nuclei.var_names


def test_h5ad_refuses_a_class_that_nobody_knows(store: PanopticStore, tmp_path: Path) -> None:
    pytest.importorskip("anndata")
    from nucleipan.exports.anndata import export_h5ad

    class_ids = pa.array([77, *store.nuclei(["class_id"])["class_id"].to_pylist()[1:]], pa.uint8())
    with pytest.raises(StoreError, match="class 77 has no place here"):
        export_h5ad(altered(store, tmp_path, with_column("class_id", class_ids)), tmp_path / "a.h5ad")


def test_h5ad_refuses_a_name_that_hdf5_cannot_hold(store: PanopticStore, tmp_path: Path) -> None:
    pytest.importorskip("anndata")
    from nucleipan.exports.anndata import export_h5ad

    first, *others = store.classes.classes
    classes = replace(store.classes, classes=(replace(first, name="zero\0byte"), *others))
    with pytest.raises(DataError, match=r"a\.h5ad: HDF5 cannot hold"):
        export_h5ad(replace(store, spec=replace(store.spec, classes=classes)), tmp_path / "a.h5ad")
    assert list(tmp_path.iterdir()) == []


def test_h5ad_is_the_same_every_time(store: PanopticStore, tmp_path: Path) -> None:
    pytest.importorskip("anndata")
    from nucleipan.exports.anndata import export_h5ad

    for name in ("a.h5ad", "b.h5ad"):
        export_h5ad(store, tmp_path / name)
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()


# All of them


def exporters() -> list[Any]:
    """The functions; AnnData's only where it is installed, which its module needs."""

    def export_h5ad(*arguments: Any) -> int:
        pytest.importorskip("anndata")
        from nucleipan.exports import anndata

        return anndata.export_h5ad(*arguments)

    return [export_csv, export_parquet, export_h5ad]


@pytest.mark.parametrize("export", exporters())
def test_a_region_that_leaves_the_slide_is_refused(store: PanopticStore, tmp_path: Path, export: Any) -> None:
    with pytest.raises(RegionError, match="not inside the slide"):
        export(store, tmp_path / "out", Box(0, 0, 275, 10))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", exporters())
def test_an_export_that_fails_leaves_what_was_there(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any
) -> None:
    batches = PanopticStore.nuclei_batches

    def fails(*arguments: Any) -> Iterator[pa.Table]:
        yield next(batches(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(PanopticStore, "nuclei_batches", fails)
    (tmp_path / "out").write_text("earlier")
    with pytest.raises(KeyboardInterrupt):
        export(store, tmp_path / "out", ROI)
    assert (tmp_path / "out").read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("export", exporters())
def test_a_folder_that_is_not_there_is_named(store: PanopticStore, tmp_path: Path, export: Any) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        export(store, tmp_path / "missing" / "out")


def test_exporting_a_region_to_csv_gives_its_rows(store: PanopticStore, tmp_path: Path) -> None:
    expected = rows_in(store, ROI)
    assert export_csv(store, tmp_path / "a.csv", ROI) == expected.num_rows
    assert [int(row[0]) for row in read_csv(tmp_path / "a.csv")[1]] == expected["id"].to_pylist()
    assert export_csv(store, tmp_path / "a.csv", WITHOUT_NUCLEI) == 0
    header, rows = read_csv(tmp_path / "a.csv")
    assert header[0] == "id"
    assert rows == []


@pytest.mark.parametrize("module", ["table", "anndata"])
def test_exporters_of_tables_load_no_deep_learning(module: str) -> None:
    if module == "anndata":
        pytest.importorskip("anndata")
    code = f"import sys, nucleipan.exports.{module}; print({{'torch', 'monai'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "set()"
