"""A synthetic H&E slide of any size whose truth is known exactly.

Tests, benchmarks and demonstrations need slides with a perfect answer, larger than memory and without anybody's
data. The scene is a function: the plane is cut into cells, and what a cell holds follows from the seed and the
cell's index alone. So any part can be made on its own, in any order, and fits every other part. Parts are made in
blocks of a fixed grid, which keeps even floating-point rounding independent of what was asked for.

Stain follows Beer and Lambert: every pixel has an amount of haematoxylin and of eosin, whose optical densities add
(stain vectors of Macenko et al., ISBI 2009).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import RegionError
from nucleipan.geometry import Box
from nucleipan.synthetic.noise import mix, smooth, uniform
from nucleipan.synthetic.nuclei import NUCLEI, SPINDLE, Canvas, Cells, WholeNucleus, draw, whole

_BLOCK = 256
_NUCLEUS_CELL_UM = 12.0
_TISSUE_CELL_UM = 260.0
_MAX_RADIUS_UM = 9.0
_BORDER_UM = 60.0
_SPACING = 0.88
_HAEMATOXYLIN = np.array([0.563, 0.720, 0.406])
_EOSIN = np.array([0.216, 0.801, 0.558])
_GLASS = 243.0


class _Stuff(NamedTuple):
    """``weight``: how common; ``density``: chance of a nucleus per cell; ``mix``: chances of the five things."""

    name: str
    weight: float
    haematoxylin: float
    eosin: float
    density: float
    mix: tuple[float, float, float, float, float]


_STUFF = (
    _Stuff("background", 0.20, 0.0, 0.0, 0.0, (1, 0, 0, 0, 0)),
    _Stuff("tumour epithelium", 0.20, 0.15, 0.16, 0.85, (0.86, 0.06, 0.04, 0.04, 0)),
    _Stuff("benign epithelium", 0.12, 0.08, 0.18, 0.70, (0, 0.08, 0.07, 0.02, 0.83)),
    _Stuff("stroma", 0.20, 0.03, 0.27, 0.25, (0, 0.15, 0.83, 0.02, 0)),
    _Stuff("lymphoid", 0.08, 0.12, 0.12, 0.95, (0, 0.95, 0.04, 0.01, 0)),
    _Stuff("smooth muscle", 0.07, 0.04, 0.38, 0.22, (0, 0.05, 0.93, 0.02, 0)),
    _Stuff("adipose", 0.05, 0.0, 0.02, 0.03, (0, 0.2, 0.8, 0, 0)),
    _Stuff("mucus", 0.04, 0.10, 0.04, 0.03, (0, 0.7, 0.1, 0.2, 0)),
    _Stuff("necrosis or debris", 0.04, 0.07, 0.34, 0.25, (0, 0.15, 0, 0.85, 0)),
)
_STUFF_IDS = np.array([DEFAULT_CLASSES.by_name(s.name).id for s in _STUFF], np.uint8)


class _Block(NamedTuple):
    rgb: np.ndarray
    instances: np.ndarray
    classes: np.ndarray
    stuff: np.ndarray


class SyntheticScene:
    """A slide of ``shape`` (height, width) at ``mpp``, determined by ``seed``.

    All planes are made per ``Box`` inside the scene. An instance id is one plus the raster index of the cell the
    nucleus was drawn from: the same in every box, increasing roughly with the position, with gaps where cells are
    empty. Where nuclei overlap, the one with the larger id covers the other. Centres stay at least ``spacing`` times
    the sum of their radii apart: overlaps are shallow, so that what is visible of a nucleus is connected, but for a
    stray pixel on about one in ten thousand. A smaller ``spacing`` makes deeper overlaps, and nuclei in pieces.

    Raises:
        RegionError: the shape is not positive, or a box does not lie inside it.
    """

    def __init__(self, shape: tuple[int, int], seed: int = 0, mpp: float = 0.5, *, spacing: float = _SPACING) -> None:
        if shape[0] < 1 or shape[1] < 1 or not 0.05 <= mpp <= 4:
            raise RegionError(f"a scene needs a positive shape and an mpp from 0.05 to 4; found {shape}, {mpp}")
        self.shape, self.seed, self.mpp, self.spacing = shape, seed, mpp, spacing
        self._pitch = _NUCLEUS_CELL_UM / mpp
        self._n_cells = (int(shape[0] / self._pitch) + 1, int(shape[1] / self._pitch) + 1)
        self._block = lru_cache(maxsize=64)(self._make_block)

    def __reduce__(self) -> tuple[Callable[..., SyntheticScene], tuple[tuple[int, int], int, float]]:
        return partial(SyntheticScene, spacing=self.spacing), (self.shape, self.seed, self.mpp)

    @property
    def max_id(self) -> int:
        """No instance id is larger."""
        return self._n_cells[0] * self._n_cells[1]

    def rgb(self, box: Box) -> np.ndarray:
        """uint8[h, w, 3]."""
        return self._assembled(box, "rgb")

    def instances(self, box: Box) -> np.ndarray:
        """uint32[h, w], 0 = no nucleus."""
        return self._assembled(box, "instances")

    def classes(self, box: Box) -> np.ndarray:
        """uint8[h, w], ids of ``DEFAULT_CLASSES``: the thing on nuclei, the stuff elsewhere."""
        return self._assembled(box, "classes")

    def stuff(self, box: Box) -> np.ndarray:
        """uint8[h, w], ids of ``DEFAULT_CLASSES``: the stuff everywhere, under nuclei too."""
        return self._assembled(box, "stuff")

    def whole_nuclei(self, box: Box) -> Iterator[WholeNucleus]:
        """Nuclei that can be seen in ``box``, in order of id, each with all of it that lies in the scene."""
        visible = np.unique(self.instances(box))
        cells = self._nuclei(box)
        for i in np.flatnonzero(np.isin(cells.cell + 1, visible)):
            yield whole(cells, int(i), Box.of_shape(self.shape))

    def _assembled(self, box: Box, plane: str) -> np.ndarray:
        if box.is_empty or not Box.of_shape(self.shape).contains(box):
            raise RegionError(f"{box} is not a part of a synthetic scene of {self.shape}")
        first: np.ndarray = getattr(self._block(box.y0 // _BLOCK, box.x0 // _BLOCK), plane)
        out = np.empty((*box.shape, *first.shape[2:]), first.dtype)
        for row in range(box.y0 // _BLOCK, (box.y1 - 1) // _BLOCK + 1):
            for col in range(box.x0 // _BLOCK, (box.x1 - 1) // _BLOCK + 1):
                where = _block_box(row, col)
                part = where.clipped(box)
                out[part.slices(box)] = getattr(self._block(row, col), plane)[part.slices(where)]
        return out

    def _make_block(self, row: int, col: int) -> _Block:
        y = np.arange(row * _BLOCK, (row + 1) * _BLOCK, dtype=float)[:, None] + 0.5
        x = np.arange(col * _BLOCK, (col + 1) * _BLOCK, dtype=float)[None, :] + 0.5
        kind = self._stuff_kind(y, x)
        stuff = _STUFF_IDS[kind]
        instances = np.zeros((_BLOCK, _BLOCK), np.uint32)
        box = _block_box(row, col)
        stain = self._tissue_stain(kind, y, x)
        canvas = Canvas(box, instances, stuff.copy(), *stain, self._noise(y, x, 1.4, 50))
        cells = self._nuclei(box)
        for i in range(len(cells.cell)):
            draw(cells, i, canvas)
        density = canvas.haematoxylin[..., None] * _HAEMATOXYLIN + canvas.eosin[..., None] * _EOSIN
        grain = np.stack([uniform(self.seed, 60 + c, mix(y, x)) for c in range(3)], axis=-1)
        rgb = _GLASS * 10.0**-density + (grain - 0.5) * 9.0
        return _Block(np.clip(np.rint(rgb), 0, 255).astype(np.uint8), instances, canvas.classes, stuff)

    def _stuff_kind(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Index into ``_STUFF``: the nearest of jittered seeds, borders warped; glass along the slide's border."""
        size = _TISSUE_CELL_UM / self.mpp
        wy = y + (self._noise(y, x, 70, 1) - 0.5) * 0.5 * size + (self._noise(y, x, 12, 2) - 0.5) * 0.06 * size
        wx = x + (self._noise(y, x, 70, 3) - 0.5) * 0.5 * size + (self._noise(y, x, 12, 4) - 0.5) * 0.06 * size
        best = np.full(wy.shape, np.inf)
        winner = np.zeros(wy.shape, np.uint64)
        cy, cx = np.floor(wy / size), np.floor(wx / size)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                cell = mix(cy + dy, cx + dx)
                sy = (cy + dy + 0.15 + 0.7 * uniform(self.seed, 5, cell)) * size
                sx = (cx + dx + 0.15 + 0.7 * uniform(self.seed, 6, cell)) * size
                distance = (wy - sy) ** 2 + (wx - sx) ** 2
                closer = distance < best
                best = np.where(closer, distance, best)
                winner = np.where(closer, cell, winner)
        shares = np.cumsum([s.weight for s in _STUFF])
        kind = np.searchsorted(shares / shares[-1], uniform(self.seed, 7, winner), side="right")
        kind = np.minimum(kind, len(_STUFF) - 1)
        border = min(_BORDER_UM / self.mpp, 0.08 * min(self.shape)) * (0.5 + self._noise(y, x, 40, 8))
        edge = np.minimum(np.minimum(y, self.shape[0] - y), np.minimum(x, self.shape[1] - x))
        return np.where(edge < border, 0, kind)

    def _tissue_stain(self, kind: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Amounts of haematoxylin and eosin of the tissue between the nuclei."""
        fine, coarse = self._noise(y, x, 1.2, 20), self._noise(y, x, 9, 21)
        texture = 0.55 + 0.5 * coarse + 0.4 * fine
        haematoxylin = np.array([s.haematoxylin for s in _STUFF])[kind] * texture
        eosin = np.array([s.eosin for s in _STUFF])[kind] * texture
        bend = 6.0 * self._noise(y, x, 45, 22)
        waves = np.sin((y + 0.35 * x) * self.mpp / 1.6 + 4.0 * bend + 5.0 * coarse)
        fibres = np.isin(kind, [_index("stroma"), _index("smooth muscle")])
        eosin = np.where(fibres, eosin * (0.9 + 0.35 * waves * fine), eosin)
        eosin = np.where(kind == _index("adipose"), eosin + 0.22 * self._membranes(y, x), eosin)
        streaks = 0.5 + 0.5 * np.sin((x - 0.5 * y) * self.mpp / 9.0 + 2.0 * bend + 2.0 * coarse)
        haematoxylin = np.where(kind == _index("mucus"), haematoxylin * (0.4 + streaks), haematoxylin)
        specks = (kind == _index("necrosis or debris")) & (fine > 0.72)
        return haematoxylin + np.where(specks, 0.25, 0.0), np.maximum(eosin, 0.0)

    def _membranes(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """1 on thin walls between fat cells of about 55 um, falling to 0 inside them."""
        size = 55.0 / self.mpp
        cy, cx = np.floor(y / size), np.floor(x / size)
        near, second = np.full(np.broadcast(y, x).shape, np.inf), np.full(np.broadcast(y, x).shape, np.inf)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                cell = mix(cy + dy, cx + dx)
                sy = (cy + dy + 0.2 + 0.6 * uniform(self.seed, 30, cell)) * size
                sx = (cx + dx + 0.2 + 0.6 * uniform(self.seed, 31, cell)) * size
                distance = np.sqrt((y - sy) ** 2 + (x - sx) ** 2)
                second = np.minimum(second, np.maximum(near, distance))
                near = np.minimum(near, distance)
        return np.exp(-(((second - near) * self.mpp / 1.8) ** 2))

    def _nuclei(self, box: Box) -> Cells:
        """Nuclei that may reach into ``box``, in order of id."""
        reach = _MAX_RADIUS_UM / self.mpp
        rows = self._cell_range(box.y0 - reach, box.y1 + reach, self._n_cells[0])
        cols = self._cell_range(box.x0 - reach, box.x1 + reach, self._n_cells[1])
        # One more ring: whether a nucleus is there depends on its neighbours.
        cells = self._candidates(np.arange(rows[0] - 2, rows[1] + 2), np.arange(cols[0] - 2, cols[1] + 2))
        kept = self._thinned(cells)
        r, c = cells.cell // self._n_cells[1], cells.cell % self._n_cells[1]
        kept &= (r >= rows[0]) & (r < rows[1]) & (c >= cols[0]) & (c < cols[1])
        return Cells(*(field[kept] for field in cells))

    def _cell_range(self, start: float, stop: float, n: int) -> tuple[int, int]:
        # A centre lies inside its cell, so cells up to one pitch before the start may reach in.
        return max(0, int(start // self._pitch)), min(n, int(stop // self._pitch) + 1)

    def _candidates(self, rows: np.ndarray, cols: np.ndarray) -> Cells:
        """A nucleus for every cell whose tissue wants one, neighbours not yet considered."""
        rows, cols = rows[(rows >= 0) & (rows < self._n_cells[0])], cols[(cols >= 0) & (cols < self._n_cells[1])]
        index = (rows[:, None] * self._n_cells[1] + cols[None, :]).ravel()
        cell = index.astype(np.uint64)
        random = np.stack([uniform(self.seed, 100 + k, cell) for k in range(12)])
        yx = np.stack([index // self._n_cells[1], index % self._n_cells[1]], axis=1).astype(float)
        yx = (yx + 0.1 + 0.8 * random[:2].T) * self._pitch
        kind = self._stuff_kind(yx[:, :1], yx[:, 1:]).ravel()
        density = np.array([s.density for s in _STUFF])[kind]
        mixes = np.cumsum([s.mix for s in _STUFF], axis=1)[kind]
        thing = np.minimum((random[3][:, None] >= mixes).sum(1), len(NUCLEI) - 1)
        table = np.array(NUCLEI)[thing]
        spread = 1.0 + table[:, 2] * (2 * random[4] - 1)
        axes = table[:, :2] * spread[:, None] * (1.0 + 0.12 * (2 * random[5:7].T - 1)) / self.mpp
        shape = np.column_stack([random[7] * np.pi, random[8:10].T * 2 * np.pi, 0.09 * random[10:12].T])
        here = (random[2] < density) & (yx[:, 0] < self.shape[0]) & (yx[:, 1] < self.shape[1])
        return Cells(*(field[here] for field in (index, yx, thing, axes, shape)))

    def _thinned(self, cells: Cells) -> np.ndarray:
        """bool[n], False for those too close to a candidate of larger id: overlaps stay shallow, nuclei connected."""
        kept = np.ones(len(cells.cell), bool)
        radius = cells.axes.mean(1)
        at = {int(i): n for n, i in enumerate(cells.cell)}
        width = self._n_cells[1]
        # Later cells within two rows and columns; a column offset that leaves the row meets no neighbour nearby.
        for offset in [(0, 1), (0, 2)] + [(r, c) for r in (1, 2) for c in (-2, -1, 0, 1, 2)]:
            for n, index in enumerate(cells.cell):
                m = at.get(int(index) + offset[0] * width + offset[1])
                if m is None:
                    continue
                distance = float(np.hypot(*(cells.yx[n] - cells.yx[m])))
                reach = self.spacing * (radius[n] + radius[m])
                slender = max(cells.axes[n, 0], cells.axes[m, 0]) + 0.6 * min(cells.axes[n, 1], cells.axes[m, 1])
                if cells.kind[n] == cells.kind[m] == SPINDLE:
                    slender = cells.axes[n, 0] + cells.axes[m, 0]
                kept[n] &= distance >= max(reach, slender * (self.spacing / _SPACING))
        return kept

    def _noise(self, y: np.ndarray, x: np.ndarray, size_um: float, stream: int) -> np.ndarray:
        """Smooth noise in 0..1 with features of ``size_um``: random values on a lattice, cubic in between."""
        v, u = y * self.mpp / size_um, x * self.mpp / size_um
        v0, u0 = np.floor(v), np.floor(u)
        tv, tu = smooth(v - v0), smooth(u - u0)
        corners = [[uniform(self.seed, stream, mix(v0 + i, u0 + j)) for j in (0, 1)] for i in (0, 1)]
        top = corners[0][0] * (1 - tu) + corners[0][1] * tu
        bottom = corners[1][0] * (1 - tu) + corners[1][1] * tu
        return np.asarray(top * (1 - tv) + bottom * tv)


def _block_box(row: int, col: int) -> Box:
    return Box(row, col, row + 1, col + 1).scaled(_BLOCK)


def _index(name: str) -> int:
    return next(i for i, s in enumerate(_STUFF) if s.name == name)
