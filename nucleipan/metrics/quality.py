"""Panoptic quality (Kirillov et al. 2019, arXiv 1801.00868).

A true and a predicted segment match when their IoU is *strictly* above 0.5; no segment can then match twice, so
matching needs no search. PQ = SQ * RQ, where SQ is the mean IoU of the matches and RQ their F1.

Counts are kept, not ratios: adding two ``PanopticQuality`` pools the images they come from. Where there is nothing
to find and nothing was found, every ratio is nan and means leave it out; where there is something but no match, SQ is
0, so that PQ = SQ * RQ = 0 holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nucleipan.errors import DataError
from nucleipan.metrics.overlaps import Overlaps, overlaps


@dataclass(frozen=True, slots=True)
class PanopticQuality:
    """Counts behind PQ, SQ and RQ of one class or of all nuclei; ``+`` pools images."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou_sum: float = 0.0

    def __add__(self, other: PanopticQuality) -> PanopticQuality:
        return PanopticQuality(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum)

    @property
    def n_true(self) -> int:
        return self.tp + self.fn

    @property
    def pq(self) -> float:
        return self.sq * self.rq

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matches."""
        if self.tp:
            return self.iou_sum / self.tp
        return 0.0 if self.fp or self.fn else float("nan")

    @property
    def rq(self) -> float:
        """Recognition quality: F1 of the matches (DQ in HoVer-Net)."""
        total = self.tp + 0.5 * self.fp + 0.5 * self.fn
        return self.tp / total if total else float("nan")


def pool(qualities: Iterable[PanopticQuality]) -> PanopticQuality:
    """Counts summed over images."""
    return sum(qualities, start=PanopticQuality())


def mean_pq(qualities: Iterable[PanopticQuality]) -> float:
    """Mean PQ over classes; a class that is neither in the truth nor in the prediction is left out (nan if all are).

    Of counts pooled over images this is CoNIC's mPQ+ (arXiv 2111.14485, 2303.06274).
    """
    return mean_of_known([q.pq for q in qualities])


def mean_qualities(qualities: Sequence[PanopticQuality]) -> dict[str, float]:
    """PQ, SQ and RQ, each averaged over classes as ``mean_pq`` is (arXiv 1801.00868, section 4.2).

    Given the things alone it is what the paper calls PQ^Th, SQ^Th and RQ^Th, given the stuff alone PQ^St and so on. The
    mean PQ is not the product of the other two.
    """
    return {
        "PQ": mean_pq(qualities),
        "SQ": mean_of_known([q.sq for q in qualities]),
        "RQ": mean_of_known([q.rq for q in qualities]),
    }


def mean_pq_of_present(qualities: Iterable[PanopticQuality]) -> float:
    """Mean PQ over the classes of an image that have true nuclei, PanNuke's rule (arXiv 2003.10778).

    False positives of a class that the truth lacks go unpunished here; ``mean_pq`` counts that class as 0.
    """
    return mean_of_known([q.pq for q in qualities if q.n_true])


def instance_quality(table: Overlaps) -> PanopticQuality:
    """PQ of instance maps whatever their classes: the binary PQ of PanNuke, the PQ of HoVer-Net."""
    matched = matches(table)
    tp = len(matched)
    return PanopticQuality(tp, len(table.pred) - tp, len(table.true) - tp, float(table.ious[matched].sum()))


def class_qualities(
    table: Overlaps, pred_classes: np.ndarray, true_classes: np.ndarray, n_classes: int
) -> tuple[PanopticQuality, ...]:
    """PQ of every class 1..n_classes among instances of that class, in class order.

    ``pred_classes`` [m] and ``true_classes`` [n] are class ids in the order of ``table.pred`` and ``table.true``. A
    pair matches only when both classes agree. Class 0 is, in the truth, a nucleus that nobody classified: what matches
    it is left out. In the prediction it is a class outside the list: the true nucleus is missed, no class gains.
    """
    matched = matches(table)
    pred_of, true_of = pred_classes[table.pair_pred[matched]], true_classes[table.pair_true[matched]]
    ious = table.ious[matched]
    right = pred_of == true_of
    unjudged = pred_of[true_of == 0]
    n = n_classes + 1
    tp = np.bincount(true_of[right], minlength=n)
    iou_sums = np.bincount(true_of[right], weights=ious[right], minlength=n)
    fp = np.bincount(pred_classes, minlength=n) - tp - np.bincount(unjudged, minlength=n)
    fn = np.bincount(true_classes, minlength=n) - tp
    return tuple(PanopticQuality(int(tp[c]), int(fp[c]), int(fn[c]), float(iou_sums[c])) for c in range(1, n))


def matches(table: Overlaps) -> np.ndarray:
    """Indices of the pairs with IoU > 0.5, compared as integers."""
    return np.flatnonzero(2 * table.intersections > table.unions)


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """A class for every pixel and an id for every thing, one image.

    Attributes:
        classes: integer [h, w], 0 = void.
        instances: integer [h, w], 0 where there is no thing. Class and instance belong together: one class, read at
            its first pixel, per instance.
    """

    classes: np.ndarray
    instances: np.ndarray


def panoptic_qualities(
    pred: PanopticMap, true: PanopticMap, *, n_classes: int, thing_ids: Sequence[int]
) -> tuple[PanopticQuality, ...]:
    """PQ of every class 1..n_classes over things and stuff, with void as section 4.1 of arXiv 1801.00868 has it.

    A stuff class is one segment per image. Void pixels of the truth (class 0, or a thing class without an instance)
    are taken out of the predicted segments before IoU; an unmatched predicted segment with more than half of its
    pixels on void is no false positive. Void in the prediction is only a lack of prediction.

    Raises:
        DataError: planes differ in shape.
    """
    table = overlaps(_segment_ids(pred, n_classes, thing_ids), _segment_ids(true, n_classes, thing_ids))
    pred_of = pred.classes.ravel()[table.pred.first_pixels].astype(np.int64)
    true_of = true.classes.ravel()[table.true.first_pixels].astype(np.int64)
    return _qualities(table, _Judged(pred_of, true_of, np.zeros(len(true_of), bool)), n_classes)


@dataclass(frozen=True, eq=False)
class SegmentMap:
    """Segments of one image as formats list them: a stuff class may be several, and any may be a crowd.

    Attributes:
        ids: integer [h, w], 1..n, 0 = void; an id without a pixel is no segment.
        classes: integer [n + 1], class of every id; at 0 of no use. In a prediction 0 is a class that is not scored.
        is_crowd: bool[n + 1], objects that nobody told apart; only looked at in the truth.
    """

    ids: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray


def segment_qualities(pred: SegmentMap, true: SegmentMap, n_classes: int) -> tuple[PanopticQuality, ...]:
    """PQ of every class 1..n_classes as panopticapi, COCO's evaluation, counts it; Cityscapes' does the same.

    Void is that of ``panoptic_qualities``. A crowd of the truth can neither be found nor missed; an unmatched predicted
    segment with more than half of its pixels on void and the crowd of its own class is no false positive. Of several
    crowds of a class it is the one with the highest id, as there.

    Raises:
        DataError: the shapes differ.
    """
    table = overlaps(pred.ids, true.ids)
    pred_of, true_of = (np.asarray(m.classes)[s.ids] for m, s in ((pred, table.pred), (true, table.true)))
    return _qualities(table, _Judged(pred_of, true_of, np.asarray(true.is_crowd)[table.true.ids]), n_classes)


@dataclass(frozen=True, eq=False)
class _Judged:
    """Classes of the m predicted and n true segments of a table, and which of the latter are crowds."""

    pred: np.ndarray
    true: np.ndarray
    is_crowd: np.ndarray


def _qualities(table: Overlaps, of: _Judged, n_classes: int) -> tuple[PanopticQuality, ...]:
    m = len(table.pred)
    # Every predicted pixel that meets no true segment lies on void.
    seen = table.covered_pred
    unions = table.true.areas[table.pair_true] + seen[table.pair_pred] - table.intersections
    agree = of.pred[table.pair_pred] == of.true[table.pair_true]
    is_crowd = of.is_crowd[table.pair_true]
    matched = np.flatnonzero(agree & ~is_crowd & (2 * table.intersections > unions))
    own_crowd = np.flatnonzero(agree & is_crowd & _is_last_of_class(table, of)[table.pair_true])
    in_crowd = np.bincount(table.pair_pred[own_crowd], weights=table.intersections[own_crowd], minlength=m)
    is_fp = 2 * (seen - in_crowd.astype(np.int64)) >= table.pred.areas
    is_fp[table.pair_pred[matched]] = False
    n = n_classes + 1
    of_match = of.true[table.pair_true[matched]]
    tp = np.bincount(of_match, minlength=n)
    iou_sums = np.bincount(of_match, weights=table.intersections[matched] / unions[matched], minlength=n)
    fp = np.bincount(of.pred[is_fp], minlength=n)
    fn = np.bincount(of.true[~of.is_crowd], minlength=n) - tp
    return tuple(PanopticQuality(int(tp[c]), int(fp[c]), int(fn[c]), float(iou_sums[c])) for c in range(1, n))


def _is_last_of_class(table: Overlaps, of: _Judged) -> np.ndarray:
    """bool[n], the crowds with the highest id of their class."""
    last: dict[int, int] = {}
    for k in np.flatnonzero(of.is_crowd).tolist():
        c = int(of.true[k])
        if c not in last or table.true.ids[k] > table.true.ids[last[c]]:
            last[c] = k
    is_last = np.zeros(len(table.true), bool)
    is_last[list(last.values())] = True
    return is_last


@dataclass(frozen=True, eq=False)
class _SegmentIds:
    """Rows of int64 segment ids: stuff class c -> c, thing instance i -> n_classes + i, the rest 0."""

    planes: PanopticMap
    is_thing: np.ndarray  # bool[n_classes + 1]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.planes.classes.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        classes, instances = self.planes.classes[rows], self.planes.instances[rows]
        shifted = np.where(instances > 0, instances.astype(np.int64) + (len(self.is_thing) - 1), 0)
        return np.where(self.is_thing[classes], shifted, classes)


def _segment_ids(planes: PanopticMap, n_classes: int, thing_ids: Sequence[int]) -> _SegmentIds:
    if planes.classes.shape != planes.instances.shape:
        raise DataError(f"class plane {planes.classes.shape} and instance plane {planes.instances.shape} differ")
    highest = int(planes.classes.max(initial=0))
    if highest > n_classes:
        raise DataError(f"a class plane holds class {highest}; expected 0..{n_classes}")
    is_thing = np.zeros(n_classes + 1, bool)
    is_thing[list(thing_ids)] = True
    return _SegmentIds(planes, is_thing)


def mean_of_known(values: list[float]) -> float:
    """Mean of those that are not nan; nan if all are."""
    known = [v for v in values if v == v]
    return sum(known) / len(known) if known else float("nan")
