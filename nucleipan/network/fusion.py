"""From head outputs of one tile to its panoptic planes.

Panoptic fusion is parameter-free (EfficientPS, arXiv 2004.02307, section 3.4). For a pixel of an instance of class
c, with instance logit A and semantic logit B of c, the fused logit

    FL = (sigmoid(A) + sigmoid(B)) * (A + B)

competes with the largest stuff logit; a pixel that loses goes back to the stuff. The class c of a nucleus is the
argmax of its mean thing probabilities; the stuff plane under it names the tissue it lies in.

For an instance that was found as a region, A is the logit of its mask, resized to its box (see ``painting``), and its
class and score are those of its box; for one found by votes, A is the nucleus logit, and its class as follows.

Semantic logits live on a coarser grid. They are read bilinearly, except where that cannot matter: for the mean over
a nucleus the nearest value serves, and a pixel whose four coarse neighbours agree on the stuff class has that
class, whatever the weights.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from pydantic import BaseModel, ConfigDict, Field

from nucleipan.classes import PanopticClasses
from nucleipan.network.coarse import bilinear, corners, sigmoid, upsample_argmax
from nucleipan.network.confidence import FEATURES, ConfidenceConfig, drop, measure_confidence
from nucleipan.network.islands import absorb_islands
from nucleipan.network.model import HeadOutputs
from nucleipan.network.painting import paint
from nucleipan.network.regions import RegionOutputs
from nucleipan.network.voting import VotingConfig, cpu
from nucleipan.network.voting import tensor as gpu
from nucleipan.panoptic import PanopticTile
from nucleipan.tiles import Tile


class DecodeConfig(BaseModel):
    """How head outputs become segments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voting: VotingConfig = Field(VotingConfig(), description="from a nucleus mask and offsets to instances")
    confidence: ConfidenceConfig | None = Field(None, description="of instances found by votes")
    min_stuff_um2: float = Field(150.0, ge=0, description="smaller tissue islands go to the class around them")


def decode_tile(
    outputs: HeadOutputs | RegionOutputs, tile: Tile, classes: PanopticClasses, mpp: float, config: DecodeConfig
) -> PanopticTile:
    """Segment one tile.

    Args:
        outputs: of a batch of one. It may be larger than ``tile.outer`` at the bottom and right (padding to the
            network's stride); the surplus is cut off.
        mpp: micrometres per pixel of the working grid.
    """
    shape, stride = tile.outer.shape, outputs.stride
    semantic = _numpy(outputs.semantic[0])  # [K, ceil(h/s), ceil(w/s)] or more
    things, stuff = semantic[classes.thing_ids - 1], semantic[classes.stuff_ids - 1]
    match outputs:
        case HeadOutputs():
            nuclei = _from_votes(outputs, shape, things, stuff, config)
        case RegionOutputs():
            nuclei = _from_regions(outputs, shape, things, stuff, config.voting.min_area)
    stuff_plane = np.zeros(shape, np.uint8)
    if len(stuff):  # a model of nuclei alone leaves everything else void
        labels = absorb_islands(stuff, max(1, round(config.min_stuff_um2 / (mpp * stride) ** 2)))
        stuff_plane = upsample_argmax(stuff, labels, classes.stuff_ids, stride, *shape)
    return PanopticTile(tile, stuff_plane, *nuclei)


