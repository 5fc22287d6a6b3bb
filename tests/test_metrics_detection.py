"""Detection, classification and tissue scores."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from nucleipan import metrics
from nucleipan.errors import DataError
from nucleipan.metrics import ClassificationCounts, DetectionCounts, PixelConfusion
from nucleipan.metrics.assignment import pair_by_weight

quick = settings(max_examples=50, deadline=None)
points = arrays(np.float64, st.tuples(st.integers(0, 12), st.just(2)), elements=st.floats(0, 40))


@quick
@given(arrays(np.int64, (4, 4), elements=st.integers(0, 9)))
def test_pairing_is_one_to_one_and_maximal(weights: np.ndarray) -> None:
    rows, cols = np.nonzero(weights)
    chosen = pair_by_weight(rows, cols, weights[rows, cols].astype(float))
    assert len(set(rows[chosen])) == len(chosen) == len(set(cols[chosen]))
    best = max(sum(weights[i, p[i]] for i in range(4)) for p in permutations(range(4)))
    assert weights[rows[chosen], cols[chosen]].sum() == best


@quick
@given(points, points)
def test_pairs_are_near_and_no_two_free_ones_are(pred: np.ndarray, true: np.ndarray) -> None:
    pairs = metrics.pair_centroids(pred, true, 12.0)
    distances = np.linalg.norm(pred[pairs.pred] - true[pairs.true], axis=1)
    assert (distances <= 12).all()
    between_free = np.linalg.norm(pred[pairs.alone_pred][:, None] - true[pairs.alone_true][None], axis=-1)
    assert (between_free > 12).all()
    counts = metrics.detection_counts(pairs)
    assert (counts.tp + counts.fp, counts.tp + counts.fn) == (len(pred), len(true))


@quick
@given(points, points)
def test_pairs_are_as_close_as_a_dense_assignment(pred: np.ndarray, true: np.ndarray) -> None:
    pairs = metrics.pair_centroids(pred, true, 12.0)
    closeness = np.maximum(0, 12 - np.linalg.norm(true[:, None] - pred[None], axis=-1))  # [n, m]
    best = closeness[linear_sum_assignment(-closeness)].sum()
    assert closeness[pairs.true, pairs.pred].sum() == pytest.approx(best, abs=1e-3)


@quick
@given(*(arrays(np.float64, (5, 2), elements=st.integers(0, 40).map(float)) for _ in range(2)))
def test_global_pairs_are_the_best_permutation_cut_at_the_radius(pred: np.ndarray, true: np.ndarray) -> None:
    distances = np.linalg.norm(true[:, None] - pred[None], axis=-1)  # [n, m]
    totals = {p: distances[np.arange(5), p].sum() for p in permutations(range(5))}
    best = [p for p, total in totals.items() if total < min(totals.values()) + 1e-9]
    pairs = metrics.pair_centroids_globally(pred, true, 12.0)
    found = set(zip(pairs.true.tolist(), pairs.pred.tolist(), strict=True))
    assert found in [{(t, q) for t, q in enumerate(p) if distances[t, q] <= 12} for p in best]


@quick
@given(points)
def test_detection_of_itself_is_perfect(centroids: np.ndarray) -> None:
    for pair in (metrics.pair_centroids, metrics.pair_centroids_globally):
        f1 = metrics.detection_counts(pair(centroids, centroids)).f1
        assert f1 == pytest.approx(1.0 if len(centroids) else math.nan, nan_ok=True)


def test_both_pairings_agree_on_well_separated_nuclei() -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.mgrid[:10, :10], -1).reshape(-1, 2) * 60.0
    true, pred = grid[:90], grid[:80] + rng.uniform(-6, 6, (80, 2))
    near, far = metrics.pair_centroids(pred, true), metrics.pair_centroids_globally(pred, true)
    assert metrics.detection_counts(near) == metrics.detection_counts(far) == DetectionCounts(80, 0, 10)


def test_global_pairing_gives_up_close_pairs() -> None:
    """One nucleus missed on one side, one invented on the other: 50 + 50 is less than 5 + 105."""
    true, pred = np.array([[0, 0], [0, 55]], float), np.array([[0, 50], [0, 105]], float)
    assert metrics.detection_counts(metrics.pair_centroids(pred, true)) == DetectionCounts(1, 1, 1)
    assert metrics.detection_counts(metrics.pair_centroids_globally(pred, true)) == DetectionCounts(0, 2, 2)


def test_a_pair_at_the_radius_is_one() -> None:
    """Also where two predictions are that far from one nucleus."""
    true, pred = np.array([[0, 12]], float), np.array([[0, 0], [0, 24]], float)
    for pair in (metrics.pair_centroids, metrics.pair_centroids_globally):
        assert metrics.detection_counts(pair(pred, true, 12.0)) == DetectionCounts(1, 1, 0)
        assert metrics.detection_counts(pair(pred, true, 11.9)) == DetectionCounts(0, 2, 1)


def test_one_close_pair_is_more_than_two_far_ones() -> None:
    true, pred = np.array([[0, 0], [0, 12]], float), np.array([[0, 11], [0, 23]], float)
    pairs = metrics.pair_centroids(pred, true, 12.0)
    assert (pairs.true.tolist(), pairs.pred.tolist()) == ([1], [0])


def test_detection_ratios() -> None:
    counts = DetectionCounts(tp=6, fp=2, fn=4)
    assert (counts.precision, counts.recall) == (6 / 8, 6 / 10)
    assert counts.f1 == pytest.approx(2 / (1 / counts.precision + 1 / counts.recall))
    assert math.isnan(DetectionCounts(fn=1).precision)
    assert math.isnan(DetectionCounts(fp=1).recall)


def test_a_radius_is_needed() -> None:
    for pair in (metrics.pair_centroids, metrics.pair_centroids_globally):
        with pytest.raises(DataError, match="radius"):
            pair(np.zeros((1, 2)), np.zeros((1, 2)), 0)


def literal_counts(
    paired: list[tuple[int, int]], invented: list[int], missed: list[int], t: int
) -> ClassificationCounts:
    """Definitions of the paper, pair by pair: (true class, predicted class)."""
    judged = [(a, b) for a, b in paired if a]
    return ClassificationCounts(
        tp=sum(a == t == b for a, b in judged),
        tn=sum(a == b != t for a, b in judged),
        fp=sum(a != t == b for a, b in judged),
        fn=sum(a == t != b for a, b in judged),
        fp_d=invented.count(t),
        fn_d=missed.count(t),
    )


@pytest.mark.parametrize("seed", range(5))
def test_classification_counts_are_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, 200, (60, 2))
    pred = np.concatenate([true[:45] + rng.normal(0, 3, (45, 2)), rng.uniform(0, 200, (15, 2))])
    true_classes, pred_classes = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    pairs = metrics.pair_centroids(pred, true)
    found = metrics.classification_counts(pairs, pred_classes, true_classes, 3)
    paired = list(zip(true_classes[pairs.true].tolist(), pred_classes[pairs.pred].tolist(), strict=True))
    invented, missed = pred_classes[pairs.alone_pred].tolist(), true_classes[pairs.alone_true].tolist()
    assert list(found) == [literal_counts(paired, invented, missed, t) for t in (1, 2, 3)]


def test_classification_f1() -> None:
    counts = ClassificationCounts(tp=10, tn=50, fp=3, fn=2, fp_d=4, fn_d=6)
    assert counts.f1 == pytest.approx(20 / (20 + 6 + 4 + 4 + 6))
    assert counts.f1_as_printed == pytest.approx(120 / (120 + 6 + 4 + 4 + 6))
    assert (counts + counts).f1 == counts.f1
    assert math.isnan(ClassificationCounts(tn=5).f1)


@quick
@given(*(arrays(np.uint8, (6, 8), elements=st.integers(0, 3)) for _ in range(2)))
def test_pixel_scores_are_what_masks_give(pred: np.ndarray, true: np.ndarray) -> None:
    found = metrics.pixel_confusion(pred, true, 3)
    known = true > 0
    n = known.sum()
    assert found.accuracy == pytest.approx((pred == true)[known].mean() if n else math.nan, nan_ok=True)
    recalls = [(pred[true == c] == c).mean() for c in (1, 2, 3) if (true == c).any()]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls) if recalls else math.nan, nan_ok=True)
    for c, dice in zip((1, 2, 3), found.dices, strict=True):
        a, b = (pred == c) & known, true == c
        total = a.sum() + b.sum()
        assert dice == pytest.approx(2 * (a & b).sum() / total if total else math.nan, nan_ok=True)


def test_pixel_counts_pool_and_know_their_classes() -> None:
    plane = np.array([[1, 2]], np.uint8)
    both = metrics.pixel_confusion(plane, plane, 2) + PixelConfusion(np.array([[0, 0, 2], [0, 0, 0]]))
    assert both.accuracy == 0.5
    for pred, true in ((plane, plane), (plane, plane // 2), (plane // 2, plane)):
        with pytest.raises(DataError, match="above 1"):
            metrics.pixel_confusion(pred, true, 1)
