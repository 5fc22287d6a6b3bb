"""The result of an evaluation: scores per image, their means, and what is pooled over images.

Two ways to sum up are both in use and never the same number, so both are kept apart by name. A *mean* scores every
image and averages (PQ, AJI, Dice, bPQ, mPQ: Kumar, HoVer-Net, PanNuke). *Pooled* adds the counts of all images and
divides once (mPQ+, Fd, Fc: CoNIC, HoVer-Net). A score that an image cannot have (nothing to find and nothing found) is
nan, is left out of means and becomes null in JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from nucleipan.metrics.detection import ClassificationCounts, DetectionCounts
from nucleipan.metrics.quality import PanopticQuality, mean_pq, mean_pq_of_present, pool
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
    class_qualities: tuple[PanopticQuality, ...] = ()
    classification: tuple[ClassificationCounts, ...] = ()

    @property
    def mpq(self) -> float:
        """Mean PQ over the classes that this image's truth holds; nan without classes."""
        return mean_pq_of_present(self.class_qualities)


@dataclass(frozen=True, slots=True)
class ImageScores:
    """One image; a part its truth does not cover is None.

    ``scale`` is how many pixels of the truth's grid one pixel of the prediction's spans. ``panoptic`` is PQ per class,
    nuclei first, then tissue.
    """

    name: str
    scale: float = 1.0
    nuclei: NucleusScores | None = None
    tissue: PixelConfusion | None = None
    panoptic: tuple[PanopticQuality, ...] = ()


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
        return _mean([score(n) for n in self._nuclei])

    @property
    def pooled_quality(self) -> PanopticQuality:
        return pool(n.quality for n in self._nuclei)

    @property
    def pooled_detection(self) -> DetectionCounts:
        return sum((n.detection for n in self._nuclei), start=DetectionCounts())

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
        """PQ per class over things (``classes``) and stuff (``tissues``), pooled; empty without both truths."""
        return _pool_columns([i.panoptic for i in self.images if i.panoptic])

    def summary(self) -> dict[str, float]:
        """One number per score, under the papers' names."""
        pooled, panoptic, tissue, n_things = self.pooled_quality, self.panoptic, self.tissue, len(self.classes)
        scores = {
            "PQ": self.mean(lambda n: n.quality.pq),
            "SQ": self.mean(lambda n: n.quality.sq),
            "RQ": self.mean(lambda n: n.quality.rq),
            "AJI": self.mean(lambda n: n.aji),
            "AJI+": self.mean(lambda n: n.aji_plus),
            "Dice": self.mean(lambda n: n.dice),
            "bPQ": mean_pq_of_present(n.quality for n in self._nuclei),
            "PQ pooled": pooled.pq,
            "SQ pooled": pooled.sq,
            "RQ pooled": pooled.rq,
            "Fd": self.pooled_detection.f1,
        }
        if self.class_qualities:
            scores |= {
                "mPQ": self.mean(lambda n: n.mpq),
                "mPQ+": mean_pq(self.class_qualities),
                "mean Fc": _mean([c.f1 for c in self.classification]),
            }
        if tissue is not None:
            scores |= {
                "tissue accuracy": tissue.accuracy,
                "tissue balanced accuracy": tissue.balanced_accuracy,
                "tissue mean Dice": _mean(list(tissue.dices)),
            }
        if panoptic:
            scores |= {
                "panoptic PQ": mean_pq(panoptic),
                "panoptic PQ things": mean_pq(panoptic[:n_things]),
                "panoptic PQ stuff": mean_pq(panoptic[n_things:]),
            }
        return scores

    def to_json(self) -> dict[str, Any]:
        """A document for ``json.dump``; nan is None."""
        document = {
            "summary": self.summary(),
            "classes": _class_rows(self.classes, self.class_qualities, self.classification),
            "tissues": _tissue_rows(self.tissues, self.tissue),
            "images": [_image_row(self, image) for image in self.images],
            "radius_px": self.radius_px,
            "pairing": self.pairing,
            "unmatched_predictions": list(self.unmatched_predictions),
            "notes": list(self.notes),
        }
        return _without_nan(document)

    def print_table(self, console: Console) -> None:
        """Images, classes and tissues as tables, then the summary and the notes."""
        if self._nuclei:
            console.print(_image_table(self))
        if self.class_qualities:
            console.print(_table("nucleus classes, pooled", "class", self.to_json()["classes"]))
        if self.tissue is not None:
            console.print(_table("tissue, pooled", "class", self.to_json()["tissues"]))
        console.print(_table("summary", "score", {k: {"value": v} for k, v in self.summary().items()}))
        if self.unmatched_predictions:
            console.print(f"predictions without truth: {', '.join(self.unmatched_predictions)}", markup=False)
        for note in self.notes:
            console.print(f"note: {note}", markup=False)


