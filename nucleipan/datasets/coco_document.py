"""A COCO panoptic JSON and the PNGs that belong to it (https://cocodataset.org/#format-data and #format-results).

Of a JSON only what says which pixel is what is read: ``annotations`` with their ``segments_info``, ``categories``, and
``images`` where they are listed. A file of results lacks the last two; its categories are then the truth's. The id of
an image is a number, in Cityscapes' files a text.

The two halves must agree, as COCO's own evaluation demands of results: a segment in the PNG that the JSON does not
list, one that no pixel has, or one of an unknown category is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from nucleipan.datasets._documents import json_by_id, json_id, json_int, json_text, read_json
from nucleipan.datasets._folders import by_stem
from nucleipan.datasets._pixels import read_rgb
from nucleipan.errors import DataError

ImageId = int | str
_MAX_SEGMENT = 2**24 - 1


@dataclass(frozen=True)
class Category:
    """``color`` is sRGB, 0-255, grey where the JSON has none."""

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int] = (128, 128, 128)


@dataclass(frozen=True)
class Segment:
    id: int
    category: Category
    is_crowd: bool


@dataclass(frozen=True)
class CocoAnnotation:
    """One image's segments in the order of the JSON ``path``, and the PNG that draws them."""

    path: Path
    image_id: ImageId
    mask: Path
    segments: tuple[Segment, ...]

    def plane(self) -> np.ndarray:
        """int32[h, w], which of ``segments`` a pixel belongs to, counting from 1; 0 is void.

        Raises:
            DataError, SlideError: the PNG cannot be read, or its segments are not those of the JSON.
        """
        red, green, blue = np.moveaxis(read_rgb(self.mask).astype(np.int32), -1, 0)
        values, position = np.unique(red + 256 * green + 65536 * blue, return_inverse=True)
        number_of = {0: 0} | {segment.id: k for k, segment in enumerate(self.segments, start=1)}
        unlisted = [value for value in values.tolist() if value not in number_of]
        if unlisted:
            raise DataError(
                f"{self.mask}: holds segment {unlisted[0]}, which {self.path} does not list for image "
                f"{self.image_id}; export both again"
            )
        unseen = sorted(number_of.keys() - {0} - set(values.tolist()))
        if unseen:
            raise DataError(
                f"{self.path}: lists segment {unseen[0]} of image {self.image_id}, which no pixel of {self.mask} "
                "has; export both again"
            )
        numbers = np.array([number_of[value] for value in values.tolist()], np.int32)
        return numbers[position].reshape(red.shape)


@dataclass(frozen=True)
class CocoDocument:
    """What a JSON says. ``images`` are file names by id, empty in a file of results."""

    path: Path
    categories: Mapping[int, Category]
    images: Mapping[ImageId, str]
    annotations: Mapping[ImageId, CocoAnnotation]


def find_coco_documents(folder: Path) -> list[Path]:
    """The panoptic JSONs of ``folder`` and its ``annotations/``: called so, or with a folder of PNGs beside them.

    COCO puts captions, boxes and key points of the same images beside them.
    """
    found = by_stem((".json",), folder, folder / "annotations").values()
    return [path for path in found if path.stem.startswith("panoptic") or path.with_suffix("").is_dir()]


def read_categories(path: Path) -> tuple[Category, ...]:
    """The categories of a JSON, in its order.

    Raises:
        DataError: the file cannot be read, or lists none.
    """
    categories = tuple(_categories(path, read_json(path)).values())
    if not categories:
        raise DataError(f"{path}: lists no categories; name a panoptic JSON of COCO")
    return categories


def read_coco_document(path: Path, categories: Mapping[int, Category] | None = None) -> CocoDocument:
    """Read a JSON; with ``categories``, those of the truth, it may be a file of results.

    Raises:
        DataError: it is malformed, a PNG is missing, a category is unknown, or an id means something else in the truth.
    """
    document = read_json(path)
    if categories is None:
        categories = _categories(path, document)
    elif "categories" in document:
        _check_same(path, _categories(path, document), categories)
    images = {}
    if "images" in document:
        images = {i: json_text(path, e, "file_name") for i, e in _by_image(path, document, "images", "id").items()}
    entries = _by_image(path, document, "annotations", "image_id")
    annotations = {i: _annotation(path, i, entry, categories) for i, entry in entries.items()}
    return CocoDocument(path, categories, images, annotations)


def existing_file(path: Path, places: list[Path], name: str, image_id: ImageId) -> Path:
    """The file called ``name``, which the JSON ``path`` names, in the first of ``places`` that has it."""
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise DataError(f"{path}: names the file {name[:80]!r}; expected a name below the data folder")
    for place in places:
        if (place / name).is_file():
            return place / name
    listed = " and ".join(map(str, dict.fromkeys(places)))
    raise DataError(f"{path}: of image {image_id} it names {name[:80]!r}, which is missing in {listed}")


def _categories(path: Path, document: Any) -> dict[int, Category]:
    return {
        number: Category(number, json_text(path, entry, "name"), _flag(path, entry, "isthing"), _color(path, entry))
        for number, entry in json_by_id(path, document, "categories", "id").items()
    }


def _color(path: Path, entry: dict[str, Any]) -> tuple[int, int, int]:
    match entry.get("color", list(Category.color)):
        case [int(r), int(g), int(b)] if all(0 <= v <= 255 for v in (r, g, b)):
            return r, g, b
    raise DataError(f"{path}: 'color' must be three integers from 0 to 255; found {entry['color']!r:.80}")


def _check_same(path: Path, own: Mapping[int, Category], truth: Mapping[int, Category]) -> None:
    """Refuse ids that mean one category here and another in the truth: every figure would be of the wrong class."""
    for number, category in own.items():
        if number in truth and category.name != truth[number].name:
            raise DataError(
                f"{path}: category {number} is {category.name!r}, in the truth {truth[number].name!r}; use its ids"
            )


def _by_image(path: Path, document: Any, key: str, id_key: str) -> dict[ImageId, dict[str, Any]]:
    return json_by_id(path, document, key, id_key, json_id)


def _annotation(
    path: Path, image_id: ImageId, entry: dict[str, Any], categories: Mapping[int, Category]
) -> CocoAnnotation:
    segments = []
    for number, segment in json_by_id(path, entry, "segments_info", "id").items():
        category = json_int(path, segment, "category_id")
        if category not in categories:
            raise DataError(
                f"{path}: segment {number} of image {image_id} is of category {category}; expected one of "
                f"{sorted(categories)[:20]}"
            )
        if not 0 < number <= _MAX_SEGMENT:
            raise DataError(f"{path}: image {image_id} has a segment {number}; expected ids from 1 to {_MAX_SEGMENT}")
        is_crowd = "iscrowd" in segment and _flag(path, segment, "iscrowd")
        segments.append(Segment(number, categories[category], is_crowd))
    mask = existing_file(path, [path.with_suffix("")], json_text(path, entry, "file_name"), image_id)
    return CocoAnnotation(path, image_id, mask, tuple(segments))


def _flag(path: Path, entry: dict[str, Any], key: str) -> bool:
    value = json_int(path, entry, key)
    if value > 1:
        raise DataError(f"{path}: {key!r} must be 0 or 1; found {value}")
    return value == 1
