"""What a table of results prints, against slow literal versions of the papers and against torchmetrics.

Images are random: rectangles that shift, vanish and appear, with classes, tissue and an organ.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from nucleipan import metrics
from nucleipan.metrics import ImagePair, PanopticMap, evaluate_pairs, pair_centroids_globally

CLASSES = ("neoplastic", "inflammatory", "connective")
TISSUES = ("tumour epithelium", "stroma")
SIDE = 48


def rectangles(corners: np.ndarray, sides: np.ndarray, is_there: np.ndarray) -> np.ndarray:
    """int32[SIDE, SIDE], rectangle i as id i + 1, later ones on top."""
    plane = np.zeros((SIDE, SIDE), np.int32)
    for i in np.flatnonzero(is_there):
        (y, x), (h, w) = corners[i], sides[i]
        plane[max(0, y) : y + h, max(0, x) : x + w] = i + 1
    return plane


def random_image(seed: int, n: int = 14) -> ImagePair:
    """Class 3 is in every second truth only; every fourth truth has no nucleus, every eighth prediction none either."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, SIDE - 4, (n, 2)), rng.integers(5, 12, (n, 2))
    in_true, in_pred = rng.random((2, n)) < 0.8
    in_true[:] &= seed % 4 != 3
    in_pred[:] &= seed % 8 != 7
    true = rectangles(corners, sides, in_true)
    pred = rectangles(corners + rng.integers(-1, 2, (n, 2)), sides + rng.integers(-1, 2, (n, 2)), in_pred)
    true_classes = rng.integers(1, 4 if seed % 2 else 3, n + 1)
    pred_classes = np.where(rng.random(n + 1) < 0.7, true_classes, rng.integers(1, 4, n + 1))
    true_tissue = rng.integers(0, 3, (4, 4)).repeat(12, 0).repeat(12, 1).astype(np.uint8)
    pred_tissue = np.where(rng.random((SIDE, SIDE)) < 0.8, np.maximum(true_tissue, 1), 2).astype(np.uint8)
    planes = (pred_tissue, true_tissue)
    return ImagePair(
        f"{seed}", pred, pred_classes, true, true_classes, *planes, organ=("colon", "lung", "skin")[seed % 3]
    )


IMAGES = [random_image(seed) for seed in range(16)]
NUCLEI = [image._replace(pred_tissue=None, true_tissue=None) for image in IMAGES]


def masks_of(plane: np.ndarray, classes: np.ndarray, wanted: int | None = None) -> list[np.ndarray]:
    """One mask per nucleus, of one class or of all."""
    return [plane == i for i in np.unique(plane) if i and wanted in (None, classes[i])]


def matched_ious(pred: list[np.ndarray], true: list[np.ndarray]) -> list[float]:
    ious = [(p & t).sum() / (p | t).sum() for t in true for p in pred]
    return [v for v in ious if v > 0.5]


def literal_pq(pred: list[np.ndarray], true: list[np.ndarray]) -> float:
    """PQ of one image; nan where the truth holds nothing, which PanNuke leaves out."""
    hits = matched_ious(pred, true)
    fp, fn = len(pred) - len(hits), len(true) - len(hits)
    return sum(hits) / (len(hits) + fp / 2 + fn / 2) if true else math.nan


def nanmean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def literal_conic(images: list[ImagePair]) -> float:
    """mPQ+: per class, TP, FP, FN and sums of IoU over all images; then one PQ per class; then their mean."""
    scores = []
    for c in range(1, len(CLASSES) + 1):
        tp = fp = fn = 0
        iou_sum = 0.0
        for image in images:
            pred, true = masks_of(image.pred, image.pred_classes, c), masks_of(image.true, image.true_classes, c)
            hits = matched_ious(pred, true)
            tp, fp, fn = tp + len(hits), fp + len(pred) - len(hits), fn + len(true) - len(hits)
            iou_sum += sum(hits)
        scores.append(iou_sum / tp * tp / (tp + 0.5 * fp + 0.5 * fn))
    return sum(scores) / len(scores)


def literal_pannuke(images: list[ImagePair]) -> tuple[float, float]:
    """bPQ and mPQ: per image (mPQ: over the classes of its truth), then over an organ's images, then over organs."""
    binary: dict[str, list[float]] = {}
    multi: dict[str, list[float]] = {}
    for image in images:
        sides = (image.pred, image.pred_classes), (image.true, image.true_classes)
        binary.setdefault(image.organ, []).append(literal_pq(*(masks_of(*side) for side in sides)))
        of_class = [literal_pq(*(masks_of(*side, c) for side in sides)) for c in range(1, len(CLASSES) + 1)]
        multi.setdefault(image.organ, []).append(nanmean(of_class))
    return nanmean([nanmean(v) for v in binary.values()]), nanmean([nanmean(v) for v in multi.values()])


