"""PASTIS (Garnot and Landrieu, ICCV 2021, arXiv 2107.07933): a year of Sentinel-2 over 2,433 patches of farmland.

::

    DATA_S2/S2_<patch>.npy                          int16[T, 10, 128, 128], reflectance times 10,000 at T dates
    ANNOTATIONS/TARGET_<patch>.npy                  [3, 128, 128], the first plane: class 0 to 19
    INSTANCE_ANNOTATIONS/INSTANCES_<patch>.npy      [128, 128], number of the parcel, 0 = none
    metadata.geojson                                ID_PATCH and Fold (1 to 5) of every patch

A network that looks at one RGB image sees one composite: bands B4, B3 and B2, at every pixel the median (or mean) over
time, so that a cloud on one date does not count, and reflectances from 0 to 0.3 spread over 0 to 255. Seven bands and
the seasons are lost: this is panoptic segmentation of a picture, not what the paper does with the series.

Parcels of the 18 crops are instances, class 0, without a parcel, is the only stuff. Void (class 19: parcels mostly
outside the patch) and crops outside parcels are unknown. A parcel is of the class that most of its pixels have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import imagecodecs
import numpy as np

from nucleipan.datasets._documents import json_by_id, json_int, json_list, read_json
from nucleipan.datasets._folders import listed, visible
from nucleipan.datasets._pixels import mapped_numbers, whole_numbers
from nucleipan.datasets.annotated import Annotated, Item
from nucleipan.errors import DataError

#: Names by class number, as published.
CLASSES = (
    *("Background", "Meadow", "Soft winter wheat", "Corn", "Winter barley", "Winter rapeseed", "Spring barley"),
    *("Sunflower", "Grapevine", "Beet", "Winter triticale", "Winter durum wheat", "Fruits, vegetables, flowers"),
    *("Potatoes", "Leguminous fodder", "Soybeans", "Orchard", "Mixed cereal", "Sorghum", "Void label"),
)
BACKGROUND, VOID = 0, 19

Reduction = Literal["median", "mean"]
_RGB = (2, 1, 0)  # of B2, B3, B4, B5, B6, B7, B8, B8A, B11, B12
_N_BANDS = 10
_WHITE = 3000


@dataclass(frozen=True)
class PastisFiles:
    """A patch: its number as text, and its two planes of labels."""

    patch: str
    classes: Path
    parcels: Path


@dataclass(frozen=True, eq=False)
class Parcels:
    """What the labels of a patch say.

    Attributes:
        ids: int32[h, w], 1, 2, ... on parcels of a crop.
        class_of: int64[n + 1], crop of every id, 1 to 18; 0 of id 0.
        is_background: bool[h, w]. What is neither is unknown.
    """

    ids: np.ndarray
    class_of: np.ndarray
    is_background: np.ndarray


def read_pastis(folder: Path, reduction: Reduction = "median") -> list[Item]:
    """Names are ``fold1/10000``, ...; codes are the names of the classes.

    Raises:
        DataError: the metadata or a file that belongs to a patch are missing.
    """
    return listed(
        folder, _items(folder, reduction), "DATA_S2/, ANNOTATIONS/, INSTANCE_ANNOTATIONS/ and metadata.geojson"
    )


def read_folds(folder: Path) -> dict[str, int]:
    """Fold of every patch that ``metadata.geojson`` lists; nothing where there is no such file.

    Raises:
        DataError: it is malformed.
    """
    path = folder / "metadata.geojson"
    if not path.is_file():
        return {}
    features = json_list(path, read_json(path), "features")
    properties = {"features": [feature.get("properties") for feature in features]}
    return {
        str(patch): json_int(path, entry, "Fold")
        for patch, entry in json_by_id(path, properties, "features", "ID_PATCH").items()
    }


def find_labels(folder: Path) -> dict[str, PastisFiles]:
    """Labels by patch.

    Raises:
        DataError: one of a patch's two files is missing.
    """
    classes = _by_patch(folder / "ANNOTATIONS", "TARGET_")
    parcels = _by_patch(folder / "INSTANCE_ANNOTATIONS", "INSTANCES_")
    for patch in sorted(classes.keys() ^ parcels.keys()):
        there = classes.get(patch) or parcels[patch]
        other = "INSTANCE_ANNOTATIONS/INSTANCES_" if patch in classes else "ANNOTATIONS/TARGET_"
        raise DataError(f"{there}: patch {patch} lacks {folder / other}{patch}.npy; copy it again")
    return {patch: PastisFiles(patch, classes[patch], parcels[patch]) for patch in sorted(classes)}


def read_parcels(files: PastisFiles) -> Parcels:
    """Read the labels of a patch.

    Raises:
        DataError: a file is damaged, pickled, of another type or shape, or holds a class above 19.
    """
    target = mapped_numbers(files.classes, (3, "height", "width"))
    classes = whole_numbers(files.classes, f"patch {files.patch}", np.asarray(target[0]))
    if int(classes.max()) > VOID:
        raise DataError(f"{files.classes}: patch {files.patch} has class {classes.max()}; expected 0 to {VOID}")
    numbers = mapped_numbers(files.parcels, ("height", "width"))
    if numbers.shape != classes.shape:
        raise DataError(f"{files.parcels}: parcels are {numbers.shape}, the classes of the patch {classes.shape}")
    found, position = np.unique(
        whole_numbers(files.parcels, f"patch {files.patch}", np.asarray(numbers)), return_inverse=True
    )
    position = position.reshape(classes.shape)
    counts = np.bincount((position * len(CLASSES) + classes).ravel(), minlength=len(found) * len(CLASSES))
    crop = counts.reshape(len(found), len(CLASSES)).argmax(axis=1)  # of every number found, by most of its pixels
    is_crop = (found > 0) & (crop != BACKGROUND) & (crop != VOID)
    ids = np.where(is_crop, np.cumsum(is_crop), 0).astype(np.int32)
    is_background = (classes == BACKGROUND) & ~(found > 0)[position]
    return Parcels(ids[position], np.concatenate([[0], crop[is_crop]]), is_background)


def read_composite(path: Path, reduction: Reduction) -> np.ndarray:
    """uint8[h, w, 3], the picture of a series; see the module's description.

    Raises:
        DataError: the file is damaged, pickled, or no series of ten bands.
    """
    series = mapped_numbers(path, ("T", _N_BANDS, "height", "width"))
    bands = np.asarray(series[:, list(_RGB)])  # [T, 3, h, w]
    reduced = np.median(bands, axis=0) if reduction == "median" else bands.mean(axis=0)
    if not np.isfinite(reduced).all():
        raise DataError(f"{path}: holds numbers that are not finite; expected reflectances times 10,000")
    return np.rint(np.clip(reduced / _WHITE, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def write_composites(
    folder: Path, out: Path, reduction: Reduction = "median", folds: Collection[int] = (1, 2, 3, 4, 5)
) -> int:
    """Write the pictures of ``folds`` as ``S2_<patch>.png``, for ``nucleipan segment``; returns how many.

    Raises:
        DataError: a file is missing or damaged, or ``out`` cannot be written.
    """
    fold_of = read_folds(folder)
    chosen = [patch for patch, fold in fold_of.items() if fold in folds]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for patch in chosen:
            picture = read_composite(_series(folder, patch), reduction)
            (out / f"S2_{patch}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    return len(chosen)


def _items(folder: Path, reduction: Reduction) -> Iterator[Item]:
    fold_of, labels = read_folds(folder), find_labels(folder)
    for patch in sorted(labels.keys() - fold_of.keys()):
        raise DataError(
            f"{labels[patch].classes}: {folder / 'metadata.geojson'} does not list patch {patch}; copy it again"
        )
    for patch, fold in fold_of.items():
        if patch not in labels:
            raise DataError(
                f"{folder / 'metadata.geojson'}: lists patch {patch}, which has no ANNOTATIONS/TARGET_{patch}.npy; "
                "copy it again, or remove the entry"
            )
        load = partial(_load, _series(folder, patch), labels[patch], reduction)
        yield Item(f"fold{fold}/{patch}", labels[patch].parcels, load, may_be_empty=True)


def _series(folder: Path, patch: str) -> Path:
    path = folder / "DATA_S2" / f"S2_{patch}.npy"
    if not path.is_file():
        raise DataError(f"{path}: is missing, the series of patch {patch}; copy it again")
    return path


def _by_patch(folder: Path, prefix: str) -> dict[str, Path]:
    found = [p for p in visible(folder) if p.suffix == ".npy" and p.stem.startswith(prefix)]
    return {p.stem.removeprefix(prefix): p for p in found}


def _load(series: Path, files: PastisFiles, reduction: Reduction) -> Annotated:
    pixels, parcels = read_composite(series, reduction), read_parcels(files)
    unknown = (parcels.ids == 0) & ~parcels.is_background
    return Annotated(
        pixels,
        parcels.ids,
        {i: CLASSES[c] for i, c in enumerate(parcels.class_of.tolist()) if i},
        parcels.is_background.astype(np.uint8),
        (None, CLASSES[BACKGROUND]),
        unknown if unknown.any() else None,
    )
