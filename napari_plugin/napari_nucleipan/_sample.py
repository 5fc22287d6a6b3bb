"""Sample data for napari's menu: a synthetic slide and a store of what is truly on it. No network, no model.

Both are written to a temporary folder, as a real slide and a real store, so that everything can be tried on them; the
folder goes when napari is closed.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np

from napari_nucleipan._layers import LayerData
from napari_nucleipan._reader import read_store
from nucleipan import __version__
from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.geometry import Box
from nucleipan.panoptic import PanopticTile
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.stitch import Overview, StitchContext, StoreLayout, assemble, tile_record, write_record
from nucleipan.store import PanopticStore, StoreSpec, open_or_resume
from nucleipan.synthetic import SyntheticScene, write_slide
from nucleipan.tiles import Tile, TileGrid

_SHAPE = (1024, 1536)
_OVERVIEW_STEP = 2


def sample_layers() -> list[LayerData]:
    """Layers of a synthetic slide with its nuclei."""
    folder = Path(tempfile.mkdtemp(prefix="nucleipan-sample-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return read_store(str(write_sample(folder).path))


def write_sample(folder: Path, shape: tuple[int, int] = _SHAPE, seed: int = 3) -> PanopticStore:
    """Write ``synthetic.tif`` and its true store into ``folder``; the nuclei's classes are certain.

    Raises:
        StoreError: the folder cannot be written.
    """
    scene, slide = SyntheticScene(shape, seed), folder / "synthetic.tif"
    write_slide(scene, slide)
    grid = TileGrid(shape, Box.of_shape(shape), max(shape), 0)
    run = open_or_resume(folder / "synthetic.ome.zarr", _spec(scene, slide, grid))
    context, rgb = StitchContext(grid, mpp=scene.mpp), scene.rgb(Box.of_shape(shape))
    for tile in grid:
        write_record(run.tiles_folder, tile_record(_true_tile(scene, tile), context, rgb))
    layout = StoreLayout(slide.name, DEFAULT_CLASSES, scene.mpp, attributes=run.attributes())
    small = np.ascontiguousarray(rgb[::_OVERVIEW_STEP, ::_OVERVIEW_STEP])
    assemble(run.folder, run.tiles_folder, context, layout, Overview.of_array(small, scene.mpp * _OVERVIEW_STEP))
    return run.publish()


def _true_tile(scene: SyntheticScene, tile: Tile) -> PanopticTile:
    """What a network that never errs says of the whole scene."""
    drawn, classes = scene.instances(tile.outer), scene.classes(tile.outer)
    ids, first, instances = np.unique(drawn, return_index=True, return_inverse=True)
    if ids[0] != 0:
        instances, first = instances + 1, np.concatenate([[0], first])
    instances = instances.reshape(drawn.shape).astype(np.int32)
    class_of = classes.ravel()[first[1:]]
    probabilities = (class_of[:, None] == DEFAULT_CLASSES.thing_ids).astype(np.float32)
    scores = np.ones(len(class_of), np.float32)
    return PanopticTile(tile, scene.stuff(tile.outer), instances, probabilities, scores)


def _spec(scene: SyntheticScene, slide: Path, grid: TileGrid) -> StoreSpec:
    height, width = scene.shape
    return StoreSpec(
        slide={
            "name": slide.name, "format": "TIFF", "width": width, "height": height, "mpp": scene.mpp,
            "fingerprint": fingerprint(slide),
        },
        model={"name": "truth", "sha256": "", "licence": "Apache-2.0"},
        config={"nucleipan": __version__, "seed": scene.seed},
        classes=DEFAULT_CLASSES, shape=scene.shape, mpp=scene.mpp, level0_per_pixel=1.0, extent=grid.extent,
        core=grid.core, margin=grid.margin,
    )  # fmt: skip
