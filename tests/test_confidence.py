"""The score of nuclei: measured as defined, wherever a tile begins, and fitted so that it tells right from wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.geometry import Box
from nucleipan.network.confidence import FEATURES, ConfidenceConfig, drop, measure_confidence
from nucleipan.network.fusion import DecodeConfig, decode_tile
from nucleipan.network.model import HeadOutputs
from nucleipan.network.voting import VotingConfig
from nucleipan.tiles import TileGrid

SHAPE = (96, 96)
#: A score that goes by the imbalance alone: one half at a quarter of a radius.
BY_BALANCE = ConfidenceConfig(bias=5.0, logit=0.0, probability=0.0, imbalance=-20.0, spread=0.0, least=0.5)


def measured(instances: np.ndarray, nucleus: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    pixels = np.flatnonzero(instances).astype(np.int32)
    return measure_confidence(instances, pixels, nucleus, offsets, int(instances.max(initial=0)))


def slowly(instances: np.ndarray, nucleus: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The definition, instance by instance."""
    rows = []
    for i in range(1, int(instances.max()) + 1):
        is_in = instances == i
        radius = np.sqrt(is_in.sum() / np.pi)
        logits, moved = nucleus[is_in].astype(float), offsets[:, is_in].astype(float)
        targets = np.argwhere(is_in).T + moved
        distances = targets - targets.mean(1, keepdims=True)
        rows.append(
            [
                logits.mean(),
                (1 / (1 + np.exp(-logits))).mean(),
                np.linalg.norm(moved.mean(1)) / radius,
                np.sqrt((distances**2).sum(0).mean()) / radius,
            ]
        )
    return np.array(rows)


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_features_are_as_defined(seed: int, h: int, w: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, (h, w))
    present = np.unique(labels[labels > 0])
    instances = np.where(labels > 0, np.searchsorted(present, labels) + 1, 0).astype(np.int32)
    if not len(present):
        return
    nucleus = rng.normal(size=(h, w)).astype(np.float32)
    offsets = rng.normal(scale=5, size=(2, h, w)).astype(np.float32)
    np.testing.assert_allclose(
        measured(instances, nucleus, offsets), slowly(instances, nucleus, offsets), rtol=1e-5, atol=1e-5
    )


@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=30, deadline=None)
def test_where_a_tile_begins_changes_no_bit(seed: int, dy: int, dx: int) -> None:
    rng = np.random.default_rng(seed)
    instances = (rng.random((12, 15)) > 0.5).astype(np.int32)
    planes = rng.normal(scale=3, size=(3, 12, 15)).astype(np.float32)
    moved = [np.pad(p, ((dy, 0), (dx, 0))) for p in (instances, *planes)]
    np.testing.assert_array_equal(
        measured(instances, planes[0], planes[1:]), measured(moved[0], moved[1], np.stack(moved[2:]))
    )


