"""Annotated images, held in memory as bytes, and what their annotations mean.

Every sample ends as the same three things: an image, instance ids (or "this set does not say"), and a *cover
code* per pixel. A cover code is a row of ``CoverTable``: the set of classes the pixel may have. Code 0 allows
everything, which is how "not annotated" is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np

from nucleipan.classes import PanopticClasses
from nucleipan.errors import DataError
from nucleipan.training.config import SourceConfig

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_UNKNOWN = 0


class CoverTable:
    """Which classes each cover code allows; codes are handed out on first use, 0 = all.

    ``things`` is the code of "some kind of nucleus", ``stuff`` that of "some kind of tissue, not a nucleus".
    """

    def __init__(self, classes: PanopticClasses) -> None:
        self.classes = classes
        self._codes: dict[frozenset[int], int] = {frozenset(c.id for c in classes.classes): _UNKNOWN}
        self.things = self.code_of_ids(classes.thing_ids)
        self.stuff = self.code_of_ids(classes.stuff_ids)

    def code(self, names: Iterable[str]) -> int:
        """The code that allows exactly the classes called ``names``."""
        return self.code_of_ids(self.classes.by_name(n).id for n in names)

    def code_of_ids(self, ids: Iterable[int]) -> int:
        key = frozenset(int(i) for i in ids)
        code = self._codes.setdefault(key, len(self._codes))
        if code > 255:
            raise DataError("more than 255 different sets of classes are covered by the data's codes")
        return code

    def allowed(self) -> np.ndarray:
        """bool[n_codes, K]."""
        table = np.zeros((len(self._codes), len(self.classes)), bool)
        for ids, code in self._codes.items():
            table[code, [i - 1 for i in ids]] = True
        return table


@dataclass(frozen=True)
class Sample:
    """One annotated image, still encoded.

    Attributes:
        mpp: micrometres per pixel of the image.
        has_instances: whether instance ids are annotated (then what is no instance is no nucleus).
        cover_of_id: uint8[max id + 1], cover code of each instance; index 0 is the code of all other pixels.
        cover_of_pixel: uint8[256], cover code of each pixel code of a tissue map, or of the whole image (index 0).
    """

    name: str
    image: Path
    labels: Path | None
    mpp: float
    has_instances: bool
    cover_of_id: np.ndarray | None = field(default=None, repr=False)
    cover_of_pixel: np.ndarray | None = field(default=None, repr=False)

    def load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image uint8[h, w, 3], ids int32[h, w] (zeros where not annotated), cover code uint8[h, w].

        Raises:
            DataError: labels and image differ in size.
        """
        image = _read_rgb(self.image)
        ids = np.zeros(image.shape[:2], np.int32)
        if self.labels is None:
            assert self.cover_of_pixel is not None
            return image, ids, np.full(image.shape[:2], self.cover_of_pixel[0], np.uint8)
        labels = imagecodecs.imread(self.labels)
        if labels.shape != image.shape[:2]:
            raise DataError(f"{self.labels}: label image is {labels.shape}, its image {image.shape[:2]}")
        if self.has_instances:
            assert self.cover_of_id is not None
            return image, labels.astype(np.int32), self.cover_of_id[labels]
        assert self.cover_of_pixel is not None
        return image, ids, self.cover_of_pixel[labels]


def read_source(source: SourceConfig, root: Path, stems: Sequence[str], covers: CoverTable) -> list[Sample]:
    """The samples called ``stems`` of one source.

    Raises:
        DataError: a folder, image, label or class file is missing, or a code has no mapping.
    """
    folder = root / source.folder
    if not folder.is_dir():
        raise DataError(f"{folder}: data folder is missing; set data_root to where the data lie")
    if source.kind == "nuclei":
        return [_nuclei_sample(source, folder, stem, covers) for stem in stems]
    if source.kind == "tissue":
        cover = np.full(256, _UNKNOWN, np.uint8)
        for code, names in source.codes.items():
            cover[int(code)] = covers.code(names)
        return [
            Sample(stem, _find(folder / "images", stem), _find(folder / "labels", stem), source.mpp, False, None, cover)
            for stem in stems
        ]
    return [s for stem in stems if (s := _texture_sample(source, folder, stem, covers)) is not None]


def _nuclei_sample(source: SourceConfig, folder: Path, stem: str, covers: CoverTable) -> Sample:
    labels = _find(folder / "labels", stem)
    n_ids = int(imagecodecs.imread(labels).max()) + 1
    cover = np.full(n_ids, covers.things, np.uint8)
    cover[0] = covers.stuff
    if source.codes:
        path = folder / "classes" / f"{stem}.json"
        if not path.is_file():
            raise DataError(f"{path}: class file is missing, though the source maps class codes")
        for key, number in json.loads(path.read_text()).items():
            if str(number) not in source.codes:
                raise DataError(f"{path}: class {number} has no entry in codes; found {sorted(source.codes)}")
            if int(key) < n_ids:
                cover[int(key)] = covers.code(source.codes[str(number)])
    return Sample(f"{source.folder}/{stem}", _find(folder / "images", stem), labels, source.mpp, True, cover)


def _texture_sample(source: SourceConfig, folder: Path, stem: str, covers: CoverTable) -> Sample | None:
    subfolder, name = stem.split("/", 1)
    if subfolder not in source.codes:
        return None
    cover = np.array([covers.code(source.codes[subfolder])], np.uint8)
    return Sample(f"{source.folder}/{stem}", _find(folder / subfolder, name), None, source.mpp, False, None, cover)


def _find(folder: Path, stem: str) -> Path:
    for suffix in _IMAGE_SUFFIXES:
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return path
    raise DataError(f"{folder}: no image called {stem} ({', '.join(_IMAGE_SUFFIXES)})")


def _read_rgb(path: Path) -> np.ndarray:
    image = imagecodecs.imread(path)
    if image.ndim == 2:
        image = np.stack([image] * 3, -1)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] < 3:
        raise DataError(f"{path}: expected an 8-bit RGB image; found {image.dtype} {image.shape}")
    return np.ascontiguousarray(image[..., :3])
