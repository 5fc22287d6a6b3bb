"""Nuclei as DICOM Microscopy Bulk Simple Annotations (PS3.3 C.37.1).

One group per class of nuclei that occurs, each nucleus a POLYGON, in the order of ids, with two measurements: its area
and its id in the store. Groups are coded as DICOM codes nuclei, with the class as modifier.

Coordinates are pixels of the slide's image of full resolution (2D, relative to its total pixel matrix: C.37.1.2.1.1).
DICOM counts such coordinates from the upper left corner of the upper left pixel, which is 0.0\\0.0, its lower right
corner being 1.0\\1.0 (table C.18.6-1). The store does the same, so they are written as they are, as 32-bit floats (on
a slide of 200,000 pixels: to 1/128 of a pixel). A polygon of the format has no holes: those of a nucleus are lost from
its outline, while its area is that of its pixels. Measurements are 32-bit floats too, which hold ids up to 2**24.

highdicom takes one array per polygon. Here groups are filled with packed arrays instead, gathered a row group of the
table at a time: memory holds the coordinates a few times over, about 1 GB for a million nuclei, and no object for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from highdicom.ann import AnnotationGroup, Measurements, MicroscopyBulkSimpleAnnotations
from pydicom import Dataset, dcmwrite
from pydicom.sr.codedict import codes

from nucleipan.classes import PanopticClass
from nucleipan.errors import DataError
from nucleipan.exports._dicom_source import DicomSource, dicom_source, referring_to
from nucleipan.exports._dicom_terms import (
    add_modifier,
    algorithm,
    algorithm_type,
    category_and_type,
    color,
    identity,
    private,
    settle,
    text,
    uid_of,
)
from nucleipan.exports.options import ExportOptions
from nucleipan.exports.selection import nuclei_in
from nucleipan.files import whole_file
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

#: Name of the measurement that holds a nucleus's id in the store.
ID_CONCEPT = private("nucleus-id", "Identifier of the nucleus")

_COLUMNS = ("id", "class_id", "area_um2", "geometry")
_MAX_ID = 2**24
# The sequence of groups has a length of 32 bits; what is not coordinates is far below the difference.
_MAX_BYTES = 2**32 - 2**28
_TRIANGLE = np.array([[0, 0], [1, 0], [0, 1]], np.float32)


@dataclass
class _Nuclei:
    """Of one class, in the order of ids, in pieces as they were read."""

    ids: list[np.ndarray] = field(default_factory=list)
    areas_um2: list[np.ndarray] = field(default_factory=list)
    n_points: list[np.ndarray] = field(default_factory=list)
    points_xy: list[np.ndarray] = field(default_factory=list)
    """float32[P, 2] each."""

    def add(self, ids: np.ndarray, areas_um2: np.ndarray, points_xy: np.ndarray, n_points: np.ndarray) -> None:
        self.ids.append(ids)
        self.areas_um2.append(areas_um2)
        self.points_xy.append(points_xy)
        self.n_points.append(n_points)


def export_dicom_ann(store: PanopticStore, path: Path, options: ExportOptions) -> int:
    """Write the nuclei of ``store``, or those in ``options.roi`` (level-0 pixels), to ``path``; returns how many.

    Raises:
        RegionError: the region of interest leaves the slide.
        DataError: ``options.slide`` is not the DICOM slide that the store was made from, there is no nucleus, or there
            are more than the format can hold.
        SlideError: the slide cannot be read.
    """
    source = dicom_source(store, options.slide)
    by_class = _gathered(store, path, options.roi)
    annotations = _annotations(store, source, by_class, options.roi)
    with whole_file(path) as temporary, referring_to(source):
        dcmwrite(temporary, annotations, enforce_file_format=True)
    return sum(int(group.NumberOfAnnotations) for group in annotations.AnnotationGroupSequence)


def _gathered(store: PanopticStore, path: Path, roi: Box | None) -> dict[int, _Nuclei]:
    """Nuclei by class id, packed."""
    by_class = {thing.id: _Nuclei() for thing in store.classes.things}
    n_bytes = 0
    for table in nuclei_in(store, roi, _COLUMNS):
        ids, classes = table["id"].to_numpy(), table["class_id"].to_numpy()
        outlines, areas = shapely.from_wkb(table["geometry"].to_numpy()), table["area_um2"].to_numpy()
        for class_id in np.unique(classes):
            rows = np.flatnonzero(classes == class_id)
            points, n_points = _corners(outlines[rows])
            by_class[int(class_id)].add(ids[rows], areas[rows], points, n_points)
            n_bytes += points.nbytes + 12 * len(rows)
        if n_bytes > _MAX_BYTES or (len(ids) and ids[-1] > _MAX_ID):
            raise DataError(
                f"{path}: ids above {_MAX_ID:,} or coordinates of more than 4 GB do not fit into DICOM annotations; "
                "export parts (--roi), or choose another format"
            )
    return {class_id: nuclei for class_id, nuclei in by_class.items() if nuclei.ids}


def _corners(outlines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[P, 2] corners (x, y) of the outer rings, one after the other, and how many each has.

    The last point of a ring is its first again, and is left out: the format closes polygons by itself.
    """
    points, of_ring = shapely.get_coordinates(shapely.get_exterior_ring(outlines), return_index=True)
    n_points = np.bincount(of_ring, minlength=len(outlines))
    keep = np.ones(len(points), bool)
    keep[np.cumsum(n_points) - 1] = False
    return points[keep].astype("<f4"), n_points - 1


