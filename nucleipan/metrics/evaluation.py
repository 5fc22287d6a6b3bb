"""The result of an evaluation: scores per image, their means, and what is pooled over images.

Two ways to sum up are both in use and never the same number, so both are kept apart by name. A *mean* scores every
image and averages (PQ, AJI, Dice, bPQ, mPQ: Kumar, HoVer-Net, PanNuke). *Pooled* adds the counts of all images and
divides once (panoptic PQ, mPQ+, Fd, Fc: Kirillov, CoNIC, HoVer-Net). A score that an image cannot have (nothing to
find and nothing found) is nan, is left out of means and becomes null in JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from nucleipan.metrics.detection import ClassificationCounts, DetectionCounts
from nucleipan.metrics.mistakes import Mistakes
from nucleipan.metrics.quality import PanopticQuality, mean_of_known, mean_pq, mean_pq_of_present, mean_qualities, pool
from nucleipan.metrics.report import as_table, class_rows, mistake_rows, quality_row, tissue_rows, without_nan
from nucleipan.metrics.tissue import PixelConfusion

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class NucleusScores:
    """Nuclei of one image. The last two have one entry per class, or none where the truth carries no classes."""

    quality: PanopticQuality
    aji: float
    aji_plus: float
    dice: float
    detection: DetectionCounts
    mistakes: Mistakes
    class_qualities: tuple[PanopticQuality, ...] = ()
    classification: tuple[ClassificationCounts, ...] = ()

    @property
    def bpq(self) -> float:
        """PQ whatever the classes, nan where the truth holds no nucleus: one image's part in PanNuke's bPQ."""
        return mean_pq_of_present([self.quality])

    @property
    def mpq(self) -> float:
        """Mean PQ over the classes that this image's truth holds, nan without classes; its part in PanNuke's mPQ."""
        return mean_pq_of_present(self.class_qualities)


@dataclass(frozen=True, slots=True)
class ImageScores:
    """One image; a part its truth does not cover is None.

    ``scale`` is how many pixels of the truth's grid one pixel of the prediction's spans. ``panoptic`` is PQ per class,
    nuclei first, then tissue; without nucleus classes the former stay empty. ``organ`` is what PanNuke calls the tissue
    type.
    """

    name: str
    scale: float = 1.0
    nuclei: NucleusScores | None = None
    tissue: PixelConfusion | None = None
    panoptic: tuple[PanopticQuality, ...] = ()
    organ: str = ""

    @property
    def has_things(self) -> bool:
        """Whether ``panoptic`` judges nuclei too."""
        return bool(self.panoptic) and self.nuclei is not None and bool(self.nuclei.class_qualities)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of images.

    Attributes:
        images: in the order they were scored.
        classes: names of the nucleus classes 1, 2, ... that are scored.
        tissues: names of the tissue classes 1, 2, ...
        radius_px: radius of centroid pairing, pixels of the truth's grid.
        pairing: name of the function that paired them.
        unmatched_predictions: names of predictions that have no truth.
        notes: what could not be scored, and why.
    """

    images: tuple[ImageScores, ...]
    classes: tuple[str, ...] = ()
    tissues: tuple[str, ...] = ()
    radius_px: float = 12.0
    pairing: str = "pair_centroids"
    unmatched_predictions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def _nuclei(self) -> list[NucleusScores]:
        return [i.nuclei for i in self.images if i.nuclei is not None]

    def mean(self, score: Callable[[NucleusScores], float]) -> float:
        """Mean of a score over the images where it is defined."""
        return mean_of_known([score(n) for n in self._nuclei])

    def mean_of_organs(self, score: Callable[[NucleusScores], float]) -> float:
        """Mean over the images of each organ, then over organs, as PanNuke averages (arXiv 2003.10778).

        Images without an organ count as one together: where no image names one, this is ``mean``.
        """
        return mean_of_known([part.mean(score) for part in self.by_organ().values()])

    def by_organ(self) -> dict[str, Evaluation]:
        """The evaluation of every organ's images on their own."""
        organs = sorted({i.organ for i in self.images})
        return {o: replace(self, images=tuple(i for i in self.images if i.organ == o)) for o in organs}

    @property
    def pooled_quality(self) -> PanopticQuality:
        return pool(n.quality for n in self._nuclei)

    @property
    def pooled_detection(self) -> DetectionCounts:
        return sum((n.detection for n in self._nuclei), start=DetectionCounts())

    @property
    def pooled_mistakes(self) -> Mistakes:
        return sum((n.mistakes for n in self._nuclei), start=Mistakes())

    @property
    def class_qualities(self) -> tuple[PanopticQuality, ...]:
        """PQ per nucleus class, counts pooled over images; empty without classes."""
        return _pool_columns([n.class_qualities for n in self._nuclei if n.class_qualities])

    @property
    def classification(self) -> tuple[ClassificationCounts, ...]:
        """Counts for Fc per nucleus class, pooled over images; empty without classes."""
        return _pool_columns([n.classification for n in self._nuclei if n.classification])

    @property
    def tissue(self) -> PixelConfusion | None:
        """Pixels of all images with tissue truth."""
        parts = [i.tissue for i in self.images if i.tissue is not None]
        return reduce(add, parts) if parts else None

    @property
    def panoptic(self) -> tuple[PanopticQuality, ...]:
        """PQ per class over things (``classes``) and stuff (``tissues``), pooled; empty without truth of tissue."""
        return _pool_columns([i.panoptic for i in self.images if i.panoptic])

    def summary(self) -> dict[str, float]:
        """One number per score, under the papers' names."""
        pooled, tissue = self.pooled_quality, self.tissue
        scores = {
            "PQ": self.mean(lambda n: n.quality.pq),
            "SQ": self.mean(lambda n: n.quality.sq),
            "RQ": self.mean(lambda n: n.quality.rq),
            "AJI": self.mean(lambda n: n.aji),
            "AJI+": self.mean(lambda n: n.aji_plus),
            "Dice": self.mean(lambda n: n.dice),
            "bPQ": self.mean_of_organs(lambda n: n.bpq),
            "PQ pooled": pooled.pq,
            "SQ pooled": pooled.sq,
            "RQ pooled": pooled.rq,
            "Fd": self.pooled_detection.f1,
        }
        if self.class_qualities:
            scores |= {
                "mPQ": self.mean_of_organs(lambda n: n.mpq),
                "mPQ+": mean_pq(self.class_qualities),
                "mean Fc": mean_of_known([c.f1 for c in self.classification]),
            }
        if tissue is not None:
            scores |= {
                "tissue accuracy": tissue.accuracy,
                "tissue balanced accuracy": tissue.balanced_accuracy,
                "tissue mean Dice": mean_of_known(list(tissue.dices)),
            }
        has_things = any(i.has_things for i in self.images)
        return scores | _panoptic_means(self.panoptic, len(self.classes), has_things)

    def to_json(self) -> dict[str, Any]:
        """A document for ``json.dump``; nan is None."""
        document = {
            "summary": self.summary(),
            "mistakes": mistake_rows(self.pooled_mistakes, self.pooled_quality) if self._nuclei else {},
            "classes": class_rows(self.classes, self.class_qualities, self.classification),
            "tissues": tissue_rows(self.tissues, self.tissue),
            "panoptic": _panoptic_rows(self),
            "organs": _organ_rows(self),
            "images": [_image_row(self, image) for image in self.images],
            "radius_px": self.radius_px,
            "pairing": self.pairing,
            "unmatched_predictions": list(self.unmatched_predictions),
            "notes": list(self.notes),
        }
        return without_nan(document)

    def print_table(self, console: Console) -> None:
        """Images, mistakes, classes, tissues and organs as tables, then the summary and the notes."""
        document = self.to_json()
        if self._nuclei:
            console.print(_image_table(self))
            console.print(as_table("mistakes, pooled", "kind", document["mistakes"]))
        if self.class_qualities:
            console.print(as_table("nucleus classes, pooled", "class", document["classes"]))
        if self.tissue is not None:
            console.print(as_table("tissue, pooled", "class", document["tissues"]))
        if self.panoptic:
            rows = document["panoptic"]["things"] | document["panoptic"]["stuff"]
            console.print(as_table("things and stuff, pooled", "class", rows))
        if document["organs"]:
            console.print(as_table("organs, means", "organ", document["organs"]))
        console.print(as_table("summary", "score", {k: {"value": v} for k, v in self.summary().items()}))
        if self.unmatched_predictions:
            console.print(f"predictions without truth: {', '.join(self.unmatched_predictions)}", markup=False)
        for note in self.notes:
            console.print(f"note: {note}", markup=False)


