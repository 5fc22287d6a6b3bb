"""Label images as Cityscapes keeps them (https://www.cityscapes-dataset.com), for what trains and evaluates on those.

::

    <stem>/<stem>_<row>_<col>_gtFine_labelIds.png      uint8, class id of every pixel, 0 = void
    <stem>/<stem>_<row>_<col>_gtFine_instanceIds.png   uint16, class id, on nuclei 1000 * class id + k, k = 0, 1, ...
    <stem>/<stem>_<row>_<col>_leftImg8bit.png          the slide itself in the same pixels, if it is given
    labels.json                                        name, id, trainId (255: not trained on), hasInstances, color
    instances.csv                                      which nucleus of the store an instance of an image is

The ids count anew in every image, in the order of the store's: they do not say which nuclei of two images are one, but
the CSV does. There is room for a thousand nuclei of a class in an image. That is why tiles are small here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

from nucleipan.classes import VOID_ID, VOID_NAME
from nucleipan.errors import DataError
from nucleipan.exports.options import ExportOptions
from nucleipan.exports.tiling import ExportTile, TileSides, export_tiles, stem_of
from nucleipan.files import whole_folder
from nucleipan.store import PanopticStore
from nucleipan.store.origin import slide_in_grid

_SIDES = TileSides(tile=512, single=512)
_PER_CLASS = 1000
_IGNORED = 255


def export_cityscapes(store: PanopticStore, path: Path, options: ExportOptions) -> int:
    """Write ``store``, or the pixels of a region, to the new folder ``path``; returns how many nuclei are in them.

    Raises:
        DataError: ``path`` exists or cannot be written, or an image has more nuclei of a class than the format numbers.
        RegionError: the region leaves the slide.
        SlideError: the slide cannot be read, or is another one.
        StoreError: the store is damaged.
    """
    stem, is_written = stem_of(store), np.zeros(store.last_id + 1, bool)
    opened = nullcontext() if options.slide is None else slide_in_grid(store, options.slide)
    with opened as view, whole_folder(Path(path)) as folder:
        (folder / stem).mkdir()
        (folder / "labels.json").write_text(_labels(store), encoding="utf-8")
        with open(folder / "instances.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["file", "instance_id", "nucleus_id", "class"])
            for tile in export_tiles(store, options.roi, _SIDES):
                values, base = _instance_values(tile, store), folder / stem / tile.name(stem)
                _save(tile.painted(tile.class_id), base, "gtFine_labelIds")
                name = _save(tile.painted(values), base, "gtFine_instanceIds")
                if view is not None:
                    _save(view.read(tile.box), base, "leftImg8bit")
                table.writerows(_rows(tile, values, f"{stem}/{name}", store))
                is_written[tile.nuclei] = True
    return int(is_written.sum())


def _instance_values(tile: ExportTile, store: PanopticStore) -> np.ndarray:
    """uint16[n], what the instance image says of each segment.

    Raises:
        DataError: 16 bits do not hold it, or it would read as another class.
    """
    values = tile.class_id.astype(np.int64)
    for thing in store.classes.things:
        own = np.flatnonzero(tile.class_id == thing.id)
        room = max(0, min(_PER_CLASS, 2**16 - _PER_CLASS * thing.id))
        if len(own) > room:
            raise DataError(
                f"tile {tile.row},{tile.col} of {store.path} has {len(own):,} nuclei of class {thing.id} "
                f"({thing.name}); an image of Cityscapes holds {room:,} of it; "
                + ("export a smaller --roi, or coco-panoptic" if room else "export coco-panoptic")
            )
        values[own] = _PER_CLASS * thing.id + np.arange(len(own))
    return values.astype(np.uint16)


def _rows(tile: ExportTile, values: np.ndarray, file: str, store: PanopticStore) -> Iterator[tuple[str, int, int, str]]:
    for value, nucleus, class_id in zip(values.tolist(), tile.nucleus.tolist(), tile.class_id.tolist(), strict=True):
        if nucleus:
            yield file, value, nucleus, store.classes.by_id(class_id).name


def _labels(store: PanopticStore) -> str:
    void = {"name": VOID_NAME, "id": VOID_ID, "trainId": _IGNORED, "hasInstances": False, "color": [0, 0, 0]}
    known = [
        {"name": c.name, "id": c.id, "trainId": c.id - 1, "hasInstances": c.is_thing, "color": list(c.color)}
        for c in store.classes.classes
    ]
    return json.dumps([void, *known], indent=1) + "\n"


def _save(plane: np.ndarray, base: Path, kind: str) -> str:
    """Write uint8 or uint16 [h, w] or uint8[h, w, 3] to a PNG of this kind; returns its name."""
    path = base.with_name(f"{base.name}_{kind}.png")
    Image.fromarray(plane).save(path)
    return path.name
