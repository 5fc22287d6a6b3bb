"""COCO panoptic, Cityscapes and PASTIS as training data: scenes come back from them; what is broken is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import panoptic_data as made
import pytest
from panoptic_data import FIELDS, STREET, Scene, make_scene

from nucleipan.datasets import (
    LAYOUTS,
    Annotated,
    Item,
    checked,
    read_cityscapes,
    read_coco_panoptic,
    read_pastis,
    write_composites,
)
from nucleipan.datasets.cityscapes import LABELS
from nucleipan.datasets.coco_document import read_categories
from nucleipan.datasets.pastis import CLASSES, read_composite
from nucleipan.errors import DataError
from nucleipan.slide import open_slide

FRAME = "aachen_000000_000019"


def street(seed: int = 0) -> Scene:
    return make_scene(seed, *STREET)


def fields(seed: int = 0) -> Scene:
    return make_scene(seed, *FIELDS)


def check_scene(found: Annotated, scene: Scene) -> None:
    """``found`` says of every pixel what the scene does: the segment it is on, its class, or that nobody knows."""
    np.testing.assert_array_equal(found.image, scene.image)
    assert found.ids is not None
    assert found.regions is not None
    assert found.unknown is not None
    for k, segment in enumerate((None, *scene.segments)):
        where = scene.plane == k
        is_known = segment is not None and not segment.is_crowd
        assert (found.unknown[where] != is_known).all()
        ids = np.unique(found.ids[where]).tolist()
        regions = {found.region_codes[r] for r in np.unique(found.regions[where])}
        if segment is not None and is_known and segment.is_thing:
            assert len(ids) == 1
            assert found.code_of_id[ids[0]] == segment.name
            assert ((found.ids == ids[0]) == where).all()
            assert regions == {None}
        else:
            assert ids == [0]
            assert regions == {segment.name if segment is not None and is_known else None}


def by_name(items: list[Item]) -> dict[str, Item]:
    return {item.name: item for item in pickle.loads(pickle.dumps(items))}  # noqa: S301  (workers are sent items)


def test_coco_in_its_published_layout(tmp_path: Path) -> None:
    made.write_coco(tmp_path, {139: street(1), 285: street(2)})
    made.write_coco(tmp_path, {9: street(3)}, "train2017")
    # COCO's other annotations of the same images lie in the same folder.
    made.write_json(tmp_path / "annotations" / "instances_val2017.json", {"annotations": [{"image_id": 1}] * 2})
    items = by_name(read_coco_panoptic(tmp_path))
    assert list(items) == [
        "panoptic_train2017/000000000009", "panoptic_val2017/000000000139", "panoptic_val2017/000000000285"
    ]  # fmt: skip
    for seed, item in zip((3, 1, 2), items.values(), strict=True):
        check_scene(checked(item), street(seed))


def test_cityscapes_in_its_published_layout(tmp_path: Path) -> None:
    made.write_cityscapes(tmp_path, {FRAME: street(1), "bonn_000001_000019": street(2)}, "train")
    made.write_cityscapes(tmp_path, {"ulm_000002_000019": street(3)})
    (tmp_path / "leftImg8bit" / "train_extra" / "augsburg").mkdir(parents=True)
    items = by_name(read_cityscapes(tmp_path))
    assert list(items) == [f"train/{FRAME}", "train/bonn_000001_000019", "val/ulm_000002_000019"]
    for seed, item in zip((1, 2, 3), items.values(), strict=True):
        check_scene(checked(item), street(seed))


def test_cityscapes_labels_are_the_nineteen_that_are_scored() -> None:
    scored = {label.id: label.name for label in LABELS.values() if label.is_scored}
    assert list(scored) == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [scored[i] for i in (7, 23, 24, 33)] == ["road", "sky", "person", "bicycle"]
    assert [label.name for label in LABELS.values() if label.is_thing and not label.is_scored] == ["caravan", "trailer"]


def test_what_cityscapes_ignores_is_unknown(tmp_path: Path) -> None:
    scene = street()
    made.write_cityscapes(tmp_path, {FRAME: scene})
    path = tmp_path / "gtFine" / "val" / "aachen" / f"{FRAME}_gtFine_instanceIds.png"
    values = made.instance_values(scene)
    values[:5, :5], values[:5, 5:9] = 29_003, 9  # a caravan, parking
    made.write_png(path, values)
    found = checked(read_cityscapes(tmp_path)[0])
    assert found.unknown is not None
    assert found.unknown[:5, :9].all()


def test_pastis_in_its_published_layout(tmp_path: Path) -> None:
    made.write_pastis(tmp_path, {10000: fields(1), 20013: fields(2)}, folds=(2, 1))
    items = by_name(read_pastis(tmp_path))
    assert list(items) == ["fold1/20013", "fold2/10000"]
    for seed, item in zip((2, 1), items.values(), strict=True):
        check_scene(checked(item), fields(seed))


def test_a_series_becomes_a_picture_by_median_or_mean(tmp_path: Path) -> None:
    """The median sees neither the cloud nor the shadow, the mean both."""
    made.write_pastis(tmp_path, {1: fields()})
    path = tmp_path / "DATA_S2" / "S2_1.npy"
    np.testing.assert_array_equal(read_composite(path, "median"), fields().image)
    series = np.load(path).astype(float)[:, [2, 1, 0]].mean(axis=0)
    expected = np.rint(np.minimum(series / 3000, 1) * 255).transpose(1, 2, 0)
    np.testing.assert_array_equal(read_composite(path, "mean"), expected)
    (by_mean,) = LAYOUTS["pastis-mean"](tmp_path)
    np.testing.assert_array_equal(checked(by_mean).image, expected)


def test_a_parcel_has_the_class_of_most_of_its_pixels(tmp_path: Path) -> None:
    """Void parcels, crops outside parcels and parcels that are mostly background say nothing."""
    made.write_pastis(tmp_path, {1: fields()})
    parcels = np.repeat([0, 5, 6, 7, 0], 4)[None].repeat(3, 0)
    classes = np.repeat([0, 3, 19, 0, 4], 4)[None].repeat(3, 0)
    classes[0, 4:7] = 8  # a quarter of parcel 5
    np.save(tmp_path / "INSTANCE_ANNOTATIONS" / "INSTANCES_1.npy", parcels)
    np.save(tmp_path / "ANNOTATIONS" / "TARGET_1.npy", np.stack([classes] * 3).astype(np.uint8))
    np.save(tmp_path / "DATA_S2" / "S2_1.npy", np.zeros((1, 10, 3, 20), np.int16))
    found = checked(read_pastis(tmp_path)[0])
    assert found.ids is not None
    assert found.unknown is not None
    assert found.ids[0].tolist() == [0] * 4 + [1] * 4 + [0] * 12
    assert found.code_of_id == {1: "Corn"}
    assert found.unknown[0].tolist() == [False] * 8 + [True] * 12
    assert found.regions is not None
    assert found.regions[0].tolist() == [1] * 4 + [0] * 16


def test_pictures_of_series_are_written_for_segment(tmp_path: Path) -> None:
    made.write_pastis(tmp_path, {1: fields(1), 2: fields(2)}, folds=(4, 5))
    assert write_composites(tmp_path, tmp_path / "out", folds=[5]) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["S2_2.png"]
    with open_slide(tmp_path / "out" / "S2_2.png") as slide:
        assert slide.levels[0].shape == made.SHAPE
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="file: cannot be written"):
        write_composites(tmp_path, tmp_path / "file")


def test_published_class_names_have_their_numbers() -> None:
    assert len(CLASSES) == 20
    assert [CLASSES[i] for i in (0, 1, 3, 18, 19)] == ["Background", "Meadow", "Corn", "Sorghum", "Void label"]


def test_categories_are_classes_with_colours(tmp_path: Path) -> None:
    made.write_coco(tmp_path, {1: street()})
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    found = read_categories(path)
    assert [(c.name, c.is_thing) for c in found] == [
        ("car", True), ("person", True), ("road", False), ("sky", False), ("vegetation", False)
    ]  # fmt: skip
    assert found[1].color == (9, 40, 200)
    document = json.loads(path.read_text())
    document["categories"][0]["color"] = [1, 2, 256]
    made.write_json(path, document)
    with pytest.raises(DataError, match=r"'color' must be three integers from 0 to 255; found \[1, 2, 256\]"):
        read_categories(path)
    made.write_json(path, {"categories": []})
    with pytest.raises(DataError, match="lists no categories"):
        read_categories(path)


# -- what is broken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "match"),
    [
        (
            "gtFine/val/aachen/{}_gtFine_instanceIds.png",
            rf"{FRAME}_leftImg8bit\.png: .*aachen has no file called {FRAME}",
        ),
        (
            "leftImg8bit/val/aachen/{}_leftImg8bit.png",
            rf"{FRAME}_gtFine_instanceIds\.png: there is no image called {FRAME}",
        ),
    ],
)
def test_cityscapes_files_need_each_other(file: str, match: str, tmp_path: Path) -> None:
    made.write_cityscapes(tmp_path, {FRAME: street()})
    (tmp_path / file.format(FRAME)).unlink()
    with pytest.raises(DataError, match=match):
        read_cityscapes(tmp_path)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (
            np.full(made.SHAPE, 34_001, np.uint16),
            r"instanceIds\.png: value 34001 is of label 34; expected one of \[0, 1",
        ),
        (np.full(made.SHAPE, 99, np.uint16), "value 99 is of label 99"),
        (np.zeros((64, 95), np.uint16), r"label image is \(64, 95\), its image \(64, 96\)"),
        (np.zeros((*made.SHAPE, 3), np.uint8), "expected one plane of integers"),
    ],
)
def test_wrong_cityscapes_labels(values: np.ndarray, match: str, tmp_path: Path) -> None:
    made.write_cityscapes(tmp_path, {FRAME: street()})
    made.write_png(tmp_path / "gtFine" / "val" / "aachen" / f"{FRAME}_gtFine_instanceIds.png", values)
    with pytest.raises(DataError, match=match):
        checked(read_cityscapes(tmp_path)[0])


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("DATA_S2/S2_7.npy", r"S2_7\.npy: is missing, the series of patch 7"),
        ("ANNOTATIONS/TARGET_7.npy", r"INSTANCES_7\.npy: patch 7 lacks .*TARGET_7\.npy"),
        ("INSTANCE_ANNOTATIONS/INSTANCES_7.npy", r"TARGET_7\.npy: patch 7 lacks .*INSTANCES_7\.npy"),
        ("metadata.geojson", r"TARGET_7\.npy: .*metadata\.geojson does not list patch 7"),
    ],
)
def test_pastis_files_need_each_other(file: str, match: str, tmp_path: Path) -> None:
    made.write_pastis(tmp_path, {7: fields()})
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=match):
        read_pastis(tmp_path)


def test_pastis_metadata_list_what_is_there(tmp_path: Path) -> None:
    made.write_pastis(tmp_path, {7: fields(), 8: fields()})
    for path in tmp_path.rglob("*_8.npy"):
        path.unlink()
    with pytest.raises(DataError, match=r"metadata\.geojson: lists patch 8, which has no ANNOTATIONS/TARGET_8\.npy"):
        read_pastis(tmp_path)
    made.write_json(tmp_path / "metadata.geojson", {"features": [{"properties": {"ID_PATCH": 7, "Fold": "one"}}]})
    with pytest.raises(DataError, match="'Fold' must be an integer"):
        read_pastis(tmp_path)


TARGET, INSTANCES, SERIES = "ANNOTATIONS/TARGET_7", "INSTANCE_ANNOTATIONS/INSTANCES_7", "DATA_S2/S2_7"


@pytest.mark.parametrize(
    ("file", "array", "match"),
    [
        (TARGET, np.full((3, *made.SHAPE), 20, np.uint8), r"TARGET_7\.npy: patch 7 has class 20; expected 0 to 19"),
        (TARGET, np.zeros(made.SHAPE, np.uint8), r"expected numbers \[3, height, width\]; found uint8 \(64, 96\)"),
        (TARGET, np.zeros((3, *made.SHAPE), complex), "expected numbers .* found complex128"),
        (TARGET, np.full((3, *made.SHAPE), 0.5), r"patch 7 has values from 0\.5 to 0\.5; expected whole numbers"),
        (TARGET, np.zeros((3, 64, 95), np.uint8), r"parcels are \(64, 96\), the classes of the patch \(64, 95\)"),
        (INSTANCES, np.full(made.SHAPE, -1, np.int32), r"INSTANCES_7\.npy: patch 7 has values from -1"),
        (INSTANCES, np.zeros(made.SHAPE, "U3"), r"expected numbers \[height, width\]; found <U3"),
        (SERIES, np.zeros((5, 3, *made.SHAPE), np.int16), r"S2_7\.npy: expected numbers \[T, 10, height, width\]"),
        (SERIES, np.zeros((10, *made.SHAPE), np.int16), r"expected numbers \[T, 10, height, width\]"),
        (SERIES, np.full((1, 10, *made.SHAPE), np.nan), r"S2_7\.npy: holds numbers that are not finite"),
        (SERIES, np.zeros((2, 10, 8, 8), np.int16), r"label image is \(64, 96\), its image \(8, 8\)"),
    ],
)
def test_wrong_pastis_arrays(file: str, array: np.ndarray, match: str, tmp_path: Path) -> None:
    made.write_pastis(tmp_path, {7: fields()})
    np.save(tmp_path / f"{file}.npy", array)
    with pytest.raises(DataError, match=match):
        checked(read_pastis(tmp_path)[0])


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", [TARGET, INSTANCES, SERIES])
def test_pastis_unpickles_nothing_and_believes_no_header(file: str, tmp_path: Path) -> None:
    made.write_pastis(tmp_path, {7: fields()})
    path, trap = tmp_path / f"{file}.npy", tmp_path / "trap"
    whole = path.read_bytes()
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1)))
    contents = [pickle.dumps(Malicious(trap)), whole[: len(whole) // 2], b""]
    np.save(path, np.array([Malicious(trap)], object), allow_pickle=True)
    contents.append(path.read_bytes())
    for shape in ((2**40, 2**40), (10**6, 10, 10**6, 10**6), (-1, 4)):
        with path.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header | {"shape": shape})
        contents.append(path.read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path.name}: is not a readable array of numbers"):
            checked(read_pastis(tmp_path)[0])
    assert not trap.exists()