def _pool_columns(rows: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(reduce(add, column) for column in zip(*rows, strict=True))


def _panoptic_means(qualities: Sequence[PanopticQuality], n_things: int, has_things: bool) -> dict[str, float]:
    """Means over all classes, things (PQ^Th) and stuff (PQ^St); all and things only where things are judged."""
    parts = {" stuff": qualities[n_things:]} if qualities else {}
    if has_things:
        parts = {"": qualities, " things": qualities[:n_things]} | parts
    return {
        f"panoptic {score}{part}": value for part, of in parts.items() for score, value in mean_qualities(of).items()
    }


def _panoptic_rows(evaluation: Evaluation) -> dict[str, dict[str, dict[str, float]]]:
    rows, n_things = [quality_row(q) for q in evaluation.panoptic], len(evaluation.classes)
    return {
        "things": dict(zip(evaluation.classes, rows[:n_things], strict=False)),
        "stuff": dict(zip(evaluation.tissues, rows[n_things:], strict=False)),
    }


def _organ_rows(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """By organ, where any image names one."""
    parts = evaluation.by_organ()
    return {
        organ or "not named": {"images": len(e.images), "bPQ": e.mean(lambda n: n.bpq), "mPQ": e.mean(lambda n: n.mpq)}
        for organ, e in parts.items()
        if set(parts) != {""}
    }


def _nucleus_row(scores: NucleusScores) -> dict[str, float]:
    q = scores.quality
    row = {"PQ": q.pq, "SQ": q.sq, "RQ": q.rq, "AJI": scores.aji, "AJI+": scores.aji_plus, "Dice": scores.dice}
    row |= {"Fd": scores.detection.f1, "TP": q.tp, "FP": q.fp, "FN": q.fn}
    return row | ({"mPQ": scores.mpq} if scores.class_qualities else {})


def _image_row(evaluation: Evaluation, image: ImageScores) -> dict[str, Any]:
    row: dict[str, Any] = {"name": image.name, "scale": image.scale}
    if image.organ:
        row["organ"] = image.organ
    if image.nuclei is not None:
        row |= _nucleus_row(image.nuclei)
        row["mistakes"] = mistake_rows(image.nuclei.mistakes, image.nuclei.quality)
        row["classes"] = class_rows(evaluation.classes, image.nuclei.class_qualities, image.nuclei.classification)
    if image.tissue is not None:
        row["tissue accuracy"] = image.tissue.accuracy
        row["tissue balanced accuracy"] = image.tissue.balanced_accuracy
        row["tissues"] = tissue_rows(evaluation.tissues, image.tissue)
    return row | _panoptic_means(image.panoptic, len(evaluation.classes), image.has_things)


def _image_table(evaluation: Evaluation) -> Table:
    rows = {i.name: _nucleus_row(i.nuclei) for i in evaluation.images if i.nuclei is not None}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    pooled = evaluation.pooled_quality
    totals: dict[str, float] = {"TP": pooled.tp, "FP": pooled.fp, "FN": pooled.fn}
    means = {c: mean_of_known([float(row[c]) for row in rows.values() if c in row]) for c in columns if c not in totals}
    return as_table("nuclei", "image", rows | {f"mean of {len(rows)} (counts: sum)": means | totals}, columns)
