"""A slide that is known exactly, and a segmentation of its tiles that never errs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.geometry import Box
from nucleipan.panoptic import PanopticTile
from nucleipan.stitch import Overview, StitchContext, StitchSummary, StoreLayout, assemble, tile_record, write_record
from nucleipan.store import PanopticStore, StoreSpec, open_or_resume
from nucleipan.tiles import Tile, TileGrid

N_THINGS = len(DEFAULT_CLASSES.things)


@dataclass(frozen=True)
class Truth:
    """instances int32[h, w] with ids 1..N in canonical order, stuff uint8[h, w], probabilities and scores by id - 1,
    image uint8[h, w, 3] where there is one."""

    instances: np.ndarray
    stuff: np.ndarray
    probabilities: np.ndarray
    scores: np.ndarray
    image: np.ndarray | None = None


def random_truth(shape: tuple[int, int], n: int, seed: int = 0, radii: tuple[float, float] = (3, 9)) -> Truth:
    """Ellipses at random places, the later ones giving way: many touch, some are torn; a few are large."""
    rng = np.random.default_rng(seed)
    plane = np.zeros(shape, np.int32)
    for k in range(1, n + 1):
        a, b = rng.uniform(*radii, 2) * (2.5 if k % 40 == 0 else 1)
        cy, cx, turn, reach = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(0, 3), int(max(a, b)) + 2
        y0, x0 = max(0, int(cy) - reach), max(0, int(cx) - reach)
        part = plane[y0 : int(cy) + reach, x0 : int(cx) + reach]
        y, x = np.ogrid[: part.shape[0], : part.shape[1]]
        y, x = y + y0 - cy, x + x0 - cx
        u, v = y * math.cos(turn) + x * math.sin(turn), x * math.cos(turn) - y * math.sin(turn)
        part[((u / a) ** 2 + (v / b) ** 2 <= 1) & (part == 0)] = k
    instances = canonical(plane)
    n = int(instances.max())
    coarse = rng.integers(6, 15, (shape[0] // 50 + 1, shape[1] // 50 + 1), np.uint8)
    stuff = np.ascontiguousarray(np.kron(coarse, np.ones((50, 50), np.uint8))[: shape[0], : shape[1]])
    probabilities = rng.dirichlet(np.ones(N_THINGS), n).astype(np.float32)
    scores = rng.uniform(0.5, 1, n).astype(np.float32)
    return Truth(instances, stuff, probabilities, scores, rng.integers(0, 256, (*shape, 3), np.uint8))


def canonical(plane: np.ndarray) -> np.ndarray:
    """Ids 1..N in raster order of exact centres; slow and obvious."""
    labels = [int(v) for v in np.unique(plane) if v]
    flat = plane.ravel()
    by_label = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[by_label], [*labels, flat.max() + 1])
    keys = []
    for k, label in enumerate(labels):
        y, x = np.divmod(by_label[starts[k] : starts[k + 1]], plane.shape[1])
        cy, cx = Fraction(int(y.sum()), len(y)), Fraction(int(x.sum()), len(x))
        keys.append((math.floor(cy), math.floor(cx), cy, cx, int(y[0]), int(x[0]), label))
    lut = np.zeros(max([0, *labels]) + 1, np.int32)
    for new, key in enumerate(sorted(keys), 1):
        lut[key[-1]] = new
    return lut[plane]


def centres(plane: np.ndarray) -> list[tuple[Fraction, Fraction]]:
    """Exact centre of each id 1..N."""
    y, x = np.nonzero(plane)
    ids = plane[y, x]
    n = np.bincount(ids)[1:]
    sum_y, sum_x = (np.bincount(ids, v)[1:] for v in (y, x))
    return [(Fraction(int(sy), int(k)), Fraction(int(sx), int(k))) for sy, sx, k in zip(sum_y, sum_x, n, strict=True)]


def truth_in(truth: Truth, extent: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a store of ``extent`` must hold: ids, classes, and the truth's index of each id."""
    inside = [extent.y0 <= cy < extent.y1 and extent.x0 <= cx < extent.x1 for cy, cx in centres(truth.instances)]
    index = np.flatnonzero(inside)
    lut = np.zeros(len(inside) + 1, np.uint32)
    lut[index + 1] = np.arange(1, len(index) + 1)
    ids = lut[truth.instances]
    classes = np.zeros_like(truth.stuff)
    whole = extent.slices(Box.of_shape(truth.stuff.shape))
    classes[whole] = truth.stuff[whole]
    things = DEFAULT_CLASSES.thing_ids[truth.probabilities.argmax(1)][index]
    classes[ids > 0] = things[ids[ids > 0] - 1]
    return ids, classes, index


