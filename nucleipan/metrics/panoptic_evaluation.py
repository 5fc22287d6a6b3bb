"""The result of scoring panoptic formats: PQ of every class, counts pooled over images, then means over classes.

That is how COCO and Cityscapes rank: a class counts where the truth or the predictions have it. ``PQ`` of one image
averages the classes of that image and is for looking, not for tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nucleipan.errors import DataError
from nucleipan.metrics.quality import PanopticQuality, SegmentMap, mean_qualities, pool, segment_qualities
from nucleipan.metrics.report import as_table, quality_row, without_nan

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ScoredClass:
    name: str
    is_thing: bool


@dataclass(frozen=True)
class PanopticEvaluation:
    """Scores of a set of images.

    Attributes:
        classes: those scored, in the order of their numbers 1, 2, ...
        images: name and qualities of every image, one quality per class.
        unmatched_predictions: names of predictions that have no truth.
        notes: what to know before comparing the figures.
    """

    classes: tuple[ScoredClass, ...]
    images: tuple[tuple[str, tuple[PanopticQuality, ...]], ...]
    unmatched_predictions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def qualities(self) -> tuple[PanopticQuality, ...]:
        """By class, pooled over images."""
        return tuple(pool(of_class) for of_class in zip(*(q for _, q in self.images), strict=True))

    def summary(self) -> dict[str, float]:
        """PQ, SQ and RQ over all classes, things and stuff, and over how many classes each."""
        of = list(zip(self.classes, self.qualities, strict=True))
        parts = {
            "": [q for _, q in of],
            " things": [q for c, q in of if c.is_thing],
            " stuff": [q for c, q in of if not c.is_thing],
        }
        scores: dict[str, float] = {}
        for part, qualities in parts.items():
            scores |= {f"panoptic {score}{part}": value for score, value in mean_qualities(qualities).items()}
            scores[f"classes{part}"] = sum(q.tp + q.fp + q.fn > 0 for q in qualities)
        return scores

    def to_json(self) -> dict[str, Any]:
        """A document for ``json.dump``; nan is None."""
        document = {
            "summary": self.summary(),
            "panoptic": {"things": self._rows(is_thing=True), "stuff": self._rows(is_thing=False)},
            "images": [self._image_row(name, qualities) for name, qualities in self.images],
            "unmatched_predictions": list(self.unmatched_predictions),
            "notes": list(self.notes),
        }
        return without_nan(document)

    def print_table(self, console: Console) -> None:
        """Classes, then the summary and the notes."""
        rows = self._rows(is_thing=True) | self._rows(is_thing=False)
        console.print(as_table("things and stuff, pooled", "class", rows))
        console.print(as_table("summary", "score", {k: {"value": v} for k, v in self.summary().items()}))
        if self.unmatched_predictions:
            console.print(f"predictions without truth: {', '.join(self.unmatched_predictions)}", markup=False)
        for note in self.notes:
            console.print(f"note: {note}", markup=False)

    def _rows(self, *, is_thing: bool) -> dict[str, dict[str, float]]:
        of = zip(self.classes, self.qualities, strict=True)
        return {c.name: quality_row(q) for c, q in of if c.is_thing == is_thing}

    def _image_row(self, name: str, qualities: tuple[PanopticQuality, ...]) -> dict[str, Any]:
        total = pool(qualities)
        return {"name": name, **mean_qualities(qualities), "TP": total.tp, "FP": total.fp, "FN": total.fn}


def evaluate_segments(
    images: Iterable[tuple[str, SegmentMap, SegmentMap]], classes: tuple[ScoredClass, ...]
) -> PanopticEvaluation:
    """Score images one after the other: name, prediction, truth.

    Raises:
        DataError: the two maps of an image differ in shape.
    """
    scored = []
    for name, pred, true in images:
        try:
            scored.append((name, segment_qualities(pred, true, len(classes))))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    return PanopticEvaluation(classes, tuple(scored))
