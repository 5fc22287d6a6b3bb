"""Cityscapes, finely annotated (Cordts et al., CVPR 2016; the conventions of cityscapesScripts).

::

    leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_instanceIds.png   16 bits; other files there are not read

A value below 1000 is a label; ``1000 * label + k``, k = 0, 1, ..., is instance k of a label that has instances. Such a
label alone is a group in which nobody told instances apart. Groups and the labels that evaluation ignores are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from nucleipan.datasets._documents import json_by_id, json_int, json_text, read_json
from nucleipan.datasets._folders import listed, paired, subfolders, visible
from nucleipan.datasets._pixels import read_plane, read_rgb
from nucleipan.datasets.annotated import Annotated, Item
from nucleipan.errors import DataError

_IMAGE, _LABELS = "_leftImg8bit.png", "_instanceIds.png"
_PER_LABEL = 1000
_NOT_TRAINED = 255


@dataclass(frozen=True)
class CityscapesLabel:
    """``is_scored`` is false for what evaluation ignores; a thing has instances."""

    id: int
    name: str
    is_thing: bool
    is_scored: bool


@dataclass(frozen=True)
class CityscapesSegment:
    """What one value of an instance image means."""

    value: int
    label: CityscapesLabel

    @property
    def is_group(self) -> bool:
        return self.label.is_thing and self.value < _PER_LABEL


_NAMES = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
    *("truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
_FIRST_THING = 24
_IGNORED = frozenset({0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30})
#: By id; 19 of them are scored.
LABELS: Mapping[int, CityscapesLabel] = MappingProxyType(
    {i: CityscapesLabel(i, name, i >= _FIRST_THING, i not in _IGNORED) for i, name in enumerate(_NAMES)}
)


def read_cityscapes(folder: Path) -> list[Item]:
    """Names are ``split/city_sequence_frame``, codes the names of the labels.

    Images of a split that ``gtFine`` lacks, as ``train_extra``, are left aside.

    Raises:
        DataError: there is none, or an image or its labels are missing.
    """
    items = [item for split in subfolders(folder / "gtFine") for item in _items(folder, split)]
    return listed(folder, items, "leftImg8bit/train/<city>/*_leftImg8bit.png and gtFine/train/<city>/*_instanceIds.png")


def read_labels(folder: Path) -> Mapping[int, CityscapesLabel]:
    """The labels that ``folder/labels.json`` declares, as our export of a store has it, else those of Cityscapes.

    Raises:
        DataError: the file is malformed.
    """
    path = folder / "labels.json"
    if not path.is_file():
        return LABELS
    found = {}
    for number, entry in json_by_id(path, {"labels": read_json(path)}, "labels", "id").items():
        is_scored = json_int(path, entry, "trainId") != _NOT_TRAINED
        found[number] = CityscapesLabel(
            number, json_text(path, entry, "name"), bool(entry.get("hasInstances")), is_scored
        )
    return found


def find_instance_images(folder: Path) -> dict[str, Path]:
    """Instance images anywhere below ``folder`` by ``city_sequence_frame``.

    Raises:
        DataError: two are of the same frame.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{_LABELS}")):
        frame = path.name.removesuffix(_LABELS).removesuffix("_gtFine").removesuffix("_leftImg8bit")
        if frame in found:
            raise DataError(f"{path}: {found[frame]} is of the same frame; keep one of the two")
        found[frame] = path
    return found


def read_instances(
    path: Path, shape: tuple[int, int] | None, labels: Mapping[int, CityscapesLabel]
) -> tuple[np.ndarray, tuple[CityscapesSegment, ...]]:
    """int[h, w], which segment a pixel belongs to, and the segments by rising value; ``shape`` is the image's.

    Raises:
        DataError: the file cannot be read, has another shape, or holds an unknown label.
    """
    plane = read_plane(path, shape)
    values, position = np.unique(plane, return_inverse=True)
    segments = []
    for value in values.tolist():
        number = value if value < _PER_LABEL else value // _PER_LABEL
        if number not in labels:
            raise DataError(f"{path}: value {value} is of label {number}; expected one of {sorted(labels)}")
        segments.append(CityscapesSegment(value, labels[number]))
    return position.reshape(plane.shape), tuple(segments)


def _items(folder: Path, split: Path) -> Iterator[Item]:
    images = folder / "leftImg8bit" / split.name
    for city in sorted({city.name for base in (images, split) for city in subfolders(base)}):
        found = (_by_frame(images / city, _IMAGE), _by_frame(split / city, f"_gtFine{_LABELS}"))
        for frame, image, labels in paired(*found, split / city):
            load = partial(_load, image, labels)
            # A street without anybody on it is no mistake.
            yield Item(f"{split.name}/{frame}", labels, load, may_be_empty=True)


def _by_frame(folder: Path, suffix: str) -> dict[str, Path]:
    return {p.name.removesuffix(suffix): p for p in visible(folder) if p.name.endswith(suffix)}


def _load(image: Path, labels: Path) -> Annotated:
    pixels = read_rgb(image)
    height, width = pixels.shape[:2]
    plane, segments = read_instances(labels, (height, width), LABELS)
    stuff = sorted(label.name for label in LABELS.values() if label.is_scored and not label.is_thing)
    number, region, is_unknown = (np.zeros(len(segments), dtype) for dtype in (np.int32, np.uint8, bool))
    codes: dict[int, str] = {}
    for k, segment in enumerate(segments):
        if segment.is_group or not segment.label.is_scored:
            is_unknown[k] = True
        elif segment.label.is_thing:
            number[k] = len(codes) + 1
            codes[len(codes) + 1] = segment.label.name
        else:
            region[k] = 1 + stuff.index(segment.label.name)
    unknown = is_unknown[plane]
    return Annotated(pixels, number[plane], codes, region[plane], (None, *stuff), unknown if unknown.any() else None)