def literal_hovernet(images: list[ImagePair], radius: float) -> tuple[float, list[float]]:
    """Fd and Fc of every class: what the paper counts, nucleus by nucleus, all images together."""
    paired, alone_true, alone_pred = [], [], []
    for image in images:
        true, pred = (
            [(np.argwhere(plane == i).mean(0), classes[i]) for i in np.unique(plane) if i]
            for plane, classes in ((image.true, image.true_classes), (image.pred, image.pred_classes))
        )
        couples = []
        if true and pred:
            distances = cdist([y for y, _ in true], [y for y, _ in pred])
            couples = [
                (t, p) for t, p in zip(*linear_sum_assignment(distances), strict=True) if distances[t, p] <= radius
            ]
        paired += [(true[t][1], pred[p][1]) for t, p in couples]
        alone_true += [c for t, (_, c) in enumerate(true) if t not in {a for a, _ in couples}]
        alone_pred += [c for p, (_, c) in enumerate(pred) if p not in {b for _, b in couples}]
    fd = 2 * len(paired) / (2 * len(paired) + len(alone_pred) + len(alone_true))
    fc = []
    for c in range(1, len(CLASSES) + 1):
        tp = sum(t == c and p == c for t, p in paired)
        wrong = sum((t == c) != (p == c) for t, p in paired)
        fc.append(2 * tp / (2 * tp + 2 * wrong + alone_pred.count(c) + alone_true.count(c)))
    return fd, fc


def segments_of(planes: PanopticMap) -> list[tuple[int, np.ndarray]]:
    """Class and mask of every segment; classes 1 and 2 are things, 3 and 4 stuff."""
    things = [
        (planes.classes[planes.instances == i][0], planes.instances == i) for i in np.unique(planes.instances) if i
    ]
    stuff = [(c, (planes.classes == c) & (planes.instances == 0)) for c in (3, 4)]
    return [(int(c), mask) for c, mask in things + stuff if mask.any()]


def literal_panoptic(pred: PanopticMap, true: PanopticMap, c: int) -> tuple[int, int, int, float]:
    """TP, FP, FN and sum of IoU of class c by section 4.1 of arXiv 1801.00868, mask by mask."""
    void = ~np.any([mask for _, mask in segments_of(true)] or [np.zeros(true.classes.shape, bool)], axis=0)
    pred_masks = [mask for k, mask in segments_of(pred) if k == c]
    true_masks = [mask for k, mask in segments_of(true) if k == c]
    hits, fp = [], 0
    for p in pred_masks:
        # (1) void pixels leave the prediction before IoU; (2) unmatched segments that are mostly void are removed.
        judged = p & ~void
        found = [iou for t in true_masks if (iou := (judged & t).sum() / (judged | t).sum()) > 0.5]
        hits += found
        fp += not found and not (p & void).sum() > 0.5 * p.sum()
    return len(hits), fp, len(true_masks) - len(hits), sum(hits)


panoptic_noise = st.tuples(
    arrays(np.int32, (7, 8), elements=st.integers(0, 5)),
    arrays(np.uint8, (7, 8), elements=st.sampled_from([0, 3, 4])),
    arrays(np.uint8, 6, elements=st.integers(1, 2)),
).map(lambda m: PanopticMap(np.where(m[0] > 0, m[2][m[0]], m[1]), m[0]))


@settings(max_examples=80, deadline=None)
@given(panoptic_noise, panoptic_noise)
def test_panoptic_quality_is_the_definition_void_on_both_sides(pred: PanopticMap, true: PanopticMap) -> None:
    found = metrics.panoptic_qualities(pred, true, n_classes=4, thing_ids=(1, 2))
    for c, q in enumerate(found, start=1):
        tp, fp, fn, iou_sum = literal_panoptic(pred, true, c)
        assert (q.tp, q.fp, q.fn) == (tp, fp, fn)
        assert q.iou_sum == pytest.approx(iou_sum)


def as_torch(image: ImagePair, *, is_true: bool) -> np.ndarray:
    """int64[SIDE, SIDE, 2]: category (nuclei, then tissue; 0 = void) and instance."""
    plane, classes = (image.true, image.true_classes) if is_true else (image.pred, image.pred_classes)
    tissue = image.true_tissue if is_true else image.pred_tissue
    category = np.where(plane > 0, classes[plane], np.where(tissue > 0, tissue + len(CLASSES), 0))
    return np.stack([category, plane], -1).astype(np.int64)


