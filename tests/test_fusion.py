"""Decoding a tile: the fast kernels against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleipan.classes import DEFAULT_CLASSES, PanopticClasses
from nucleipan.geometry import Box
from nucleipan.network import fusion
from nucleipan.network.coarse import upsample_argmax
from nucleipan.network.fusion import DecodeConfig, _give_back_pixels, decode_tile
from nucleipan.network.islands import absorb_islands
from nucleipan.network.model import HeadOutputs
from nucleipan.tiles import TileGrid

N_THINGS, N_STUFF = len(DEFAULT_CLASSES.things), len(DEFAULT_CLASSES.stuff)
SEEDS = st.integers(0, 10**6)


def logits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Multiples of 1/16: interpolation at strides up to 4 is then exact in float32, whatever the order of sums."""
    return (rng.integers(-64, 65, shape) / 16).astype(np.float32)


def upsampled(x: np.ndarray, stride: int) -> np.ndarray:
    y = F.interpolate(torch.from_numpy(x)[None], scale_factor=stride, mode="bilinear", align_corners=False)
    return y[0].numpy()


@given(SEEDS, st.sampled_from([1, 2, 4]), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_upsampled_argmax_is_the_argmax_of_upsampled_logits(seed, stride, n_y, n_x):
    x = logits(np.random.default_rng(seed), 4, n_y, n_x)
    got = upsample_argmax(
        x, x.argmax(0).astype(np.int32), np.arange(len(x), dtype=np.uint8), stride, n_y * stride, n_x * stride
    )
    full = upsampled(x, stride)
    # Ties may fall either way; the value reached must be the largest.
    np.testing.assert_array_equal(np.take_along_axis(full, got[None].astype(int), 0)[0], full.max(0))


@given(SEEDS, st.sampled_from([1, 2, 4]))
@settings(max_examples=40, deadline=None)
def test_fused_logit_is_the_papers(seed, stride):
    rng = np.random.default_rng(seed)
    h, w = 8 * stride, 6 * stride
    things, stuff = logits(rng, N_THINGS, 8, 6), logits(rng, N_STUFF, 8, 6)
    nucleus = logits(rng, h, w)
    instances = rng.integers(0, 4, (h, w)).astype(np.int32)
    class_of = rng.integers(0, N_THINGS, 4).astype(np.int32)
    b = np.take_along_axis(upsampled(things, stride), class_of[instances][None].astype(int), 0)[0]
    best = upsampled(stuff.max(0)[None], stride)[0]
    a = nucleus.astype(np.float64)
    fused = (1 / (1 + np.exp(-a)) + 1 / (1 + np.exp(-b.astype(np.float64)))) * (a + b)
    got = instances.copy()
    fusion._give_back_pixels(got, np.flatnonzero(got).astype(np.int32), nucleus, things, class_of, stuff.max(0), stride)
    clear = np.abs(fused - best) > 1e-4
    np.testing.assert_array_equal(got[clear], np.where(fused > best, instances, 0)[clear])


def test_a_logit_that_is_no_higher_than_that_of_the_stuff_is_not_enough():
    """All logits are 0, and so is the fused one."""
    instances, zeros = np.ones((2, 2), np.int32), np.zeros((1, 2, 2), np.float32)
    pixels, class_of = np.arange(4, dtype=np.int32), np.zeros(2, np.int32)
    fusion._give_back_pixels(instances, pixels, zeros[0], zeros, class_of, zeros[0], 1)
    assert not instances.any()


@given(SEEDS, st.sampled_from([1, 2, 3]))
@settings(max_examples=40, deadline=None)
def test_probabilities_are_means_of_what_pixels_of_a_nucleus_say(seed, stride):
    rng = np.random.default_rng(seed)
    things = logits(rng, N_THINGS, 5, 4)
    instances = rng.integers(0, 4, (5 * stride, 4 * stride)).astype(np.int32)
    got = fusion._thing_probabilities(instances, np.flatnonzero(instances).astype(np.int32), things, stride)
    at = np.kron(np.exp(things) / np.exp(things).sum(0), np.ones((stride, stride)))
    for i in np.unique(instances[instances > 0]):
        np.testing.assert_allclose(got[i], at[:, instances == i].mean(1), rtol=1e-5)


@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_islands_go_to_the_class_they_border_most(seed, h, w, min_area):
    from scipy import ndimage

    x = logits(np.random.default_rng(seed), 3, h, w)
    labels = x.argmax(0)
    expected = labels.copy()
    for c in range(3):
        pieces, n = ndimage.label(labels == c)
        for i in range(1, n + 1):
            piece = pieces == i
            if piece.sum() >= min_area:
                continue
            votes = np.zeros(3, int)
            for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                for y, z in np.argwhere(piece):
                    v, u = y + dy, z + dx
                    if 0 <= v < h and 0 <= u < w and not piece[v, u]:
                        votes[labels[v, u]] += 1
            if votes.any():
                expected[piece] = votes.argmax()
    changed = x.copy()
    got = absorb_islands(changed, min_area)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.take_along_axis(changed, got[None].astype(int), 0)[0], x.max(0))


