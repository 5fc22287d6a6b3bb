"""COCO panoptic holds the store's pixels under the store's ids, and scores as the official evaluation would."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from stitch_oracle import Truth, canonical, random_truth, stitch_oracle, truth_in

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.datasets import read_coco_panoptic
from nucleipan.errors import DataError, RegionError, SlideError, StoreError
from nucleipan.exports import ExportOptions, coco
from nucleipan.exports.coco import export_coco
from nucleipan.exports.tiling import TileSides
from nucleipan.geometry import Box
from nucleipan.metrics import PanopticMap, PanopticQuality, panoptic_qualities, pool
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

SHAPE = (260, 240)
EXTENT = Box(130, 10, 260, 240)  # the first row of tiles is void, the second in part
SLIDE = {"name": "slide.png", "width": 480, "height": 520, "mpp": 0.25, "fingerprint": "ab12"}
EVERYTHING = ExportOptions()


def stored(folder: Path, truth: Truth, extent: Box) -> PanopticStore:
    context = StitchContext(TileGrid(SHAPE, extent, 100, 64, 1), 2.0)
    store = stitch_oracle(folder / "slide 1.ome.zarr", truth, context)[0]
    return replace(store, spec=replace(store.spec, slide=SLIDE))


@pytest.fixture(scope="module")
def truth() -> Truth:
    return random_truth(SHAPE, 180)


@pytest.fixture(scope="module")
def store(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    return stored(tmp_path_factory.mktemp("true"), truth, EXTENT)


@pytest.fixture(scope="module")
def other_store(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    """The same scene seen badly: moved nuclei, some of other classes, other tissue, another void."""
    moved = np.zeros_like(truth.instances)
    moved[2:, 1:] = truth.instances[:-2, :-1]
    instances = canonical(moved)
    was = np.zeros(int(instances.max()) + 1, np.int64)
    was[instances] = moved
    probabilities = truth.probabilities[was[1:] - 1]
    probabilities[::7] = probabilities[::7, ::-1]
    stuff = truth.stuff.copy()
    stuff[:, ::5] = 6
    wrong = Truth(instances, stuff, probabilities, truth.scores[was[1:] - 1])
    return stored(tmp_path_factory.mktemp("other"), wrong, Box(140, 0, 250, 200))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "_SIDES", TileSides(96, 128))


def documents(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any], np.ndarray]]:
    """Image, annotation and decoded ids [h, w], written as the format's page says."""
    (file,) = folder.glob("*.json")
    document = json.loads(file.read_text())
    images = {image["id"]: image for image in document["images"]}
    assert len(images) == len(document["images"]) == len(document["annotations"])
    found = []
    for annotation in document["annotations"]:
        png = np.asarray(Image.open(file.with_suffix("") / annotation["file_name"]))
        assert png.dtype == np.uint8
        assert png.shape[2:] == (3,)
        red, green, blue = (png[..., k].astype(np.int64) for k in range(3))
        found.append((images[annotation["image_id"]], annotation, red + 256 * green + 256**2 * blue))
    return found


def box_of(image: dict[str, Any]) -> Box:
    x, y = image["origin_xy"]
    return Box(y, x, y + image["height"], x + image["width"])


