"""How far an instance can be trusted: the score of a nucleus, and the least that is asked of one.

A mask may be sure of its pixels and wrong about the nucleus: half of one, or two taken for one. The offsets tell. Over
a whole nucleus they cancel out, over a part of one they all point to the other part; and where the network wavers
between one centre and two, they point to neither::

    logit        mean nucleus logit
    probability  mean nucleus probability
    imbalance    length of the mean offset, in radii of a disc of this area
    spread       root mean square distance of where the offsets point from their mean, in the same radii

The score is a logistic function of the four. Its weights belong to a model; they are fitted on images that it was
trained on, to tell whether an instance matches a nucleus of the annotators' at IoU > 0.5 (``training.calibrate``).
Without weights the score is the mean probability.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from pydantic import BaseModel, ConfigDict, Field

from nucleipan.network.coarse import sigmoid

#: What is measured of an instance, in this order.
FEATURES = ("logit", "probability", "imbalance", "spread")
# Beyond, larger is neither surer nor less sure.
_MOST = np.array([12.0, 1.0, 2.0, 2.0])


class ConfidenceConfig(BaseModel):
    """Weights of the score, and the score below which an instance is dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bias: float = Field(description="of the logistic function")
    logit: float = Field(description="weight of the mean nucleus logit")
    probability: float = Field(description="weight of the mean nucleus probability")
    imbalance: float = Field(description="weight of the length of the mean offset, in radii of a disc of this area")
    spread: float = Field(description="weight of how far apart the offsets point, in the same radii")
    least: float = Field(0.0, ge=0, lt=1, description="instances with a lower score are dropped")

    def score(self, features: np.ndarray) -> np.ndarray:
        """float32[n] in [0, 1], of float64[n, 4]."""
        weights = np.array([getattr(self, name) for name in FEATURES])
        return (1 / (1 + np.exp(-(clipped(features) @ weights + self.bias)))).astype(np.float32)


def clipped(features: np.ndarray) -> np.ndarray:
    """float64[n, 4], without what is beyond telling."""
    return np.minimum(features, _MOST)


def measure_confidence(
    instances: np.ndarray, pixels: np.ndarray, nucleus: np.ndarray, offsets: np.ndarray, n: int
) -> np.ndarray:
    """``FEATURES`` of the instances 1..n, of which none is empty: float64[n, 4].

    Args:
        instances: int32[h, w], 0 = none.
        pixels: int32[m], flat indices that hold all pixels of instances, in raster order.
        nucleus: float32[h, w], logit.
        offsets: float32[2, h, w], (dy, dx) in pixels.
    """
    return _measure(instances, pixels, nucleus, offsets, n)


@njit(nogil=True, cache=True)
def _measure(instances, pixels, nucleus, offsets, n):
    w = instances.shape[1]
    # Coordinates count from an instance's first pixel: sums are the same wherever a tile begins.
    first = np.full(n + 1, -1, np.int64)
    sums = np.zeros((n + 1, 8), np.float64)
    for at in pixels:
        y, x = at // w, at % w
        i = instances[y, x]
        if i == 0:
            continue
        if first[i] < 0:
            first[i] = at
        dy, dx = np.float64(offsets[0, y, x]), np.float64(offsets[1, y, x])
        v, u = y - first[i] // w + dy, x - first[i] % w + dx
        s = sums[i]
        s[0] += 1
        s[1] += nucleus[y, x]
        s[2] += sigmoid(nucleus[y, x])
        s[3] += dy
        s[4] += dx
        s[5] += v
        s[6] += u
        s[7] += v * v + u * u
    features = np.empty((n, 4), np.float64)
    for k in range(n):
        s = sums[k + 1] / sums[k + 1, 0]
        radius = math.sqrt(sums[k + 1, 0] / math.pi)
        features[k, 0], features[k, 1] = s[1], s[2]
        features[k, 2] = math.hypot(s[3], s[4]) / radius
        features[k, 3] = math.sqrt(max(0.0, s[7] - s[5] ** 2 - s[6] ** 2)) / radius
    return features


@njit(nogil=True, cache=True)
def drop(instances, pixels, is_kept):
    """Clear the instances i for which not ``is_kept[i - 1]`` (bool[n]) and renumber the others, in place."""
    new_id, n = np.zeros(len(is_kept) + 1, np.int32), 0
    for k in range(len(is_kept)):
        if is_kept[k]:
            n += 1
            new_id[k + 1] = n
    flat = instances.ravel()
    for at in pixels:
        flat[at] = new_id[flat[at]]
