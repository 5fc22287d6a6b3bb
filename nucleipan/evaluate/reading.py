"""Reading truth and prediction of one image into one grid.

Both sides become a ``Sample`` in the scored classes; which kind of folder they came from is forgotten here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nucleipan.classes import PanopticClass
from nucleipan.errors import DataError
from nucleipan.evaluate.vocabulary import (
    CLASSES,
    PLANE_SUFFIXES,
    TISSUE,
    Part,
    Vocabulary,
    read_json_object,
    read_names,
    read_plane,
)
from nucleipan.geometry import Box
from nucleipan.metrics.grids import nearest_pixels
from nucleipan.metrics.scoring import ImagePair

if TYPE_CHECKING:
    import pyarrow as pa

    from nucleipan.store import PanopticStore

STORE_SUFFIX = ".ome.zarr"


@dataclass(frozen=True, eq=False)
class Sample:
    """One side of an image, in its own grid; a part that is not there is None.

    Attributes:
        instances: integer ids [h, w].
        classes: uint8, scored class by instance id.
        tissue: uint8[h, w], scored tissue class, under nuclei too.
        level0_per_pixel: slide pixels per pixel, where known.
    """

    instances: np.ndarray | None
    classes: np.ndarray | None
    tissue: np.ndarray | None
    level0_per_pixel: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        shapes = {plane.shape for plane in (self.instances, self.tissue) if plane is not None}
        if len(shapes) != 1:
            raise DataError(f"labels and tissue of one image must share one shape; found {sorted(shapes)}")
        height, width = shapes.pop()
        return height, width


def read_pairs(
    names: list[str], read_pred: Callable[[str], Sample], read_truth: Callable[[str], Sample]
) -> Iterator[ImagePair]:
    """Images in the truth's grid, one at a time."""
    for name in names:
        true, pred = read_truth(name), read_pred(name)
        if true.instances is not None and pred.instances is None:
            raise DataError(f"{name}: the truth has labels/, the prediction has none")
        try:
            rows, cols, scale = nearest_pixels(pred.shape, true.shape, pred.level0_per_pixel)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        yield ImagePair(
            name,
            pred=_take(pred.instances, rows, cols) if true.instances is not None else None,
            pred_classes=pred.classes,
            true=true.instances,
            true_classes=true.classes,
            pred_tissue=_take(pred.tissue, rows, cols),
            true_tissue=true.tissue,
            scale=scale,
        )


def _take(plane: np.ndarray | None, rows: np.ndarray, cols: np.ndarray) -> np.ndarray | None:
    if plane is None or plane.shape == (len(rows), len(cols)):
        return plane
    return plane[np.ix_(rows, cols)]


@dataclass(frozen=True, eq=False)
class LabelReader:
    """Reads a label layout, its numbers translated by the vocabularies' ``of_code``.

    With ``is_required`` every image must have each part that is scored; a truth may leave parts out.
    """

    folder: Path
    classes: Vocabulary
    tissues: Vocabulary
    is_required: bool = False

    def __call__(self, name: str) -> Sample:
        instances = self._plane("labels", name)
        classes = None
        if instances is not None and self.classes.groups:
            classes = self._classes_by_id(name, int(instances.max(initial=0)))
        codes = self._plane(TISSUE.folder, name) if self.tissues.groups else None
        tissue = None
        if codes is not None:
            tissue = _translated(codes, self.tissues.of_code, self.folder / TISSUE.folder / name)
        elif self.is_required and self.tissues.groups:
            raise DataError(f"{self.folder} has no {TISSUE.folder}/{name}, other images do")
        return Sample(instances, classes, tissue)

    def _plane(self, part: str, name: str) -> np.ndarray | None:
        found = [p for s in PLANE_SUFFIXES if (p := self.folder / part / f"{name}{s}").is_file()]
        if len(found) > 1:
            raise DataError(f"{found[0]} and {found[1].name} are two answers to one question; remove one")
        return read_plane(found[0]) if found else None

    def _classes_by_id(self, name: str, largest_id: int) -> np.ndarray | None:
        path = self.folder / CLASSES.folder / f"{name}.json"
        if not path.is_file():
            if self.is_required:
                raise DataError(f"{path} is missing, other images have theirs")
            return None
        codes = np.zeros(largest_id + 1, np.int64)
        is_known = np.zeros(largest_id + 1, bool)
        for key, code in read_json_object(path).items():
            try:
                instance, number = int(key), int(code)
            except (TypeError, ValueError) as error:
                raise DataError(f"{path} must map instance ids to class numbers; found {key!r}: {code!r}") from error
            if 0 < instance <= largest_id:
                codes[instance], is_known[instance] = number, True
        classes = np.zeros(largest_id + 1, np.uint8)
        classes[is_known] = _translated(codes[is_known], self.classes.of_code, path)
        return classes


