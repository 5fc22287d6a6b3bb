"""COCO panoptic annotations (Kirillov et al., CVPR 2019; the format of panopticapi).

::

    panoptic_train.json            also in annotations/: images, annotations with segments_info, categories
    panoptic_train/<stem>.png      beside the JSON: the id of a pixel's segment is R + 256 G + 65536 B, 0 is void
    images/<stem>.png              or train/ (the JSON's name without panoptic_), or beside the JSON's folder

Segments of thing categories are nuclei, those of stuff categories tissue. Void and crowds are unknown. Only where no
category is stuff, and nothing but 0 could say "no nucleus here", void means that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath

import numpy as np

from nucleipan.datasets._folders import listed
from nucleipan.datasets._pixels import read_rgb
from nucleipan.datasets.annotated import Annotated, Item
from nucleipan.datasets.coco_document import (
    Category,
    CocoAnnotation,
    existing_file,
    find_coco_documents,
    read_coco_document,
)
from nucleipan.errors import DataError

_MAX_STUFF = 255


def read_coco_panoptic(folder: Path) -> list[Item]:
    """Names are ``json/image`` without suffixes, codes the names of the categories.

    Raises:
        DataError: there is no JSON, one is malformed, or a file that it names is missing.
    """
    items = [item for document in find_coco_documents(folder) for item in _items(folder, document)]
    return listed(folder, items, "panoptic_train.json, its PNGs in panoptic_train/ and images/")


def _items(folder: Path, path: Path) -> Iterator[Item]:
    document = read_coco_document(path)
    for number in sorted(document.images.keys() ^ document.annotations.keys(), key=str):
        raise DataError(f"{path}: image {number} is listed in only one of images and annotations; complete the other")
    categories = frozenset(document.categories.values())
    if sum(not c.is_thing for c in categories) > _MAX_STUFF:
        raise DataError(f"{path}: has more than {_MAX_STUFF} stuff categories; keep those that occur")
    name = path.stem.removeprefix("panoptic_")
    places = [base / part for base in (folder, path.parent) for part in ("images", name)] + [folder, path.parent]
    for number, annotation in document.annotations.items():
        file_name = document.images[number]
        image = existing_file(path, places, file_name, number)
        load = partial(_load, image, annotation, categories)
        # Segments are listed one by one: none that is a thing is a statement, not a mistake.
        called = f"{path.stem}/{PurePath(file_name).with_suffix('').as_posix()}"
        yield Item(called, annotation.mask, load, may_be_empty=True)


def _load(image: Path, annotation: CocoAnnotation, categories: frozenset[Category]) -> Annotated:
    pixels, plane = read_rgb(image), annotation.plane()
    stuff = sorted({c.name for c in categories if not c.is_thing})
    # What each segment is, by its number in the plane; void is number 0.
    n = len(annotation.segments) + 1
    number, region, is_unknown = (np.zeros(n, dtype) for dtype in (np.int32, np.uint8, bool))
    is_unknown[0] = bool(stuff)
    codes: dict[int, str] = {}
    for k, segment in enumerate(annotation.segments, start=1):
        if segment.is_crowd:
            is_unknown[k] = True
        elif segment.category.is_thing:
            number[k] = len(codes) + 1
            codes[len(codes) + 1] = segment.category.name
        else:
            region[k] = 1 + stuff.index(segment.category.name)
    unknown = is_unknown[plane]
    return Annotated(
        pixels,
        number[plane] if any(c.is_thing for c in categories) else None,
        codes,
        region[plane] if stuff else None,
        (None, *stuff) if stuff else (),
        unknown if unknown.any() else None,
    )
