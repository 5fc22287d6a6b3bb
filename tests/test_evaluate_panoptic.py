"""Scores of panoptic formats against literal versions of their owners' definitions, and on maps counted by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import panoptic_data as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from panoptic_data import FIELDS, STREET, Scene, Segment, make_scene, write_values

from nucleipan.errors import DataError
from nucleipan.evaluate import PanopticEvaluation, evaluate_folders
from nucleipan.metrics import PanopticMap, PanopticQuality, SegmentMap, panoptic_qualities, segment_qualities

N_CLASSES = 3
FRAMES = ("aachen_000000_000019", "bonn_000001_000019")


# -- the definition, mask by mask ---------------------------------------------------------------------------------


def literal_qualities(pred: SegmentMap, true: SegmentMap, n_classes: int) -> list[PanopticQuality]:
    """Section 4 of arXiv 1801.00868 with the crowds of panopticapi: every segment is a mask, every pair is compared."""
    void = true.ids == 0
    true_ids, pred_ids = ([int(i) for i in np.unique(m.ids) if i] for m in (true, pred))
    crowd_of = {int(true.classes[i]): i for i in true_ids if true.is_crowd[i]}  # the last one wins
    scores = []
    for c in range(1, n_classes + 1):
        iou_sum, matched_true, matched_pred = 0.0, set(), set()
        for t in (i for i in true_ids if true.classes[i] == c and not true.is_crowd[i]):
            for p in (i for i in pred_ids if pred.classes[i] == c):
                inter = ((true.ids == t) & (pred.ids == p)).sum()
                union = ((true.ids == t) | ((pred.ids == p) & ~void)).sum()
                if inter / union > 0.5:
                    iou_sum += inter / union
                    matched_true.add(t)
                    matched_pred.add(p)
        fn = sum(true.classes[i] == c and not true.is_crowd[i] and i not in matched_true for i in true_ids)
        ignored = void | (true.ids == crowd_of.get(c, 0))
        fp = 0
        for p in (i for i in pred_ids if pred.classes[i] == c and i not in matched_pred):
            fp += ignored[pred.ids == p].mean() <= 0.5
        scores.append(PanopticQuality(len(matched_true), int(fp), int(fn), iou_sum))
    return scores


def literal_means(qualities: Iterable[PanopticQuality]) -> tuple[float, float, float]:
    """PQ, SQ and RQ as panopticapi averages them: classes without anything do not count."""
    known = [q for q in qualities if q.tp + q.fp + q.fn]
    total = [q.tp + 0.5 * q.fp + 0.5 * q.fn for q in known]
    pq = sum(q.iou_sum / t for q, t in zip(known, total, strict=True)) / len(known)
    sq = sum(q.iou_sum / q.tp if q.tp else 0.0 for q in known) / len(known)
    return pq, sq, sum(q.tp / t for q, t in zip(known, total, strict=True)) / len(known)


def same(found: Iterable[PanopticQuality], expected: Iterable[PanopticQuality]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.tp, one.fp, one.fn) == (other.tp, other.fp, other.fn)
        assert one.iou_sum == pytest.approx(other.iou_sum)


def segment_maps(ids: st.SearchStrategy[np.ndarray]) -> st.SearchStrategy[SegmentMap]:
    """Ids 0 to 6 of any class; any may be a crowd, several of one class too."""
    classes = st.lists(st.integers(1, N_CLASSES), min_size=7, max_size=7).map(np.array)
    crowds = st.lists(st.sampled_from([False, False, True]), min_size=7, max_size=7).map(np.array)
    return st.builds(SegmentMap, ids, classes, crowds)


noise = arrays(np.int32, (5, 7), elements=st.integers(0, 6))
stripes = arrays(np.int32, (5, 1), elements=st.integers(0, 6)).map(lambda column: column.repeat(7, axis=1))


@settings(max_examples=150, deadline=None)
@given(segment_maps(noise | stripes), segment_maps(noise | stripes))
def test_random_maps_score_as_the_definition_says(pred: SegmentMap, true: SegmentMap) -> None:
    same(segment_qualities(pred, true, N_CLASSES), literal_qualities(pred, true, N_CLASSES))


@settings(max_examples=150, deadline=None)
@given(segment_maps(stripes), arrays(bool, (5, 7), elements=st.sampled_from([False, False, False, True])), noise)
def test_damaged_copies_score_as_the_definition_says(true: SegmentMap, is_wrong: np.ndarray, other: np.ndarray) -> None:
    """Most segments match here, so that void and crowds decide about what is left of them."""
    pred = replace(true, ids=np.where(is_wrong, other, np.where(true.ids == 0, 3, true.ids)))
    same(segment_qualities(pred, true, N_CLASSES), literal_qualities(pred, true, N_CLASSES))


@settings(max_examples=60, deadline=None)
@given(segment_maps(noise))
def test_a_map_scores_one_against_itself(plane: SegmentMap) -> None:
    plane = replace(plane, is_crowd=np.arange(7) == 6)  # of several crowds of a class, one alone is known
    for q in segment_qualities(plane, plane, N_CLASSES):
        assert q.fp == q.fn == 0
        assert q.iou_sum == pytest.approx(q.tp)


@settings(max_examples=60, deadline=None)
@given(noise, noise, st.permutations([1, 2, 3, 1, 2, 3]))
def test_planes_of_classes_and_instances_score_the_same(pred: np.ndarray, true: np.ndarray, order: list[int]) -> None:
    """``panoptic_qualities`` is the same rule on planes; ids here are of things only."""
    class_of = np.array([0, *order])
    by_segment = [SegmentMap(plane, class_of, np.zeros(7, bool)) for plane in (pred, true)]
    by_plane = [PanopticMap(class_of[plane], plane) for plane in (pred, true)]
    found = panoptic_qualities(*by_plane, n_classes=N_CLASSES, thing_ids=(1, 2, 3))
    same(found, segment_qualities(*by_segment, N_CLASSES))


def strip(*runs: tuple[int, int]) -> np.ndarray:
    """One row of runs: id, length."""
    return np.concatenate([np.full(n, i) for i, n in runs])[None]


def test_crowds_are_neither_found_nor_missed() -> None:
    """One row, counted by hand. The truth: a crowd of class 1, a crowd of class 2, void, and one object of class 1."""
    true = SegmentMap(strip((1, 10), (2, 10), (0, 10), (3, 10)), np.array([0, 1, 2, 1]), np.array([0, 1, 1, 0], bool))

    def score(*runs: tuple[int, int]) -> tuple[PanopticQuality, ...]:
        return segment_qualities(SegmentMap(strip(*runs), np.array([0, 1, 1, 2]), np.zeros(4, bool)), true, 2)

    missed = PanopticQuality(fn=1)
    assert score((1, 10), (0, 30)) == (missed, PanopticQuality()), "the crowd itself is no false positive"
    assert score((3, 10), (0, 30)) == (missed, PanopticQuality(fp=1)), "a crowd of another class does not forgive"
    assert score((0, 4), (1, 12), (0, 24)) == (PanopticQuality(fp=1, fn=1), PanopticQuality()), "half is not more"
    assert score((0, 3), (1, 7), (0, 10), (1, 2), (0, 18)) == (missed, PanopticQuality()), "void and crowd add up"
    assert score((0, 20), (1, 10), (2, 10)) == (PanopticQuality(1, 0, 0, 1.0), PanopticQuality())
    assert score((0, 20), (2, 20)) == (PanopticQuality(1, 0, 0, 1.0), PanopticQuality()), (
        "void does not enlarge a union"
    )
    assert score((2, 20), (0, 10), (2, 10)) == (PanopticQuality(fp=1, fn=1), PanopticQuality()), "a crowd does: IoU 1/3"


# -- COCO ---------------------------------------------------------------------------------------------------------


def as_map(scene: Scene, names: list[str]) -> SegmentMap:
    classes = [0, *(names.index(s.name) + 1 for s in scene.segments)]
    return SegmentMap(scene.plane, np.array(classes), np.array([False, *(s.is_crowd for s in scene.segments)]))


def damaged(scene: Scene, seed: int) -> Scene:
    """A prediction: shifted, some segments of another class, some lost, void filled."""
    rng = np.random.default_rng(seed)
    names = [s.name for s in scene.segments if s.is_thing]
    kinds = [
        Segment(str(rng.choice(names)) if s.is_thing and rng.random() < 0.2 else s.name, s.is_thing)
        for s in scene.segments
    ]
    plane = np.roll(scene.plane, rng.integers(0, 4), axis=1)
    plane[plane == rng.integers(1, len(kinds))] = 0
    return Scene(scene.image, np.where(plane == 0, rng.integers(0, 2) * len(kinds), plane), tuple(kinds))


@pytest.mark.parametrize("seed", range(4))
def test_coco_files_score_as_the_definition_says(seed: int, tmp_path: Path) -> None:
    truth = {k: make_scene(10 * seed + k, *STREET) for k in (139, 285, 632)}
    pred = {k: damaged(scene, seed + k) for k, scene in truth.items()}
    made.write_coco(tmp_path / "coco", truth)
    categories = made.coco_categories(list(truth.values()))
    made.write_coco_panoptic(tmp_path / "results" / "panoptic_val2017_net_results.json", pred, categories)
    found = evaluate_folders(tmp_path / "results", tmp_path / "coco")
    assert isinstance(found, PanopticEvaluation)
    names = [c["name"] for c in categories]
    assert [(c.name, int(c.is_thing)) for c in found.classes] == [(c["name"], c["isthing"]) for c in categories]
    per_image = [literal_qualities(as_map(pred[k], names), as_map(truth[k], names), len(names)) for k in truth]
    pooled = [sum(column, start=PanopticQuality()) for column in zip(*per_image, strict=True)]
    same(found.qualities, pooled)
    assert 0 < found.summary()["panoptic PQ"] < 1
    parts = {
        "": pooled,
        " things": [q for q, c in zip(pooled, categories, strict=True) if c["isthing"]],
        " stuff": [q for q, c in zip(pooled, categories, strict=True) if not c["isthing"]],
    }
    for part, of in parts.items():
        scores = [found.summary()[f"panoptic {score}{part}"] for score in ("PQ", "SQ", "RQ")]
        assert scores == pytest.approx(literal_means(of))


# The segments of image 142238 in panopticapi's sample_data/panoptic_examples.json: id, category, crowd, box (xywh).
# COCO's annotations are under CC BY 4.0. The PNGs are not at hand; the boxes stand for the shapes.
PUBLIC_EXAMPLE = (
    (2330219, 184, 0, (0, 0, 640, 263)),
    (10025880, 193, 0, (0, 241, 640, 186)),
    (11829830, 187, 0, (440, 0, 200, 103)),
    (3153362, 1, 1, (75, 111, 517, 262)),
    (3937500, 1, 0, (282, 207, 48, 149)),
    (4260062, 1, 0, (420, 183, 49, 173)),
    (2035955, 1, 0, (271, 118, 53, 141)),
    (4325578, 1, 0, (337, 208, 54, 149)),
    (2628072, 1, 0, (47, 221, 36, 138)),
    (2822390, 1, 0, (436, 125, 70, 151)),
    (5186532, 1, 0, (241, 183, 45, 171)),
    (4917453, 1, 0, (618, 248, 22, 68)),
    (3476419, 1, 0, (470, 211, 63, 142)),
    (3997935, 1, 0, (0, 242, 9, 44)),
    (2098642, 1, 0, (153, 217, 58, 140)),
    (5314498, 1, 0, (586, 229, 13, 39)),
    (4721614, 1, 0, (270, 124, 26, 61)),
    (16757838, 37, 0, (360, 116, 16, 17)),
)
PUBLIC_CATEGORIES = (
    (1, "person", 1),
    (37, "sports ball", 1),
    (184, "tree-merged", 0),
    (187, "sky-other-merged", 0),
    (193, "grass-merged", 0),
)


def write_public_example(path: Path, shift: int = 0, dropped: tuple[int, ...] = ()) -> np.ndarray:
    """The example, its things ``shift`` pixels to the right and without ``dropped``; returns the ids."""
    ids = np.zeros((427, 640), np.int64)
    for number, category, _, (x, y, w, h) in PUBLIC_EXAMPLE:
        dx = shift if category in (1, 37) else 0
        if number not in dropped:
            ids[y : y + h, x + dx : x + dx + w] = number
    present = set(np.unique(ids).tolist())
    segments = [
        {"id": number, "category_id": category, "iscrowd": crowd, "area": int((ids == number).sum()), "bbox": list(box)}
        for number, category, crowd, box in PUBLIC_EXAMPLE
        if number in present
    ]
    annotation = {"image_id": 142238, "file_name": "000000142238.png", "segments_info": segments}
    categories = [{"id": i, "name": name, "isthing": thing} for i, name, thing in PUBLIC_CATEGORIES]
    images = [{"id": 142238, "file_name": "000000142238.jpg", "height": 427, "width": 640}]
    made.write_json(path, {"images": images, "annotations": [annotation], "categories": categories})
    made.write_png(path.with_suffix("") / "000000142238.png", made.rgb_of(ids))
    return ids


def public_map(ids: np.ndarray) -> SegmentMap:
    number_of = {number: k for k, (number, _, _, _) in enumerate(PUBLIC_EXAMPLE, start=1)} | {0: 0}
    class_of = {i: k for k, (i, _, _) in enumerate(PUBLIC_CATEGORIES, start=1)}
    plane = np.vectorize(number_of.get)(ids)
    classes = [0, *(class_of[category] for _, category, _, _ in PUBLIC_EXAMPLE)]
    return SegmentMap(plane, np.array(classes), np.array([False, *(bool(crowd) for _, _, crowd, _ in PUBLIC_EXAMPLE)]))


def test_the_public_example_scores_one_against_itself(tmp_path: Path) -> None:
    path = tmp_path / "panoptic_examples.json"
    write_public_example(path)
    summary = evaluate_folders(path, path).summary()
    assert [summary[f"panoptic PQ{part}"] for part in ("", " things", " stuff")] == [1, 1, 1]
    assert [summary[f"classes{part}"] for part in ("", " things", " stuff")] == [5, 2, 3]


@pytest.mark.parametrize(
    ("shift", "dropped", "official"),
    [
        # What panopticapi 0.2 itself prints of these files, with more digits: PQ of all, things, stuff.
        (5, (), (0.8234199723313763, 0.5908509925384136, 0.978465958860018)),
        (12, (16757838,), (0.6278948710535773, 0.14243751127459567, 0.9515331109062318)),
        (3, (3153362, 5186532), (0.7111178636538217, 0.7089357659009633, 0.7125725954890606)),
    ],
)
def test_the_public_example_scores_as_panopticapi_says(
    shift: int, dropped: tuple[int, ...], official: tuple[float, ...], tmp_path: Path
) -> None:
    true = write_public_example(tmp_path / "truth" / "panoptic_examples.json")
    pred = write_public_example(tmp_path / "pred" / "panoptic_examples.json", shift, dropped)
    found = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert isinstance(found, PanopticEvaluation)
    assert [found.summary()[f"panoptic PQ{part}"] for part in ("", " things", " stuff")] == pytest.approx(official)
    same(found.qualities, literal_qualities(public_map(pred), public_map(true), len(PUBLIC_CATEGORIES)))


# -- Cityscapes ---------------------------------------------------------------------------------------------------


def test_cityscapes_maps_counted_by_hand(tmp_path: Path) -> None:
    """Four rows of 40. Groups of a thing are crowds, labels that evaluation ignores are void, on either side."""
    rows = [
        # truth, prediction: road and an ignored ego vehicle; road with 30 of its pixels
        (strip((7, 30), (1, 10)), strip((7, 40))),
        # two cars: one found with IoU 8/10, one missed
        (strip((26_000, 10), (26_001, 10), (0, 20)), strip((26_005, 8), (0, 32))),
        # a group of persons: a person in it is forgiven, a rider in it is not
        (strip((24, 20), (25, 20)), strip((24_000, 12), (25_000, 8), (0, 20))),
        # caravans are void: a truck on one is forgiven. A prediction of a caravan is none
        (strip((29_000, 20), (33_000, 20)), strip((27_000, 20), (29_000, 20))),
    ]
    true, pred = (np.concatenate(side) for side in zip(*rows, strict=True))
    write_values(tmp_path / "truth", FRAMES[0], true)
    write_values(tmp_path / "pred", FRAMES[0], pred)
    found = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert isinstance(found, PanopticEvaluation)
    assert len(found.classes) == 19
    counts = {c.name: (q.tp, q.fp, q.fn) for c, q in zip(found.classes, found.qualities, strict=True)}
    counts = {name: count for name, count in counts.items() if any(count)}
    assert counts == {"road": (1, 0, 0), "rider": (0, 1, 0), "car": (1, 0, 1), "bicycle": (0, 0, 1)}
    qualities = {c.name: q.pq for c, q in zip(found.classes, found.qualities, strict=True)}
    assert qualities["road"] == 1
    assert qualities["car"] == pytest.approx(0.8 / 1.5)
    summary = found.summary()
    assert summary["panoptic PQ"] == pytest.approx((1 + 0.8 / 1.5) / 4)
    assert summary["panoptic PQ things"] == pytest.approx(0.8 / 1.5 / 3)
    assert summary["panoptic PQ stuff"] == 1


def literal_cityscapes(values: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segments of an instance image as cityscapesScripts' conversion to COCO's format has them."""
    ids, segments = np.zeros(values.shape, np.int64), []
    for value in np.unique(values).tolist():
        label = value if value < 1000 else value // 1000
        if label not in (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33):
            continue
        ids[values == value] = value
        segments.append({"id": value, "category_id": label, "iscrowd": int(value < 1000 and label >= 24)})
    return ids, segments


