"""Half-open integer boxes in one pixel grid, axes ``yx``.

A ``Box`` never says which grid it lives in: the object that hands it out does (a ``SlideView``, a level of
a slide, a tile). Boxes of different grids are never mixed; ``scaled`` is the one way from one to another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """Pixels with ``y0 <= y < y1`` and ``x0 <= x < x1``; may be empty, may reach outside an image."""

    y0: int
    x0: int
    y1: int
    x1: int

    @classmethod
    def of_shape(cls, shape: tuple[int, int]) -> Box:
        """The box of a whole image of ``shape`` (height, width)."""
        return cls(0, 0, shape[0], shape[1])

    @property
    def height(self) -> int:
        """Rows, 0 where ``y1 <= y0``."""
        return max(0, self.y1 - self.y0)

    @property
    def width(self) -> int:
        """Columns, 0 where ``x1 <= x0``."""
        return max(0, self.x1 - self.x0)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, as of an array that holds the box."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.area == 0

    def grown(self, n: int) -> Box:
        """This box with ``n`` more pixels on every side."""
        return Box(self.y0 - n, self.x0 - n, self.y1 + n, self.x1 + n)

    def clipped(self, other: Box) -> Box:
        """The part inside ``other``; an empty box where they do not meet."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return Box(y0, x0, max(y0, min(self.y1, other.y1)), max(x0, min(self.x1, other.x1)))

    def contains(self, other: Box) -> bool:
        """Whether every pixel of ``other`` lies in this box (an empty box always does)."""
        return other.is_empty or self.clipped(other) == other

    def slices(self, within: Box) -> tuple[slice, slice]:
        """Index of this box into an array that holds ``within``, both in the same grid."""
        return (
            slice(self.y0 - within.y0, self.y1 - within.y0),
            slice(self.x0 - within.x0, self.x1 - within.x0),
        )

    def scaled(self, factor: float) -> Box:
        """The smallest box of a grid with ``factor`` times as many pixels that covers this one."""
        # A hair of tolerance keeps 3 * (1/3) from growing the box by a pixel.
        return Box(
            math.floor(self.y0 * factor + 1e-6),
            math.floor(self.x0 * factor + 1e-6),
            math.ceil(self.y1 * factor - 1e-6),
            math.ceil(self.x1 * factor - 1e-6),
        )
