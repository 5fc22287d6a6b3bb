"""SpatialData reads back the store's pixels, outlines and table, and all of them lie on top of each other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import zarr
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.errors import DataError, RegionError, StoreError
from nucleipan.geometry import Box
from nucleipan.ngff import n_levels_for
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

sd = pytest.importorskip("spatialdata")

import pandas as pd  # noqa: E402
from spatialdata.transformations import get_transformation  # noqa: E402
from xarray import DataTree  # noqa: E402

from nucleipan.exports.spatialdata import export_spatialdata  # noqa: E402

SHAPE = (1101, 1307)
SCALE = 1.5
SLIDE = {"name": "slide.svs", "width": 1960, "height": 1651, "mpp": 0.5 / SCALE, "fingerprint": "ab12"}
OVERVIEW_MPP = 2.0
ROI = Box(32, 41, 1640, 1901)
SHARD = 256
SYSTEMS = {"global": 1.0, "um": SLIDE["mpp"]}  # how many of a level-0 slide pixel


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    context = StitchContext(TileGrid(SHAPE, Box.of_shape(SHAPE), 512, 64, 1), SCALE)
    path = tmp_path_factory.mktemp("spatialdata") / "slide.ome.zarr"
    found = stitch_oracle(path, random_truth(SHAPE, 300, radii=(5, 14)), context, shard=SHARD)[0]
    return replace(found, spec=replace(found.spec, slide=SLIDE))


@pytest.fixture(scope="module")
def whole(store: PanopticStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("whole") / "slide.zarr"
    assert export_spatialdata(store, path) == store.n_nuclei
    return sd.read_zarr(path)


@pytest.fixture(scope="module")
def part(store: PanopticStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("part") / "slide.zarr"
    assert export_spatialdata(store, path, ROI) == rows_in(store, ROI).num_rows < store.n_nuclei
    return sd.read_zarr(path)


def rows_in(store: PanopticStore, roi: Box | None) -> pa.Table:
    table = store.nuclei()
    roi = roi or Box(0, 0, SLIDE["height"], SLIDE["width"])
    x, y = table["centroid_x"].to_numpy(), table["centroid_y"].to_numpy()
    return table.filter(pa.array((x >= roi.x0) & (x < roi.x1) & (y >= roi.y0) & (y < roi.y1)))


def planes(element: Any) -> list[np.ndarray]:
    """The pixels of all levels; what has one only is read as a plain array."""
    return [element[name].image.to_numpy() for name in element] if isinstance(element, DataTree) else [element.values]


def to_pixels(element: Any, points: np.ndarray, system: str) -> np.ndarray:
    """float64[n, 2], x and y in pixels of the first level, of points in a coordinate system."""
    affine = get_transformation(element, system).inverse().to_affine_matrix(("x", "y"), ("x", "y"))
    return points @ affine[:2, :2].T + affine[:2, 2]


# Pixels


def test_planes_are_those_of_the_store(store: PanopticStore, whole: Any) -> None:
    assert store.n_levels == 2
    for name, read in (("nuclei", store.instances), ("classes", store.class_map)):
        found = planes(whole.labels[name])
        assert len(found) == store.n_levels
        for level, plane in enumerate(found):
            np.testing.assert_array_equal(plane, read(level=level))
            assert plane.dtype == read(level=level).dtype
    (image,) = planes(whole.images["overview"])  # too small for a pyramid
    np.testing.assert_array_equal(np.moveaxis(image, 0, -1), store.overview())


def test_planes_of_a_region_are_cut_from_the_stores(store: PanopticStore, part: Any) -> None:
    for name, read in (("nuclei", store.instances), ("classes", store.class_map)):
        first = part.labels[name]["scale0"].image
        x0, y0 = (-to_pixels(first, np.zeros((1, 2)), "global")[0]).round().astype(int)
        y1, x1 = y0 + first.sizes["y"], x0 + first.sizes["x"]
        assert 0 <= ROI.y0 / SCALE - y0 < 2
        assert 0 <= ROI.x0 / SCALE - x0 < 2
        assert 0 <= y1 - ROI.y1 / SCALE < 1
        assert 0 <= x1 - ROI.x1 / SCALE < 1
        for level, plane in enumerate(planes(part.labels[name])):
            step = 2**level
            expected = read()[y0:y1:step, x0:x1:step]
            np.testing.assert_array_equal(plane, expected)
            assert (read(level=level)[y0 // step :, x0 // step :][: plane.shape[0], : plane.shape[1]] == plane).all()


def test_planes_are_read_a_shard_at_a_time(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = zarr.Array.__getitem__
    sizes: list[int] = []

    def noted(array: zarr.Array, selection: Any) -> Any:
        values = read(array, selection)
        if str(array.store_path).endswith("labels/nuclei/0"):
            sizes.append(np.size(values))
        return values

    monkeypatch.setattr(zarr.Array, "__getitem__", noted)
    export_spatialdata(store, tmp_path / "a.zarr")
    assert sum(sizes) == SHAPE[0] * SHAPE[1]
    assert max(sizes) == SHARD**2


# Outlines and table


@pytest.mark.parametrize("roi", [None, ROI])
def test_ids_are_the_same_everywhere(store: PanopticStore, request: pytest.FixtureRequest, roi: Box | None) -> None:
    data = request.getfixturevalue("part" if roi else "whole")
    expected = rows_in(store, roi)
    ids, table, outlines = expected["id"].to_pylist(), data["table"], data.shapes["nuclei_outlines"]
    assert table.obs["id"].tolist() == ids
    assert outlines.index.tolist() == ids
    assert outlines["class"].tolist() == table.obs["class"].tolist() == expected["class"].to_pylist()
    np.testing.assert_array_equal(table[:, "area_um2"].X.ravel(), expected["area_um2"].to_numpy().astype(np.float32))
    assert shapely.equals(outlines.geometry.to_numpy(), shapely.from_wkb(expected["geometry"].to_numpy())).all()
    present = np.unique(planes(data.labels["nuclei"])[0])
    assert set(ids) <= set(present.tolist())
    assert roi is not None or set(present.tolist()) == {0, *ids}


def test_the_table_annotates_the_labels(store: PanopticStore, whole: Any) -> None:
    assert sd.SpatialData.get_annotated_regions(whole["table"]) == ["nuclei"]
    found = sd.get_values("area_um2", sdata=whole, element_name="nuclei", table_name="table")
    assert found["area_um2"].to_dict() == pytest.approx(
        dict(zip(*(store.nuclei()[name].to_pylist() for name in ("id", "area_um2")), strict=True))
    )
    joined, _ = sd.join_spatialelement_table(
        spatial_element_names=["nuclei_outlines"],
        spatial_elements=[whole.shapes["nuclei_outlines"]],
        table=annotating(whole["table"], "nuclei_outlines"),
        how="inner",
    )
    assert joined["nuclei_outlines"].index.tolist() == store.nuclei()["id"].to_pylist()


def annotating(table: Any, element: str) -> Any:
    table = table.copy()
    table.obs["region"] = pd.Categorical([element] * table.n_obs)
    return sd.models.TableModel.parse(table, element, "region", "id", overwrite_metadata=True)


def test_the_table_says_where_it_comes_from(store: PanopticStore, whole: Any) -> None:
    source = json.loads(whole["table"].uns["nucleipan"])
    assert source["slide"] == SLIDE
    assert source["classes"] == store.classes.to_list()


# Places


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ["whole", "part"])
def test_outlines_lie_on_their_pixels(request: pytest.FixtureRequest, name: str, system: str) -> None:
    data = request.getfixturevalue(name)
    outlines = sd.transform(data.shapes["nuclei_outlines"], to_coordinate_system=system)
    points = shapely.get_coordinates(shapely.point_on_surface(outlines.geometry.to_numpy()))
    plane = planes(data.labels["nuclei"])[0]
    x, y = np.floor(to_pixels(data.labels["nuclei"], points, system)).astype(int).T
    is_inside = (x >= 0) & (y >= 0) & (x < plane.shape[1]) & (y < plane.shape[0])  # a region may cut an outline
    assert is_inside.sum() > 0.95 * len(points)
    np.testing.assert_array_equal(plane[y[is_inside], x[is_inside]], outlines.index.to_numpy()[is_inside])


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ["whole", "part"])
def test_centres_of_pixels_are_the_tables_centroids(request: pytest.FixtureRequest, name: str, system: str) -> None:
    data = request.getfixturevalue(name)
    plane, table = planes(data.labels["nuclei"])[0], data["table"]
    inner = plane.copy()
    for side in (inner[0], inner[-1], inner[:, 0], inner[:, -1]):
        inner[np.isin(inner, side)] = 0  # those that a region cuts
    y, x = np.nonzero(inner)
    ids = inner[y, x]
    n_ids = int(table.obs["id"].max()) + 1
    n = np.maximum(np.bincount(ids, minlength=n_ids), 1)
    centres = np.stack([np.bincount(ids, v + 0.5, n_ids) / n for v in (x, y)], 1)
    is_uncut = np.isin(table.obs["id"], ids)
    assert is_uncut.sum() > 0.9 * len(is_uncut)
    found = to_pixels(data.labels["nuclei"], table.obsm["spatial"] * SYSTEMS[system], system)
    np.testing.assert_allclose(found[is_uncut], centres[table.obs["id"]][is_uncut], atol=1e-6)


def test_outlines_in_micrometres_have_the_nuclei_s_areas(whole: Any) -> None:
    outlines = sd.transform(whole.shapes["nuclei_outlines"], to_coordinate_system="um")
    masks, pixel = whole["table"][:, "area_um2"].X.ravel(), 0.5**2
    is_whole = whole["table"][:, "solidity"].X.ravel() > 0.9  # torn ones have outlines of their largest piece
    assert is_whole.sum() > 100
    # An outline cuts the corners of its mask, half a pixel in all; a hole puts half a one back.
    np.testing.assert_allclose(outlines.area[is_whole], masks[is_whole] - pixel / 2, atol=pixel)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_overview_lies_where_the_store_says(store: PanopticStore, whole: Any, part: Any, system: str) -> None:
    unit = SYSTEMS[system] / SLIDE["mpp"]  # of this system in a micrometre
    extent = sd.get_extent(whole.images["overview"], coordinate_system=system)
    height, width, _ = store.overview().shape
    assert extent["x"] == pytest.approx((0, width * OVERVIEW_MPP * unit))
    assert extent["y"] == pytest.approx((0, height * OVERVIEW_MPP * unit))
    cut = part.images["overview"]
    x0, y0 = (-to_pixels(cut, np.zeros((1, 2)), system)[0]).round().astype(int)
    assert 0 <= ROI.x0 * SLIDE["mpp"] / OVERVIEW_MPP - x0 < 1
    assert 0 <= ROI.y0 * SLIDE["mpp"] / OVERVIEW_MPP - y0 < 1
    image = np.moveaxis(planes(cut)[0], 0, -1)
    np.testing.assert_array_equal(image, store.overview()[y0:, x0:][: image.shape[0], : image.shape[1]])


# Borders


def test_a_small_region_has_one_level_and_may_have_no_nuclei(store: PanopticStore, tmp_path: Path) -> None:
    plane = store.instances()
    y, x = next((y, x) for y in range(0, 1000, 16) for x in range(0, 1000, 16) if not plane[y : y + 8, x : x + 8].any())
    roi = Box(*(round(v * SCALE) for v in (y, x, y + 8, x + 8)))
    assert export_spatialdata(store, tmp_path / "a.zarr", roi) == 0
    data = sd.read_zarr(tmp_path / "a.zarr")
    assert set(data.labels) == {"nuclei", "classes"}
    assert not data.shapes
    assert not data.tables
    assert n_levels_for((8, 8)) == 1
    np.testing.assert_array_equal(data.labels["classes"].to_numpy(), store.class_map(Box(y, x, y + 8, x + 8)))


def test_the_same_store_gives_the_same_folder(store: PanopticStore, tmp_path: Path) -> None:
    small = Box(0, 0, 500, 500)
    contents = []
    for name in ("a.zarr", "b.zarr"):
        assert export_spatialdata(store, tmp_path / name, small) > 0
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        contents.append({p.relative_to(tmp_path / name): p.read_bytes() for p in files})
    assert contents[0] == contents[1]


def test_class_names_may_be_anything(store: PanopticStore, tmp_path: Path) -> None:
    names = ["a/b", "../../c", "=1+1", "two\nlines", "größe"]
    things = [replace(thing, name=name) for thing, name in zip(store.classes.things, names, strict=True)]
    classes = replace(store.classes, classes=(*things, *store.classes.stuff))
    export_spatialdata(replace(store, spec=replace(store.spec, classes=classes)), tmp_path / "a.zarr")
    data = sd.read_zarr(tmp_path / "a.zarr")
    expected = [names[class_id - 1] for class_id in store.nuclei()["class_id"].to_pylist()]
    assert data["table"].obs["class"].tolist() == expected
    assert data.shapes["nuclei_outlines"]["class"].tolist() == expected
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_folder_that_exists_is_kept(store: PanopticStore, tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(DataError, match="exists already"):
        export_spatialdata(store, tmp_path / "a.zarr")
    assert list((tmp_path / "a.zarr").iterdir()) == []


def test_a_region_that_leaves_the_slide_is_refused(store: PanopticStore, tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="not inside the slide"):
        export_spatialdata(store, tmp_path / "a.zarr", Box(0, 0, 10, 1961))
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(data: Any, path: Path) -> None:
        path.mkdir()
        (path / "zarr.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(sd.SpatialData, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        export_spatialdata(store, tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("outline", "why"), [(b"\x01\x03", "damaged"), (shapely.to_wkb(shapely.Point(1, 2)), "no polygon")]
)
def test_damaged_outlines_are_refused(store: PanopticStore, tmp_path: Path, outline: bytes, why: str) -> None:
    shutil.copytree(store.path, tmp_path / "slide.ome.zarr")
    table = store.nuclei()
    outlines = pa.array([outline, *table["geometry"].to_pylist()[1:]], pa.binary())
    column = table.column_names.index("geometry")
    pq.write_table(table.set_column(column, "geometry", outlines), tmp_path / "slide.ome.zarr" / "nuclei.parquet")
    damaged = replace(PanopticStore.open(tmp_path / "slide.ome.zarr"), spec=store.spec)
    with pytest.raises(StoreError, match=why):
        export_spatialdata(damaged, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_an_image_without_a_pixel_size_is_refused(store: PanopticStore, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "slide.ome.zarr")
    document = json.loads((tmp_path / "slide.ome.zarr" / "zarr.json").read_text())
    document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"] = []
    (tmp_path / "slide.ome.zarr" / "zarr.json").write_text(json.dumps(document))
    damaged = replace(PanopticStore.open(tmp_path / "slide.ome.zarr"), spec=store.spec)
    with pytest.raises(StoreError, match="no pixel size"):
        export_spatialdata(damaged, tmp_path / "a.zarr")


def test_the_exporter_loads_no_deep_learning() -> None:
    code = "import sys, nucleipan.exports.spatialdata; print({'torch', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "set()"
