"""Detection and classification F1 of HoVer-Net (Graham et al. 2019, arXiv 1812.06499, section 4.1).

Nuclei are points here: a predicted and a true centroid within ``radius_px`` may pair, each at most once. The paper's
radius is 12 px at 40x (0.25 mpp), hence 6 px at 20x: it is a number of pixels of the grid that is compared.

The authors' script pairs *all* centroids by the Hungarian method and drops the pairs beyond the radius afterwards
(``pair_centroids_globally``). Wherever a nucleus is missed or invented, that gives up close pairs nearby to shorten far
ones, and its matrix does not fit a slide. ``pair_centroids`` maximises the closeness of pairs within the radius and so
finds more nuclei: with one nucleus in six missed and one in seven invented, F_d is 0.84 by it and 0.77 by the script.
Published tables come from the script: to compare with them, ask for its pairing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from nucleipan.errors import DataError
from nucleipan.metrics.assignment import pair_by_weight

DEFAULT_RADIUS_PX = 12.0


@dataclass(frozen=True, eq=False)
class CentroidPairs:
    """One-to-one pairs: int64[k] rows of the predicted and of the true centroids, and how many there were of each."""

    pred: np.ndarray
    true: np.ndarray
    n_pred: int
    n_true: int

    @property
    def alone_pred(self) -> np.ndarray:
        """int64, rows of the predicted centroids without a partner."""
        return np.setdiff1d(np.arange(self.n_pred), self.pred)

    @property
    def alone_true(self) -> np.ndarray:
        """int64, rows of the true centroids without a partner."""
        return np.setdiff1d(np.arange(self.n_true), self.true)


#: A way to pair predicted [m, 2] with true [n, 2] centroids within a radius in pixels.
PairWithin = Callable[[np.ndarray, np.ndarray, float], CentroidPairs]


def pair_centroids(pred: np.ndarray, true: np.ndarray, radius_px: float = DEFAULT_RADIUS_PX) -> CentroidPairs:
    """Pair centroids [m, 2] and [n, 2] at most ``radius_px`` apart; the sum of (radius - distance) is maximal."""
    _check_radius(radius_px)
    if len(pred) == 0 or len(true) == 0:
        return CentroidPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), len(pred), len(true))
    near = KDTree(true).sparse_distance_matrix(KDTree(pred), radius_px, output_type="ndarray")
    near = near[np.lexsort((near["j"], near["i"]))]
    # A pair exactly at the radius counts too: its weight must not vanish.
    chosen = pair_by_weight(near["i"], near["j"], radius_px * (1 + 1e-6) - near["v"])
    return CentroidPairs(near["j"][chosen], near["i"][chosen], len(pred), len(true))


def pair_centroids_globally(pred: np.ndarray, true: np.ndarray, radius_px: float = DEFAULT_RADIUS_PX) -> CentroidPairs:
    """Pair as HoVer-Net's script does: Hungarian over all distances [n, m], pairs beyond the radius dropped."""
    _check_radius(radius_px)
    distances = cdist(true, pred)
    rows, cols = linear_sum_assignment(distances)
    is_near = distances[rows, cols] <= radius_px
    return CentroidPairs(cols[is_near], rows[is_near], len(pred), len(true))


@dataclass(frozen=True, slots=True)
class DetectionCounts:
    """Nuclei found (tp), invented (fp) and missed (fn); ``+`` pools images."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: DetectionCounts) -> DetectionCounts:
        return DetectionCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def f1(self) -> float:
        """F_d = 2 TP / (2 TP + FP + FN); nan where nothing is and nothing was found."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return _ratio(self.tp, self.tp + self.fn)


@dataclass(frozen=True, slots=True)
class ClassificationCounts:
    """One class t against the rest; ``+`` pools images.

    Among paired nuclei: ``tp`` both of t, ``tn`` the same other class in both, ``fp`` only the prediction of t, ``fn``
    only the truth of t. Unpaired: ``fp_d`` predicted ones of t, ``fn_d`` true ones of t.
    """

    tp: int = 0
    tn: int = 0
    fp: int = 0
    fn: int = 0
    fp_d: int = 0
    fn_d: int = 0

    def __add__(self, other: ClassificationCounts) -> ClassificationCounts:
        return ClassificationCounts(
            self.tp + other.tp,
            self.tn + other.tn,
            self.fp + other.fp,
            self.fn + other.fn,
            self.fp_d + other.fp_d,
            self.fn_d + other.fn_d,
        )

    @property
    def f1(self) -> float:
        """F_c^t with TN = 0, as the authors' script computes it and every published table reports it.

        2 TP / (2 TP + 2 FP + 2 FN + FP_d + FN_d). The script looks only at pairs in which either nucleus is of class t,
        so its TN is always 0.
        """
        return _ratio(2 * self.tp, 2 * self.tp + self._penalty)

    @property
    def f1_as_printed(self) -> float:
        """F_c^t = 2 (TP + TN) / (2 (TP + TN) + 2 FP + 2 FN + FP_d + FN_d), the paper's formula.

        Correct nuclei of *other* classes raise it, so that a rare class scores high without one nucleus found.
        """
        right = 2 * (self.tp + self.tn)
        return _ratio(right, right + self._penalty)

    @property
    def _penalty(self) -> int:
        return 2 * self.fp + 2 * self.fn + self.fp_d + self.fn_d


def detection_counts(pairs: CentroidPairs) -> DetectionCounts:
    """Counts for F_d, classes ignored."""
    n_paired = len(pairs.pred)
    return DetectionCounts(n_paired, pairs.n_pred - n_paired, pairs.n_true - n_paired)


def classification_counts(
    pairs: CentroidPairs, pred_classes: np.ndarray, true_classes: np.ndarray, n_classes: int
) -> tuple[ClassificationCounts, ...]:
    """Counts for F_c of every class 1..n_classes, in class order.

    ``pred_classes`` [m] and ``true_classes`` [n] are class ids in the order of the paired centroids. Pairs whose true
    nucleus has class 0, nobody classified it, are left out; class 0 in the prediction is a class outside the list.
    """
    true_of, pred_of = true_classes[pairs.true], pred_classes[pairs.pred]
    pred_of, true_of = pred_of[true_of > 0], true_of[true_of > 0]
    invented, missed = pred_classes[pairs.alone_pred], true_classes[pairs.alone_true]
    n = n_classes + 1
    right = np.bincount(true_of[true_of == pred_of], minlength=n)
    fp = np.bincount(pred_of, minlength=n) - right
    fn = np.bincount(true_of, minlength=n) - right
    fp_d, fn_d = np.bincount(invented, minlength=n), np.bincount(missed, minlength=n)
    n_right = int(right.sum())
    return tuple(
        ClassificationCounts(int(right[c]), n_right - int(right[c]), int(fp[c]), int(fn[c]), int(fp_d[c]), int(fn_d[c]))
        for c in range(1, n)
    )


def _check_radius(radius_px: float) -> None:
    if not radius_px > 0:
        raise DataError(f"centroids pair within a radius above 0 px; found {radius_px}")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
