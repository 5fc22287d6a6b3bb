"""What a segmented tile is made of: a stuff plane, an instance plane and a table of nuclei.

Both planes cover the tile's *outer* box: a nucleus that belongs to this tile may reach over its core's edge.
Which nuclei the tile keeps is decided by stitching, not here. Under a nucleus the stuff plane tells the tissue it
lies in. Coordinates in the table are those of the whole view, never of the tile, so tables can be joined as
they are. What panoptic texts call the instance number follows from the table: ``numbers_in_class``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nucleipan.classes import VOID_ID
from nucleipan.tiles import Tile


@dataclass(frozen=True)
class PanopticTile:
    """Segmentation of one tile.

    Attributes:
        tile: where it lies.
        stuff: uint8[h, w] over ``tile.outer``, stuff class id of every pixel, nuclei included; 0 = void.
        instances: int32[h, w] over ``tile.outer``, 0 = no nucleus, else 1..n: row ``i - 1`` of ``probabilities``.
        probabilities: float32[n, T], probability of each thing class (rows sum to 1, order of
            ``PanopticClasses.things``).
        scores: float32[n], how likely it is that the instance is a nucleus.
    """

    tile: Tile
    stuff: np.ndarray
    instances: np.ndarray
    probabilities: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        shape = self.tile.outer.shape
        if self.stuff.shape != shape or self.instances.shape != shape:
            raise ValueError(f"planes {self.stuff.shape}, {self.instances.shape} do not cover the outer box {shape}")
        if len(self.probabilities) != len(self.scores):
            raise ValueError(f"{len(self.probabilities)} probability rows for {len(self.scores)} scores")

    def without(self, where: np.ndarray) -> PanopticTile:
        """The same with void at ``where``, bool[h, w] over ``tile.outer``. A nucleus is left out if more than half of
        it lies there, and whole otherwise: where the border of a region happens to be must not cut nuclei."""
        n = len(self.scores)
        inside = np.bincount(self.instances[where], minlength=n + 1)
        is_kept = 2 * inside <= np.bincount(self.instances.ravel(), minlength=n + 1)
        is_kept[0] = False
        renumbered = np.where(is_kept, np.cumsum(is_kept), 0).astype(np.int32)
        stuff = np.where(where, np.uint8(VOID_ID), self.stuff)
        rows = is_kept[1:]
        return replace(
            self, stuff=stuff, instances=renumbered[self.instances], probabilities=self.probabilities[rows],
            scores=self.scores[rows],
        )  # fmt: skip


def numbers_in_class(ids: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """int64[n], which nucleus of its class each is: the first is 0, the second 1, ..., by rising id.

    The instance number of panoptic texts: class and number name a segment as well as its id does. Ids of a store count
    in raster order of the centres, so the first of a class is the topmost. Corrections move the numbers of later ones.
    """
    ids, class_ids = np.asarray(ids), np.asarray(class_ids)
    order = np.lexsort((ids, class_ids))
    in_order = class_ids[order]
    is_first = np.concatenate([np.ones(min(1, len(order)), bool), in_order[1:] != in_order[:-1]])
    first = np.flatnonzero(is_first)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    return numbers
