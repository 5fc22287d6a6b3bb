"""How a store, or a part of one, becomes a series of images, and what each of them holds.

A part is cut into squares row by row from its upper left corner; the last ones of a row or column are smaller. An image
shows pixels, so a nucleus on a border is in the images on both sides, each with its own share of it. Squares that hold
nothing but void, where nothing was segmented, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nucleipan.errors import RegionError, StoreError
from nucleipan.exports.selection import view_box
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore


@dataclass(frozen=True, slots=True)
class TileSides:
    """Longest sides of images, in pixels.

    Attributes:
        tile: where a part is cut.
        single: a region of interest up to this is not cut.
    """

    tile: int
    single: int


@dataclass(frozen=True, eq=False)
class ExportTile:
    """One image; every nucleus and every tissue class in it is a segment, nuclei first, each in the order of ids.

    Attributes:
        row, col: of the tile in the part that is exported.
        box: in the store's pixels.
        index: int32[h, w], 1 + the position of a pixel's segment in the other arrays, 0 = void.
        nucleus: uint32[n], ids in the store; 0 for tissue.
        class_id: uint8[n].
    """

    row: int
    col: int
    box: Box
    index: np.ndarray
    nucleus: np.ndarray
    class_id: np.ndarray

    def name(self, stem: str) -> str:
        """``stem`` with row and column, in an order that is the tiles' own when sorted."""
        return f"{stem}_{self.row:06d}_{self.col:06d}"

    @property
    def nuclei(self) -> np.ndarray:
        """uint32, ids of the nuclei in the image."""
        return self.nucleus[self.nucleus > 0]

    def painted(self, values: np.ndarray) -> np.ndarray:
        """[h, w], each pixel the value of its segment (``values``, [n]), 0 where it is void."""
        return np.concatenate([np.zeros(1, values.dtype), values])[self.index]


def raster_box(store: PanopticStore, roi: Box | None) -> Box:
    """Pixels of the store that ``roi`` (level-0 pixels) covers, all without one.

    Raises:
        RegionError: it is empty, not inside the slide, or in the part of a pixel that the store's grid rounded off.
    """
    box = view_box(store, roi)
    if box.is_empty:
        raise RegionError(
            f"ROI {roi} holds no pixel of the store, each of which is {store.level0_per_pixel:g} of the slide's; "
            "choose a larger one"
        )
    return box


def export_tiles(store: PanopticStore, roi: Box | None, sides: TileSides) -> Iterator[ExportTile]:
    """The images of a store, or of ``roi`` (level-0 pixels), row by row; each is read when it is asked for.

    Raises:
        RegionError: as ``raster_box``.
        StoreError: ids and classes of pixels contradict each other or the table.
    """
    part = raster_box(store, roi)
    side = sides.single if roi is not None and max(part.shape) <= sides.single else sides.tile
    for row in range(-(-part.height // side)):
        for col in range(-(-part.width // side)):
            y, x = part.y0 + row * side, part.x0 + col * side
            tile = _read(store, row, col, Box(y, x, y + side, x + side).clipped(part))
            if len(tile.class_id):
                yield tile


def stem_of(store: PanopticStore) -> str:
    """Name of the store without its suffix."""
    return store.path.name.removesuffix(".ome.zarr")


def _read(store: PanopticStore, row: int, col: int, box: Box) -> ExportTile:
    instances, classes = store.instances(box), store.class_map(box)
    last_id, n_classes = store.last_id, len(store.classes)
    if int(instances.max()) > last_id or int(classes.max()) > n_classes:
        raise _contradiction(store, box)
    # One number per segment: nuclei keep their ids, tissue classes come after all of them.
    numbers = np.where(instances > 0, instances, np.where(classes > 0, classes + np.uint32(last_id), np.uint32(0)))
    is_present = np.zeros(last_id + n_classes + 1, bool)
    is_present[numbers] = True
    present = np.flatnonzero(is_present[1:]) + 1
    position = np.zeros(len(is_present), np.int32)
    position[present] = np.arange(1, len(present) + 1)
    index = position[numbers]
    class_of = np.zeros(len(present) + 1, np.uint8)
    class_of[index] = classes
    is_nucleus = present <= last_id
    is_thing = np.isin(class_of[1:], store.classes.thing_ids)
    if not (np.array_equal(class_of[index], classes) and np.array_equal(is_thing, is_nucleus)):
        raise _contradiction(store, box)
    nucleus = np.where(is_nucleus, present, 0).astype(np.uint32)
    return ExportTile(row, col, box, index, nucleus, class_of[1:])


def _contradiction(store: PanopticStore, box: Box) -> StoreError:
    where = f"{box.y0},{box.x0},{box.y1},{box.x1}"
    return StoreError(
        f"{store.path}: ids, classes and table contradict each other in pixels {where}; "
        "segment the slide again with --overwrite"
    )
