"""Cityscapes label images decode to the store, the CSV gives the ids back, and what does not fit is refused."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.classes import DEFAULT_CLASSES, PanopticClass, PanopticClasses
from nucleipan.errors import DataError, RegionError, SlideError
from nucleipan.exports import ExportOptions, cityscapes
from nucleipan.exports.cityscapes import export_cityscapes
from nucleipan.exports.tiling import TileSides
from nucleipan.geometry import Box
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

SHAPE = (220, 240)
SLIDE = {"name": "slide.png", "width": 480, "height": 440, "mpp": 0.25, "fingerprint": "ab12"}
EVERYTHING = ExportOptions()
SIDE = 96


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    context = StitchContext(TileGrid(SHAPE, Box(0, 40, 220, 240), 100, 64, 1), 2.0)
    path = tmp_path_factory.mktemp("cityscapes") / "slide.ome.zarr"
    made = stitch_oracle(path, random_truth(SHAPE, 180), context)[0]
    return replace(made, spec=replace(made.spec, slide=SLIDE))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cityscapes, "_SIDES", TileSides(SIDE, SIDE))


def box_of(name: str) -> Box:
    """Where an image lies, by the row and column in its name."""
    row, col = (int(part) for part in name.split("_")[1:3])
    return Box(row * SIDE, col * SIDE, (row + 1) * SIDE, (col + 1) * SIDE).clipped(Box.of_shape(SHAPE))


def nuclei_of_files(folder: Path) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = defaultdict(dict)
    with open(folder / "instances.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["instance_id"]) not in found[row["file"]]
            found[row["file"]][int(row["instance_id"])] = int(row["nucleus_id"])
            assert row["class"] == DEFAULT_CLASSES.by_id(int(row["instance_id"]) // 1000).name
    return found


@pytest.mark.usefixtures("small_tiles")
def test_label_images_are_the_store(store: PanopticStore, tmp_path: Path) -> None:
    assert export_cityscapes(store, tmp_path / "out", EVERYTHING) == store.n_nuclei
    nuclei = nuclei_of_files(tmp_path / "out")
    files = sorted((tmp_path / "out" / "slide").glob("*_gtFine_labelIds.png"))
    assert len(files) == 9
    for file in files:
        labels = np.asarray(Image.open(file))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, store.class_map(box_of(file.name)))
        name = file.name.replace("labelIds", "instanceIds")
        values = np.asarray(Image.open(file.with_name(name)))
        assert values.dtype == np.uint16
        is_nucleus = values >= 1000
        np.testing.assert_array_equal(np.where(is_nucleus, values // 1000, values), labels)
        nucleus_of = nuclei[f"slide/{name}"]
        back = np.zeros(2**16, np.uint32)
        back[list(nucleus_of)] = list(nucleus_of.values())
        np.testing.assert_array_equal(back[values], store.instances(box_of(file.name)))
        present = np.unique(values[is_nucleus])
        assert sorted(nucleus_of) == present.tolist()
        for class_id in np.unique(present // 1000):
            own = present[present // 1000 == class_id]
            assert own.tolist() == [1000 * class_id + k for k in range(len(own))]
            assert sorted(nucleus_of[k] for k in own.tolist()) == [nucleus_of[k] for k in own.tolist()]
    assert len(nuclei) == len(files)
    in_files = [nucleus for nucleus_of in nuclei.values() for nucleus in nucleus_of.values()]
    assert len(in_files) > len(set(in_files)) == store.n_nuclei  # some are in two images


def test_labels_are_the_store_s_classes(store: PanopticStore, tmp_path: Path) -> None:
    export_cityscapes(store, tmp_path / "out", EVERYTHING)
    void, *labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert void == {"name": "void", "id": 0, "trainId": 255, "hasInstances": False, "color": [0, 0, 0]}
    for label, known in zip(labels, DEFAULT_CLASSES.classes, strict=True):
        assert (label["id"], label["name"], label["trainId"]) == (known.id, known.name, known.id - 1)
        assert label["hasInstances"] is known.is_thing
        assert label["color"] == list(known.color)


def test_a_region_is_its_pixels(store: PanopticStore, tmp_path: Path) -> None:
    n = export_cityscapes(store, tmp_path / "out", ExportOptions(Box(101, 120, 300, 401)))
    part = Box(50, 60, 150, 201)
    (file,) = (tmp_path / "out" / "slide").glob("*_labelIds.png")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), store.class_map(part))
    assert n == len(np.unique(store.instances(part))) - 1


@pytest.mark.usefixtures("small_tiles")
def test_the_slide_lies_beside(store: PanopticStore, tmp_path: Path) -> None:
    y, x = np.mgrid[: SLIDE["height"], : SLIDE["width"]] // 2
    pixels = np.stack([y, x, x // 2], -1).astype(np.uint8)  # blocks of 2 x 2: their mean is exact
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    with pytest.raises(SlideError, match="is not the slide"):
        export_cityscapes(store, tmp_path / "out", ExportOptions(slide=tmp_path / "slide.png"))
    own = replace(store, spec=replace(store.spec, slide=SLIDE | {"fingerprint": fingerprint(tmp_path / "slide.png")}))
    export_cityscapes(own, tmp_path / "out", ExportOptions(slide=tmp_path / "slide.png"))
    files = list((tmp_path / "out" / "slide").glob("*_leftImg8bit.png"))
    assert len(files) == 9
    for file in files:
        window = box_of(file.name).slices(Box.of_shape(SHAPE))
        np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels[::2, ::2][window])


# What the format can hold


@dataclass(frozen=True)
class PlanesStore(PanopticStore):
    """A store whose pixels are in memory."""

    ids: np.ndarray
    kinds: np.ndarray

    @property
    def n_nuclei(self) -> int:
        return int(self.ids.max())

    def instances(self, box: Box | None = None, level: int = 0) -> np.ndarray:
        return self.ids[box.slices(Box.of_shape(self.ids.shape))] if box else self.ids

    def class_map(self, box: Box | None = None, level: int = 0) -> np.ndarray:
        return self.kinds[box.slices(Box.of_shape(self.ids.shape))] if box else self.kinds


def of_dots(store: PanopticStore, n: int, class_id: int) -> PlanesStore:
    """``n`` nuclei of one pixel, of one of 66 thing classes, on tissue of class 200."""
    shape = (40, 60)
    classes = PanopticClasses(tuple(PanopticClass(k, f"class {k}", k <= 66, (k, k, k)) for k in range(1, 201)))
    ids = np.zeros(shape, np.uint32)
    ids.flat[: 2 * n : 2] = np.arange(1, n + 1)
    kinds = np.where(ids > 0, class_id, 200).astype(np.uint8)
    slide = SLIDE | {"height": 80, "width": 120}
    return PlanesStore(
        store.path, replace(store.spec, shape=shape, classes=classes, slide=slide), store.attributes, ids, kinds
    )


@pytest.mark.parametrize(("n", "class_id"), [(1000, 3), (1000, 64), (536, 65)])
def test_images_hold_as_many_as_16_bits_do(store: PanopticStore, tmp_path: Path, n: int, class_id: int) -> None:
    assert export_cityscapes(of_dots(store, n, class_id), tmp_path / "out", EVERYTHING) == n
    (file,) = (tmp_path / "out" / "slide").glob("*_instanceIds.png")
    values = np.asarray(Image.open(file))
    assert values.max() == 1000 * class_id + n - 1
    assert set(np.unique(values[values < 1000])) == {200}


@pytest.mark.parametrize(
    ("n", "class_id", "message"),
    [
        (1001, 3, r"tile 0,0 of .* has 1,001 nuclei of class 3 \(class 3\).*holds 1,000 of it; export a smaller --roi"),
        (537, 65, r"has 537 nuclei of class 65.*holds 536"),
        (1, 66, r"has 1 nuclei of class 66.*holds 0 of it; export coco-panoptic$"),
    ],
)
def test_what_16_bits_do_not_hold_is_refused(
    store: PanopticStore, tmp_path: Path, n: int, class_id: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        export_cityscapes(of_dots(store, n, class_id), tmp_path / "out", EVERYTHING)
    assert list(tmp_path.iterdir()) == []


def test_a_smaller_region_helps(store: PanopticStore, tmp_path: Path) -> None:
    dots = of_dots(store, 1001, 3)
    assert export_cityscapes(dots, tmp_path / "out", ExportOptions(Box(0, 0, 40, 120))) == 600


# Failures


@pytest.mark.parametrize("roi", [Box(0, 0, 441, 10), Box(5, 5, 5, 9)])
def test_a_region_outside_is_refused(store: PanopticStore, tmp_path: Path, roi: Box) -> None:
    with pytest.raises(RegionError):
        export_cityscapes(store, tmp_path / "out", ExportOptions(roi))
    assert list(tmp_path.iterdir()) == []