@pytest.mark.parametrize("seed", range(5))
def test_cityscapes_scores_as_its_conversion_to_coco_does(seed: int, tmp_path: Path) -> None:
    """Random maps with groups and ignored labels, scored as they are and as the JSON that its scripts would make."""
    rng = np.random.default_rng(seed)
    values = np.array([0, 4, 7, 8, 23, 24, 26, 33, 24_000, 24_001, 26_000, 26_007, 29_001, 33_000, 33_001])
    for side in ("truth", "pred"):
        rng_side = np.random.default_rng(seed)
        annotations, images = [], []
        for frame in FRAMES:
            plane = rng_side.choice(values, (8, 12)).repeat(4, 0).repeat(4, 1)
            if side == "pred":
                plane = np.where(rng.random(plane.shape) < 0.15, np.roll(plane, 4), plane)
            write_values(tmp_path / side, frame, plane)
            ids, segments = literal_cityscapes(plane)
            made.write_png(tmp_path / f"{side}_json" / "cityscapes_panoptic_val" / f"{frame}.png", made.rgb_of(ids))
            annotations.append({"image_id": frame, "file_name": f"{frame}.png", "segments_info": segments})
            images.append({"id": frame, "file_name": f"{frame}_gtFine_leftImg8bit.png"})
        categories = [
            {"id": i, "name": name, "isthing": int(i >= 24)}
            for i, name in ((7, "road"), (8, "sidewalk"), (23, "sky"), (24, "person"), (26, "car"), (33, "bicycle"))
        ]
        document = {"images": images, "annotations": annotations, "categories": categories}
        made.write_json(tmp_path / f"{side}_json" / "cityscapes_panoptic_val.json", document)
    found = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    by_json = evaluate_folders(tmp_path / "pred_json", tmp_path / "truth_json")
    mixed = evaluate_folders(tmp_path / "pred_json", tmp_path / "truth")
    assert isinstance(by_json, PanopticEvaluation)
    assert isinstance(found, PanopticEvaluation)
    assert found.summary() == mixed.summary()
    of_name = dict(zip((c.name for c in found.classes), found.qualities, strict=True))
    same([of_name[c.name] for c in by_json.classes], by_json.qualities)
    assert found.summary()["panoptic PQ"] == pytest.approx(by_json.summary()["panoptic PQ"])
    assert 0 < found.summary()["panoptic PQ"] < 1


