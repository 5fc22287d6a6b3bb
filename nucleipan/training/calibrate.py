"""Weights of a model's score of nuclei, fitted on images that it was trained on.

What was trained on is seen a little better than what was not, so that scores are somewhat too high on new images; their
order, which dropping the worst goes by, is the same. Nothing is fitted on validation images: they are judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from nucleipan.metrics.quality import matches
from nucleipan.network.confidence import FEATURES, ConfidenceConfig, clipped, measure_confidence
from nucleipan.network.model import HeadOutputs
from nucleipan.training.data import Sample
from nucleipan.training.validate import Segmenter, compared

# More would take longer than it helps: five weights are fitted.
_MOST_IMAGES = 24
_FEWEST_NUCLEI = 200
_RIDGE = 1e-3
_CANDIDATES = np.arange(0.0, 0.75, 0.05)


@dataclass(frozen=True)
class Judged:
    """Instances of one image before any is dropped.

    Attributes:
        features: float64[n, 4], see ``network.confidence``.
        ious: float64[n], of the match with a true nucleus, 0 without one.
        n_true: nuclei in the truth.
    """

    features: np.ndarray
    ious: np.ndarray
    n_true: int


def fit_confidence(segment: Segmenter, samples_of: Mapping[str, Sequence[Sample]]) -> ConfidenceConfig | None:
    """Fit to the annotated nuclei in ``samples_of`` (by source); None where these are too few to tell.

    The likelihood weighs every image alike; the least score is that of the best mean PQ, each source counting once.
    """
    judged = {name: [judge(segment, s) for s in _some(samples)] for name, samples in samples_of.items()}
    images = [image for images in judged.values() for image in images if len(image.ious)]
    if not images:
        return None
    features = clipped(np.concatenate([image.features for image in images]))
    is_right = np.concatenate([image.ious for image in images]) > 0
    weights = np.concatenate([np.full(len(image.ious), 1 / len(image.ious)) for image in images]) / len(images)
    if len(is_right) < _FEWEST_NUCLEI or is_right.all() or not is_right.any():
        return None
    fitted = ConfidenceConfig(**dict(zip(("bias", *FEATURES), _logistic(features, is_right, weights), strict=True)))
    least = max(_CANDIDATES, key=lambda score: _mean_pq(judged, fitted, score))
    return fitted.model_copy(update={"least": round(float(least), 2)})


def judge(segment: Segmenter, sample: Sample) -> Judged:
    """Segment ``sample`` and compare with its truth; what lies mostly where nobody looked is left out."""
    look = segment.look(sample)
    assert isinstance(look.outputs, HeadOutputs)
    instances = segment.decoded(look).instances
    pixels = np.flatnonzero(instances).astype(np.int32)
    h, w = instances.shape
    nucleus, offsets = (t[0, :, :h, :w].cpu().numpy() for t in (look.outputs.nucleus, look.outputs.offsets))
    features = measure_confidence(instances, pixels, nucleus[0], offsets, int(instances.max(initial=0)))
    table = compared(instances, sample)
    ious, matched = np.zeros(len(table.pred)), matches(table)
    ious[table.pair_pred[matched]] = table.ious[matched]
    return Judged(features[table.pred.ids - 1], ious, len(table.true))


def _some(samples: Sequence[Sample]) -> list[Sample]:
    """Spread over ``samples``, such as have annotated nuclei."""
    step = max(1, -(-len(samples) // _MOST_IMAGES))
    chosen = (samples[i] for i in range(0, len(samples), step))
    return [s for s in chosen if s.ids.any()]


def _logistic(features: np.ndarray, is_right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64[1 + 4], bias first; ridge on standardised features, so that their units do not matter."""
    mean, spread = features.mean(0), features.std(0) + 1e-9
    design = np.column_stack([np.ones(len(features)), (features - mean) / spread])
    sign = np.where(is_right, 1.0, -1.0)

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (design @ beta)
        pull = _RIDGE * np.concatenate([[0], beta[1:]])
        gradient = -(weights * sign / (1 + np.exp(margin))) @ design
        return float(weights @ np.logaddexp(0, -margin) + pull @ beta / 2), gradient + pull

    beta = minimize(loss, np.zeros(design.shape[1]), jac=True, method="BFGS").x
    slopes = beta[1:] / spread
    return np.concatenate([[beta[0] - slopes @ mean], slopes])


def _mean_pq(judged: Mapping[str, Sequence[Judged]], confidence: ConfidenceConfig, least: float) -> float:
    def pq(image: Judged) -> float:
        ious = image.ious[confidence.score(image.features) >= least]
        return ious.sum() / max(1e-9, (len(ious) + image.n_true) / 2)

    return float(np.mean([np.mean([pq(image) for image in images]) for images in judged.values() if images]))