@pytest.mark.usefixtures("small_tiles")
def test_pixels_and_segments_are_those_of_the_slide(truth: Truth, store: PanopticStore, tmp_path: Path) -> None:
    assert export_coco(store, tmp_path / "out", EVERYTHING) == store.n_nuclei
    instances, classes, _ = truth_in(truth, EXTENT)
    classes = classes.astype(np.int64)
    is_covered, areas, n_images = np.zeros(SHAPE, bool), Counter[int](), Counter[int]()
    for image, annotation, ids in documents(tmp_path / "out"):
        window = box_of(image).slices(Box.of_shape(SHAPE))
        assert not is_covered[window].any()
        is_covered[window] = True
        expected = np.where(instances > 0, instances, np.where(classes > 0, store.n_nuclei + classes, 0))[window]
        np.testing.assert_array_equal(ids, expected)
        segments = annotation["segments_info"]
        assert sorted(s["id"] for s in segments) == sorted(set(expected.ravel().tolist()) - {0})
        for segment in segments:
            y, x = np.nonzero(ids == segment["id"])
            assert set(classes[window][y, x].tolist()) == {segment["category_id"]}
            assert segment["area"] == len(y)
            assert segment["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert segment["iscrowd"] == 0
            if segment["id"] <= store.n_nuclei:
                areas[segment["id"]] += segment["area"]
                n_images[segment["id"]] += 1
    ids, sizes = np.unique(instances[instances > 0], return_counts=True)
    assert areas == dict(zip(ids.tolist(), sizes.tolist(), strict=True))
    assert max(n_images.values()) > 1
    assert (classes == 0).any()
    assert (classes[~is_covered] == 0).all()
    assert not is_covered[:96].any()


def test_categories_are_the_store_s_classes(store: PanopticStore, tmp_path: Path) -> None:
    export_coco(store, tmp_path / "out", EVERYTHING)
    document = json.loads((tmp_path / "out" / "slide 1.json").read_text())
    assert [c["id"] for c in document["categories"]] == list(range(1, len(DEFAULT_CLASSES) + 1))
    for category, known in zip(document["categories"], DEFAULT_CLASSES.classes, strict=True):
        assert (category["name"], category["isthing"]) == (known.name, int(known.is_thing))
        assert category["color"] == list(known.color)
        assert category["supercategory"] == ("nucleus" if known.is_thing else "tissue")
    assert document["info"]["mpp"] == store.mpp


@pytest.mark.parametrize(("side", "n_images"), [(256, 1), (258, 4)])
@pytest.mark.usefixtures("small_tiles")
def test_a_small_region_is_one_image(store: PanopticStore, tmp_path: Path, side: int, n_images: int) -> None:
    # Level-0 pixels are half as large as the store's.
    n = export_coco(store, tmp_path / "out", ExportOptions(Box(201, 60, 201 + side - 1, 60 + side)))
    found = documents(tmp_path / "out")
    assert len(found) == n_images
    part = Box(100, 30, 100 + side // 2, 30 + side // 2)
    assert box_of(found[0][0]).shape == (part.shape if n_images == 1 else (96, 96))
    for image, _, ids in found:
        assert part.contains(box_of(image))
        plane = store.instances(box_of(image))
        np.testing.assert_array_equal(np.where(ids > store.n_nuclei, 0, ids), plane)
    assert sum(box_of(image).area for image, _, _ in found) == part.area
    assert n == len(np.unique(store.instances(part))) - 1


# Scores


def official_counts(truth: Path, prediction: Path, n_classes: int) -> list[PanopticQuality]:
    """Panoptic quality of two exports, step by step as Kirillov et al. (arXiv 1801.00868, section 4) define it."""
    tp, fp, fn, iou_sum = Counter[int](), Counter[int](), Counter[int](), Counter[int]()
    predictions = {a["file_name"]: (a, ids) for _, a, ids in documents(prediction)}
    for _, annotation, true in documents(truth):
        other, pred = predictions[annotation["file_name"]]
        class_of_true = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
        class_of_pred = {s["id"]: s["category_id"] for s in other["segments_info"]}
        matched_true, matched_pred = set(), set()
        for t, true_class in class_of_true.items():
            for p, pred_class in class_of_pred.items():
                if true_class != pred_class:
                    continue
                shared = int(((true == t) & (pred == p)).sum())
                union = int(((true == t) | ((pred == p) & (true != 0))).sum())
                if shared / union > 0.5:
                    matched_true.add(t)
                    matched_pred.add(p)
                    tp[true_class] += 1
                    iou_sum[true_class] += shared / union
        for t in class_of_true.keys() - matched_true:
            fn[class_of_true[t]] += 1
        for p in class_of_pred.keys() - matched_pred:
            if (true[pred == p] == 0).mean() <= 0.5:
                fp[class_of_pred[p]] += 1
    return [PanopticQuality(tp[c], fp[c], fn[c], iou_sum[c]) for c in range(1, n_classes + 1)]


@pytest.mark.usefixtures("small_tiles")
def test_an_export_agrees_with_itself(store: PanopticStore, tmp_path: Path) -> None:
    export_coco(store, tmp_path / "out", EVERYTHING)
    qualities = official_counts(tmp_path / "out", tmp_path / "out", len(DEFAULT_CLASSES))
    assert {q.pq for q in qualities if q.n_true} == {1.0}
    assert pool(qualities).n_true > store.n_nuclei


@pytest.mark.usefixtures("small_tiles")
def test_scores_of_exports_are_those_of_the_stores(
    store: PanopticStore, other_store: PanopticStore, tmp_path: Path
) -> None:
    export_coco(store, tmp_path / "true", EVERYTHING)
    export_coco(other_store, tmp_path / "pred", EVERYTHING)
    found = official_counts(tmp_path / "true", tmp_path / "pred", len(DEFAULT_CLASSES))
    boxes = [box_of(image) for image, _, _ in documents(tmp_path / "true")]
    of_boxes = [
        panoptic_qualities(
            PanopticMap(other_store.class_map(box), other_store.instances(box)),
            PanopticMap(store.class_map(box), store.instances(box)),
            n_classes=len(DEFAULT_CLASSES),
            thing_ids=DEFAULT_CLASSES.thing_ids.tolist(),
        )
        for box in boxes
    ]
    for got, expected in zip(found, map(pool, zip(*of_boxes, strict=True)), strict=True):
        assert (got.tp, got.fp, got.fn) == (expected.tp, expected.fp, expected.fn)
        assert got.iou_sum == pytest.approx(expected.iou_sum)
    everything = pool(found)
    assert min(everything.tp, everything.fp, everything.fn) > 10  # the comparison means something


# With the slide


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    y, x = np.mgrid[: SLIDE["height"], : SLIDE["width"]]
    pixels = np.stack([y % 256, x // 2, (x + y) // 4], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


def of_slide(store: PanopticStore, slide: Path) -> PanopticStore:
    return replace(store, spec=replace(store.spec, slide=SLIDE | {"fingerprint": fingerprint(slide)}))


@pytest.mark.usefixtures("small_tiles")
def test_images_lie_beside_and_our_own_reader_reads_it_all(store: PanopticStore, slide: Path, tmp_path: Path) -> None:
    export_coco(of_slide(store, slide), tmp_path / "out", ExportOptions(slide=slide))
    with Image.open(slide) as image:
        pixels = np.asarray(image).reshape(SHAPE[0], 2, SHAPE[1], 2, 3).mean((1, 3))
    items = read_coco_panoptic(tmp_path / "out")
    boxes = [box_of(image) for image, _, _ in documents(tmp_path / "out")]
    assert len(items) == len(boxes) > 1
    for item, box in zip(items, boxes, strict=True):
        sample, window = item.load(), box.slices(Box.of_shape(SHAPE))
        assert np.abs(sample.image - pixels[window]).mean() < 2
        instances, classes = store.instances(box), store.class_map(box)
        assert sample.ids is not None
        assert sample.regions is not None
        np.testing.assert_array_equal(sample.ids > 0, instances > 0)
        pairs = set(zip(sample.ids[instances > 0].tolist(), instances[instances > 0].tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        names = np.array(["void", *(c.name for c in DEFAULT_CLASSES.classes)])[classes]
        codes = np.array([sample.code_of_id.get(k, "") for k in range(int(sample.ids.max()) + 1)])[sample.ids]
        np.testing.assert_array_equal(codes[instances > 0], names[instances > 0])
        regions = np.array([code or "void" for code in sample.region_codes])[sample.regions]
        np.testing.assert_array_equal(regions[instances == 0], names[instances == 0])


def test_another_slide_is_refused(store: PanopticStore, slide: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"not the slide that .* was made from \(slide\.png\)"):
        export_coco(store, tmp_path / "out", ExportOptions(slide=slide))
    assert not (tmp_path / "out").exists()


# Limits and failures


def test_ids_fill_three_bytes_and_no_more(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 2**24 - 1 - len(DEFAULT_CLASSES)
    monkeypatch.setattr(PanopticStore, "n_nuclei", property(lambda self: most))
    export_coco(store, tmp_path / "out", EVERYTHING)
    ((_, _, ids),) = documents(tmp_path / "out")
    instances, classes = store.instances(), store.class_map()
    np.testing.assert_array_equal(ids[instances > 0], instances[instances > 0])
    is_tissue = (instances == 0) & (classes > 0)
    np.testing.assert_array_equal(ids[is_tissue], most + classes[is_tissue].astype(np.int64))
    monkeypatch.setattr(PanopticStore, "n_nuclei", property(lambda self: most + 1))
    with pytest.raises(DataError, match=r"nuclei up to 16,777,202.*end at 16,777,215"):
        export_coco(store, tmp_path / "more", EVERYTHING)
    assert not (tmp_path / "more").exists()


@pytest.mark.usefixtures("small_tiles")
def test_reads_each_pixel_once_and_writes_image_by_image(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, sizes, read, dumps = [], [], PanopticStore.instances, json.dumps

    def noted(self: PanopticStore, box: Box, level: int = 0) -> np.ndarray:
        reads.append(box)
        return read(self, box, level)

    def measured(value: Any) -> str:
        sizes.append(len(dumps(value)))
        return dumps(value)

    monkeypatch.setattr(PanopticStore, "instances", noted)
    monkeypatch.setattr(coco.json, "dumps", measured)
    export_coco(store, tmp_path / "out", EVERYTHING)
    assert all(max(box.shape) <= 96 for box in reads)
    assert sum(box.area for box in reads) == SHAPE[0] * SHAPE[1]
    assert max(sizes) < (tmp_path / "out" / "slide 1.json").stat().st_size / 2


@pytest.mark.parametrize("roi", [Box(0, 0, 521, 10), Box(5, 5, 5, 9), Box(-1, 0, 5, 5)])
def test_a_region_outside_is_refused(store: PanopticStore, tmp_path: Path, roi: Box) -> None:
    with pytest.raises(RegionError):
        export_coco(store, tmp_path / "out", ExportOptions(roi))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced(store: PanopticStore, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        export_coco(store, tmp_path / "out", EVERYTHING)


@pytest.mark.parametrize(("name", "value"), [("nuclei", 99_999), ("classes", 14), ("classes", 200), ("classes", 0)])
def test_a_store_that_contradicts_itself_is_refused(
    store: PanopticStore, tmp_path: Path, name: str, value: int
) -> None:
    copy = replace(store, path=tmp_path / "damaged.ome.zarr")
    shutil.copytree(store.path, copy.path)
    y, x = np.argwhere(store.instances() > 0)[100]
    zarr.open_array(str(copy.path / "labels" / name / "0"), mode="r+")[y, x] = value
    with pytest.raises(StoreError, match="contradict each other"):
        export_coco(copy, tmp_path / "out", EVERYTHING)
    assert not (tmp_path / "out").exists()
