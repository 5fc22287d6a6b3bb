"""Cutting a slide into tiles: arithmetic only, no pixels.

A tile has a *core*, the pixels it answers for, and a *margin* of context around it, together its *outer* box. Cores
partition the extent exactly::

    +-----------------------+      outer = core + margin
    |  margin               |
    |   +---------------+   |      cores start at multiples of `align` (the deepest stride of any
    |   |     core      |   |      network), and so do the outers, so that a pixel meets the same
    |   |               |   |      sampling phase in every tile that sees it
    |   +---------------+   |
    +-----------------------+

When the margin covers the network's receptive field, a pixel's output does not depend on the tile it was
computed in; stitching then has nothing to repair.

All tiles have the same size, so that a network is prepared and its memory planned once: the extent is divided
evenly, and at the slide's border, beyond which there is nothing to see, an outer box is shifted inwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nucleipan.errors import ConfigError
from nucleipan.geometry import Box

#: The deepest stride of any network, in pixels of its grid: tiles begin, and filled images end, at multiples of it.
ALIGN = 64
#: Side of a core, where nobody chose. With margins of 128 it computes 1.36 times the pixels it keeps; 2048 would be
#: 1.27, and needs half a gigabyte more in 32-bit floats.
DEFAULT_TILE = 1536


@dataclass(frozen=True, slots=True)
class Tile:
    """One unit of work. ``core`` and ``outer`` are in the grid of the view that is tiled."""

    row: int
    col: int
    core: Box
    outer: Box


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles over ``extent``, the part of a slide to segment, of a slide of ``slide_shape`` (height, width).

    ``core`` is the side of a core in pixels at most, ``margin`` the context around it; both are rounded up to
    multiples of ``align``. The first core of each axis starts at the multiple of ``align`` at or before the
    extent's start, all have the same sides, and the last are clipped to the extent. Outer boxes have the same sides
    too, or end at the slide's border, less than ``align`` short of them.

    Raises:
        ConfigError: ``core`` or ``align`` < 1, ``margin`` < 0, or the extent is empty or outside the slide.
    """

    slide_shape: tuple[int, int]
    extent: Box
    core: int
    margin: int
    align: int = ALIGN

    def __post_init__(self) -> None:
        if self.core < 1 or self.align < 1 or self.margin < 0:
            raise ConfigError(
                f"tiles need core >= 1, align >= 1 and margin >= 0; found {self.core}, {self.align}, {self.margin}"
            )
        if self.extent.is_empty or not Box.of_shape(self.slide_shape).contains(self.extent):
            raise ConfigError(f"extent {self.extent} must be a non-empty part of a slide of {self.slide_shape}")
        object.__setattr__(self, "core", _round_up(self.core, self.align))
        object.__setattr__(self, "margin", _round_up(self.margin, self.align))

    @property
    def n_rows(self) -> int:
        return -(-(self.extent.y1 - self._origin[0]) // self._sides[0])

    @property
    def n_cols(self) -> int:
        return -(-(self.extent.x1 - self._origin[1]) // self._sides[1])

    @property
    def _origin(self) -> tuple[int, int]:
        return self.extent.y0 // self.align * self.align, self.extent.x0 // self.align * self.align

    @property
    def _sides(self) -> tuple[int, int]:
        """Height and width of a core: what remains of ``core`` when no tile is to be much smaller than others."""
        lengths = self.extent.y1 - self._origin[0], self.extent.x1 - self._origin[1]
        height, width = (_round_up(-(-length // -(-length // self.core)), self.align) for length in lengths)
        return height, width

    def __len__(self) -> int:
        return self.n_rows * self.n_cols

    def __iter__(self) -> Iterator[Tile]:
        """Tiles in raster order."""
        for row in range(self.n_rows):
            for col in range(self.n_cols):
                yield self.tile(row, col)

    def tile(self, row: int, col: int) -> Tile:
        if not (0 <= row < self.n_rows and 0 <= col < self.n_cols):
            raise ConfigError(f"tile ({row}, {col}) is outside the grid of {self.n_rows} x {self.n_cols}")
        (height, width), (slide_height, slide_width) = self._sides, self.slide_shape
        y, x = self._origin[0] + row * height, self._origin[1] + col * width
        core = Box(y, x, y + height, x + width).clipped(self.extent)
        y0, y1 = self._outer(y, height, slide_height)
        x0, x1 = self._outer(x, width, slide_width)
        return Tile(row, col, core, Box(y0, x0, y1, x1))

    def _outer(self, start: int, side: int, length: int) -> tuple[int, int]:
        """First and last + 1 pixel of an outer box along an axis of a slide of ``length``."""
        size = side + 2 * self.margin
        first = max(0, min(start - self.margin, _round_up(length - size, self.align)))
        return first, min(first + size, length)

    @property
    def redundancy(self) -> float:
        """Pixels computed over pixels kept (1.0 = no margin)."""
        return sum(t.outer.area for t in self) / self.extent.area


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