# -- PASTIS -------------------------------------------------------------------------------------------------------


def literal_parcel_pq(pred: Scene, true: Scene, names: list[str]) -> float:
    """The meter of the data set's authors where nothing is void: PQ averaged over the crops that occur."""
    values = []
    for name in names:
        sides = []
        for scene in (true, pred):
            of_class = [k for k, s in enumerate(scene.segments, start=1) if s.name == name and (scene.plane == k).any()]
            sides.append([scene.plane == k for k in of_class])
        ious = [(t & p).sum() / (t | p).sum() for t in sides[0] for p in sides[1]]
        hits = [v for v in ious if v > 0.5]
        total = (len(sides[0]) + len(sides[1])) / 2
        if total:
            values.append(sum(hits) / total)
    return sum(values) / len(values)


def without_void(scene: Scene) -> Scene:
    return replace(scene, plane=np.where(scene.plane == 0, 1, scene.plane))


@pytest.mark.parametrize("seed", range(4))
def test_pastis_without_void_scores_as_its_authors_meter_does(seed: int, tmp_path: Path) -> None:
    true = without_void(make_scene(seed, *FIELDS, has_crowd=False))
    pred = without_void(damaged(true, seed))
    made.write_pastis(tmp_path / "truth", {10000: true})
    made.write_pastis_labels(tmp_path / "pred", {10000: pred})
    found = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    expected = literal_parcel_pq(pred, true, list(FIELDS[0]))
    assert found.summary()["panoptic PQ things"] == pytest.approx(expected)
    assert found.summary()["classes things"] == len(FIELDS[0])


def test_pastis_is_scored_by_whole_folds(tmp_path: Path) -> None:
    scenes = {patch: make_scene(patch, *FIELDS) for patch in (1, 2, 3, 4)}
    made.write_pastis(tmp_path / "truth", scenes, folds=(4, 5))
    made.write_pastis_labels(tmp_path / "pred", {2: scenes[2], 4: scenes[4]})
    found = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert isinstance(found, PanopticEvaluation)
    assert [name for name, _ in found.images] == ["2", "4"]
    assert found.notes == ("only fold 5 is scored",)
    assert found.summary()["panoptic PQ"] == 1
    (tmp_path / "pred" / "ANNOTATIONS" / "TARGET_4.npy").unlink()
    (tmp_path / "pred" / "INSTANCE_ANNOTATIONS" / "INSTANCES_4.npy").unlink()
    with pytest.raises(DataError, match=r"1 of 2 truths have no prediction in .*pred: 4"):
        evaluate_folders(tmp_path / "pred", tmp_path / "truth")
