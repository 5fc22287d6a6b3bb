"""Phase 2, what it works on: the tables of all tiles as columns, and the planes of a few tiles at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from nucleipan.geometry import Box
from nucleipan.stitch.recent import Recent
from nucleipan.stitch.record import Measures, StitchContext, read_columns
from nucleipan.tiles import Tile

_MEASURES = ("n_px", "sum_y", "sum_x", "bbox", "first_x")


@dataclass(frozen=True)
class Candidates:
    """The candidates of all tiles, tile after tile; those of tile t are ``start[t]:start[t + 1]``.

    Attributes:
        tiles: in raster order, with ``boxes`` that their planes cover.
        reach: int64[T, 4], y0, x0, y1, x1 of the pixels a tile can paint.
        start: int64[T + 1].
        tile_of: int32[n], index into ``tiles``.
        measures: geometry as the tiles saw it.
        is_owned: bool[n], the centre lies in the tile's own core.
        is_cut: bool[n], reaches beyond what the tile saw.
        best_thing: uint8[n], index of the most probable thing class.
    """

    tiles: list[Tile]
    boxes: list[Box]
    reach: np.ndarray
    start: np.ndarray
    tile_of: np.ndarray
    measures: Measures
    is_owned: np.ndarray
    is_cut: np.ndarray
    best_thing: np.ndarray

    def near(self, box: Box) -> np.ndarray:
        """Indices of the tiles that can paint a pixel of ``box``, in raster order."""
        is_near = (self.reach[:, :2] < (box.y1, box.x1)).all(1) & (self.reach[:, 2:] > (box.y0, box.x0)).all(1)
        return np.flatnonzero(is_near)

    def label(self, candidate: int) -> int:
        """Value of a candidate in its tile's instance plane."""
        return int(candidate - self.start[self.tile_of[candidate]]) + 1


@dataclass(frozen=True)
class Claims:
    """Which nuclei claim a pixel: of all that do, the one with the smallest rank gets it.

    ``rank`` uint32[n] by candidate, 0 for those that are no nuclei.
    """

    candidates: Candidates
    rank: np.ndarray

    def add(self, tile: int, instances: np.ndarray, ranks: np.ndarray, box: Box) -> None:
        """Let the nuclei of a tile (int32[h, w] over its box) claim pixels of ``ranks`` uint32[h, w], over ``box``."""
        c = self.candidates
        reach = c.boxes[tile].clipped(box)
        of_label = np.concatenate([np.zeros(1, np.uint32), self.rank[c.start[tile] : c.start[tile + 1]]])
        _claim(ranks[reach.slices(box)], instances[reach.slices(c.boxes[tile])], of_label)


class PlaneCache(Recent[tuple[np.ndarray, np.ndarray]]):
    """instances int32[h, w] and stuff uint8[h, w] of recently used tiles, at most about ``budget_mb`` of them."""

    def __init__(self, folder: Path, tiles: list[Tile], budget_mb: float = 128) -> None:
        def read(tile: int) -> tuple[np.ndarray, np.ndarray]:
            _, columns = read_columns(folder, tiles[tile], ("instances", "stuff"))
            return columns["instances"].astype(np.int32), columns["stuff"]

        super().__init__(read, lambda planes: sum(p.nbytes for p in planes), int(budget_mb * 2**20))


def load_candidates(folder: Path, context: StitchContext) -> Candidates:
    """Read the tables of all tiles of the grid.

    Raises:
        StoreError: a tile file is missing or damaged.
    """
    tiles = list(context.grid)
    boxes, parts = [], []
    for tile in tiles:
        box, columns = read_columns(folder, tile, (*_MEASURES, "is_cut", "probabilities"))
        boxes.append(box)
        columns["is_owned"] = Measures(*(columns[name] for name in _MEASURES)).is_centre_in(tile.core)
        columns["best_thing"] = columns.pop("probabilities").argmax(1).astype(np.uint8)
        parts.append(columns)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counts = np.array([len(part["n_px"]) for part in parts], np.int64)
    return Candidates(
        tiles=tiles,
        boxes=boxes,
        reach=np.array([(b.y0, b.x0, b.y1, b.x1) for b in boxes], np.int64),
        start=np.concatenate([[0], np.cumsum(counts)]),
        tile_of=np.repeat(np.arange(len(tiles), dtype=np.int32), counts),
        measures=Measures(*(joined[name] for name in _MEASURES)),
        is_owned=joined["is_owned"],
        is_cut=joined["is_cut"],
        best_thing=joined["best_thing"],
    )


@numba.njit(cache=True, nogil=True)
def _claim(ranks: np.ndarray, instances: np.ndarray, rank_of_label: np.ndarray) -> None:
    """Of all nuclei that claim a pixel the one with the smallest rank gets it."""
    for i in range(ranks.shape[0]):
        for j in range(ranks.shape[1]):
            label = instances[i, j]
            if label:
                rank = rank_of_label[label]
                if rank and (ranks[i, j] == 0 or rank < ranks[i, j]):
                    ranks[i, j] = rank