def _from_votes(
    outputs: HeadOutputs, shape: tuple[int, int], things: np.ndarray, stuff: np.ndarray, config: DecodeConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Instances, their class probabilities and scores, as in ``PanopticTile``."""
    (h, w), stride = shape, outputs.stride
    instances, pixels = _vote(outputs.nucleus[0, 0, :h, :w], outputs.offsets[0, :, :h, :w], config.voting)
    nucleus = _numpy(outputs.nucleus[0, 0, :h, :w])
    probabilities = _thing_probabilities(instances, pixels, things, stride)  # [n + 1, T], row 0 unused
    class_of = probabilities.argmax(1).astype(np.int32)
    if len(stuff):
        _give_back_pixels(instances, pixels, nucleus, things, class_of, stuff.max(0), stride)
    kept = cpu.keep_largest_pieces(instances, pixels, config.voting.min_area)
    features = measure_confidence(instances, pixels, nucleus, _numpy(outputs.offsets[0, :, :h, :w]), len(kept))
    if config.confidence is None:
        return instances, probabilities[kept], features[:, FEATURES.index("probability")].astype(np.float32)
    scores = config.confidence.score(features)
    is_sure = scores >= config.confidence.least
    drop(instances, pixels, is_sure)
    return instances, probabilities[kept[is_sure]], scores[is_sure]


def _from_regions(
    outputs: RegionOutputs, shape: tuple[int, int], things: np.ndarray, stuff: np.ndarray, min_area: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As ``_from_votes``; class and score are those of the box head."""
    found = outputs.found
    order = torch.argsort(found.scores, descending=True, stable=True).cpu().numpy()
    boxes, masks, scores, probabilities, thing = (
        _numpy(x)[order] for x in (found.rois.boxes, outputs.masks, found.scores, found.probabilities, found.thing)
    )
    best = stuff.max(0) if len(stuff) else np.full(things.shape[1:], -np.inf, np.float32)
    instances = paint((boxes, masks, thing), things, best, outputs.stride, shape)
    if outputs.excluded is not None:
        instances[outputs.excluded.cpu().numpy()] = 0
    pixels = np.flatnonzero(instances).astype(np.int32)
    kept = cpu.keep_largest_pieces(instances, pixels, min_area)
    return instances, probabilities[kept - 1], scores[kept - 1]


def _vote(nucleus: torch.Tensor, offsets: torch.Tensor, config: VotingConfig) -> tuple[np.ndarray, np.ndarray]:
    """As ``cpu.vote``; what follows looks at nucleus pixels only, a tenth of most tiles."""
    if nucleus.device.type == "cpu":
        return cpu.vote(_numpy(nucleus), _numpy(offsets), config)
    instances = gpu.vote(nucleus, offsets, config).cpu().numpy()
    return instances, np.flatnonzero(instances).astype(np.int32)


def _numpy(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().float().cpu().numpy())


def _thing_probabilities(instances: np.ndarray, pixels: np.ndarray, logits: np.ndarray, stride: int) -> np.ndarray:
    """Mean softmax of float32[T, h/s, w/s] over each instance: float32[n + 1, T], 0 where there are no pixels."""
    sums, counts = _sum_by_instance(instances, pixels, logits, stride, int(instances.max(initial=0)))
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)


@njit(nogil=True, cache=True)
def _sum_by_instance(instances, pixels, logits, stride, n):
    n_classes = logits.shape[0]
    sums, counts = np.zeros((n + 1, n_classes), np.float64), np.zeros(n + 1, np.int64)
    w = instances.shape[1]
    # Of one row of coarse pixels, those that lie under nuclei.
    p, ready_for = np.zeros((logits.shape[2], n_classes), np.float32), np.full(logits.shape[2], -1, np.int64)
    for at in pixels:
        y, x = at // w, at % w
        i = instances[y, x]
        if i == 0:
            continue
        row, column = y // stride, x // stride
        if ready_for[column] != row:
            _softmax(logits[:, row, column], p[column])
            ready_for[column] = row
        counts[i] += 1
        for k in range(n_classes):
            sums[i, k] += p[column, k]
    return sums, counts


@njit(nogil=True, cache=True)
def _softmax(logits, out):
    largest, total = logits.max(), np.float32(0)
    for k in range(len(out)):
        out[k] = np.exp(logits[k] - largest)
        total += out[k]
    for k in range(len(out)):
        out[k] /= total


@njit(nogil=True, cache=True)
def _give_back_pixels(instances, pixels, nucleus, things, class_of, stuff_best, stride):
    """Clear the pixels of ``instances`` whose fused logit does not beat the best stuff logit (in place)."""
    h, w = instances.shape
    above, below, fy = corners(h, stride, things.shape[1])
    left, right, fx = corners(w, stride, things.shape[2])
    for at in pixels:
        y, x = at // w, at % w
        i = instances[y, x]
        if i == 0:
            continue
        y0, y1, x0, x1 = above[y], below[y], left[x], right[x]
        a = nucleus[y, x]
        b = bilinear(things[class_of[i]], y0, y1, fy[y], x0, x1, fx[x])
        if (sigmoid(a) + sigmoid(b)) * (a + b) <= bilinear(stuff_best, y0, y1, fy[y], x0, x1, fx[x]):
            instances[y, x] = 0
