"""Tiles of one kind of tissue each, a folder per kind.

The layout of Kather's colorectal sets (Kather et al., Scientific Reports 2016; NCT-CRC-HE-100K, Zenodo 2018) and of
most sets for tile classifiers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from nucleipan.datasets._folders import IMAGE_SUFFIXES, by_stem, listed, subfolders
from nucleipan.datasets._pixels import read_rgb
from nucleipan.datasets.annotated import Annotated, Item


def read_texture(folder: Path) -> list[Item]:
    """Names are ``subfolder/stem``, the code of a whole image is its subfolder's name.

    Raises:
        DataError: there is no subfolder with images, or two images of one share a stem.
    """
    items = [
        Item(f"{kind.name}/{stem}", path, partial(_load, path, kind.name))
        for kind in subfolders(folder)
        for stem, path in by_stem(IMAGE_SUFFIXES, kind).items()
    ]
    return listed(folder, items, "a subfolder of images per class")


def _load(path: Path, code: str) -> Annotated:
    pixels = read_rgb(path)
    return Annotated(pixels, regions=np.zeros(pixels.shape[:2], np.uint8), region_codes=(code,))