def _annotations(store: PanopticStore, source: DicomSource, by_class: dict[int, _Nuclei], roi: Box | None) -> Dataset:
    if not by_class:
        raise DataError(
            f"{store.path}: has no nuclei{'' if roi is None else ' in this region'}, and DICOM annotations must hold "
            "at least one; choose another format"
        )
    who = identity(store, source.full.header, "nucleipan nuclei", roi)
    groups = [
        _group(number, store.classes.by_id(class_id), store, uid_of("group", str(who["sop_instance_uid"]), class_id))
        for number, class_id in enumerate(by_class, 1)
    ]
    with referring_to(source):
        annotations = MicroscopyBulkSimpleAnnotations(
            [source.full.header], "2D", groups, pixel_origin_interpretation="VOLUME", content_label="NUCLEI",
            content_description=text(f"Nuclei, by {store.model.get('name')}"), **who,
        )  # fmt: skip
    for group, nuclei in zip(annotations.AnnotationGroupSequence, by_class.values(), strict=True):
        _fill(group, nuclei)
    settle(annotations)
    return annotations


def _group(number: int, thing: PanopticClass, store: PanopticStore, uid: str) -> AnnotationGroup:
    """A group of one triangle, to be filled."""
    category, kind = category_and_type(thing)
    group = AnnotationGroup(
        number, uid, text(thing.name), category, kind, "POLYGON", [_TRIANGLE], algorithm_type(store), algorithm(store),
        display_color=color(thing),
    )  # fmt: skip
    add_modifier(group.AnnotationPropertyTypeCodeSequence[0], "AnnotationPropertyTypeModifierCodeSequence", thing)
    return group


def _fill(group: Dataset, nuclei: _Nuclei) -> None:
    n_points = np.concatenate(nuclei.n_points)
    group.NumberOfAnnotations = len(n_points)
    group.PointCoordinatesData = np.concatenate(nuclei.points_xy).tobytes()
    # Where each polygon begins, counting numbers, not points, from 1 (PS3.3 C.37.1.2.1.1).
    starts = np.concatenate([[0], np.cumsum(n_points)[:-1]])
    group.LongPrimitivePointIndexList = (1 + 2 * starts).astype("<u4").tobytes()
    group.MeasurementsSequence = [
        Measurements(codes.SCT.Area, np.concatenate(nuclei.areas_um2), codes.UCUM.SquareMicrometer),
        Measurements(ID_CONCEPT, np.concatenate(nuclei.ids), codes.UCUM.NoUnits),
    ]
