"""What a report counts in: the classes of a store, and square bins over the part of the slide that was segmented.

A store comes from outside. What the arithmetic of a report rests on is checked once, here: sizes, pixel sizes, and that
the arrays are as large as the store says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nucleipan.classes import GLASS_NAME, VOID_ID, VOID_NAME, PanopticClass
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

_MAX_SIDE_PX = 2**24
_VOID = PanopticClass(VOID_ID, VOID_NAME, False, (255, 255, 255))


@dataclass(frozen=True)
class Grid:
    """Bins over a box, the last row and column cut by it.

    Attributes:
        box: in pixels of the view.
        bin_um: height and width of a bin.
        mpp: of the view.
    """

    box: Box
    bin_um: tuple[float, float]
    mpp: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, at least one each."""
        height, width = (
            max(1, math.ceil(n * self.mpp / side - 1e-9)) for n, side in zip(self.box.shape, self.bin_um, strict=True)
        )
        return height, width

    @property
    def n_bins(self) -> int:
        return self.shape[0] * self.shape[1]

    def bins(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """int64, number of the bin (row by row) that holds each point; outside the box, the nearest.

        Args:
            y, x: in pixels of the view.
        """
        return self.rows(y) * self.shape[1] + self.cols(x)

    def rows(self, y: np.ndarray) -> np.ndarray:
        """int64, row of each coordinate, in pixels of the view."""
        return self._along(y, self.box.y0, 0)

    def cols(self, x: np.ndarray) -> np.ndarray:
        """int64, column of each coordinate, in pixels of the view."""
        return self._along(x, self.box.x0, 1)

    def _along(self, values: np.ndarray, origin: int, axis: int) -> np.ndarray:
        index = np.floor((values - origin) * (self.mpp / self.bin_um[axis]))
        return np.clip(index, 0, self.shape[axis] - 1).astype(np.int64)

    def edges_um(self, axis: int) -> np.ndarray:
        """float64[n + 1], where the bins of an axis (0 for y, 1 for x) begin and end, from the corner of the box."""
        return np.minimum(np.arange(self.shape[axis] + 1) * self.bin_um[axis], self.box.shape[axis] * self.mpp)

    @cached_property
    def areas_mm2(self) -> np.ndarray:
        """float64[rows, cols], of every bin inside the box."""
        return np.outer(np.diff(self.edges_um(0)), np.diff(self.edges_um(1))) / 1e6


@dataclass(frozen=True)
class Frame:
    """The classes of a store in the order of the page; ``things`` are rows of its planes, ``tissues`` too.

    Attributes:
        things: kinds of nuclei.
        tissues: kinds of tissue, then background, then void.
    """

    store: PanopticStore
    things: tuple[PanopticClass, ...]
    tissues: tuple[PanopticClass, ...]

    @property
    def n_tissues(self) -> int:
        """Tissues proper, which come first: without background and void."""
        return sum(1 for c in self.tissues if c.id != VOID_ID and c.name != GLASS_NAME)

    @property
    def level0_mpp(self) -> float:
        return self.store.mpp / self.store.level0_per_pixel

    @property
    def extent_mm2(self) -> float:
        return self.store.spec.extent.area * self.store.mpp**2 / 1e6

    @property
    def extent_um(self) -> tuple[float, float]:
        """Height and width of the part that was segmented."""
        height, width = self.store.spec.extent.shape
        return height * self.store.mpp, width * self.store.mpp

    @cached_property
    def row_of_thing(self) -> np.ndarray:
        """int64[256], index into ``things`` by class id; -1 for what is none."""
        return _rows(self.things)

    @cached_property
    def row_of_tissue(self) -> np.ndarray:
        """int64[256], index into ``tissues`` by class id; -1 for what is none."""
        return _rows(self.tissues)

    def is_whole_slide(self) -> bool:
        return self.store.spec.extent == Box.of_shape(self.store.shape)

    def grid(self, bin_um: tuple[float, float]) -> Grid:
        """Bins of that height and width over the part that was segmented."""
        return Grid(self.store.spec.extent, bin_um, self.store.mpp)


def frame_of(store: PanopticStore) -> Frame:
    """The frame of a store that makes sense.

    Raises:
        StoreError: the size is impossible, or an array has not the size that the store says.
    """
    if max(store.shape) > _MAX_SIDE_PX:
        raise _contradiction(store, f"its shape is {store.shape}")
    for name in ("nuclei", "classes"):
        if store.array(name).shape != store.shape:
            raise _contradiction(store, f"labels/{name} spans {store.array(name).shape}, not {store.shape}")
    stuff = store.classes.stuff
    glass = tuple(c for c in stuff if c.name == GLASS_NAME)
    return Frame(store, store.classes.things, (*(c for c in stuff if c not in glass), *glass, _VOID))


def _rows(classes: tuple[PanopticClass, ...]) -> np.ndarray:
    rows = np.full(256, -1, np.int64)
    for row, c in enumerate(classes):
        rows[c.id] = row
    return rows


def _contradiction(store: PanopticStore, what: str) -> StoreError:
    return StoreError(f"{store.path} contradicts itself: {what}; segment the slide again with --overwrite")
