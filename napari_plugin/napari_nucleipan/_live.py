"""Nuclei of a run that is still going on, as lazy multiscale labels.

A tile's file is there as soon as the tile is done, long before the store is. ``LiveNuclei`` paints any box at any
level from these files alone; nothing is written, and only what is looked at is read. A nucleus is painted by the tile
whose core holds its centre, so that none is shown twice; the few that only stitching can settle appear in the store.

A displayed value is ``id * n + k``: ``k`` of 1..n is the nucleus's class, and all a cyclic colormap of n colours looks
at; ``id`` keeps touching nuclei of one class apart. Ids count in order of loading and mean nothing later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from napari_nucleipan._chunks import ChunkCache, ChunkedLevel, LazyLevel, RecentlyUsed
from napari_nucleipan._levels import is_pyramid
from nucleipan.classes import PanopticClasses
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.stitch import Measures, StitchContext, read_columns, tile_path
from nucleipan.tiles import Tile

# Every so many pixels: planes of tiles are kept at these resolutions, the coarser ones of many tiles.
_KEPT_STEPS = (1, 4, 16)
_KEPT_MB = 256
_MEASURES = ("n_px", "sum_y", "sum_x", "bbox", "first_x")


class LiveNuclei:
    """The finished tiles of a run. Safe to use from several threads.

    Attributes:
        context: the run's grid; ``mpp`` the micrometres per pixel of its view.
        colors: float32[n + 1, 4], RGBA for a cyclic label colormap; the first is the background's.
        levels: lazy uint32 arrays of the whole view, each of half the resolution of the one before it. They show the
            tiles that were finished at the last ``update``, or more.
    """

    def __init__(
        self, folder: Path, context: StitchContext, classes: PanopticClasses, finished: Iterable[Tile] = ()
    ) -> None:
        if context.mpp is None:
            raise ValueError("nuclei are shown in micrometres; give the StitchContext an mpp")
        self.context, self.mpp = context, context.mpp
        self.colors = _colors(classes)
        self.levels = self._levels()
        self._folder = folder
        self._finished = list(finished)
        self._values: dict[Tile, np.ndarray] = {}
        self._planes = RecentlyUsed(_KEPT_MB * 2**20)
        self._next_id = 0
        self._lock = Lock()

    @property
    def n_tiles(self) -> int:
        """How many tiles are finished."""
        return len(self._finished)

    def add(self, tile: Tile) -> None:
        """Show a tile whose file is there; loads what an overview of the slide needs.

        Raises:
            StoreError: the file is damaged.
        """
        for step in _KEPT_STEPS[1:]:
            self._plane(tile, step)
        self._finished.append(tile)

    def update(self) -> None:
        """Make the levels show all tiles that are finished now."""
        self.levels[0].forget()
        self.levels[-1].update()

    def paint(self, box: Box, step: int) -> np.ndarray:
        """uint32[h, w], every ``step``-th pixel and row of the view; ``box`` counts these.

        Raises:
            StoreError: a tile's file is damaged. One that is gone, as after the end of the run, shows nothing.
        """
        out = np.zeros(box.shape, np.uint32)
        on_view = box.scaled(step)
        for tile in list(self._finished):
            if tile.outer.clipped(on_view).is_empty:
                continue
            try:
                plane = self._plane(tile, step)
            except StoreError:
                if tile_path(self._folder, tile).exists():
                    raise
                continue
            if plane is not None:
                _paste(plane, self._values[tile], box, out)
        return out

    def _levels(self) -> list[LazyLevel]:
        cache = ChunkCache()
        shapes: list[tuple[int, ...]] = [self.context.grid.slide_shape]
        while not is_pyramid(shapes):
            shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
        reads = [partial(self.paint, step=2**index) for index in range(len(shapes))]
        return [
            LazyLevel(ChunkedLevel(index, shape, read, cache, np.uint32(0)))
            for index, (shape, read) in enumerate(zip(shapes, reads, strict=True))
        ]

    def _plane(self, tile: Tile, step: int) -> _Plane | None:
        """Labels of a tile at every ``step``-th pixel, None where it owns no nucleus."""
        kept = max(s for s in _KEPT_STEPS if s <= step)
        with self._lock:
            plane = self._planes.get((tile, kept))
            if plane is None:
                if len(self._values_of(tile)) == 1:
                    return None
                plane = self._read(tile, kept)
                self._planes.put((tile, kept), plane)
        return plane.thinned(step // kept)

    def _values_of(self, tile: Tile) -> np.ndarray:
        """uint32[n + 1], what is displayed for each label of a tile; a single 0 if it owns no nucleus."""
        if tile not in self._values:
            _, columns = read_columns(self._folder, tile, (*_MEASURES, "probabilities"))
            owned = Measures(*(columns[name] for name in _MEASURES)).is_centre_in(tile.core)
            self._values[tile] = self._named(owned, columns["probabilities"]) if owned.any() else np.zeros(1, np.uint32)
        return self._values[tile]

    def _named(self, owned: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        ids = self._next_id + np.arange(len(owned), dtype=np.uint32)
        self._next_id += len(owned)
        n_colors = len(self.colors) - 1
        values = np.where(owned, ids * n_colors + probabilities.argmax(1) + 1, 0)
        return np.concatenate([[0], values]).astype(np.uint32)

    def _read(self, tile: Tile, step: int) -> _Plane:
        box, columns = read_columns(self._folder, tile, ("instances",))
        return _Plane(box.y0, box.x0, columns["instances"]).thinned(step)


@dataclass(frozen=True)
class _Plane:
    """Labels over a part of a lattice of pixels whose first is at (y0, x0)."""

    y0: int
    x0: int
    labels: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.labels.nbytes

    def thinned(self, step: int) -> _Plane:
        """Those of the lattice's rows and columns that are multiples of ``step``."""
        if step == 1:
            return self
        labels = self.labels[-self.y0 % step :: step, -self.x0 % step :: step]
        return _Plane(-(-self.y0 // step), -(-self.x0 // step), np.ascontiguousarray(labels))


def _paste(plane: _Plane, values: np.ndarray, box: Box, out: np.ndarray) -> None:
    """Paint a plane into ``out``, which holds ``box``, where nothing was painted before."""
    covered = Box(plane.y0, plane.x0, plane.y0 + plane.labels.shape[0], plane.x0 + plane.labels.shape[1])
    common = covered.clipped(box)
    if not common.is_empty:
        target = out[common.slices(box)]
        np.copyto(target, values[plane.labels[common.slices(covered)]], where=target == 0)


def _colors(classes: PanopticClasses) -> np.ndarray:
    colors = [(0.0, 0.0, 0.0, 0.0), *((*(v / 255 for v in c.color), 1.0) for c in classes.things)]
    return np.array(colors, np.float32)
