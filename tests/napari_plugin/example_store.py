"""A slide and a store that are known exactly, for tests of the plugin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from stitch_oracle import random_truth, stitch_oracle, truth_in

from nucleipan.geometry import Box
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.stitch import StitchContext
from nucleipan.tiles import TileGrid

LEVEL0_PER_PIXEL = 2
MPP = 0.5
SHAPE = (640, 1100)
"""Of the store's view; the slide has twice as many pixels. Two levels of labels; every level has odd sides later on."""


@dataclass(frozen=True)
class Example:
    """A slide, the store made from it, and what is in both.

    Attributes:
        store: ``slide.ome.zarr``.
        slide: ``slide.tif``, beside it.
        instances: uint32, ids of the store's level 0.
        classes: uint8, class ids of the store's level 0.
        image: uint8, pixels of the slide's level 0: dark where there is a nucleus.
    """

    store: Path
    slide: Path
    instances: np.ndarray
    classes: np.ndarray
    image: np.ndarray


def write_example(folder: Path) -> Example:
    """Write slide and store into ``folder``."""
    truth = random_truth(SHAPE, 900, seed=5)
    fine = np.kron(truth.instances, np.ones((LEVEL0_PER_PIXEL, LEVEL0_PER_PIXEL), np.int32))
    image = np.where(fine[..., None] > 0, np.uint8([70, 40, 110]), np.uint8([235, 200, 220]))
    slide = folder / "slide.tif"
    resolution = (1e4 * LEVEL0_PER_PIXEL / MPP,) * 2
    tifffile.imwrite(
        slide, image, tile=(256, 256), photometric="rgb", compression="deflate", resolution=resolution,
        resolutionunit="CENTIMETER", metadata=None,
    )  # fmt: skip
    grid = TileGrid(SHAPE, Box.of_shape(SHAPE), 256, 64, 1)
    store = stitch_oracle(folder / "slide.ome.zarr", truth, StitchContext(grid, LEVEL0_PER_PIXEL))[0].path
    name_slide(store, slide.name, fingerprint(slide), (image.shape[0], image.shape[1]))
    instances, classes, _ = truth_in(truth, Box.of_shape(SHAPE))
    return Example(store, slide, instances.astype(np.uint32), classes, image)


def name_slide(store: Path, name: str, fingerprint: str, shape: tuple[int, int]) -> None:
    """Write down in a store which slide it was made from."""
    path = store / "zarr.json"
    document = json.loads(path.read_text())
    height, width = shape
    slide = {"name": name, "width": width, "height": height, "mpp": MPP / LEVEL0_PER_PIXEL}
    document["attributes"]["nucleipan"]["slide"] = slide | {"fingerprint": fingerprint}
    path.write_text(json.dumps(document))
