"""CoNSeP and Lizard: images, and MATLAB files of instance maps.

CoNSeP (Graham et al., Medical Image Analysis 2019)::

    Train/Images/train_1.png       also CPM-17 and Kumar as the authors of HoVer-Net pass them on (no classes)
    Train/Labels/train_1.mat       inst_map [h, w], type_map [h, w], inst_type [n, 1] in the order of the ids

Lizard (Graham et al., ICCV workshops 2021)::

    Lizard_Images1/consep_1.png    Lizard_Images2/, Images/
    Labels/Labels/consep_1.mat     or Lizard_Labels/Labels/: inst_map [h, w], id [n, 1], class [n, 1]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from nucleipan.datasets._documents import read_mat
from nucleipan.datasets._folders import IMAGE_SUFFIXES, by_stem, listed, paired, subfolders
from nucleipan.datasets._pixels import codes_of_present, read_rgb, whole_numbers
from nucleipan.datasets.annotated import Annotated, Item
from nucleipan.errors import DataError

# Integer arrays of a MATLAB file by name -> class number by id.
_Classes = Callable[[Path, dict[str, np.ndarray]], dict[int, int]]


def read_consep(folder: Path) -> list[Item]:
    """Names are ``Train/train_1``, ... (or ``train_1`` where ``folder`` itself holds ``Images/``), codes class numbers.

    Raises:
        DataError: nothing is laid out like this, or an image or label lacks its partner.
    """
    items = []
    for part in (folder, *subfolders(folder)):
        prefix = "" if part == folder else f"{part.name}/"
        images, labels = part / "Images", part / "Labels"
        for stem, image, label in paired(by_stem(IMAGE_SUFFIXES, images), by_stem((".mat",), labels), labels):
            items.append(Item(prefix + stem, label, partial(_load, image, label, _consep_classes)))
    return listed(folder, items, "Train/Images/*.png, Train/Labels/*.mat and the same in Test/")


def read_lizard(folder: Path) -> list[Item]:
    """Names are stems, codes class numbers.

    Raises:
        DataError: nothing is laid out like this, or an image or label lacks its partner.
    """
    images = by_stem(IMAGE_SUFFIXES, *(folder / part for part in ("Lizard_Images1", "Lizard_Images2", "Images")))
    places = [folder / "Lizard_Labels" / "Labels", folder / "Labels" / "Labels", folder / "Labels"]
    place = next((p for p in places if p.is_dir()), places[0])
    pairs = paired(images, by_stem((".mat",), place), place)
    items = [Item(stem, label, partial(_load, image, label, _lizard_classes)) for stem, image, label in pairs]
    return listed(folder, items, "Lizard_Images1/*.png, Lizard_Images2/*.png and Lizard_Labels/Labels/*.mat")


def _load(image: Path, label: Path, classes_of: _Classes) -> Annotated:
    pixels = read_rgb(image)
    names = ("inst_map", "type_map", "inst_type", "id", "class")
    found = {name: whole_numbers(label, name, array) for name, array in read_mat(label, names).items()}
    if "inst_map" not in found:
        raise DataError(f"{label}: holds no inst_map; expected the instance ids of {image.name}")
    codes = {i: str(c) for i, c in classes_of(label, found).items()}
    return Annotated(pixels, found["inst_map"], codes_of_present(found["inst_map"], codes))


def _consep_classes(path: Path, found: dict[str, np.ndarray]) -> dict[int, int]:
    """By the pixels of ``type_map``, as HoVer-Net reads it, or else by ``inst_type``; neither: no classes."""
    ids = found["inst_map"]
    if "type_map" in found:
        types = found["type_map"]
        if types.shape != ids.shape:
            raise DataError(f"{path}: type_map is {types.shape}, inst_map {ids.shape}")
        return _commonest(ids, types)
    if "inst_type" in found:
        return _by_id(path, np.setdiff1d(ids, [0]), found["inst_type"])
    return {}


def _commonest(ids: np.ndarray, types: np.ndarray) -> dict[int, int]:
    """The type that most pixels of an id have, by id; 0 is none."""
    is_typed = (ids > 0) & (types > 0)
    keys, n = np.unique(ids[is_typed].astype(np.int64) << 32 | types[is_typed], return_counts=True)
    keys = keys[np.argsort(n, kind="stable")]  # the last entry of an id stays
    return dict(zip((keys >> 32).tolist(), (keys & 0xFFFFFFFF).tolist(), strict=True))


def _lizard_classes(path: Path, found: dict[str, np.ndarray]) -> dict[int, int]:
    if "id" not in found or "class" not in found:
        raise DataError(f"{path}: expected id and class beside inst_map; found {sorted(found)}")
    return _by_id(path, found["id"], found["class"])


def _by_id(path: Path, ids: np.ndarray, classes: np.ndarray) -> dict[int, int]:
    if ids.size != classes.size:
        raise DataError(f"{path}: lists {classes.size} classes for {ids.size} nuclei; expected one each")
    return dict(zip(ids.ravel().tolist(), classes.ravel().tolist(), strict=True))
