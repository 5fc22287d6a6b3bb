"""The metadata documents pass two independent validators and place pixels where they are."""

from __future__ import annotations

import numpy as np
import pytest
import yaozarrs
import zarr
from ome_zarr_models.v05 import Image, ImageLabel, Labels
from stitch_oracle import random_truth, stitch_oracle

from nucleipan import ngff
from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    shape = (200, 2100)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 512, 64), 2.0)
    path = tmp_path_factory.mktemp("ngff") / "slide.ome.zarr"
    return stitch_oracle(path, random_truth(shape, 150), context)[0]


def test_ome_zarr_models_accepts_it(store: PanopticStore) -> None:
    root = zarr.open_group(str(store.path), mode="r")
    Image.from_zarr(root)
    assert Labels.from_zarr(root["labels"]).ome_attributes.labels == ["nuclei", "classes"]
    for name in ("nuclei", "classes"):
        ImageLabel.from_zarr(root["labels"][name])


def test_yaozarrs_accepts_it(store: PanopticStore) -> None:
    for part in (".", "labels", "labels/nuclei", "labels/classes"):
        yaozarrs.validate_zarr_store(str(store.path / part))


def test_every_class_has_a_colour_and_properties() -> None:
    label = ngff.label_attributes("classes", 0.5, 1, DEFAULT_CLASSES)["ome"]["image-label"]
    assert [c["label-value"] for c in label["colors"]] == list(range(len(DEFAULT_CLASSES) + 1))
    assert label["colors"][0]["rgba"] == [0, 0, 0, 0]
    assert label["properties"][0] == {"label-value": 0, "class": "void", "kind": "void"}
    assert label["properties"][1] == {"label-value": 1, "class": "neoplastic", "kind": "thing"}
    assert label["properties"][9]["kind"] == "stuff"


def test_scales_and_translations_are_honest() -> None:
    def placed(attributes: ngff.Attributes) -> list[tuple[float, float]]:
        datasets = attributes["ome"]["multiscales"][0]["datasets"]
        both = [d["coordinateTransformations"] for d in datasets]
        return [(scale["scale"][-1], shift["translation"][-1]) for scale, shift in both]

    assert placed(ngff.label_attributes("nuclei", 0.5, 3)) == [(0.5, 0.0), (1.0, 0.0), (2.0, 0.0)]
    # The first pixel of an average of 4 x 4 has its centre 1.5 fine pixels from the first fine one's.
    assert placed(ngff.image_attributes("slide", 2.0, 2, 0.5)) == [(2.0, 0.75), (4.0, 1.75)]


@pytest.mark.parametrize(("shape", "n"), [((1, 1), 1), ((1024, 10), 1), ((1025, 10), 2), ((4097, 5000), 4)])
def test_levels_end_at_a_thumbnail(shape: tuple[int, int], n: int) -> None:
    assert ngff.n_levels_for(shape) == n


def test_arrays_are_as_the_design_says(store: PanopticStore) -> None:
    nuclei, classes = store.array("nuclei"), store.array("classes", 1)
    assert (nuclei.dtype, nuclei.shape, nuclei.chunks, nuclei.shards) == ("uint32", (200, 2100), (32, 32), (128, 128))
    assert (classes.dtype, classes.shape) == ("uint8", (100, 1050))
    assert nuclei.metadata.dimension_names == ("y", "x")
    assert nuclei.fill_value == 0
    overview = zarr.open_array(str(store.path / "0"), mode="r")
    assert (overview.shape, overview.metadata.dimension_names) == ((3, 100, 125), ("c", "y", "x"))


def test_the_overview_is_averaged(store: PanopticStore) -> None:
    fine, coarse = store.overview().astype(int), store.overview(1)
    assert coarse.shape == (50, 63, 3)
    np.testing.assert_array_equal(coarse[7, 9], (fine[14:16, 18:20].sum((0, 1)) + 2) // 4)
    np.testing.assert_array_equal(coarse[7, 62], (2 * fine[14:16, 124].sum(0) + 2) // 4)
