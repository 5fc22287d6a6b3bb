"""Phase 2, pixels: paint each shard once, and its pyramid on the way up.

A pyramid is a quadtree of shards. Visiting it depth first, a shard of a coarser level is made of what its four
children leave behind when they are written, so that nothing is read back, every shard is written once, and memory
holds a handful of shards per level, whatever the size of the slide. A shard is compressed while the next is painted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from nucleipan.geometry import Box
from nucleipan.stitch.candidates import Candidates, Claims, PlaneCache
from nucleipan.stitch.resolve import Resolution

Planes = tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Painter:
    """Paints any box of the finished planes from the tiles that reach into it."""

    candidates: Candidates
    resolution: Resolution
    cache: PlaneCache
    class_of_id: np.ndarray
    """uint8[N + 1], thing class of each nucleus, 0 first."""

    def paint(self, box: Box) -> Planes | None:
        """uint32 ids and uint8 classes of ``box``, or None where no tile reaches."""
        c = self.candidates
        near = c.near(box)
        if len(near) == 0:
            return None
        claims = Claims(c, self.resolution.rank)
        ranks, classes = np.zeros(box.shape, np.uint32), np.zeros(box.shape, np.uint8)
        for t in near:
            instances, stuff = self.cache.get(int(t))
            core = c.tiles[t].core.clipped(box)
            classes[core.slices(box)] = stuff[core.slices(c.boxes[t])]
            claims.add(int(t), instances, ranks, box)
        _name(ranks, classes, self.resolution.id_of_rank, self.class_of_id)
        return ranks, classes


@numba.njit(cache=True, nogil=True)
def _name(ranks: np.ndarray, classes: np.ndarray, id_of_rank: np.ndarray, class_of_id: np.ndarray) -> None:
    """Turn ranks into ids in place, and give nuclei their class."""
    for i in range(ranks.shape[0]):
        for j in range(ranks.shape[1]):
            if ranks[i, j]:
                ranks[i, j] = id_of_rank[ranks[i, j]]
                classes[i, j] = class_of_id[ranks[i, j]]


def every_second(plane: np.ndarray) -> np.ndarray:
    """Half the resolution without inventing values: a coarse pixel is its top-left fine one."""
    return plane[..., ::2, ::2]


def mean_of_four(plane: np.ndarray) -> np.ndarray:
    """Half the resolution of uint8[..., h, w] by averaging; odd sides repeat their last pixel."""
    odd = [(0, 0)] * (plane.ndim - 2) + [(0, n % 2) for n in plane.shape[-2:]]
    full = np.pad(plane, odd, mode="edge").astype(np.uint16)
    total = full[..., ::2, ::2] + full[..., 1::2, ::2] + full[..., ::2, 1::2] + full[..., 1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def create_levels(
    folder: Path, shape: tuple[int, ...], dtype: type[np.generic], n_levels: int, sides: tuple[int, int]
) -> list[zarr.Array]:
    """Arrays ``folder/0, 1, ...`` of a pyramid of factor 2 over the last two axes; ``sides`` of chunk and shard."""
    chunk, shard = sides
    lead, (height, width) = shape[:-2], shape[-2:]
    return [
        zarr.create_array(
            str(folder / str(level)),
            shape=(*lead, -(-height // 2**level), -(-width // 2**level)),
            dtype=dtype,
            chunks=(*lead, chunk, chunk),
            shards=(*lead, shard, shard),
            compressors=ZstdCodec(level=1),
            fill_value=0,
            dimension_names=("c", "y", "x")[-len(shape) :],
            config={"write_empty_chunks": False},
        )
        for level in range(n_levels)
    ]


def write_pyramids(
    pyramids: Sequence[list[zarr.Array]],
    shard: int,
    leaf: Callable[[Box], Planes | None],
    shrink: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Fill pyramids of equal shape together, shard by shard, from what ``leaf`` gives for a box of level 0."""
    top = len(pyramids[0]) - 1
    height, width = pyramids[0][top].shape[-2:]
    with ThreadPoolExecutor(1, "write") as pool:
        writer = _PyramidWriter(pyramids, shard, leaf, shrink, pool)
        for row in range(-(-height // shard)):
            for col in range(-(-width // shard)):
                writer.emit(top, row, col)
        writer.settle()


@dataclass
class _PyramidWriter:
    """``write_pyramids`` under way; ``writing`` is the shard that is being compressed."""

    pyramids: Sequence[list[zarr.Array]]
    shard: int
    leaf: Callable[[Box], Planes | None]
    shrink: Callable[[np.ndarray], np.ndarray]
    pool: ThreadPoolExecutor
    writing: Future[None] | None = None

    def emit(self, level: int, row: int, col: int) -> Planes | None:
        """Have one shard written; returns it at half resolution."""
        height, width = self.pyramids[0][level].shape[-2:]
        box = Box(row, col, row + 1, col + 1).scaled(self.shard).clipped(Box(0, 0, height, width))
        if box.is_empty:
            return None
        if level == 0:
            planes = self.leaf(box)
        else:
            quarters = [[self.emit(level - 1, 2 * row + i, 2 * col + j) for j in (0, 1)] for i in (0, 1)]
            planes = _joined(quarters, box.shape, self.shard // 2)
        if planes is None:
            return None
        self.settle()
        self.writing = self.pool.submit(self._write, level, box, planes)
        return tuple(self.shrink(plane) for plane in planes)

    def settle(self) -> None:
        """Wait until what was handed over is written."""
        if self.writing is not None:
            self.writing.result()
            self.writing = None

    def _write(self, level: int, box: Box, planes: Planes) -> None:
        for pyramid, plane in zip(self.pyramids, planes, strict=True):
            pyramid[level][..., box.y0 : box.y1, box.x0 : box.x1] = plane


def _joined(quarters: list[list[Planes | None]], shape: tuple[int, int], half: int) -> Planes | None:
    """Put the quarters of a shard together; missing ones are zero."""
    present = next((q for row in quarters for q in row if q is not None), None)
    if present is None:
        return None
    whole = tuple(np.zeros((*plane.shape[:-2], *shape), plane.dtype) for plane in present)
    for i, row in enumerate(quarters):
        for j, quarter in enumerate(row):
            for plane, part in zip(whole, quarter or (), strict=False):
                height, width = part.shape[-2:]
                plane[..., i * half : i * half + height, j * half : j * half + width] = part
    return whole
