"""PQ on whole validation images while a model trains.

The images go through the same view, network and decoding as a slide, each as one tile, and are scored in the truth's
grid. Used to see whether a run still improves, and to choose decoding parameters; never on images kept for judging.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from nucleipan.classes import PanopticClasses
from nucleipan.geometry import Box
from nucleipan.metrics import instance_quality, overlaps
from nucleipan.metrics.grids import nearest_pixels
from nucleipan.network.fusion import DecodeConfig, decode_tile
from nucleipan.network.model import HeadOutputs
from nucleipan.slide import at_mpp, open_slide
from nucleipan.tiles import TileGrid
from nucleipan.training.data import Sample
from nucleipan.transforms import SlideTiles


def mean_quality(
    network: Callable[[Tensor], HeadOutputs],
    samples: Sequence[Sample],
    classes: PanopticClasses,
    mpp: float,
    decode: DecodeConfig,
) -> dict[str, float]:
    """Class-agnostic PQ, SQ and RQ of nuclei, means over ``samples`` (which must have instances)."""
    qualities = []
    for sample in samples:
        predicted = segment_image(network, sample, classes, mpp, decode)
        _, true, _ = sample.load()
        rows, cols, _ = nearest_pixels(predicted.shape, true.shape)
        qualities.append(instance_quality(overlaps(predicted[np.ix_(rows, cols)], true)))
    return {name: float(np.nanmean([getattr(q, name) for q in qualities])) for name in ("pq", "sq", "rq")}


def segment_image(
    network: Callable[[Tensor], HeadOutputs],
    sample: Sample,
    classes: PanopticClasses,
    mpp: float,
    decode: DecodeConfig,
) -> np.ndarray:
    """int32[h, w], nuclei of one image at ``mpp``."""
    with open_slide(sample.image) as slide:
        view = at_mpp(slide, mpp, sample.mpp)
        grid = TileGrid(view.shape, Box.of_shape(view.shape), core=max(view.shape), margin=0)
        tiles = SlideTiles(view, grid)
        outputs = network(torch.as_tensor(tiles[0]["image"])[None])
        return decode_tile(outputs, grid.tile(0, 0), classes, view.mpp, decode).instances