def oracle_tile(truth: Truth, tile: Tile, seed: int = 0) -> PanopticTile:
    """The truth in a tile's outer box under shuffled local ids."""
    window = tile.outer.slices(Box.of_shape(truth.stuff.shape))
    part = truth.instances[window]
    present = np.unique(part[part > 0])
    shuffled = np.random.default_rng(seed + 1000 * tile.row + tile.col).permutation(present)
    lut = np.zeros(int(truth.instances.max()) + 1, np.int32)
    lut[shuffled] = np.arange(1, len(shuffled) + 1)
    return PanopticTile(
        tile, truth.stuff[window], lut[part], truth.probabilities[shuffled - 1], truth.scores[shuffled - 1]
    )


def cut(plane: np.ndarray, box: Box) -> np.ndarray:
    """The part of a plane of the whole slide that lies in ``box``."""
    return plane[box.slices(Box.of_shape((plane.shape[0], plane.shape[1])))]


def spec_of(grid: TileGrid, level0_per_pixel: float = 2.0, **changes: object) -> StoreSpec:
    fields: dict[str, object] = {
        "slide": {"name": "slide.svs", "size": [1000, 800], "mpp": 0.25, "fingerprint": "ab12"},
        "model": {"name": "oracle", "sha256": "00", "licence": "Apache-2.0"},
        "config": {"decode": {"threshold": 0.5}},
        "classes": DEFAULT_CLASSES,
        "shape": grid.slide_shape,
        "mpp": 0.5,
        "level0_per_pixel": level0_per_pixel,
        "extent": grid.extent,
        "core": grid.core,
        "margin": grid.margin,
    }
    return StoreSpec(**(fields | changes))  # type: ignore[arg-type]


def finish(
    path: Path, tiles_folder: Path, context: StitchContext, shard: int = 128, overwrite: bool = False
) -> tuple[PanopticStore, StitchSummary]:
    """Phase 2 of tiles in any folder, then the store under its final name."""
    spec = spec_of(context.grid, context.level0_per_pixel)
    run = open_or_resume(path, spec, overwrite)
    row_group = 50 if shard < 2048 else 32768
    layout = StoreLayout("slide", DEFAULT_CLASSES, spec.mpp, shard // 4, shard, row_group, run.attributes())
    rgb = np.random.default_rng(0).integers(0, 255, (100, 125, 3), np.uint8)
    summary = assemble(run.folder, tiles_folder, context, layout, Overview.of_array(rgb, 2.0))
    return run.publish(), summary


def stitch_oracle(
    path: Path, truth: Truth, context: StitchContext, seed: int = 0, shard: int = 128
) -> tuple[PanopticStore, StitchSummary]:
    """Both phases with tiles arriving in random order; stains are measured where the context has an mpp."""
    tiles = list(context.grid)
    folder = path.with_name(path.name + ".tiles")
    folder.mkdir(parents=True)
    for k in np.random.default_rng(seed).permutation(len(tiles)):
        image = None if context.mpp is None or truth.image is None else cut(truth.image, tiles[k].outer)
        write_record(folder, tile_record(oracle_tile(truth, tiles[k], seed), context, image))
    return finish(path, folder, context, shard)
