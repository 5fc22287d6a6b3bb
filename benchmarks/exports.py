"""What does an export cost? A synthetic store of any size, written to each format.

    python benchmarks/exports.py --nuclei 1000000 --formats geojson --out out/exports

The slide repeats one square of 2048 x 2048 pixels that holds ellipses on patches of tissue; it is stitched from tiles
as a segmented slide is, and kept for the next time. Prints, for each format, the seconds of processor time, those per
nucleus, the size of what was written, and the largest memory that the process has held up to then.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.exports import FORMATS, export_store
from nucleipan.geometry import Box
from nucleipan.panoptic import PanopticTile
from nucleipan.stitch import Overview, StitchContext, StoreLayout, assemble, tile_record, write_record
from nucleipan.store import PanopticStore, StoreSpec, open_or_resume
from nucleipan.tiles import TileGrid

SIDE, MARGIN, SPACING, MPP = 2048, 64, 32, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuclei", type=int, default=100_000, help="at least so many")
    parser.add_argument("--formats", nargs="+", default=["geojson"], choices=list(FORMATS))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    n_squares = math.ceil(args.nuclei / (SIDE // SPACING) ** 2)
    n_down = math.isqrt(n_squares)
    path = args.out / f"synthetic_{args.nuclei}.ome.zarr"
    store = PanopticStore.open(path) if path.exists() else write_store(path, n_down, math.ceil(n_squares / n_down))
    print(f"{store.n_nuclei:,} nuclei on {store.shape[0]:,} x {store.shape[1]:,} pixels")
    print("format          CPU s  us per nucleus     MiB  peak GiB")
    for name in args.formats:
        out = args.out / (path.name.removesuffix(".ome.zarr") + FORMATS[name].suffix)
        start = time.process_time()
        n = export_store(store, name, out)
        seconds = time.process_time() - start
        size = sum(p.stat().st_size for p in ([out] if out.is_file() else out.rglob("*")) if p.is_file()) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:14s} {seconds:6.1f}  {1e6 * seconds / max(1, n):14.1f}  {size:6.0f}  {peak:8.2f}")


def write_store(path: Path, n_down: int, n_across: int) -> PanopticStore:
    """A store of ``n_down`` x ``n_across`` equal squares."""
    grid = TileGrid((n_down * SIDE, n_across * SIDE), Box(0, 0, n_down * SIDE, n_across * SIDE), SIDE, MARGIN, 1)
    height, width = grid.slide_shape
    slide = {"name": path.name, "width": width, "height": height, "mpp": MPP, "fingerprint": "none"}
    model = {"name": "synthetic", "sha256": "none", "licence": "none"}
    spec = StoreSpec(slide, model, {}, DEFAULT_CLASSES, grid.slide_shape, MPP, 1.0, grid.extent, SIDE, MARGIN)
    path.parent.mkdir(parents=True, exist_ok=True)
    run, context = open_or_resume(path, spec), StitchContext(grid, mpp=MPP)
    run.tiles_folder.mkdir(parents=True, exist_ok=True)
    instances, stuff = square()
    for tile in grid:
        rows, cols = np.arange(tile.outer.y0, tile.outer.y1) % SIDE, np.arange(tile.outer.x0, tile.outer.x1) % SIDE
        whole, _ = ndimage.label(instances[np.ix_(rows, cols)])
        rng = np.random.default_rng([tile.row, tile.col])
        probabilities = rng.dirichlet(np.ones(len(DEFAULT_CLASSES.things)), int(whole.max())).astype(np.float32)
        scores = rng.uniform(0.5, 1, len(probabilities)).astype(np.float32)
        panoptic = PanopticTile(tile, stuff[np.ix_(rows, cols)], whole, probabilities, scores)
        write_record(run.tiles_folder, tile_record(panoptic, context))
    layout = StoreLayout(path.name, DEFAULT_CLASSES, MPP, attributes=run.attributes())
    overview = Overview.of_array(np.full((64, 64, 3), 240, np.uint8), MPP * max(grid.slide_shape) / 64)
    assemble(run.folder, run.tiles_folder, context, layout, overview)
    return run.publish()


def square() -> tuple[np.ndarray, np.ndarray]:
    """bool nuclei and uint8 stuff [SIDE, SIDE], which fit to themselves on all sides."""
    rng = np.random.default_rng(0)
    nuclei = np.zeros((SIDE, SIDE), bool)
    y, x = np.mgrid[: SPACING - 2, : SPACING - 2] - (SPACING - 3) / 2
    for row in range(0, SIDE, SPACING):
        for col in range(0, SIDE, SPACING):
            a, b, turn = *rng.uniform(5, 14, 2), rng.uniform(0, math.pi)
            u, v = y * math.cos(turn) + x * math.sin(turn), x * math.cos(turn) - y * math.sin(turn)
            nuclei[row : row + SPACING - 2, col : col + SPACING - 2] = (u / a) ** 2 + (v / b) ** 2 <= 1
    noise = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 80, mode="wrap")
    patch = np.digitize(noise, np.quantile(noise, [0.25, 0.5, 0.7, 0.9]))
    return nuclei, DEFAULT_CLASSES.stuff_ids[patch]


if __name__ == "__main__":
    main()
