"""Truth in panoptic formats as data sets publish them, and predictions in the same formats.

| format | truth | its images are called |
|---|---|---|
| COCO | a panoptic JSON with its PNGs, or a folder (or its ``annotations/``) with one | the ``image_id`` |
| Cityscapes | ``*_instanceIds.png`` anywhere in a folder: the data set, ``gtFine/val``, ... | ``city_sequence_frame`` |
| PASTIS | ``ANNOTATIONS/TARGET_*.npy``, ``INSTANCE_ANNOTATIONS/INSTANCES_*.npy`` | the patch |

Each becomes a ``PanopticTruth``, whose images are read as ``SegmentMap``s in its classes. Predictions are read with the
same functions, so that a data set scored against itself is perfect by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

import numpy as np

from nucleipan.datasets import cityscapes, pastis
from nucleipan.datasets.coco_document import (
    Category,
    CocoAnnotation,
    CocoDocument,
    find_coco_documents,
    read_coco_document,
)
from nucleipan.errors import DataError
from nucleipan.metrics.panoptic_evaluation import ScoredClass
from nucleipan.metrics.quality import SegmentMap

Shape = tuple[int, int]
#: Reads an image; with a shape, that of its truth, another one is refused.
ReadMap = Callable[[Shape | None], SegmentMap]


@dataclass(frozen=True)
class TruthImage:
    """``stems`` are what a store of it may be called; ``part`` is the part of the data set that it belongs to."""

    read: ReadMap
    stems: tuple[str, ...]
    part: str = ""


@dataclass(frozen=True)
class PanopticTruth:
    """Truth of a set of images.

    Attributes:
        categories: the classes scored, numbered 1, 2, ... in this order, with their ids in the format.
        images: by what predictions in panoptic formats call them.
        read_layout: finds predictions in the truth's own layout in a folder, by the same names; None for COCO, whose
            results are taken for every truth.
    """

    categories: tuple[Category, ...]
    images: Mapping[str, TruthImage]
    read_layout: Callable[[Path], Mapping[str, ReadMap]] | None = field(default=None, repr=False)

    @property
    def classes(self) -> tuple[ScoredClass, ...]:
        return tuple(ScoredClass(c.name, c.is_thing) for c in self.categories)


def open_truth(path: Path) -> PanopticTruth | None:
    """The truth that ``path`` holds; None if it is in no panoptic format.

    Raises:
        DataError: it is, but cannot be read, or is not one truth.
    """
    if path.suffix == ".json":
        return _coco_truth(path)
    if (path / "labels").is_dir() or (path / "tissue").is_dir():  # label images
        return None
    documents = find_coco_documents(path)
    if documents:
        return _coco_truth(only_document(path, documents))
    if (path / "INSTANCE_ANNOTATIONS").is_dir():
        return _pastis_truth(path)
    return _cityscapes_truth(path) if next(path.rglob("*_instanceIds.png"), None) else None


def only_document(path: Path, documents: list[Path]) -> Path:
    """Raises DataError unless there is exactly one."""
    if len(documents) != 1:
        raise DataError(f"{path}: holds {len(documents)} panoptic JSONs ({_listed(documents)}); name one of the files")
    return documents[0]


def coco_readers(document: CocoDocument, categories: tuple[Category, ...]) -> dict[str, ReadMap]:
    """By ``image_id`` as text."""
    number_of = {c.id: k for k, c in enumerate(categories, start=1)}
    return {str(i): partial(_coco_map, annotation, number_of) for i, annotation in document.annotations.items()}


def _coco_truth(path: Path) -> PanopticTruth:
    document = read_coco_document(path)
    categories = tuple(document.categories.values())
    names = [c.name for c in categories]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: two categories are called {twice[0]!r}; give them different names")
    if not document.annotations:
        raise DataError(f"{path}: annotates no image; expected one or more annotations")
    files = {str(i): document.images.get(i, a.mask.name) for i, a in document.annotations.items()}
    readers = coco_readers(document, categories)
    images = {i: TruthImage(read, (PurePath(files[i]).stem,)) for i, read in readers.items()}
    return PanopticTruth(categories, images)


def _coco_map(annotation: CocoAnnotation, number_of: Mapping[int, int], shape: Shape | None) -> SegmentMap:
    ids = annotation.plane()
    _check_shape(annotation.mask, ids, shape)
    classes = [0, *(number_of[s.category.id] for s in annotation.segments)]
    return SegmentMap(ids, np.array(classes), np.array([False, *(s.is_crowd for s in annotation.segments)]))


def _cityscapes_truth(folder: Path) -> PanopticTruth:
    labels = cityscapes.read_labels(folder)
    scored = tuple(Category(label.id, label.name, label.is_thing) for label in labels.values() if label.is_scored)
    number_of = {c.name: k for k, c in enumerate(scored, start=1)}
    readers = _cityscapes_layout(folder, number_of)
    # cityscapesScripts calls the images of its JSON by the frame alone, files have a suffix.
    images = {frame: TruthImage(read, (frame, f"{frame}_leftImg8bit")) for frame, read in readers.items()}
    return PanopticTruth(scored, images, partial(_cityscapes_layout, number_of=number_of))


def _cityscapes_layout(folder: Path, number_of: Mapping[str, int]) -> dict[str, ReadMap]:
    labels = cityscapes.read_labels(folder)
    found = cityscapes.find_instance_images(folder)
    return {frame: partial(_cityscapes_map, path, labels, number_of) for frame, path in found.items()}


def _cityscapes_map(
    path: Path,
    labels: Mapping[int, cityscapes.CityscapesLabel],
    number_of: Mapping[str, int],
    shape: Shape | None,
) -> SegmentMap:
    """Every value is a segment, that of a scored label; the others are void, as in cityscapesScripts' conversion."""
    plane, segments = cityscapes.read_instances(path, shape, labels)
    classes = np.array([0, *(number_of.get(s.label.name, 0) for s in segments)])
    ids = np.where(classes[1:] > 0, np.arange(1, len(classes)), 0)
    return SegmentMap(ids[plane], classes, np.array([False, *(s.is_group for s in segments)]))