def test_panoptic_means_and_classes_equal_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.detection")
    planes = [torch.from_numpy(np.stack([as_torch(i, is_true=t) for i in IMAGES])) for t in (False, True)]
    options = {"things": {1, 2, 3}, "stuffs": {4, 5}, "return_sq_and_rq": True}
    document = evaluate_pairs(IMAGES, classes=CLASSES, tissues=TISSUES).to_json()
    summary, rows = document["summary"], document["panoptic"]["things"] | document["panoptic"]["stuff"]
    per_class = functional.panoptic_quality(*planes, **options, return_per_class=True).numpy()
    names = ("PQ", "SQ", "RQ")
    np.testing.assert_allclose([[rows[c][s] for s in names] for c in (*CLASSES, *TISSUES)], per_class, atol=1e-6)
    overall = functional.panoptic_quality(*planes, **options).numpy()
    np.testing.assert_allclose([summary[f"panoptic {s}"] for s in names], overall, atol=1e-6)
    np.testing.assert_allclose([summary[f"panoptic {s} things"] for s in names], per_class[:3].mean(0), atol=1e-6)
    np.testing.assert_allclose([summary[f"panoptic {s} stuff"] for s in names], per_class[3:].mean(0), atol=1e-6)
    assert 0 < per_class.min() < per_class.max() < 1


def test_mpq_plus_is_that_of_conic() -> None:
    summary = evaluate_pairs(NUCLEI, classes=CLASSES).summary()
    assert summary["mPQ+"] == pytest.approx(literal_conic(NUCLEI))
    assert summary["mPQ+"] != pytest.approx(summary["mPQ"], abs=1e-3)


@pytest.mark.parametrize("has_organs", [False, True])
def test_bpq_and_mpq_are_those_of_pannuke(has_organs: bool) -> None:
    images = [i if has_organs else i._replace(organ="") for i in NUCLEI]
    evaluation = evaluate_pairs(images, classes=CLASSES)
    bpq, mpq = literal_pannuke(images)
    assert evaluation.summary()["bPQ"] == pytest.approx(bpq)
    assert evaluation.summary()["mPQ"] == pytest.approx(mpq)
    assert set(evaluation.to_json()["organs"]) == ({"colon", "lung", "skin"} if has_organs else set())


@pytest.mark.parametrize("radius", [3.0, 12.0])
def test_fd_and_fc_are_those_of_hovernet(radius: float) -> None:
    evaluation = evaluate_pairs(NUCLEI, classes=CLASSES, radius_px=radius, pair=pair_centroids_globally)
    fd, fc = literal_hovernet(NUCLEI, radius)
    assert evaluation.summary()["Fd"] == pytest.approx(fd)
    assert [evaluation.to_json()["classes"][c]["Fc"] for c in CLASSES] == pytest.approx(fc)
    assert evaluation.summary()["mean Fc"] == pytest.approx(sum(fc) / 3)


def test_tissue_without_nuclei_gives_stuff_alone() -> None:
    bare = [i._replace(pred=None, true=None, pred_classes=None, true_classes=None) for i in IMAGES]
    summary = evaluate_pairs(bare, classes=CLASSES, tissues=TISSUES).summary()
    assert [k for k in summary if k.startswith("panoptic")] == [f"panoptic {s} stuff" for s in ("PQ", "SQ", "RQ")]
    whole = [(*(PanopticMap(t + 2 * (t > 0), t * 0) for t in (i.pred_tissue, i.true_tissue)),) for i in bare]
    expected = []
    for c in (3, 4):
        tp, fp, fn, iou_sum = np.sum([literal_panoptic(pred, true, c) for pred, true in whole], axis=0)
        expected.append(iou_sum / (tp + fp / 2 + fn / 2))
    assert summary["panoptic PQ stuff"] == pytest.approx(sum(expected) / 2)


def test_nuclei_without_classes_are_void_for_the_stuff() -> None:
    """What lies under them does not matter, on either side, and a prediction's nuclei cost it their own pixels only."""
    tissue = np.ones((8, 8), np.uint8)
    nucleus = np.zeros((8, 8), np.int32)
    nucleus[:2] = 1
    image = ImagePair("x", np.zeros_like(nucleus), None, nucleus, None, tissue, tissue)
    assert evaluate_pairs([image], tissues=("stroma",)).summary()["panoptic PQ stuff"] == 1
    missing = image._replace(pred=nucleus.T.copy())
    assert evaluate_pairs([missing], tissues=("stroma",)).summary()["panoptic PQ stuff"] == pytest.approx(6 * 6 / 48)


def test_everything_is_printed() -> None:
    console = Console(file=io.StringIO(), width=200)
    evaluate_pairs(IMAGES, classes=CLASSES, tissues=TISSUES).print_table(console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for word in (
        "panoptic SQ things",
        "panoptic RQ stuff",
        "things and stuff, pooled",
        "organs",
        "lung",
        "bPQ",
        "mPQ+",
    ):
        assert word in printed
