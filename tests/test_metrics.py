"""Scores against slow literal versions, torchmetrics, and the properties the papers promise."""

from __future__ import annotations

import importlib
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from nucleipan import metrics
from nucleipan.errors import DataError
from nucleipan.metrics import Mistakes, Overlaps, PanopticMap, PanopticQuality

# The package gives the function this module's name.
overlaps_module = importlib.import_module("nucleipan.metrics.overlaps")

quick = settings(max_examples=60, deadline=None)
noise = arrays(np.int32, (7, 9), elements=st.integers(0, 5))
pairs_of_maps = st.tuples(noise, noise)


def nuclei(seed: int, n: int, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A truth of discs and a prediction that shifts, drops and invents some: (pred, true) int32[side, side]."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:side, :side]
    true, pred = np.zeros((2, side, side), np.int32)
    for i in range(1, n + 1):
        y, x, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(3, 8)
        dy, dx = rng.normal(0, 1.5, 2)
        if i % 7:
            true[(yy - y) ** 2 + (xx - x) ** 2 < r**2] = i
        if i % 5:
            pred[(yy - y - dy) ** 2 + (xx - x - dx) ** 2 < (r * rng.uniform(0.8, 1.2)) ** 2] = 2 * n - i
    return pred, true


def ids_of(plane: np.ndarray) -> list[int]:
    return [int(i) for i in np.unique(plane) if i]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def literal_quality(pred: np.ndarray, true: np.ndarray) -> PanopticQuality:
    ious = [iou(pred == p, true == t) for t in ids_of(true) for p in ids_of(pred)]
    hits = [v for v in ious if v > 0.5]
    return PanopticQuality(len(hits), len(ids_of(pred)) - len(hits), len(ids_of(true)) - len(hits), sum(hits))


def literal_mistakes(pred: np.ndarray, true: np.ndarray) -> Mistakes:
    """The definitions one after the other, mask by mask."""
    trues, preds = [true == t for t in ids_of(true)], [pred == p for p in ids_of(pred)]

    def is_mostly_in(a: np.ndarray, b: np.ndarray) -> bool:
        return 2 * (a & b).sum() > a.sum()

    def reaches_a_tenth(a: np.ndarray, b: np.ndarray) -> bool:
        return 10 * (a & b).sum() >= (a | b).sum()

    counts = dict.fromkeys(("merged", "split", "missed", "misshapen", "extra"), 0)
    for t in trues:
        if any(iou(t, p) > 0.5 for p in preds):
            continue
        around = [p for p in preds if is_mostly_in(t, p)]
        if around and sum(is_mostly_in(other, around[0]) for other in trues) > 1:
            counts["merged"] += 1
        elif is_mostly_in(t, pred > 0) and sum(is_mostly_in(p, t) for p in preds) > 1:
            counts["split"] += 1
        elif not any(reaches_a_tenth(t, p) for p in preds):
            counts["missed"] += 1
        else:
            counts["misshapen"] += 1
    unmatched = [p for p in preds if not any(iou(t, p) > 0.5 for t in trues)]
    counts["extra"] = sum(
        is_mostly_in(p, true == 0) and not any(reaches_a_tenth(t, p) for t in trues) for p in unmatched
    )
    return Mistakes(**counts)


def literal_aji(pred: np.ndarray, true: np.ndarray) -> float:
    """Algorithm 1 of Kumar et al. 2017, mask by mask."""
    inter, union, used = 0, 0, set()
    for t in ids_of(true):
        mask = true == t
        candidates = [p for p in ids_of(pred) if (mask & (pred == p)).any()]
        if not candidates:
            union += mask.sum()
            continue
        best = max(
            candidates,
            key=lambda p: (iou(mask, pred == p), (mask & (pred == p)).sum(), -np.flatnonzero(pred == p)[0]),
        )
        inter += (mask & (pred == best)).sum()
        union += (mask | (pred == best)).sum()
        used.add(best)
    union += sum((pred == p).sum() for p in ids_of(pred) if p not in used)
    return inter / union if union else math.nan


def literal_aji_plus(pred: np.ndarray, true: np.ndarray) -> float:
    """The dense Hungarian version of HoVer-Net's description."""
    true_ids, pred_ids = ids_of(true), ids_of(pred)
    matrix = np.array([[iou(true == t, pred == p) for p in pred_ids] for t in true_ids]).reshape(
        len(true_ids), len(pred_ids)
    )
    rows, cols = linear_sum_assignment(-matrix)
    paired = [(true_ids[r], pred_ids[c]) for r, c in zip(rows, cols, strict=True) if matrix[r, c] > 0]
    inter = sum(((true == t) & (pred == p)).sum() for t, p in paired)
    union = sum(((true == t) | (pred == p)).sum() for t, p in paired)
    union += sum((true == t).sum() for t in true_ids if t not in {a for a, _ in paired})
    union += sum((pred == p).sum() for p in pred_ids if p not in {b for _, b in paired})
    return inter / union if union else math.nan


def literal_dice(pred: np.ndarray, true: np.ndarray) -> float:
    total = (pred > 0).sum() + (true > 0).sum()
    return 2 * ((pred > 0) & (true > 0)).sum() / total if total else math.nan


def all_scores(pred: np.ndarray, true: np.ndarray) -> list[float]:
    table = metrics.overlaps(pred, true)
    q = metrics.instance_quality(table)
    return [q.pq, q.sq, q.rq, metrics.aji(table), metrics.aji_plus(table), metrics.dice(table)]


@quick
@given(pairs_of_maps)
def test_overlaps_are_what_masks_give(maps: tuple[np.ndarray, np.ndarray]) -> None:
    pred, true = maps
    table = metrics.overlaps(pred, true)
    for segments, plane in ((table.pred, pred), (table.true, true)):
        assert sorted(segments.ids.tolist()) == ids_of(plane)
        assert (np.diff(segments.first_pixels) > 0).all()
        for i, area, centroid, first in zip(
            segments.ids, segments.areas, segments.centroids, segments.first_pixels, strict=True
        ):
            where = np.argwhere(plane == i)
            assert area == len(where)
            assert first == np.flatnonzero(plane == i)[0]
            np.testing.assert_allclose(centroid, where.mean(axis=0))
    found = {
        (int(table.true.ids[t]), int(table.pred.ids[p])): int(n)
        for t, p, n in zip(table.pair_true, table.pair_pred, table.intersections, strict=True)
    }
    both = (pred > 0) & (true > 0)
    couples, counts = np.unique(np.stack([true[both], pred[both]]), axis=1, return_counts=True)
    assert found == {(int(t), int(p)): int(n) for (t, p), n in zip(couples.T, counts, strict=True)}


@quick
@given(pairs_of_maps)
def test_scores_of_noise_equal_the_literal_ones(maps: tuple[np.ndarray, np.ndarray]) -> None:
    pred, true = maps
    table = metrics.overlaps(pred, true)
    found, expected = metrics.instance_quality(table), literal_quality(pred, true)
    assert (found.tp, found.fp, found.fn) == (expected.tp, expected.fp, expected.fn)
    assert found.iou_sum == pytest.approx(expected.iou_sum)
    assert metrics.aji(table) == pytest.approx(literal_aji(pred, true), nan_ok=True)
    assert metrics.dice(table) == pytest.approx(literal_dice(pred, true), nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_aji_plus_of_noise_equals_the_literal_one(seed: int) -> None:
    """Every instance meets every other, so that the pairing decides; large enough for ties not to occur."""
    pred, true = np.random.default_rng(seed).integers(0, 9, (2, 40, 50))
    assert metrics.aji_plus(metrics.overlaps(pred, true)) == pytest.approx(literal_aji_plus(pred, true))


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_nuclei_equal_the_literal_ones(seed: int) -> None:
    pred, true = nuclei(seed, 40)
    table = metrics.overlaps(pred, true)
    expected = literal_quality(pred, true)
    assert 0 < expected.tp < 30
    assert metrics.instance_quality(table).pq == pytest.approx(expected.pq)
    assert metrics.aji(table) == pytest.approx(literal_aji(pred, true))
    assert metrics.aji_plus(table) == pytest.approx(literal_aji_plus(pred, true))
    assert metrics.dice(table) == pytest.approx(literal_dice(pred, true))


@quick
@given(noise)
def test_a_map_scores_one_against_itself(plane: np.ndarray) -> None:
    expected = 1.0 if plane.any() else math.nan
    assert all_scores(plane, plane) == pytest.approx([expected] * 6, nan_ok=True)


@quick
@given(pairs_of_maps, st.permutations(range(1, 6)), st.integers(0, 2**33))
def test_ids_do_not_matter(maps: tuple[np.ndarray, np.ndarray], order: list[int], offset: int) -> None:
    pred, true = maps
    renumbered = np.where(pred > 0, np.array([0, *order])[pred] + offset, 0)
    np.testing.assert_array_equal(all_scores(renumbered, true), all_scores(pred, true))
    np.testing.assert_array_equal(all_scores(true, renumbered), all_scores(true, pred))


@quick
@given(pairs_of_maps)
def test_pq_is_sq_times_rq_and_symmetric(maps: tuple[np.ndarray, np.ndarray]) -> None:
    pred, true = maps
    there = metrics.instance_quality(metrics.overlaps(pred, true))
    back = metrics.instance_quality(metrics.overlaps(true, pred))
    assert (there.tp, there.fp, there.fn) == (back.tp, back.fn, back.fp)
    assert there.pq == pytest.approx(back.pq, nan_ok=True)
    assert there.pq == pytest.approx(there.sq * there.rq, nan_ok=True)
    if there.tp:
        assert there.pq == pytest.approx(there.iou_sum / (there.tp + there.fp / 2 + there.fn / 2))


def test_half_an_overlap_is_no_match() -> None:
    true, pred = np.zeros((2, 4, 4), np.int32)
    true[0, :2], pred[0, :1] = 1, 1
    assert metrics.instance_quality(metrics.overlaps(pred, true)) == PanopticQuality(0, 1, 1)


def test_emptiness() -> None:
    empty, one = np.zeros((3, 3), np.uint16), np.eye(3, dtype=np.uint16)
    assert all(math.isnan(v) for v in all_scores(empty, empty))
    assert all_scores(one, empty) == [0] * 6
    assert all_scores(empty, one) == [0] * 6
    assert metrics.mean_pq([PanopticQuality(), PanopticQuality(1, 0, 0, 0.8), PanopticQuality(fp=2)]) == 0.4
    assert metrics.mean_pq_of_present([PanopticQuality(1, 0, 0, 0.8), PanopticQuality(fp=2)]) == 0.8
    assert math.isnan(metrics.mean_pq([PanopticQuality()]))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_maps_without_a_pixel_are_empty(shape: tuple[int, int]) -> None:
    nothing = np.zeros(shape, np.uint16)
    assert all(math.isnan(v) for v in all_scores(nothing, nothing))


def test_bad_maps_are_refused() -> None:
    good = np.zeros((4, 4), np.int32)
    for bad in (good[:3], good.astype(np.float32), good - 1, good[None]):
        with pytest.raises(DataError):
            metrics.overlaps(bad, good)


@pytest.mark.parametrize("seed", range(3))
def test_pooled_quality_is_that_of_one_large_image(seed: int) -> None:
    one, other = nuclei(seed, 20), nuclei(seed + 50, 20)
    side_by_side = [np.hstack([a, np.where(b > 0, b + 1000, 0)]) for a, b in zip(one, other, strict=True)]
    pooled = metrics.pool(metrics.instance_quality(metrics.overlaps(*maps)) for maps in (one, other))
    whole = metrics.instance_quality(metrics.overlaps(*side_by_side))
    # The seam joins no ids, only pixels; nothing else may change.
    assert (pooled.tp, pooled.fp, pooled.fn) == (whole.tp, whole.fp, whole.fn)
    assert pooled.iou_sum == pytest.approx(whole.iou_sum)


@pytest.mark.parametrize("seed", range(4))
def test_class_quality_is_that_of_the_class_alone(seed: int) -> None:
    pred, true = nuclei(seed, 40)
    rng = np.random.default_rng(seed)
    class_of = rng.integers(1, 4, 41)
    pred_class_of = np.concatenate([[0], np.where(rng.random(80) < 0.7, class_of[(80 - np.arange(1, 81)) % 41], 2)])
    table = metrics.overlaps(pred, true)
    found = metrics.class_qualities(table, pred_class_of[table.pred.ids], class_of[table.true.ids], 3)
    for c, quality in enumerate(found, start=1):
        alone = literal_quality(np.where(pred_class_of[pred] == c, pred, 0), np.where(class_of[true] == c, true, 0))
        assert (quality.tp, quality.fp, quality.fn) == (alone.tp, alone.fp, alone.fn)
        assert quality.iou_sum == pytest.approx(alone.iou_sum)


def test_an_unclassified_true_nucleus_judges_nobody() -> None:
    plane = np.repeat([[1, 2, 3]], 3, axis=0)
    table = metrics.overlaps(plane, plane)
    found = metrics.class_qualities(table, np.array([1, 1, 0]), np.array([0, 1, 2]), 2)
    assert found == (PanopticQuality(1, 0, 0, 1.0), PanopticQuality(fn=1))


def panoptic(seed: int, *, has_void: bool) -> PanopticMap:
    """Random tissue blocks under discs; classes 1, 2 are things, 3, 4 stuff."""
    rng = np.random.default_rng(seed)
    lowest = 0 if has_void else 3
    stuff = rng.choice([c for c in (0, 3, 4) if c >= lowest], (6, 6)).repeat(16, 0).repeat(16, 1)
    instances = nuclei(seed // 2, 30)[seed % 2]
    class_of = np.random.default_rng(1).integers(1, 3, 100)
    return PanopticMap(np.where(instances > 0, class_of[instances], stuff), instances)


@pytest.mark.parametrize("has_void", [False, True])
def test_panoptic_quality_equals_torchmetrics(has_void: bool) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.detection")
    for seed in range(0, 8, 2):
        pred, true = panoptic(seed, has_void=False), panoptic(seed + 1, has_void=has_void)
        ours = metrics.panoptic_qualities(pred, true, n_classes=4, thing_ids=(1, 2))
        planes = [torch.from_numpy(np.stack([m.classes, m.instances], -1).astype(np.int64))[None] for m in (pred, true)]
        theirs = functional.panoptic_quality(
            *planes, things={1, 2}, stuffs={3, 4}, return_sq_and_rq=True, return_per_class=True
        )
        np.testing.assert_allclose([[q.pq, q.sq, q.rq] for q in ours], theirs.numpy(), atol=1e-6)
        assert any(q.tp for q in ours[:2])


def test_class_agnostic_quality_equals_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.detection")
    pred, true = nuclei(3, 40)
    planes = [torch.from_numpy(np.stack([m > 0, m], -1).astype(np.int64))[None] for m in (pred, true)]
    theirs = functional.panoptic_quality(*planes, things={1}, stuffs={0}, return_per_class=True)
    categories = theirs.numpy().ravel()
    assert metrics.instance_quality(metrics.overlaps(pred, true)).pq == pytest.approx(float(categories[0]))


def test_void_of_the_truth_forgives() -> None:
    classes, instances = np.full((4, 8), 2, np.uint8), np.zeros((4, 8), np.int32)
    classes[:, :4], instances[:, :4] = 1, 1
    truth_classes, nothing = classes.copy(), np.zeros_like(instances)
    truth_classes[:, :4] = 0
    found = metrics.panoptic_qualities(
        PanopticMap(classes, instances), PanopticMap(truth_classes, nothing), n_classes=2, thing_ids=(1,)
    )
    assert found == (PanopticQuality(), PanopticQuality(1, 0, 0, 1.0))


def columns_of(table: Overlaps) -> list[np.ndarray]:
    segments = [(s.ids, s.areas, s.centroids, s.first_pixels) for s in (table.pred, table.true)]
    return [*segments[0], *segments[1], table.pair_true, table.pair_pred, table.intersections]


@pytest.mark.parametrize("offset", [0, 2**33])
@pytest.mark.parametrize("block_pixels", [1, 200, 1000])
def test_blocks_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch, block_pixels: int, offset: int) -> None:
    pred, true = (np.where(m > 0, m + np.int64(offset), 0) for m in nuclei(5, 30))
    whole = metrics.overlaps(pred, true)
    monkeypatch.setattr(overlaps_module, "_BLOCK_PIXELS", block_pixels)
    for found, expected in zip(columns_of(metrics.overlaps(pred, true)), columns_of(whole), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_memory_is_that_of_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside maps of 16 MB each, a table takes little; a panoptic score two planes of classes in 16 bits."""
    monkeypatch.setattr(overlaps_module, "_BLOCK_PIXELS", 1 << 14)
    true = np.kron(np.arange(1, 401).reshape(20, 20), np.pad(np.ones((40, 90), np.int64), ((15, 15), (0, 10))))
    pred, tissue, classes = np.roll(true, 3, axis=1), np.ones(true.shape, np.uint8), np.ones(401, np.uint8)

    def score() -> None:
        pair = ("x", pred, classes, true, classes, tissue, tissue)
        metrics.evaluate_pairs([pair], classes=("a",), tissues=("b",))

    score()  # what is compiled and imported on a first call is not the maps'
    tracemalloc.start()
    metrics.overlaps(pred, true)
    table_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    score()
    all_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table_bytes < true.nbytes / 8
    assert all_bytes < true.nbytes / 8 + 2 * 2 * true.size


def test_a_large_map_needs_no_masks() -> None:
    """3,600 nuclei on 1,440 x 1,440 in well under a second, once compiled."""
    tile = np.zeros((24, 24), np.int64)
    tile[4:20, 4:20] = 1
    grid = np.arange(1, 3601).reshape(60, 60)
    true = np.kron(grid, tile)
    pred = np.roll(true, 2, axis=1) + 7 * (np.roll(true, 2, axis=1) > 0)
    q = metrics.instance_quality(metrics.overlaps(pred, true))
    assert (q.tp, q.fp, q.fn) == (3600, 0, 0)
    assert q.sq == pytest.approx(14 / 18)


def test_a_pixel_of_a_kind_of_nucleus_without_a_nucleus_is_void() -> None:
    nothing = np.zeros((1, 4), np.int32)
    true = PanopticMap(np.array([[1, 1, 1, 1]], np.uint8), nothing)
    for classes, pq in (([1, 1, 1, 1], 1.0), ([1, 1, 2, 2], 0.0)):
        pred = PanopticMap(np.array([classes], np.uint8), nothing)
        tissue, nuclei = metrics.panoptic_qualities(pred, true, n_classes=2, thing_ids=[2])
        assert tissue.pq == pq
        assert nuclei.pq != nuclei.pq, "no nucleus is there, and none was found"


def boxes(*corners: tuple[int, int, int, int]) -> np.ndarray:
    """int32[20, 40], a nucleus for every (y0, y1, x0, x1)."""
    plane = np.zeros((20, 40), np.int32)
    for i, (y0, y1, x0, x1) in enumerate(corners, start=1):
        plane[y0:y1, x0:x1] = i
    return plane


@pytest.mark.parametrize(
    ("pred", "true", "expected"),
    [
        (boxes((0, 10, 0, 10)), boxes((0, 10, 0, 10)), Mistakes()),
        (boxes((0, 10, 0, 20)), boxes((0, 10, 0, 10), (0, 10, 10, 20)), Mistakes(merged=2)),
        # The larger one is matched all the same.
        (boxes((0, 10, 0, 20)), boxes((0, 10, 0, 16), (0, 10, 16, 20)), Mistakes(merged=1)),
        (boxes((0, 10, 0, 10), (0, 10, 10, 20)), boxes((0, 10, 0, 20)), Mistakes(split=1)),
        # Half, or twice as large: found, but not well.
        (boxes((0, 10, 0, 5)), boxes((0, 10, 0, 10)), Mistakes(misshapen=1)),
        (boxes((0, 10, 0, 10)), boxes((0, 10, 0, 5)), Mistakes(misshapen=1)),
        (boxes((0, 10, 0, 10)), boxes((0, 10, 7, 17)), Mistakes(misshapen=1)),
        # Specks are not the nucleus, nor are they somewhere else.
        (boxes((0, 2, 0, 2), (4, 6, 0, 2)), boxes((0, 10, 0, 10)), Mistakes(missed=1)),
        (boxes((0, 10, 0, 10)), boxes((0, 10, 9, 19)), Mistakes(missed=1, extra=1)),
        (boxes((0, 10, 0, 10)), boxes(), Mistakes(extra=1)),
        (boxes((0, 10, 0, 10)), boxes((0, 10, 20, 30)), Mistakes(missed=1, extra=1)),
        (boxes(), boxes((0, 10, 20, 30)), Mistakes(missed=1)),
        (boxes(), boxes(), Mistakes()),
    ],
)
def test_mistakes_by_name(pred: np.ndarray, true: np.ndarray, expected: Mistakes) -> None:
    assert metrics.count_mistakes(metrics.overlaps(pred, true)) == expected


@quick
@given(pairs_of_maps)
def test_mistakes_equal_their_definitions(maps: tuple[np.ndarray, np.ndarray]) -> None:
    pred, true = maps
    table = metrics.overlaps(pred, true)
    found = metrics.count_mistakes(table)
    assert found == literal_mistakes(pred, true)
    assert found.merged + found.split + found.missed + found.misshapen == metrics.instance_quality(table).fn
    assert found.extra <= metrics.instance_quality(table).fp


@pytest.mark.parametrize("seed", range(3))
def test_mistakes_of_discs_equal_their_definitions(seed: int) -> None:
    pred, true = nuclei(seed, 60)
    found = metrics.count_mistakes(metrics.overlaps(pred, true))
    assert found == literal_mistakes(pred, true)
    assert min(found.merged, found.missed, found.misshapen, found.extra) > 0
