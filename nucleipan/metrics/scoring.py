"""Arrays in, scores out: the part of an evaluation that knows no files, for training and notebooks.

One image is an ``ImagePair``; pairs are consumed one at a time, so a generator keeps memory at one image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nucleipan.errors import DataError
from nucleipan.metrics.detection import (
    DEFAULT_RADIUS_PX,
    CentroidPairs,
    PairWithin,
    classification_counts,
    detection_counts,
    pair_centroids,
)
from nucleipan.metrics.evaluation import Evaluation, ImageScores, NucleusScores
from nucleipan.metrics.jaccard import aji, aji_plus, dice
from nucleipan.metrics.mistakes import count_mistakes
from nucleipan.metrics.overlaps import Segments, overlaps, row_blocks
from nucleipan.metrics.quality import (
    PanopticMap,
    PanopticQuality,
    class_qualities,
    instance_quality,
    panoptic_qualities,
)
from nucleipan.metrics.tissue import pixel_confusion

#: How to pair predicted [m, 2] with true [n, 2] centroids.
PairCentroids = Callable[[np.ndarray, np.ndarray], CentroidPairs]


class ImagePair(NamedTuple):
    """Prediction and truth of one image, all planes [h, w] in the truth's grid; a plain tuple will do.

    Attributes:
        name: what the row is called.
        pred, true: integer instance ids, 0 = no nucleus; None in both where nuclei are not scored.
        pred_classes, true_classes: class of every nucleus, either a class plane [h, w] read at its first pixel, or a
            vector by id: ``classes[id]``. 0 in the truth = nobody knows, in the prediction = none of the classes
            scored. None where the truth has no classes.
        pred_tissue, true_tissue: uint8 tissue class planes, under nuclei too; 0 as for classes. None as for classes.
        scale: pixels of this grid per pixel of the grid the prediction was made in, for the record.
        organ: what the image is of, PanNuke's tissue type: bPQ and mPQ average organ by organ.
    """

    name: str
    pred: np.ndarray | None
    pred_classes: np.ndarray | None
    true: np.ndarray | None
    true_classes: np.ndarray | None
    pred_tissue: np.ndarray | None = None
    true_tissue: np.ndarray | None = None
    scale: float = 1.0
    organ: str = ""


def evaluate_pairs(
    pairs: Iterable[ImagePair | tuple],
    *,
    classes: Sequence[str] = (),
    tissues: Sequence[str] = (),
    radius_px: float = DEFAULT_RADIUS_PX,
    pair: PairWithin = pair_centroids,
) -> Evaluation:
    """Score images one after the other.

    ``classes`` and ``tissues`` name the nucleus and tissue classes 1, 2, ...; ``radius_px`` is the radius of centroid
    pairing in pixels of the truth's grid: 12 at 0.25 mpp (40x), 6 at 0.5 (20x). ``pair`` is ``pair_centroids`` or, to
    compare Fd and Fc with published tables, ``pair_centroids_globally``.

    Raises:
        DataError: the two maps of an image differ in shape, or a class is outside the named ones.
    """

    def near(pred: np.ndarray, true: np.ndarray) -> CentroidPairs:
        return pair(pred, true, radius_px)

    images = tuple(_score_image(ImagePair(*image), len(classes), len(tissues), near) for image in pairs)
    return Evaluation(images, tuple(classes), tuple(tissues), radius_px, pairing=pair.__name__)


def _score_image(pair: ImagePair, n_classes: int, n_tissues: int, pair_nuclei: PairCentroids) -> ImageScores:
    try:
        nuclei = _score_nuclei(pair, n_classes, pair_nuclei)
        tissue = None
        if pair.pred_tissue is not None and pair.true_tissue is not None:
            tissue = pixel_confusion(pair.pred_tissue, pair.true_tissue, n_tissues)
        panoptic: tuple[PanopticQuality, ...] = ()
        if tissue is not None:
            has_classes = nuclei is not None and bool(nuclei.class_qualities)
            panoptic = _score_panoptic(pair, n_classes, n_tissues, has_classes)
    except DataError as error:
        raise DataError(f"{pair.name}: {error}") from error
    return ImageScores(pair.name, pair.scale, nuclei, tissue, panoptic, pair.organ)


def _score_nuclei(pair: ImagePair, n_classes: int, pair_nuclei: PairCentroids) -> NucleusScores | None:
    if pair.pred is None or pair.true is None:
        return None
    table = overlaps(pair.pred, pair.true)
    pairs = pair_nuclei(table.pred.centroids, table.true.centroids)
    scores = NucleusScores(
        quality=instance_quality(table),
        aji=aji(table),
        aji_plus=aji_plus(table),
        dice=dice(table),
        detection=detection_counts(pairs),
        mistakes=count_mistakes(table),
    )
    if n_classes == 0 or pair.pred_classes is None or pair.true_classes is None:
        return scores
    pred_of = _classes_of(table.pred, pair.pred_classes, n_classes)
    true_of = _classes_of(table.true, pair.true_classes, n_classes)
    return replace(
        scores,
        class_qualities=class_qualities(table, pred_of, true_of, n_classes),
        classification=classification_counts(pairs, pred_of, true_of, n_classes),
    )


def _classes_of(segments: Segments, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """int64[n], class of every segment, from a plane or from a vector by id."""
    index = segments.first_pixels if classes.ndim == 2 else segments.ids
    if len(index) and index.max() >= classes.size:
        raise DataError(f"nucleus {index.max()} has no entry in a class list of {classes.size}")
    found = classes.ravel()[index].astype(np.int64)
    if len(found) and not 0 <= found.min() <= found.max() <= n_classes:
        raise DataError(f"nucleus classes reach from {found.min()} to {found.max()}; expected 0..{n_classes}")
    return found


def _score_panoptic(pair: ImagePair, n_classes: int, n_tissues: int, has_classes: bool) -> tuple[PanopticQuality, ...]:
    """Things are classes 1..n_classes, stuff the tissue classes after them; an unclassified nucleus is void.

    Without classes every nucleus is void, on both sides, and only the stuff is judged.
    """
    pred = _panoptic_map(pair.pred, pair.pred_classes if has_classes else None, pair.pred_tissue, n_classes)
    true = _panoptic_map(pair.true, pair.true_classes if has_classes else None, pair.true_tissue, n_classes)
    return panoptic_qualities(pred, true, n_classes=n_classes + n_tissues, thing_ids=range(1, n_classes + 1))


def _panoptic_map(
    instances: np.ndarray | None, classes: np.ndarray | None, tissue: np.ndarray | None, n_classes: int
) -> PanopticMap:
    assert tissue is not None
    if instances is None:
        instances = np.broadcast_to(np.uint8(0), tissue.shape)
    plane = np.empty(tissue.shape, np.uint16)
    for rows in row_blocks(tissue.shape):  # numpy's indices of a whole plane would outweigh all maps together
        plane[rows] = np.where(tissue[rows] > 0, tissue[rows].astype(np.uint16) + n_classes, 0)
        plane[rows][instances[rows] > 0] = 0 if classes is None else _of_pixels(classes, instances, rows)
    return PanopticMap(plane, instances)


def _of_pixels(classes: np.ndarray, instances: np.ndarray, rows: slice) -> np.ndarray:
    """Class of every nucleus pixel of some rows, in raster order, from a plane or from a vector by id."""
    is_nucleus = instances[rows] > 0
    return classes[rows][is_nucleus] if classes.ndim == 2 else classes[instances[rows][is_nucleus]]
