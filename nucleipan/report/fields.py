"""Which fields of a slide to show at full resolution, and their outlines.

Fields are chosen by counting alone, so the same store always shows the same ones: in turn the densest field of each
tissue and of each kind of nucleus, the commonest first; then the densest of what is left, until a row is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import shapely

from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.report.frame import Frame
from nucleipan.report.tally import FIELD_UM, Tally, numbers

MIN_FIELDS, MAX_FIELDS = 6, 9
_A_ROW = 3
_MIN_NUCLEI = 3
_COLUMNS = ("class_id", "geometry")


@dataclass(frozen=True)
class Field:
    """One field to show.

    Attributes:
        box: in pixels of the view.
        reason: why it was chosen, for people.
    """

    box: Box
    reason: str


def choose_fields(frame: Frame, tally: Tally) -> list[Field]:
    """Up to ``MAX_FIELDS`` fields; fewer on a small slide or one with few nuclei."""
    reasons: dict[int, list[str]] = {}
    for counts, reason in _wishes(frame, tally):
        place = int(np.argmax(counts))
        if counts[place] >= _MIN_NUCLEI and (place in reasons or len(reasons) < MAX_FIELDS):
            reasons.setdefault(place, []).append(reason)
    densest, enough = tally.things_by_field.sum(0), max(MIN_FIELDS, -(-len(reasons) // _A_ROW) * _A_ROW)
    for place in np.argsort(-densest, kind="stable")[:MAX_FIELDS].tolist():
        if densest[place] >= _MIN_NUCLEI and place not in reasons and len(reasons) < enough:
            reasons[place] = ["among the most nuclei"]
    return [Field(_box(place, frame, tally), ", ".join(why)) for place, why in reasons.items()]


def outlines(frame: Frame, box: Box, corner: tuple[float, float, float]) -> tuple[list[str], int]:
    """Outlines of the nuclei that meet ``box`` (pixels of the view), as SVG paths.

    Args:
        corner: (y, x, step) of the picture they lie on: its corner and its pixel in level-0 pixels.

    Returns:
        One path of pixels of the picture for each thing class, empty where it has no nucleus, and the number of nuclei.

    Raises:
        StoreError: an outline is damaged.
    """
    y, x, step = corner
    paths: list[list[str]] = [[] for _ in frame.things]
    n = 0
    for table in frame.store.nuclei_batches(_COLUMNS, box):
        rows = frame.row_of_thing[numbers(table["class_id"]).astype(np.int64)]
        for row, polygon in zip(rows, _polygons(table, frame), strict=True):
            paths[row] += [_ring(ring, (x, y), step) for ring in (polygon.exterior, *polygon.interiors)]
            n += 1
    return ["".join(rings) for rings in paths], n


def _wishes(frame: Frame, tally: Tally) -> Iterator[tuple[np.ndarray, str]]:
    """Nuclei per field and the reason to choose the fullest, in order of preference."""
    of_things, of_tissues = tally.counts.sum(1), tally.counts.sum(0)
    tissues = np.argsort(-of_tissues[: frame.n_tissues], kind="stable")
    things = np.argsort(-of_things, kind="stable")
    for tissue, thing in zip_longest(tissues, things):
        if tissue is not None:
            yield tally.tissues_by_field[tissue], f"most nuclei in {frame.tissues[tissue].name}"
        if thing is not None:
            yield tally.things_by_field[thing], f"most {frame.things[thing].name} nuclei"


def _box(place: int, frame: Frame, tally: Tally) -> Box:
    """``FIELD_UM`` in the middle of a bin; less only where the part that was segmented is smaller."""
    extent, mpp = frame.store.spec.extent, frame.store.mpp
    corners = []
    for axis, (index, low) in enumerate(zip(divmod(place, tally.fields.shape[1]), (extent.y0, extent.x0), strict=True)):
        length = extent.shape[axis]
        side = min(length, max(1, round(FIELD_UM / mpp)))
        middle = (index + 0.5) * tally.fields.bin_um[axis] / mpp
        start = low + int(np.clip(round(middle - side / 2), 0, length - side))
        corners.append((start, start + side))
    (y0, y1), (x0, x1) = corners
    return Box(y0, x0, y1, x1)


def _polygons(table: pa.Table, frame: Frame) -> list[shapely.Polygon]:
    try:
        polygons = shapely.from_wkb(table["geometry"].to_numpy()).tolist()
    except (shapely.errors.GEOSException, TypeError) as error:
        raise StoreError(f"{frame.store.path}: an outline is damaged; segment the slide again") from error
    if not all(isinstance(polygon, shapely.Polygon) for polygon in polygons):
        raise StoreError(f"{frame.store.path}: an outline is no polygon; segment the slide again")
    return polygons


def _ring(ring: shapely.LinearRing, origin_xy: tuple[float, float], step: float) -> str:
    points = ((shapely.get_coordinates(ring) - origin_xy) / step).round(1).tolist()
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points[:-1]) + "Z" if points else ""