def _translated(codes: np.ndarray, of_code: np.ndarray, where: Path) -> np.ndarray:
    """uint8 scored classes of class numbers.

    Raises:
        DataError: a number has no name.
    """
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) <= 255:
        raise DataError(f"{where}: class numbers reach from {codes.min()} to {codes.max()}; expected 0..255")
    used = np.flatnonzero(np.bincount(codes.ravel(), minlength=1))
    nameless = [int(c) for c in used if of_code[c] < 0]
    if nameless:
        raise DataError(
            f"{where}: numbers {nameless} are not in the folder's names file; name them or map them to null"
        )
    return of_code[codes].astype(np.uint8)


def label_reader(folder: Path, classes: Vocabulary, tissues: Vocabulary) -> LabelReader:
    """Reader of predictions in the label layout: by their own names files, else by the truth's numbers."""
    classes, tissues = _prediction_codes(folder, CLASSES, classes), _prediction_codes(folder, TISSUE, tissues)
    return LabelReader(folder, classes, tissues, is_required=True)


def _prediction_codes(folder: Path, part: Part, truth: Vocabulary) -> Vocabulary:
    """The truth's classes with the prediction's numbers; a number that none of them covers is 0."""
    of_code = np.maximum(truth.of_code, 0)
    names_file = folder / part.names_file
    if names_file.is_file():
        of_code = np.full(256, -1, np.int16)
        of_code[part.unknown] = 0
        for code, names in read_names(names_file).items():
            ids = {truth.id_of(n) for n in names} or {0}
            if len(ids) > 1:
                raise DataError(f"{names_file}: {code} covers {names}, which the truth tells apart")
            of_code[code] = ids.pop()
    return Vocabulary(truth.groups, of_code)


@dataclass(frozen=True, eq=False)
class StoreReader:
    """Reads stores by stem; class names link them to the scored classes."""

    stores: Mapping[str, Path]
    classes: Vocabulary
    tissues: Vocabulary

    def __call__(self, name: str) -> Sample:
        store = _open_store(self.stores[name])
        instances = store.instances()
        nuclei = store.nuclei(columns=["id", "class_id", "tissue_id"])
        size = int(max(instances.max(initial=0), nuclei["id"].to_numpy().max(initial=0))) + 1
        classes = tissue = None
        if self.classes.groups:
            classes = _scored_by_id(nuclei, "class_id", _scored_ids(store.classes.things, self.classes), size)
        if self.tissues.groups:
            scored = _scored_ids(store.classes.stuff, self.tissues)
            # A panoptic map has no tissue under a nucleus, but the table knows in which tissue it lies.
            under = _scored_by_id(nuclei, "tissue_id", scored, size)
            tissue = np.where(instances > 0, under[instances], scored[store.class_map()])
        return Sample(instances, classes, tissue, store.level0_per_pixel)

    def notes(self) -> tuple[str, ...]:
        """What makes scores low and is no fault of the pixels: classes that no store knows, parts not segmented."""
        opened = {name: _open_store(path) for name, path in self.stores.items()}
        known = {c.name for store in opened.values() for c in store.classes.classes}
        groups = [g for v in (self.classes, self.tissues) for g in v.groups if known.isdisjoint(g)]
        listed = ", ".join(sorted(known))
        unknown = [f"no prediction knows {' + '.join(g)!r}, so it scores 0; they know: {listed}" for g in groups]
        cut = [
            f"{name} is segmented only in {store.spec.extent}; what lies outside counts as missed"
            for name, store in opened.items()
            if store.spec.extent != Box.of_shape(store.shape)
        ]
        return (*unknown, *cut)


def _open_store(path: Path) -> PanopticStore:
    from nucleipan.store import PanopticStore

    return PanopticStore.open(path)


def _scored_ids(classes: Iterable[PanopticClass], vocabulary: Vocabulary) -> np.ndarray:
    """uint8[256], scored class of every class id, 0 for the rest."""
    scored = np.zeros(256, np.uint8)
    for c in classes:
        scored[c.id] = vocabulary.id_of(c.name)
    return scored


def _scored_by_id(nuclei: pa.Table, column: str, scored: np.ndarray, size: int) -> np.ndarray:
    """uint8[size], scored class of every nucleus id, by a column of class ids."""
    by_id = np.zeros(size, np.uint8)
    by_id[nuclei["id"].to_numpy()] = scored[nuclei[column].to_numpy()]
    return by_id