def _pool_columns(rows: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(reduce(add, column) for column in zip(*rows, strict=True))


def _mean(values: list[float]) -> float:
    known = [v for v in values if v == v]
    return sum(known) / len(known) if known else float("nan")


def _class_rows(
    names: Sequence[str], qualities: Sequence[PanopticQuality], counts: Sequence[ClassificationCounts]
) -> dict[str, dict[str, float]]:
    return {
        name: {
            "PQ": q.pq,
            "SQ": q.sq,
            "RQ": q.rq,
            "Fc": c.f1,
            "Fc as printed": c.f1_as_printed,
            "TP": q.tp,
            "FP": q.fp,
            "FN": q.fn,
        }
        for name, q, c in zip(names, qualities, counts, strict=False)
    }


def _tissue_rows(names: Sequence[str], tissue: PixelConfusion | None) -> dict[str, dict[str, float]]:
    if tissue is None:
        return {}
    pixels = tissue.counts.sum(axis=1)
    return {
        name: {"Dice": dice, "recall": recall, "pixels": int(n)}
        for name, dice, recall, n in zip(names, tissue.dices, tissue.recalls, pixels, strict=True)
    }


def _nucleus_row(scores: NucleusScores) -> dict[str, float]:
    q = scores.quality
    row = {"PQ": q.pq, "SQ": q.sq, "RQ": q.rq, "AJI": scores.aji, "AJI+": scores.aji_plus, "Dice": scores.dice}
    row |= {"Fd": scores.detection.f1, "TP": q.tp, "FP": q.fp, "FN": q.fn}
    return row | ({"mPQ": scores.mpq} if scores.class_qualities else {})


def _image_row(evaluation: Evaluation, image: ImageScores) -> dict[str, Any]:
    row: dict[str, Any] = {"name": image.name, "scale": image.scale}
    if image.nuclei is not None:
        row |= _nucleus_row(image.nuclei)
        row["classes"] = _class_rows(evaluation.classes, image.nuclei.class_qualities, image.nuclei.classification)
    if image.tissue is not None:
        row["tissue accuracy"] = image.tissue.accuracy
        row["tissue balanced accuracy"] = image.tissue.balanced_accuracy
        row["tissues"] = _tissue_rows(evaluation.tissues, image.tissue)
    if image.panoptic:
        row["panoptic PQ"] = mean_pq(image.panoptic)
    return row


def _image_table(evaluation: Evaluation) -> Table:
    rows = {i.name: _nucleus_row(i.nuclei) for i in evaluation.images if i.nuclei is not None}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    pooled = evaluation.pooled_quality
    totals: dict[str, float] = {"TP": pooled.tp, "FP": pooled.fp, "FN": pooled.fn}
    means = {c: _mean([float(row[c]) for row in rows.values() if c in row]) for c in columns if c not in totals}
    return _table("nuclei", "image", rows | {f"mean of {len(rows)} (counts: sum)": means | totals}, columns)


def _table(title: str, first: str, rows: dict[str, dict[str, Any]], columns: Sequence[str] | None = None) -> Table:
    from rich.table import Table
    from rich.text import Text

    columns = columns or list(next(iter(rows.values()), {}))
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(Text(name), *(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: float | None) -> str:
    if value is None or value != value:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value