def two_nuclei(h: int, w: int) -> HeadOutputs:
    """A neoplastic disc and an inflammatory one that touch, on stroma."""
    y, x = np.mgrid[:h, :w].astype(np.float32)
    nucleus = np.full((h, w), -8, np.float32)
    offsets = np.zeros((2, h, w), np.float32)
    semantic = np.full((len(DEFAULT_CLASSES), h, w), -4, np.float32)
    semantic[DEFAULT_CLASSES.by_name("stroma").id - 1] = 4
    for name, cx in (("neoplastic", 20), ("inflammatory", 34)):
        disc = (y - 16) ** 2 + (x - cx) ** 2 <= 49
        nucleus[disc], offsets[0][disc], offsets[1][disc] = 8, (16 - y)[disc], (cx - x)[disc]
        semantic[:, disc] = -4
        semantic[DEFAULT_CLASSES.by_name(name).id - 1][disc] = 6
    return HeadOutputs(
        torch.from_numpy(semantic)[None], torch.from_numpy(nucleus)[None, None], torch.from_numpy(offsets)[None]
    )


def test_touching_nuclei_are_told_apart_and_classified():
    tile = TileGrid((32, 60), Box(0, 0, 32, 60), 64, 0).tile(0, 0)
    panoptic = decode_tile(two_nuclei(32, 64), tile, DEFAULT_CLASSES, 0.5, DecodeConfig())
    assert panoptic.instances.shape == panoptic.stuff.shape == (32, 60)
    assert [DEFAULT_CLASSES.things[i].name for i in panoptic.probabilities.argmax(1)] == ["neoplastic", "inflammatory"]
    np.testing.assert_allclose(panoptic.probabilities.sum(1), 1, atol=1e-5)
    assert (panoptic.scores > 0.99).all()
    assert np.unique(panoptic.instances).tolist() == [0, 1, 2]
    assert (panoptic.instances[16, 20], panoptic.instances[16, 34]) == (1, 2)
    assert (panoptic.stuff == DEFAULT_CLASSES.by_name("stroma").id).mean() > 0.7


def test_nothing_there_is_fine():
    out = two_nuclei(32, 64)
    empty = HeadOutputs(out.semantic, torch.full_like(out.nucleus, -5), out.offsets)
    tile = TileGrid((32, 64), Box(0, 0, 32, 64), 64, 0).tile(0, 0)
    panoptic = decode_tile(empty, tile, DEFAULT_CLASSES, 0.5, DecodeConfig())
    assert panoptic.instances.max() == 0
    assert panoptic.probabilities.shape == (0, N_THINGS)
    assert panoptic.scores.shape == (0,)


@pytest.mark.parametrize(("mpp", "stride"), [(0.5, 1), (0.25, 2), (1.0, 4)])
def test_islands_are_as_large_as_they_are_on_the_slide(mpp, stride):
    """Nine coarse pixels of fat in stroma, where as much, or one pixel more, is asked for."""
    semantic = np.full((1, len(DEFAULT_CLASSES), 8, 8), -4, np.float32)
    stroma, adipose = (DEFAULT_CLASSES.by_name(name).id for name in ("stroma", "adipose"))
    semantic[0, stroma - 1], semantic[0, adipose - 1, 2:5, 3:6] = 1, 2
    side = 8 * stride
    nothing = (torch.full((1, 1, side, side), -5.0), torch.zeros(1, 2, side, side))
    tile = TileGrid((side, side), Box(0, 0, side, side), side, 0).tile(0, 0)
    seen = []
    for n_pixels in (0, 9, 10):
        config = DecodeConfig(min_stuff_um2=n_pixels * (mpp * stride) ** 2)
        outputs = HeadOutputs(torch.from_numpy(semantic.copy()), *nothing)
        seen.append(adipose in decode_tile(outputs, tile, DEFAULT_CLASSES, mpp, config).stuff)
    assert seen == [True, True, False]


def test_a_single_pixel_of_tissue_stays_where_no_area_is_asked_for():
    out = two_nuclei(32, 64)
    out.semantic[0, DEFAULT_CLASSES.by_name("adipose").id - 1, 3, 5] = 9
    tile = TileGrid((32, 64), Box(0, 0, 32, 64), 64, 0).tile(0, 0)
    panoptic = decode_tile(out, tile, DEFAULT_CLASSES, 0.5, DecodeConfig(min_stuff_um2=0))
    assert panoptic.stuff[3, 5] == DEFAULT_CLASSES.by_name("adipose").id


def test_without_tissue_classes_all_else_is_void():
    out = two_nuclei(32, 64)
    things = PanopticClasses(DEFAULT_CLASSES.things)
    semantic = out.semantic[:, :N_THINGS]
    tile = TileGrid((32, 64), Box(0, 0, 32, 64), 64, 0).tile(0, 0)
    panoptic = decode_tile(HeadOutputs(semantic, out.nucleus, out.offsets), tile, things, 0.5, DecodeConfig())
    assert not panoptic.stuff.any()
    assert [things.things[i].name for i in panoptic.probabilities.argmax(1)] == ["neoplastic", "inflammatory"]


def test_pixels_without_an_instance_are_passed_over():
    instances, pixels = np.array([[0, 1], [0, 1]], np.int32), np.arange(4, dtype=np.int32)
    nucleus, things = np.full((2, 2), -1, np.float32), np.zeros((1, 2, 2), np.float32)
    _give_back_pixels(instances, pixels, nucleus, things, np.zeros(2, np.int32), np.full((2, 2), 5, np.float32), 1)
    assert not instances.any(), "tissue is surer of both"
