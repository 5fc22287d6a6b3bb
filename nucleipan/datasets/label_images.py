"""Our own layouts: label images beside images, the same stem being the link.

::

    images/<stem>.png       png, jpg, jpeg, tif or tiff
    labels/<stem>.png       png, tif or tiff: instance ids, 0 = none (nuclei), or a code per pixel (tissue)
    classes/<stem>.json     {"1": 3, "2": "lymphocyte", ...} (nuclei): class of each id, or {} where nobody looked

``classes/`` may be missing; where it exists, every image needs its file, so that none is lost unnoticed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from nucleipan.datasets._documents import read_json
from nucleipan.datasets._folders import IMAGE_SUFFIXES, by_stem, listed, paired
from nucleipan.datasets._pixels import codes_of_present, read_plane, read_rgb, whole_numbers
from nucleipan.datasets.annotated import Annotated, Item
from nucleipan.errors import DataError

_LABEL_SUFFIXES = (".png", ".tif", ".tiff")


def read_nuclei(folder: Path) -> list[Item]:
    """Instances; names are stems, codes the class file's numbers or names as text.

    Raises:
        DataError: the folder is empty, or an image, label or class file lacks its partner.
    """
    pairs = _pairs(folder)
    classes = by_stem((".json",), folder / "classes")
    if classes:
        paired({stem: label for stem, _, label in pairs}, classes, folder / "classes")
    items = [Item(s, label, partial(_load_nuclei, image, label, classes.get(s))) for s, image, label in pairs]
    return listed(folder, items, "images/ and labels/ (PNG or TIFF of instance ids) with the same stems")


def read_tissue(folder: Path) -> list[Item]:
    """Tissue maps; names are stems, the code of a pixel is its number as text.

    Raises:
        DataError: the folder is empty, or an image or label lacks its partner.
    """
    items = [Item(stem, label, partial(_load_tissue, image, label)) for stem, image, label in _pairs(folder)]
    return listed(folder, items, "images/ and labels/ (PNG or TIFF of codes from 0 to 255) with the same stems")


def _pairs(folder: Path) -> list[tuple[str, Path, Path]]:
    labels = folder / "labels"
    return paired(by_stem(IMAGE_SUFFIXES, folder / "images"), by_stem(_LABEL_SUFFIXES, labels), labels)


def _load_nuclei(image: Path, label: Path, classes: Path | None) -> Annotated:
    pixels = read_rgb(image)
    ids = whole_numbers(label, "the label image", read_plane(label, pixels.shape[:2]))
    codes = {} if classes is None else _codes_by_id(classes)
    return Annotated(pixels, ids, codes_of_present(ids, codes))


def _load_tissue(image: Path, label: Path) -> Annotated:
    pixels = read_rgb(image)
    codes = read_plane(label, pixels.shape[:2])
    if codes.min() < 0 or codes.max() > 255:
        raise DataError(f"{label}: codes run from {codes.min()} to {codes.max()}; expected 0 to 255; renumber them")
    return Annotated(pixels, regions=codes.astype(np.uint8), region_codes=tuple(str(c) for c in range(256)))


def _codes_by_id(path: Path) -> dict[int, str]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected an object of classes by instance id; found {type(document).__name__}")
    for key, value in document.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10) or type(value) not in (int, str):
            raise DataError(
                f"{path}: expected class numbers or names by instance id; found {key[:40]!r}: {str(value)[:40]!r}"
            )
    return {int(key): str(value) for key, value in document.items()}
