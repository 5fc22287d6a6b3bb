"""One store, many formats, one truth: number, ids, classes and areas of nuclei are the same in all of them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.edits import EditLog, change_class, delete_nuclei, open_corrected, redraw_nucleus
from nucleipan.errors import ConfigError
from nucleipan.exports import FORMATS, OF_RESULTS, export_store
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

# Those that need the slide itself have tests of their own.
WITHOUT_SLIDE = [name for name in OF_RESULTS if not name.startswith("dicom")]


@pytest.fixture(scope="module", params=["segmented", "corrected"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    shape = (300, 260)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 128, 64, 1), 2.0)
    path = tmp_path_factory.mktemp("agree") / "slide.ome.zarr"
    made = stitch_oracle(path, random_truth(shape, 150), context)[0]
    if request.param == "segmented":
        return made
    log = EditLog.open(made)
    free = log.box_of(7)
    log.append(delete_nuclei(log, [1, 7]))
    log.append(change_class(log, [9], 1 + log.class_of(9) % 5))
    y0, x0 = log.box_of(11).y0, log.box_of(11).x0
    log.append(redraw_nucleus(log, np.array([[y0, x0], [y0, x0 + 9], [y0 + 12, x0 + 9], [y0 + 12, x0]]), 11))
    corners = [[free.y0, free.x0], [free.y0, free.x1], [free.y1, free.x1]]
    log.append(redraw_nucleus(log, np.array(corners), None, 2))
    log.append(delete_nuclei(log, [made.n_nuclei]))
    return open_corrected(path)


@pytest.fixture(scope="module")
def expected(store: PanopticStore) -> dict[int, tuple[str, int]]:
    """Class name and pixels by id, counted in the raster."""
    ids, classes = store.instances(), store.class_map()
    found = {}
    for k in np.unique(ids[ids > 0]).tolist():
        (class_id,) = np.unique(classes[ids == k]).tolist()
        found[k] = store.classes.by_id(class_id).name, int((ids == k).sum())
    return found


def read(name: str, path: Path, store: PanopticStore) -> dict[int, tuple[str, float]]:
    """Class name and area in pixels by id, as an export tells them; read without our own code."""
    px = store.mpp**2
    match name:
        case "geojson":
            features = json.loads(gzip.decompress(path.read_bytes()))["features"]
            nuclei = [f["properties"] for f in features if f["properties"]["objectType"] == "detection"]
            return {int(p["name"]): (p["classification"]["name"], p["measurements"]["Area µm^2"] / px) for p in nuclei}
        case "csv":
            with gzip.open(path, "rt", newline="") as file:
                return {int(r["id"]): (r["class"], float(r["area_um2"]) / px) for r in csv.DictReader(file)}
        case "parquet":
            rows = pq.read_table(path, columns=["id", "class", "area_um2"]).to_pylist()
            return {r["id"]: (r["class"], r["area_um2"] / px) for r in rows}
        case "h5ad":
            anndata = pytest.importorskip("anndata").read_h5ad(path)
            areas = np.asarray(anndata[:, "area_um2"].X).ravel() / px
            return {int(i): (c, a) for i, c, a in zip(anndata.obs_names, anndata.obs["class"], areas, strict=True)}
        case "spatialdata":
            data = pytest.importorskip("spatialdata").read_zarr(path)
            labels = data.labels["nuclei"]  # an array, or levels of a pyramid
            plane = np.asarray(labels["scale0"]["image"] if "scale0" in getattr(labels, "children", ()) else labels)
            sizes = np.bincount(plane.ravel())
            table = next(iter(data.tables.values()))
            return {int(i): (c, sizes[int(i)]) for i, c in zip(table.obs["id"], table.obs["class"], strict=True)}
        case "coco-panoptic":
            (document,) = path.glob("*.json")
            coco = json.loads(document.read_text())
            things = {c["id"]: c["name"] for c in coco["categories"] if c["isthing"]}
            segments = [s for a in coco["annotations"] for s in a["segments_info"]]
            return {s["id"]: (things[s["category_id"]], s["area"]) for s in segments if s["category_id"] in things}
        case "cityscapes":
            (links,) = path.rglob("instances.csv")
            with open(links, newline="") as file:
                rows = list(csv.DictReader(file))
            planes = {r["file"]: imagecodecs.imread(next(path.rglob(Path(r["file"]).name))) for r in rows}
            return {
                int(r["nucleus_id"]): (r["class"], int((planes[r["file"]] == int(r["instance_id"])).sum()))
                for r in rows
            }
        case "ome-tiff":
            with tifffile.TiffFile(path) as tiff:
                ids, classes = (s.asarray() for s in tiff.series)
            first = {int(k): int(classes[ids == k][0]) for k in np.unique(ids[ids > 0])}
            return {k: (store.classes.by_id(c).name, int((ids == k).sum())) for k, c in first.items()}
    raise AssertionError(f"{name} is not compared; add it")


@pytest.mark.parametrize("name", WITHOUT_SLIDE)
def test_every_format_tells_the_same(name, store, expected, tmp_path):
    path = tmp_path / f"slide{FORMATS[name].suffix}"
    try:
        assert export_store(store, name, path) == len(expected)
    except ConfigError as error:
        pytest.skip(str(error))
    found = read(name, path, store)
    assert {k: c for k, (c, _) in found.items()} == {k: c for k, (c, _) in expected.items()}
    for k, (_, area) in found.items():
        assert area == pytest.approx(expected[k][1], rel=1e-3)


def test_the_store_tells_the_same(store, expected):
    assert store.n_nuclei == len(expected)
    assert store.last_id >= max(expected)
    table = store.nuclei(["id", "class", "area_um2"])
    rows = zip(*(table[c].to_pylist() for c in table.column_names), strict=True)
    assert {i: (c, round(a / store.mpp**2)) for i, c, a in rows} == expected
