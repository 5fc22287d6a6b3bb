"""Boxes and their features: the fast forms against slow definitions, and the way back to the map."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleipan.network.boxes import Rois, clip, decode, encode, iou, nms
from nucleipan.network.roi import pyramid_align, roi_align, roi_upsample

SEEDS = st.integers(0, 10**6)


def random_boxes(rng: np.random.Generator, n: int, side: float = 64) -> torch.Tensor:
    low = rng.uniform(-8, side, (n, 2))
    return torch.from_numpy(np.concatenate([low, low + rng.uniform(1, side / 2, (n, 2))], 1)).float()


def slow_align(features: np.ndarray, box: np.ndarray, stride: int, size: int, n_samples: int) -> np.ndarray:
    """He et al., section 3, sample by sample; half-pixel centres, and 0 for samples over a pixel outside."""
    c, h, w = features.shape
    y0, x0, y1, x1 = box / stride - 0.5
    out = np.zeros((c, size, size))
    for r in range(size):
        for q in range(size):
            for i in range(n_samples):
                for j in range(n_samples):
                    y = y0 + (y1 - y0) * (r + (i + 0.5) / n_samples) / size
                    x = x0 + (x1 - x0) * (q + (j + 0.5) / n_samples) / size
                    if not (-1 <= y <= h and -1 <= x <= w):
                        continue
                    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
                    t, s = int(y), int(x)
                    u, v = min(t + 1, h - 1), min(s + 1, w - 1)
                    top = features[:, t, s] * (1 - x + s) + features[:, t, v] * (x - s)
                    low = features[:, u, s] * (1 - x + s) + features[:, u, v] * (x - s)
                    out[:, r, q] += (top * (1 - y + t) + low * (y - t)) / n_samples**2
    return out


@given(SEEDS, st.sampled_from([2, 4]), st.integers(1, 7), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_roi_align_is_the_definition(seed, stride, size, n_samples):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(2, 3, 16, 20))).float()
    rois = Rois(random_boxes(rng, 5), torch.from_numpy(rng.integers(0, 2, 5)))
    got = roi_align(features, rois, stride, size, n_samples).numpy()
    for i in range(len(rois)):
        expected = slow_align(
            features[rois.image[i]].double().numpy(), rois.boxes[i].double().numpy(), stride, size, n_samples
        )
        np.testing.assert_allclose(got[i], expected, atol=2e-4)


def test_roi_align_is_torchvisions():
    ops = pytest.importorskip("torchvision.ops", exc_type=(ImportError, RuntimeError))
    rng = np.random.default_rng(0)
    features, boxes = torch.randn(2, 3, 16, 20), random_boxes(rng, 12)
    rois = Rois(boxes, torch.arange(12) % 2)
    theirs = torch.cat([rois.image[:, None].float(), boxes[:, [1, 0, 3, 2]]], 1)
    expected = ops.roi_align(features, theirs, 7, 1 / 4, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(roi_align(features, rois, 4, 7), expected, atol=1e-4, rtol=1e-4)


def test_gradients_of_roi_align_are_numeric_ones():
    torch.manual_seed(0)
    features = torch.randn(1, 2, 6, 6, requires_grad=True)
    rois = Rois(torch.tensor([[1.0, 2, 9, 11], [3, 0, 7, 5]]), torch.zeros(2, dtype=torch.int64))
    target = torch.randn(2, 2, 3, 3)
    (roi_align(features, rois, 2, 3) * target).sum().backward()
    step = torch.zeros_like(features)
    step[0, 1, 2, 3] = 1e-1  # the map from features is linear: any step is exact
    with torch.no_grad():
        change = ((roi_align(features + step, rois, 2, 3) - roi_align(features, rois, 2, 3)) * target).sum()
    assert features.grad[0, 1, 2, 3] == pytest.approx(float(change) / 1e-1, abs=1e-4)


@given(SEEDS, st.integers(1, 14))
@settings(max_examples=25, deadline=None)
def test_roi_align_reads_what_roi_upsample_put_there(seed, size):
    """With one sample a bin, and bins at least two pixels apart, so that none shares a pixel with another."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 10, (1, 2))
    box = torch.from_numpy(np.concatenate([low, low + size * rng.uniform(2, 3, (1, 2))], 1)).float() * 4
    rois, values = Rois(box, torch.zeros(1, dtype=torch.int64)), torch.randn(1, 3, size, size)
    there = roi_upsample(values, rois, 4, (1, 64, 64))
    torch.testing.assert_close(roi_align(there, rois, 4, size, n_samples=1), values, atol=1e-4, rtol=1e-4)