def disc(centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.indices(SHAPE)
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def offsets_to(centre: tuple[float, float]) -> np.ndarray:
    y, x = np.indices(SHAPE)
    return np.stack([centre[0] - y, centre[1] - x]).astype(np.float32)


def test_half_a_nucleus_is_out_of_balance() -> None:
    whole, nucleus = disc((40, 40), 12), np.full(SHAPE, 5, np.float32)
    half = whole & (np.indices(SHAPE)[1] > 40)
    (of_whole,), (of_half,) = (measured(m.astype(np.int32), nucleus, offsets_to((40, 40))) for m in (whole, half))
    assert of_whole[2:] == pytest.approx([0, 0], abs=1e-6)
    assert of_half[2] == pytest.approx(4 / (3 * np.pi) * np.sqrt(2), rel=0.1), "centroid of a half disc"
    assert of_half[3] == pytest.approx(0, abs=1e-6)


def outputs(nucleus: np.ndarray, offsets: np.ndarray) -> HeadOutputs:
    semantic = torch.zeros(1, len(DEFAULT_CLASSES), *(n // 4 for n in SHAPE))
    semantic[:, DEFAULT_CLASSES.things[1].id - 1] = 3
    return HeadOutputs(semantic, torch.from_numpy(nucleus)[None, None], torch.from_numpy(offsets)[None])


def test_decoding_drops_what_is_not_sure_and_nothing_else() -> None:
    half = disc((30, 30), 10) & (np.indices(SHAPE)[1] > 30)
    other = disc((70, 60), 9)
    nucleus = np.where(half | other, 4, -4).astype(np.float32)
    offsets = np.where(half, offsets_to((30, 30)), offsets_to((70, 60)))
    tile = TileGrid(SHAPE, Box.of_shape(SHAPE), 96, 0).tile(0, 0)
    plain = DecodeConfig(voting=VotingConfig(min_area=10))
    every = decode_tile(outputs(nucleus, offsets), tile, DEFAULT_CLASSES, 0.5, plain)
    sure = decode_tile(
        outputs(nucleus, offsets), tile, DEFAULT_CLASSES, 0.5, plain.model_copy(update={"confidence": BY_BALANCE})
    )
    assert (every.instances.max(), len(every.scores)) == (2, 2)
    assert every.scores == pytest.approx([1 / (1 + np.exp(-4))] * 2)
    np.testing.assert_array_equal(sure.instances, np.where(every.instances == 2, 1, 0))
    np.testing.assert_array_equal(sure.probabilities, every.probabilities[1:])
    assert len(sure.scores) == 1
    assert sure.scores[0] > 0.9
    as_sure = plain.model_copy(update={"confidence": BY_BALANCE.model_copy(update={"least": float(sure.scores[0])})})
    assert len(decode_tile(outputs(nucleus, offsets), tile, DEFAULT_CLASSES, 0.5, as_sure).scores) == 1


def test_dropping_renumbers_the_rest() -> None:
    instances = np.array([[1, 0, 2], [3, 3, 4]], np.int32)
    drop(instances, np.flatnonzero(instances).astype(np.int32), np.array([True, False, True, False]))
    np.testing.assert_array_equal(instances, [[1, 0, 0], [2, 2, 0]])


# Fitting


def test_fitted_scores_are_the_rates_of_right_ones() -> None:
    from nucleipan.training.calibrate import _logistic

    rng = np.random.default_rng(0)
    features = rng.normal([3, 0.9, 0.2, 0.2], [1, 0.1, 0.1, 0.1], (20000, 4)).clip(0)
    truth = ConfidenceConfig(bias=-3.0, logit=1.0, probability=2.0, imbalance=-6.0, spread=-3.0)
    is_right = rng.random(len(features)) < truth.score(features)
    weights = np.full(len(features), 1 / len(features))
    fitted = ConfidenceConfig(**dict(zip(("bias", *FEATURES), _logistic(features, is_right, weights), strict=True)))
    scores = fitted.score(features)
    for low in np.arange(0.1, 1, 0.2):
        is_here = abs(scores - low) < 0.1
        assert is_right[is_here].mean() == pytest.approx(scores[is_here].mean(), abs=0.03)


def test_what_a_network_imagines_is_dropped_after_fitting() -> None:
    """A network that finds every nucleus and, less surely, many that are not there."""
    from nucleipan.training.calibrate import fit_confidence
    from nucleipan.training.validate import Segmenter, nuclei_quality

    samples, answers = zip(*(scene(seed) for seed in range(6)), strict=True)
    decode = DecodeConfig(voting=VotingConfig(min_area=10))
    segment = Segmenter(lambda x: answers[round(255 * float(x[0, 0, 0, 0]))], DEFAULT_CLASSES, 0.5, decode)
    confidence = fit_confidence(segment, {"set": samples})
    assert confidence is not None
    assert confidence.least > 0
    fitted = Segmenter(segment.network, DEFAULT_CLASSES, 0.5, decode.model_copy(update={"confidence": confidence}))
    before, after = (np.mean([nuclei_quality(s(x)[1], x).pq for x in samples]) for s in (segment, fitted))
    assert before < 0.75
    assert after > 0.95


def test_too_few_nuclei_tell_nothing() -> None:
    from nucleipan.training.calibrate import fit_confidence
    from nucleipan.training.validate import Segmenter

    sample, answer = scene(0)
    segment = Segmenter(lambda x: answer, DEFAULT_CLASSES, 0.5, DecodeConfig(voting=VotingConfig(min_area=10)))
    assert fit_confidence(segment, {"set": [sample]}) is None
    assert fit_confidence(segment, {"set": []}) is None


def scene(seed: int):  # type: ignore[no-untyped-def]
    """A sample with 36 nuclei and what a network says that sees 36 more between them."""
    from nucleipan.training.data import Sample

    rng = np.random.default_rng(seed)
    ids = np.zeros((192, 192), np.int32)
    nucleus, offsets = np.full(ids.shape, -4, np.float32), np.zeros((2, *ids.shape), np.float32)
    y, x = np.indices(ids.shape)
    for k in range(72):
        cy, cx = 16 + 32 * (k // 12) + rng.integers(-2, 3), 8 + 16 * (k % 12)
        is_in = (y - cy) ** 2 + (x - cx) ** 2 <= 36
        is_real = k % 2 == 0
        ids[is_in] = k // 2 + 1 if is_real else 0
        nucleus[is_in] = rng.uniform(3, 5) if is_real else rng.uniform(0.5, 2)
        offsets[0][is_in], offsets[1][is_in] = (cy - y)[is_in], (cx - x)[is_in]
    image = torch.full((3, *ids.shape), seed, dtype=torch.uint8)
    plane = torch.zeros(1, *ids.shape, dtype=torch.uint8)
    sample = Sample(str(seed), 0.5, image, torch.from_numpy(ids)[None], plane, plane + 1)
    semantic = torch.zeros(1, len(DEFAULT_CLASSES), 48, 48)
    semantic[:, 0] = 3
    return sample, HeadOutputs(semantic, torch.from_numpy(nucleus)[None, None], torch.from_numpy(offsets)[None])
