"""GeoJSON holds every nucleus once, with valid outlines, and is the same every time."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.exports.geojson import export_geojson
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    shape = (200, 240)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 100, 64, 1), 1.37)
    return stitch_oracle(tmp_path_factory.mktemp("geojson") / "slide.ome.zarr", random_truth(shape, 180), context)[0]


def test_every_nucleus_is_a_detection(store: PanopticStore, tmp_path: Path) -> None:
    assert export_geojson(store, tmp_path / "nuclei.geojson") == store.n_nuclei
    document = json.loads((tmp_path / "nuclei.geojson").read_text())
    assert document["type"] == "FeatureCollection"
    table = store.nuclei()
    assert len(document["features"]) == table.num_rows
    exact = shapely.from_wkb(table["geometry"].to_numpy())
    for k, feature in enumerate(document["features"]):
        uuid.UUID(feature["id"])
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        thing = store.classes.by_id(table["class_id"][k].as_py())
        assert properties["classification"] == {"name": thing.name, "color": list(thing.color)}
        measurements = properties["measurements"]
        assert measurements["Area um^2"] == pytest.approx(table["area_um2"][k].as_py(), abs=1e-3)
        assert measurements["probability neoplastic"] == pytest.approx(
            table["probability_neoplastic"][k].as_py(), abs=1e-4
        )
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid
        assert polygon.area == pytest.approx(exact[k].area, rel=0.02, abs=0.05)
        coordinates = shapely.get_coordinates(polygon)
        np.testing.assert_allclose(coordinates, coordinates.round(2))
    assert len({feature["id"] for feature in document["features"]}) == table.num_rows


def test_compressed_and_plain_are_the_same_and_repeatable(store: PanopticStore, tmp_path: Path) -> None:
    for name in ("a.geojson", "a.geojson.gz", "b.geojson.gz"):
        export_geojson(store, tmp_path / name)
    assert gzip.decompress((tmp_path / "a.geojson.gz").read_bytes()) == (tmp_path / "a.geojson").read_bytes()
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.geojson", "a.geojson.gz", "b.geojson.gz"]


def test_an_export_that_fails_leaves_nothing(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PanopticStore, "nuclei_batches", fails)
    with pytest.raises(KeyboardInterrupt):
        export_geojson(store, tmp_path / "a.geojson")
    assert list(tmp_path.iterdir()) == []