def test_roi_upsample_keeps_images_apart_and_leaves_the_rest_empty():
    rois = Rois(torch.tensor([[4.0, 4, 12, 12], [16, 16, 24, 24]]), torch.tensor([0, 1]))
    there = roi_upsample(torch.ones(2, 1, 2, 2), rois, 2, (2, 16, 16))
    assert there[0, :, 8:].abs().sum() == 0
    assert there[1, :, :7].abs().sum() == 0
    assert there[0].sum() > 0
    assert there[1].sum() > 0


def test_boxes_come_from_the_level_that_fits_their_size():
    levels = [torch.full((1, 1, 128 // 2**i, 128 // 2**i), float(i)) for i in range(4)]
    sides = torch.tensor([10.0, 56, 112, 224, 900])
    rois = Rois(torch.stack([0 * sides, 0 * sides, sides, sides], 1), torch.zeros(5, dtype=torch.int64))
    got = pyramid_align(levels, (4, 8, 16, 32), rois, 1)[:, 0, 0, 0]
    assert got.tolist()[:4] == [0, 0, 1, 2]


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_decoding_undoes_encoding(seed):
    rng = np.random.default_rng(seed)
    boxes, anchors = random_boxes(rng, 20), random_boxes(rng, 20)
    torch.testing.assert_close(decode(encode(boxes, anchors, (10, 5)), anchors, (10, 5)), boxes, atol=1e-3, rtol=1e-4)


def test_absurd_sizes_stay_finite():
    boxes = decode(torch.tensor([[0.0, 0, 1e4, -1e4]]), torch.tensor([[0.0, 0, 16, 16]]), (1, 1))
    assert torch.isfinite(boxes).all()
    assert (clip(boxes, (64, 32))[0] <= torch.tensor([64.0, 32, 64, 32])).all()


def slow_nms(boxes: torch.Tensor, scores: torch.Tensor, group: torch.Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i)):
        if all(group[i] != group[k] or float(iou(boxes[i], boxes[k])) <= threshold for k in kept):
            kept.append(i)
    return kept


@given(SEEDS, st.integers(0, 60), st.sampled_from([0.0, 0.3, 0.5, 0.7]))
@settings(max_examples=60, deadline=None)
def test_nms_is_the_greedy_one(seed, n, threshold):
    rng = np.random.default_rng(seed)
    boxes, group = random_boxes(rng, n), torch.from_numpy(rng.integers(0, 3, n))
    scores = torch.from_numpy(rng.integers(0, 8, n) / 8).float()  # with ties
    assert nms(boxes, scores, group, threshold).tolist() == slow_nms(boxes, scores, group, threshold)


def test_nms_of_a_long_chain_and_of_many_boxes():
    """Each box suppresses the next: the answer is every second one, which takes as many rounds as there are."""
    start = torch.arange(50.0) * 4
    chain = torch.stack([0 * start, start, 0 * start + 10, start + 10], 1)
    assert nms(chain, -start, torch.zeros(50), 0.3).tolist() == list(range(0, 50, 2))
    grid = torch.arange(300.0) * 12
    y, x = (g.ravel() for g in torch.meshgrid(grid, grid, indexing="ij"))
    apart = torch.stack([y, x, y + 10, x + 10], 1)
    twice = torch.cat([apart, apart])
    kept = nms(twice, torch.ones(len(twice)), torch.zeros(len(twice)), 0.5)
    assert kept.tolist() == list(range(len(apart)))


def test_overlap_of_known_boxes():
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 1, 3, 3])
    assert float(iou(a, b)) == pytest.approx(1 / 7)
    assert math.isclose(float(iou(a, a)), 1)
    assert float(iou(a, a * 0)) == 0
