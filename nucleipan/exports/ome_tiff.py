"""The two label planes as one pyramidal OME-TIFF, for QuPath, Fiji (Bio-Formats), OMERO and napari.

::

    image 0   nuclei    uint32, ids of the store, 0 = no nucleus
    image 1   classes   uint8, class ids, 0 = void; an annotation maps the ids to names

They are two images because OME gives an image one pixel type, and 8 bits are too few for ids. Each has its pyramid in
SubIFDs, tiles of 512 with deflate, and its pixel size in micrometres. Levels are those of the store, strided and never
averaged. Of a region, a coarser level starts at the pixel that holds the region's corner, less than one pixel of that
level away from it. Tiles are read as they are written: memory holds a few. ImageJ turns uint32 into float32, which is
exact below 2^24.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from nucleipan.classes import VOID_ID, VOID_NAME
from nucleipan.errors import StoreError
from nucleipan.exports.options import ExportOptions
from nucleipan.exports.tiling import raster_box
from nucleipan.files import whole_file
from nucleipan.geometry import Box
from nucleipan.ngff import n_levels_for
from nucleipan.store import PanopticStore

_TILE = 512
_BUFFER_BYTES = 1 << 25
# Classic TIFF counts bytes with 32 bits. What deflate makes of the pixels is known too late, so they count in full;
# the margin holds the directories.
_CLASSIC_BYTES = 2**32 - 2**25
_NAMESPACE = uuid.UUID("9d0f1d5b-0e5c-5a52-8f0e-0a3c1d6a7b42")
_DTYPES: dict[str, np.dtype[Any]] = {"nuclei": np.dtype("<u4"), "classes": np.dtype("u1")}


def export_ome_tiff(store: PanopticStore, path: Path, options: ExportOptions) -> int:
    """Write ``store``, or the pixels of a region, to ``path``; returns how many nuclei are in them.

    Raises:
        DataError: the file cannot be written.
        RegionError: the region leaves the slide.
        StoreError: the store holds an id that its table lacks.
    """
    levels = _levels(store, raster_box(store, options.roi))
    is_big = _pixel_bytes(levels) > _CLASSIC_BYTES
    is_written = np.zeros(store.last_id + 1, bool)
    with whole_file(Path(path)) as temporary, tifffile.TiffWriter(temporary, bigtiff=is_big, ome=True) as file:
        nuclei = [_tiles(store, "nuclei", level) for level in levels]
        nuclei[0] = _noted(nuclei[0], is_written, store)
        _write_image(file, nuclei, levels, store, "nuclei")
        _write_image(file, [_tiles(store, "classes", level) for level in levels], levels, store, "classes")
    return int(is_written[1:].sum())


@dataclass(frozen=True, slots=True)
class _Level:
    """``index`` in the store's pyramid, and what of it is written, in its own pixels."""

    index: int
    box: Box


def _levels(store: PanopticStore, part: Box) -> list[_Level]:
    levels = []
    for index in range(min(store.n_levels, n_levels_for(part.shape))):
        step = 2**index
        y, x = part.y0 // step, part.x0 // step
        levels.append(_Level(index, Box(y, x, y - (-part.height // step), x - (-part.width // step))))
    return levels


def _pixel_bytes(levels: list[_Level]) -> int:
    """Of both planes, in whole tiles."""
    tiles = sum(-(-level.box.height // _TILE) * -(-level.box.width // _TILE) for level in levels)
    return tiles * _TILE**2 * sum(dtype.itemsize for dtype in _DTYPES.values())


def _tiles(store: PanopticStore, name: str, level: _Level) -> Iterator[np.ndarray]:
    """[512, 512] each, row by row, the last ones filled up with 0."""
    read = store.instances if name == "nuclei" else store.class_map
    for y in range(level.box.y0, level.box.y1, _TILE):
        for x in range(level.box.x0, level.box.x1, _TILE):
            box = Box(y, x, y + _TILE, x + _TILE).clipped(level.box)
            tile = np.zeros((_TILE, _TILE), _DTYPES[name])
            tile[: box.height, : box.width] = read(box, level.index)
            yield tile


def _noted(tiles: Iterator[np.ndarray], seen: np.ndarray, store: PanopticStore) -> Iterator[np.ndarray]:
    """The same tiles; ``seen`` [N + 1] tells afterwards which ids were in them."""
    for tile in tiles:
        if int(tile.max()) >= len(seen):
            raise StoreError(
                f"{store.path} holds nucleus {tile.max()}, its table ends at {len(seen) - 1}; "
                "segment the slide again with --overwrite"
            )
        seen[tile] = True
        yield tile


def _write_image(
    file: tifffile.TiffWriter,
    pyramid: list[Iterator[np.ndarray]],
    levels: list[_Level],
    store: PanopticStore,
    name: str,
) -> None:
    """``pyramid``: the tiles of each level."""
    for level, tiles in zip(levels, pyramid, strict=True):
        is_first = level is levels[0]
        file.write(
            tiles,
            shape=level.box.shape,
            dtype=_DTYPES[name],
            tile=(_TILE, _TILE),
            compression="zlib",
            photometric="minisblack",
            subifds=len(levels) - 1 if is_first else None,
            subfiletype=0 if is_first else 1,
            resolution=(1e4 / store.mpp / 2**level.index,) * 2,
            resolutionunit="CENTIMETER",
            software="nucleipan" if is_first else False,
            metadata=_metadata(store, name, level.box) if is_first else None,
            buffersize=_BUFFER_BYTES,
        )


def _metadata(store: PanopticStore, name: str, part: Box) -> dict[str, Any]:
    """What OME-XML says of an image, and in the first one of the file."""
    identity = json.dumps([store.slide, store.model, store.config, str(part)], sort_keys=True)
    origin = {
        "slide": store.slide.get("name"),
        "model": store.model.get("name"),
        "level0_per_pixel": store.level0_per_pixel,
    }
    notes = [_note("origin", origin | {"x_px": part.x0, "y_px": part.y0})]
    if name == "classes":
        notes.append(_note("classes", {VOID_ID: VOID_NAME} | {c.id: c.name for c in store.classes.classes}))
    return {
        "UUID": str(uuid.uuid5(_NAMESPACE, identity)),
        "Creator": "nucleipan",
        "axes": "YX",
        "Name": name,
        "PhysicalSizeX": store.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": store.mpp,
        "PhysicalSizeYUnit": "µm",
        "MapAnnotation": notes,
    }


def _note(kind: str, values: dict[Any, Any]) -> dict[str, Any]:
    # XML has no place for control characters, which a name from outside may hold.
    clean = {str(key): "".join(c for c in str(value) if c.isprintable()) for key, value in values.items()}
    return {"Namespace": f"nucleipan/{kind}", "Value": clean}
