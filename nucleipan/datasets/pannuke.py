"""PanNuke (Gamper et al., ECDP 2019 and arXiv 2003.10778): 256 x 256 patches of 19 organs in three folds.

::

    Fold 1/images/fold1/images.npy      [N, 256, 256, 3], 0 to 255, floats in the published files
    Fold 1/masks/fold1/masks.npy        [N, 256, 256, 6], channel k: instance ids of class k; the last: background
    Fold 1/images/fold1/types.npy       organ of each patch, an array of Python objects: never read

The folds may also be merged into one ``images/`` and one ``masks/``. Files are mapped, not loaded: a fold is 8 GB.
Ids may be used again by another class, so they are counted anew; where classes overlap, the later channel wins.
Patches without a nucleus are part of the set.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from nucleipan.datasets._folders import listed, subfolders
from nucleipan.datasets._pixels import codes_of_present, mapped_numbers, whole_numbers
from nucleipan.datasets.annotated import Annotated, Item
from nucleipan.errors import DataError

CLASSES = ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")


def read_pannuke(folder: Path) -> list[Item]:
    """Names are ``fold1/0000``, ...; codes are the five class names.

    Raises:
        DataError: there is no fold, or an array is missing, damaged, pickled or of another shape.
    """
    items = [
        item
        for base in (folder, *subfolders(folder))
        for fold in subfolders(base / "images")
        if (fold / "images.npy").is_file()
        for item in _items(fold.name, fold / "images.npy", base / "masks" / fold.name / "masks.npy")
    ]
    return listed(folder, items, "Fold 1/images/fold1/images.npy and Fold 1/masks/fold1/masks.npy, ...")


def _items(fold: str, images: Path, masks: Path) -> list[Item]:
    n = len(_mapped(images, 3))
    n_masks = len(_mapped(masks, len(CLASSES) + 1))
    if n != n_masks:
        raise DataError(f"{masks}: holds {n_masks} masks, {images} {n} images; check that they belong together")
    return [Item(f"{fold}/{k:04d}", masks, partial(_load, images, masks, k), may_be_empty=True) for k in range(n)]


def _load(images: Path, masks: Path, k: int) -> Annotated:
    pixels = _as_rgb(images, np.asarray(_mapped(images, 3)[k]))
    channels = whole_numbers(masks, f"patch {k}", np.asarray(_mapped(masks, len(CLASSES) + 1)[k]))
    if channels.shape[:2] != pixels.shape[:2]:
        raise DataError(f"{masks}: masks are {channels.shape[:2]}, their images {pixels.shape[:2]}")
    ids = np.zeros(channels.shape[:2], np.int32)
    codes: dict[int, str] = {}
    for channel, name in enumerate(CLASSES):
        for value in np.unique(channels[..., channel]):
            if value:
                codes[len(codes) + 1] = name
                ids[channels[..., channel] == value] = len(codes)
    return Annotated(pixels, ids, codes_of_present(ids, codes))


def _mapped(path: Path, n_channels: int) -> np.ndarray:
    return mapped_numbers(path, ("N", "height", "width", n_channels))


def _as_rgb(path: Path, patch: np.ndarray) -> np.ndarray:
    if not (patch.min() >= 0 and patch.max() <= 255):  # True for NaN
        raise DataError(f"{path}: expected values from 0 to 255; found {patch.min()} to {patch.max()}")
    if patch.dtype.kind == "f" and 0 < patch.max() <= 1:
        raise DataError(f"{path}: values run from 0 to {patch.max()}; expected 0 to 255; scale them")
    return np.rint(patch).astype(np.uint8)
