"""COCO panoptic annotations (https://cocodataset.org/#format-data), what panopticapi and training frameworks read.

::

    <stem>.json                     images, annotations with segments_info, categories
    <stem>/<stem>_<row>_<col>.png   the segment of a pixel is R + 256 G + 65536 B; 0 = void
    images/<stem>_<row>_<col>.jpg   the slide itself in the same pixels, if it is given

A nucleus is a segment with its id in the store, in every image that shows a part of it; area and box are those of the
part. A tissue class is one segment per image, with the largest id of a nucleus plus its class id. Images are
those of ``tiling``; ``origin_xy`` of an image is where it lies in the store's pixels. The JSON is written image by
image: memory holds the segments of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from nucleipan.errors import DataError
from nucleipan.exports.options import ExportOptions
from nucleipan.exports.tiling import ExportTile, TileSides, export_tiles, stem_of
from nucleipan.files import whole_folder
from nucleipan.store import PanopticStore
from nucleipan.store.origin import slide_in_grid

_SIDES = TileSides(tile=1024, single=4096)
_MAX_ID = 2**24 - 1
_JPEG_QUALITY = 95


def export_coco(store: PanopticStore, path: Path, options: ExportOptions) -> int:
    """Write ``store``, or the pixels of a region, to the new folder ``path``; returns how many nuclei are in them.

    Raises:
        DataError: ``path`` exists or cannot be written, or the store has more nuclei than 24 bits can number.
        RegionError: the region leaves the slide.
        SlideError: the slide cannot be read, or is another one.
        StoreError: the store is damaged.
    """
    _check_ids(store)
    stem, is_written = stem_of(store), np.zeros(store.last_id + 1, bool)
    opened = nullcontext() if options.slide is None else slide_in_grid(store, options.slide)
    with opened as view, whole_folder(Path(path)) as folder:
        (folder / stem).mkdir()
        if view is not None:
            (folder / "images").mkdir()
        images: list[dict[str, Any]] = []
        with open(folder / f"{stem}.json", "w", encoding="utf-8") as file:
            file.write(f'{{"info": {_info(store)},\n"categories": {_categories(store)},\n"annotations": [')
            for tile in export_tiles(store, options.roi, _SIDES):
                numbers = np.where(tile.nucleus > 0, tile.nucleus, tile.class_id + np.uint32(store.last_id))
                _save_ids(tile.painted(numbers), folder / stem / f"{tile.name(stem)}.png")
                file.write(",\n" if images else "\n")
                images.append(_image(tile, stem, len(images) + 1))
                file.write(_annotation(tile, stem, len(images), numbers))
                if view is not None:
                    pixels = Image.fromarray(view.read(tile.box))
                    pixels.save(folder / "images" / images[-1]["file_name"], quality=_JPEG_QUALITY)
                is_written[tile.nuclei] = True
            file.write(f'\n],\n"images": {json.dumps(images)}}}\n')
    return int(is_written.sum())


def _check_ids(store: PanopticStore) -> None:
    if store.last_id + len(store.classes) > _MAX_ID:
        raise DataError(
            f"{store.path} has nuclei up to {store.last_id:,}; the ids of COCO panoptic end at {_MAX_ID:,}; "
            "export it as ome-tiff or geojson"
        )


def _info(store: PanopticStore) -> str:
    info = {"description": "nucleipan", "slide": store.slide, "model": store.model, "corrections": store.corrections}
    return json.dumps(info | {"mpp": store.mpp, "level0_per_pixel": store.level0_per_pixel})


def _categories(store: PanopticStore) -> str:
    return json.dumps(
        [
            {
                "id": c.id,
                "name": c.name,
                "supercategory": "nucleus" if c.is_thing else "tissue",
                "isthing": int(c.is_thing),
                "color": list(c.color),
            }
            for c in store.classes.classes
        ]
    )


def _image(tile: ExportTile, stem: str, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": f"{tile.name(stem)}.jpg",
        "height": tile.box.height,
        "width": tile.box.width,
        "origin_xy": [tile.box.x0, tile.box.y0],
    }


def _annotation(tile: ExportTile, stem: str, image_id: int, numbers: np.ndarray) -> str:
    segments = list(_segments(tile, numbers))
    return json.dumps({"image_id": image_id, "file_name": f"{tile.name(stem)}.png", "segments_info": segments})


def _segments(tile: ExportTile, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
    areas = np.bincount(tile.index.ravel(), minlength=len(numbers) + 1)[1:].tolist()
    boxes = ndimage.find_objects(tile.index)
    for number, class_id, area, (rows, cols) in zip(
        numbers.tolist(), tile.class_id.tolist(), areas, boxes, strict=True
    ):
        bbox_xywh = [cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start]
        yield {"id": number, "category_id": class_id, "area": area, "bbox": bbox_xywh, "iscrowd": 0}


def _save_ids(ids: np.ndarray, path: Path) -> None:
    """Write ids[h, w] below 2^24 as RGB: their lowest three bytes, the least first."""
    bytes_of = np.ascontiguousarray(ids, "<u4").view(np.uint8).reshape(*ids.shape, 4)
    Image.fromarray(np.ascontiguousarray(bytes_of[..., :3])).save(path)
