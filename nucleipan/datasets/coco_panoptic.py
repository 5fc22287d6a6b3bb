"""COCO panoptic annotations (Kirillov et al., CVPR 2019; the format of panopticapi).

::

    panoptic_train.json            also in annotations/: images, annotations with segments_info, categories
    panoptic_train/<stem>.png      beside the JSON: the id of a pixel's segment is R + 256 G + 65536 B, 0 is void
    images/<stem>.png              or train/ (the JSON's name without panoptic_), or beside the JSON's folder

Segments of thing categories are nuclei, those of stuff categories tissue. Void and crowds are unknown. Only where no
category is stuff, and nothing but 0 could say "no nucleus here", void means that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from nucleipan.datasets._documents import json_by_id, json_int, json_text, read_json
from nucleipan.datasets._folders import by_stem, listed
from nucleipan.datasets._pixels import read_rgb
from nucleipan.datasets.annotated import Annotated, Item
from nucleipan.errors import DataError

_MAX_STUFF = 255


@dataclass(frozen=True)
class _Category:
    name: str
    is_thing: bool


# By id of the segment; None for a crowd.
_Segments = Mapping[int, _Category | None]


def read_coco_panoptic(folder: Path) -> list[Item]:
    """Names are ``json/image`` without suffixes, codes the names of the categories.

    Raises:
        DataError: there is no JSON, one is malformed, or a file that it names is missing.
    """
    documents = by_stem((".json",), folder, folder / "annotations").values()
    items = [item for document in documents for item in _items(folder, document)]
    return listed(folder, items, "panoptic_train.json, its PNGs in panoptic_train/ and images/")


def _items(folder: Path, path: Path) -> Iterator[Item]:
    document = read_json(path)
    categories = {i: _category(path, c) for i, c in json_by_id(path, document, "categories", "id").items()}
    annotations = json_by_id(path, document, "annotations", "image_id")
    images = {i: json_text(path, e, "file_name") for i, e in json_by_id(path, document, "images", "id").items()}
    for number in sorted(images.keys() ^ annotations.keys()):
        raise DataError(f"{path}: image {number} is listed in only one of images and annotations; complete the other")
    if sum(not c.is_thing for c in categories.values()) > _MAX_STUFF:
        raise DataError(f"{path}: has more than {_MAX_STUFF} stuff categories; keep those that occur")
    name = path.stem.removeprefix("panoptic_")
    places = [base / part for base in (folder, path.parent) for part in ("images", name)] + [folder, path.parent]
    for number, annotation in annotations.items():
        image = _existing(path, places, images[number])
        mask = _existing(path, [path.with_suffix("")], json_text(path, annotation, "file_name"))
        segments = _segments(path, annotation, categories)
        load = partial(_load, image, mask, segments, frozenset(categories.values()))
        # Segments are listed one by one: none that is a thing is a statement, not a mistake.
        yield Item(f"{path.stem}/{PurePath(images[number]).with_suffix('').as_posix()}", mask, load, may_be_empty=True)


def _category(path: Path, entry: dict[str, Any]) -> _Category:
    return _Category(json_text(path, entry, "name"), _flag(path, entry, "isthing"))


def _segments(path: Path, annotation: dict[str, Any], categories: Mapping[int, _Category]) -> _Segments:
    found: dict[int, _Category | None] = {}
    for number, segment in json_by_id(path, annotation, "segments_info", "id").items():
        category = json_int(path, segment, "category_id")
        if category not in categories:
            raise DataError(f"{path}: a segment is of category {category}; expected one of {sorted(categories)[:20]}")
        is_crowd = "iscrowd" in segment and _flag(path, segment, "iscrowd")
        found[number] = None if is_crowd else categories[category]
    return found


def _flag(path: Path, entry: dict[str, Any], key: str) -> bool:
    value = json_int(path, entry, key)
    if value > 1:
        raise DataError(f"{path}: {key!r} must be 0 or 1; found {value}")
    return value == 1


def _existing(path: Path, places: list[Path], name: str) -> Path:
    """The file called ``name`` in the first of ``places`` that has it."""
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise DataError(f"{path}: names the file {name[:80]!r}; expected a name below the data folder")
    for place in places:
        if (place / name).is_file():
            return place / name
    raise DataError(f"{path}: names {name[:80]!r}, which is missing in {' and '.join(map(str, dict.fromkeys(places)))}")


def _load(image: Path, mask: Path, segments: _Segments, categories: frozenset[_Category]) -> Annotated:
    pixels = read_rgb(image)
    red, green, blue = np.moveaxis(read_rgb(mask).astype(np.int64), -1, 0)
    values, position = np.unique(red + 256 * green + 65536 * blue, return_inverse=True)
    position = position.reshape(red.shape)
    stuff = sorted({c.name for c in categories if not c.is_thing})
    # What each of the values is, by its position among them:
    number, region, is_unknown = (np.zeros(len(values), dtype) for dtype in (np.int32, np.uint8, bool))
    codes: dict[int, str] = {}
    for k, value in enumerate(values.tolist()):
        kind = _kind(mask, segments, value)
        if kind is None:
            is_unknown[k] = value != 0 or bool(stuff)
        elif kind.is_thing:
            number[k] = len(codes) + 1
            codes[len(codes) + 1] = kind.name
        else:
            region[k] = 1 + stuff.index(kind.name)
    return Annotated(
        pixels,
        number[position] if any(c.is_thing for c in categories) else None,
        codes,
        region[position] if stuff else None,
        (None, *stuff) if stuff else (),
        is_unknown[position] if is_unknown.any() else None,
    )


def _kind(mask: Path, segments: _Segments, value: int) -> _Category | None:
    """Category of the pixels with ``value``; None for void and crowds."""
    if value == 0:
        return None
    if value not in segments:
        raise DataError(f"{mask}: holds segment {value}, which the JSON does not list; export both again")
    return segments[value]
