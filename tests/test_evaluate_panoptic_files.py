"""Stores and files against truth in panoptic formats, what is printed of them, and mistakes that are named."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import panoptic_data as made
import pytest
from panoptic_data import FIELDS, STREET, make_scene, oracle_store, write_values
from rich.console import Console
from typer.testing import CliRunner

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.cli import app
from nucleipan.errors import DataError
from nucleipan.evaluate import PanopticEvaluation, evaluate_folders
from nucleipan.exports import ExportOptions, export_store
from nucleipan.metrics import SegmentMap, segment_qualities

FRAMES = ("aachen_000000_000019", "bonn_000001_000019")


# -- stores -------------------------------------------------------------------------------------------------------


def test_cityscapes_exports_carry_their_own_labels(tmp_path: Path) -> None:
    """What ``export --format cityscapes`` wrote of a store is scored by the classes that its labels.json names."""
    store = oracle_store(tmp_path / "slide.ome.zarr")
    export_store(store, "cityscapes", tmp_path / "export", ExportOptions())
    found = evaluate_folders(tmp_path / "export", tmp_path / "export")
    assert isinstance(found, PanopticEvaluation)
    assert [c.name for c in found.classes] == [c.name for c in DEFAULT_CLASSES.classes]
    assert sum(q.tp for c, q in zip(found.classes, found.qualities, strict=True) if c.is_thing) == store.n_nuclei
    assert found.summary()["panoptic PQ"] == 1
    (tmp_path / "export" / "labels.json").write_text('[{"id": 1, "name": "a", "trainId": "x"}]')
    with pytest.raises(DataError, match=r"labels\.json: 'trainId' must be an integer"):
        evaluate_folders(tmp_path / "export", tmp_path / "export")


def test_stores_are_scored_by_class_name(tmp_path: Path) -> None:
    """A store against its own exports; the truth numbers the classes as it likes and does not know all of them."""
    store = oracle_store(tmp_path / "stores" / "slide.ome.zarr")
    export_store(store, "coco-panoptic", tmp_path / "coco", ExportOptions())
    path = tmp_path / "coco" / "slide.json"
    document = json.loads(path.read_text())
    (image,) = document["images"]
    image["file_name"] = "elsewhere/slide.jpg"
    for entry in document["categories"]:
        entry["id"] += 50
    (annotation,) = document["annotations"]
    segments = [s | {"category_id": s["category_id"] + 50} for s in annotation["segments_info"]]
    tissue = next(
        c["id"] for c in document["categories"] if not c["isthing"] and c["id"] == segments[-1]["category_id"]
    )
    document["categories"] = [c for c in document["categories"] if c["id"] != tissue]
    gone = [s["id"] for s in segments if s["category_id"] == tissue]
    annotation["segments_info"] = [s for s in segments if s["category_id"] != tissue]
    document["categories"].append({"id": 7, "name": "unicorn", "isthing": 1})
    made.write_json(path, document)
    mask = path.with_suffix("") / annotation["file_name"]
    ids = imagecodecs.png_decode(mask.read_bytes()).astype(np.int64) @ [1, 256, 65536]
    made.write_png(mask, made.rgb_of(np.where(np.isin(ids, gone), 0, ids)))
    found = evaluate_folders(tmp_path / "stores", path)
    assert isinstance(found, PanopticEvaluation)
    assert found.summary()["panoptic PQ"] == 1
    assert sum(q.tp for c, q in zip(found.classes, found.qualities, strict=True) if c.is_thing) == store.n_nuclei
    assert len(found.notes) == 1
    assert found.notes[0].startswith("no prediction knows 'unicorn'; they know: ")


def test_stores_of_another_scale_are_brought_to_the_truths_grid(tmp_path: Path) -> None:
    store = oracle_store(tmp_path / "stores" / "bonn_000001_000019_leftImg8bit.ome.zarr", 2.0)
    export_store(store, "cityscapes", tmp_path / "export", ExportOptions())
    labels = (tmp_path / "export" / "labels.json").read_text()
    (path,) = (tmp_path / "export").rglob("*_instanceIds.png")
    large = np.kron(imagecodecs.png_decode(path.read_bytes()), np.ones((2, 2), np.uint16))
    write_values(tmp_path / "truth", "bonn_000001_000019", large)
    (tmp_path / "truth" / "labels.json").write_text(labels)
    assert evaluate_folders(tmp_path / "stores", tmp_path / "truth").summary()["panoptic PQ"] == 1
    write_values(tmp_path / "truth", "bonn_000001_000019", large[:, :200])
    with pytest.raises(DataError, match=r"leftImg8bit\.ome\.zarr: .*fits the truth's \(192, 200\) at no scale"):
        evaluate_folders(tmp_path / "stores", tmp_path / "truth")


def test_a_damaged_store_differs(tmp_path: Path) -> None:
    """Against the truth of another store, classes and nuclei are wrong: no name, no id makes them right."""
    store = oracle_store(tmp_path / "stores" / "slide.ome.zarr")
    export_store(store, "coco-panoptic", tmp_path / "coco", ExportOptions())
    path = tmp_path / "coco" / "slide.json"
    document = json.loads(path.read_text())
    document["images"][0]["file_name"] = "slide.jpg"
    things = [c for c in document["categories"] if c["isthing"]]
    things[0]["name"], things[1]["name"] = things[1]["name"], things[0]["name"]
    made.write_json(path, document)
    found = evaluate_folders(tmp_path / "stores", tmp_path / "coco")
    assert isinstance(found, PanopticEvaluation)
    assert [q.pq for q in found.qualities[:2]] == [0, 0]
    assert found.summary()["panoptic PQ stuff"] == 1


# -- what comes out -----------------------------------------------------------------------------------------------


def test_json_and_tables(tmp_path: Path) -> None:
    made.write_coco(tmp_path, {139: make_scene(1, *STREET), 285: make_scene(2, *STREET, has_crowd=False)})
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    document = json.loads(path.read_text())
    document["categories"].append({"id": 99, "name": "unicorn", "isthing": 1})
    made.write_json(path, document)
    found = evaluate_folders(tmp_path, tmp_path)
    assert isinstance(found, PanopticEvaluation)
    result = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert result["summary"]["panoptic PQ"] == 1
    assert result["summary"]["classes"] == 5
    assert set(result["panoptic"]["things"]) == {"car", "person", "unicorn"}
    assert set(result["panoptic"]["stuff"]) == {"road", "sky", "vegetation"}
    assert result["panoptic"]["things"]["unicorn"] == {"PQ": None, "SQ": None, "RQ": None, "TP": 0, "FP": 0, "FN": 0}
    assert [image["name"] for image in result["images"]] == ["139", "285"]
    assert result["images"][0]["TP"] == 7
    console = Console(file=io.StringIO(), width=200)
    found.print_table(console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("unicorn", "vegetation", "panoptic PQ things", "panoptic RQ stuff"):
        assert word in printed


def test_nothing_to_find_is_no_score() -> None:
    empty = SegmentMap(np.zeros((2, 2), int), np.zeros(1, int), np.zeros(1, bool))
    assert all(math.isnan(q.pq) for q in segment_qualities(empty, empty, 2))


def test_the_command_takes_panoptic_formats(tmp_path: Path) -> None:
    scenes = {139: make_scene(1, *STREET)}
    made.write_coco(tmp_path / "coco", scenes)
    made.write_coco_panoptic(
        tmp_path / "results" / "panoptic_results.json", scenes, made.coco_categories([*scenes.values()])
    )
    arguments = ["evaluate", "--pred", str(tmp_path / "results"), "--truth", str(tmp_path / "coco")]
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "scores.json")])
    assert done.exit_code == 0, done.output
    assert "panoptic PQ" in done.output
    assert json.loads((tmp_path / "scores.json").read_text())["summary"]["panoptic PQ"] == 1


# -- mistakes -----------------------------------------------------------------------------------------------------


def coco_pair(folder: Path) -> tuple[Path, Path]:
    """JSON of results and of the truth, of image 139."""
    scenes = {139: make_scene(1, *STREET)}
    made.write_coco(folder / "coco", scenes)
    pred = folder / "results" / "panoptic_results.json"
    made.write_coco_panoptic(pred, scenes, made.coco_categories([*scenes.values()]))
    return pred, folder / "coco" / "annotations" / "panoptic_val2017.json"


def change(path: Path, **changes: Any) -> None:
    """Change the first annotation's first segment, or with ``image_id`` or ``categories`` the document."""
    document = json.loads(path.read_text())
    for key, value in changes.items():
        place = document["annotations"][0]
        if key == "categories":
            document["categories"] = value
        else:
            (place if key in place else place["segments_info"][0])[key] = value
    made.write_json(path, document)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"id": 5},
            r"000000000139\.png: holds segment 70001, which .*panoptic_results\.json does not list for image 139",
        ),
        (
            {"category_id": 77},
            r"panoptic_results\.json: segment 70001 of image 139 is of category 77; expected one of \[1,",
        ),
        ({"image_id": 140}, r"1 of 1 truths have no prediction in .*results: 139"),
        ({"file_name": "gone.png"}, r"panoptic_results\.json: of image 139 it names 'gone\.png', which is missing in"),
        ({"segments_info": 3}, r"panoptic_results\.json: expected an object with a list of objects 'segments_info'"),
        (
            {"categories": [{"id": 1, "name": "dog", "isthing": 1}]},
            "category 1 is 'dog', in the truth 'car'; use its ids",
        ),
    ],
)
def test_broken_coco_results_name_file_and_id(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    pred, truth = coco_pair(tmp_path)
    change(pred, **changes)
    with pytest.raises(DataError, match=match):
        evaluate_folders(pred.parent, truth)


def test_segments_without_pixels_and_other_shapes_are_named(tmp_path: Path) -> None:
    pred, truth = coco_pair(tmp_path)
    mask = pred.with_suffix("") / "000000000139.png"
    whole = imagecodecs.png_decode(mask.read_bytes())
    made.write_png(mask, whole[:, :-1])
    with pytest.raises(DataError, match=r"139\.png: is \(64, 95\), the truth \(64, 96\)"):
        evaluate_folders(pred, truth)
    made.write_png(mask, np.where((whole == made.rgb_of(np.array(made.coco_id(5)))).all(-1, keepdims=True), 0, whole))
    with pytest.raises(
        DataError, match=rf"lists segment {made.coco_id(5)} of image 139, which no pixel of .*139\.png has"
    ):
        evaluate_folders(pred, truth)
    mask.write_bytes(mask.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"139\.png: the PNG"):
        evaluate_folders(pred, truth)


def test_truths_that_are_not_one(tmp_path: Path) -> None:
    pred, truth = coco_pair(tmp_path)
    made.write_coco(tmp_path / "coco", {9: make_scene(9, *STREET)}, "train2017")
    match = r"holds 2 panoptic JSONs \(panoptic_train2017\.json, panoptic_val2017\.json\); name one of the files"
    with pytest.raises(DataError, match=match):
        evaluate_folders(pred.parent, tmp_path / "coco")
    assert evaluate_folders(pred.parent, truth).summary()["panoptic PQ"] == 1
    document = json.loads(truth.read_text())
    document["categories"][0]["name"] = document["categories"][1]["name"]
    made.write_json(truth, document)
    with pytest.raises(DataError, match=r"panoptic_val2017\.json: two categories are called 'person'"):
        evaluate_folders(pred.parent, truth)
    made.write_json(truth, {"annotations": [], "categories": []})
    with pytest.raises(DataError, match=r"panoptic_val2017\.json: annotates no image"):
        evaluate_folders(pred.parent, truth)


def test_folders_without_predictions(tmp_path: Path) -> None:
    _, truth = coco_pair(tmp_path)
    with pytest.raises(DataError, match=r"nothing holds neither <stem>\.ome\.zarr nor a panoptic JSON with its PNGs$"):
        evaluate_folders(tmp_path / "nothing", truth)
    made.write_cityscapes(tmp_path / "city", {FRAMES[0]: make_scene(1, *STREET), FRAMES[1]: make_scene(2, *STREET)})
    with pytest.raises(DataError, match="nor files in the layout of the truth"):
        evaluate_folders(tmp_path / "nothing", tmp_path / "city")
    write_values(tmp_path / "half", FRAMES[0], made.instance_values(make_scene(1, *STREET)))
    with pytest.raises(DataError, match=rf"1 of 2 truths have no prediction in .*half: {FRAMES[1]}"):
        evaluate_folders(tmp_path / "half", tmp_path / "city")
    write_values(tmp_path / "half", FRAMES[1], np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"instanceIds\.png: label image is \(3, 3\), its image \(64, 96\)"):
        evaluate_folders(tmp_path / "half", tmp_path / "city")
    made.write_png(tmp_path / "half" / f"{FRAMES[0]}_instanceIds.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match="is of the same frame; keep one of the two"):
        evaluate_folders(tmp_path / "half", tmp_path / "city")


def test_broken_pastis_predictions_name_file_and_patch(tmp_path: Path) -> None:
    made.write_pastis(tmp_path / "truth", {7: make_scene(1, *FIELDS)})
    made.write_pastis_labels(tmp_path / "pred", {7: make_scene(1, *FIELDS)})
    target = tmp_path / "pred" / "ANNOTATIONS" / "TARGET_7.npy"
    np.save(target, np.load(target) + np.uint8(15))
    with pytest.raises(DataError, match=r"TARGET_7\.npy: patch 7 has class 34; expected 0 to 19"):
        evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    made.write_pastis_labels(tmp_path / "pred", {7: replace(make_scene(1, *FIELDS), plane=np.ones((8, 8), int))})
    with pytest.raises(DataError, match=r"INSTANCES_7\.npy: is \(8, 8\), the truth \(64, 96\)"):
        evaluate_folders(tmp_path / "pred", tmp_path / "truth")