def _pastis_truth(folder: Path) -> PanopticTruth:
    fold_of = pastis.read_folds(folder)
    parts = {patch: f"fold {fold}" for patch, fold in fold_of.items()}
    images = {
        patch: TruthImage(read, (f"S2_{patch}", patch), parts.get(patch, ""))
        for patch, read in _pastis_layout(folder).items()
    }
    crops = (Category(c, pastis.CLASSES[c], is_thing=True) for c in range(1, pastis.VOID))
    background = Category(pastis.BACKGROUND, pastis.CLASSES[pastis.BACKGROUND], is_thing=False)
    return PanopticTruth((*crops, background), images, _pastis_layout)


def _pastis_layout(folder: Path) -> dict[str, ReadMap]:
    return {patch: partial(_pastis_map, files) for patch, files in pastis.find_labels(folder).items()}


def _pastis_map(files: pastis.PastisFiles, shape: Shape | None) -> SegmentMap:
    """Crops have their own numbers, 1 to 18, and the background the next."""
    parcels = pastis.read_parcels(files)
    _check_shape(files.parcels, parcels.ids, shape)
    classes = np.append(parcels.class_of, pastis.VOID)
    ids = np.where(parcels.is_background, len(parcels.class_of), parcels.ids)
    return SegmentMap(ids, classes, np.zeros(len(classes), bool))


def _check_shape(path: Path, plane: np.ndarray, shape: Shape | None) -> None:
    if shape is not None and plane.shape != shape:
        raise DataError(f"{path}: is {plane.shape}, the truth {shape}; check that they are of one image")


def _listed(paths: list[Path], most: int = 5) -> str:
    return ", ".join(p.name for p in paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")
