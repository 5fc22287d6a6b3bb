"""Nuclei of whole validation images, scored while a model trains.

The images go through the same view, network and decoding as a slide, each as one tile, and are scored in the truth's
grid. Used to see whether a run still improves, and to choose decoding parameters; never on images kept for judging.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nucleipan.classes import PanopticClasses
from nucleipan.geometry import Box
from nucleipan.metrics import Overlaps, PanopticQuality, instance_quality, overlaps
from nucleipan.metrics.grids import nearest_pixels
from nucleipan.network.fusion import DecodeConfig, decode_tile
from nucleipan.network.inference import Network, Outputs
from nucleipan.panoptic import PanopticTile
from nucleipan.slide import ArraySlide, SlideView, at_mpp
from nucleipan.tiles import Tile, TileGrid
from nucleipan.training.data import Sample
from nucleipan.transforms import SlideTiles, default_transforms


@dataclass(frozen=True)
class Look:
    """An image in the model's grid, as one tile, and what the network says about it."""

    view: SlideView
    tile: Tile
    outputs: Outputs


@dataclass(frozen=True)
class Segmenter:
    """Images to nuclei, as a trained model would find them.

    Attributes:
        network: ``float[1, 3, H, W]`` to what its heads say.
        mpp: micrometres per pixel it works at.
    """

    network: Network
    classes: PanopticClasses
    mpp: float
    decode: DecodeConfig

    def __call__(self, sample: Sample) -> tuple[np.ndarray, PanopticTile]:
        """uint8[h, w, 3], the image at ``mpp``, and what was found in it."""
        look = self.look(sample)
        return look.view.read(Box.of_shape(look.view.shape)), self.decoded(look)

    def look(self, sample: Sample) -> Look:
        pixels = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
        view = at_mpp(ArraySlide(Path(sample.name), pixels), self.mpp, sample.mpp)
        grid = TileGrid(view.shape, Box.of_shape(view.shape), core=max(view.shape), margin=0)
        image = SlideTiles(view, grid, default_transforms(view))[0]["image"]
        return Look(view, grid.tile(0, 0), self.network(torch.as_tensor(image)[None]))

    def decoded(self, look: Look) -> PanopticTile:
        return decode_tile(look.outputs, look.tile, self.classes, look.view.mpp, self.decode)


def nuclei_quality(found: PanopticTile, sample: Sample) -> PanopticQuality:
    """Class-agnostic PQ of one image, as ``compared``."""
    return instance_quality(compared(found.instances, sample))


def compared(instances: np.ndarray, sample: Sample) -> Overlaps:
    """Instances, int[h, w], and truth in the grid of the truth, without what is found mostly where nobody looked."""
    true, is_known = sample.ids[0].numpy(), sample.known[0].numpy() > 0
    rows, cols, _ = nearest_pixels(instances.shape, true.shape)
    pred = instances[np.ix_(rows, cols)]
    if not is_known.all():
        unseen = np.bincount(pred.ravel(), ~is_known.ravel()) / np.maximum(np.bincount(pred.ravel()), 1)
        pred = np.where(unseen[pred] > 0.5, 0, pred)
    return overlaps(pred, true)
