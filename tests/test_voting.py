"""Centre voting: two fast implementations against a slow, literal one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleipan.network.voting import VotingConfig, cpu, tensor


def slow_vote(nucleus: np.ndarray, offsets: np.ndarray, config: VotingConfig) -> np.ndarray:
    """The definition, pixel by pixel."""
    h, w = nucleus.shape
    landing = {}
    votes = np.zeros((h, w), int)
    for y, x in zip(*np.nonzero(nucleus > config.threshold), strict=True):
        ly, lx = y, x
        for _ in range(config.jumps):
            if nucleus[ly, lx] > config.threshold:
                dy, dx = np.floor(offsets[:, ly, lx] + 0.5)
                ly, lx = int(np.clip(ly + dy, 0, h - 1)), int(np.clip(lx + dx, 0, w - 1))
        landing[y, x] = ly, lx
        votes[ly, lx] += 1
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])
    padded = np.pad(votes, 2)
    score = np.array([[(padded[y : y + 5, x : x + 5] * kernel).sum() for x in range(w)] for y in range(h)])
    centres = []
    r = config.peak_radius
    for y in range(h):
        for x in range(w):
            window = score[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
            best = window.max()
            if score[y, x] < config.min_score or score[y, x] < best:
                continue
            first = np.argwhere(window == best)[0] + (max(0, y - r), max(0, x - r))
            if tuple(first) == (y, x):
                centres.append((y, x))
    out = np.zeros((h, w), np.int32)
    for (y, x), (ly, lx) in landing.items():
        near = [((ly - cy) ** 2 + (lx - cx) ** 2, i + 1) for i, (cy, cx) in enumerate(centres)]
        distance, i = min(near, default=(config.reach**2 + 1, 0))
        out[y, x] = i if distance <= config.reach**2 else 0
    return out


def slow_pieces(instances: np.ndarray, min_area: int) -> tuple[np.ndarray, list[int]]:
    """Flood fill."""
    h, w = instances.shape
    seen = np.zeros((h, w), bool)
    best: dict[int, list[tuple[int, int]]] = {}
    for start in zip(*np.nonzero(instances), strict=True):
        if seen[start]:
            continue
        seen[start] = True
        value, stack, piece = instances[start], [start], []
        while stack:
            y, x = stack.pop()
            piece.append((y, x))
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < h and 0 <= u < w and not seen[v, u] and instances[v, u] == value:
                    seen[v, u] = True
                    stack.append((v, u))
        if len(piece) >= min_area and len(piece) > len(best.get(value, [])):
            best[value] = piece
    out = np.zeros((h, w), np.int32)
    order = sorted(best, key=lambda v: min(best[v]))
    for i, value in enumerate(order):
        out[tuple(zip(*best[value], strict=True))] = i + 1
    return out, [int(v) for v in order]


def random_maps(seed: int, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Blobs that point at their centres, with noise, some of them past the border; logits are -1, 0 or 1."""
    rng = np.random.default_rng(seed)
    nucleus = np.full((h, w), -1.0, np.float32)
    offsets = rng.normal(0, 2, (2, h, w)).astype(np.float32)
    grid = np.mgrid[:h, :w]
    for _ in range(int(rng.integers(0, 6))):
        centre = rng.integers(-2, (h + 2, w + 2))
        inside = ((grid - centre[:, None, None]) ** 2).sum(0) < rng.integers(4, 40)
        nucleus[inside] = 1
        offsets[:, inside] = (centre[:, None, None] - grid + rng.normal(0, 0.8, grid.shape))[:, inside]
    nucleus[rng.random((h, w)) < 0.1] *= -1
    nucleus[rng.random((h, w)) < 0.05] = 0
    return nucleus, offsets


CASES = st.tuples(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 24))
CONFIGS = st.builds(
    VotingConfig,
    jumps=st.integers(1, 4),
    peak_radius=st.integers(1, 5),
    reach=st.integers(1, 6),
    min_votes=st.integers(1, 4),
    min_area=st.integers(1, 12),
    threshold=st.sampled_from([-1.0, 0.0, 0.5]),
)


@given(CASES, CONFIGS)
@settings(max_examples=60, deadline=None)
def test_both_implementations_are_the_definition(case, config):
    nucleus, offsets = random_maps(*case)
    expected = slow_vote(nucleus, offsets, config)
    found, pixels = cpu.vote(nucleus, offsets, config)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pixels, np.flatnonzero(nucleus > config.threshold))
    on_tensors = tensor.vote(torch.from_numpy(nucleus), torch.from_numpy(offsets), config)
    np.testing.assert_array_equal(on_tensors.numpy(), expected)


@given(CASES, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_largest_piece_of_each_instance(case, min_area):
    seed, h, w = case
    labels = np.random.default_rng(seed).integers(0, 4, (h, w)).astype(np.int32)
    expected, old = slow_pieces(labels, min_area)
    kept = cpu.keep_largest_pieces(labels, np.flatnonzero(labels).astype(np.int32), min_area)
    np.testing.assert_array_equal(labels, expected)
    assert kept.tolist() == old


@pytest.mark.parametrize("shift", [(0, 0), (3, 5), (16, 1)])
def test_a_nucleus_is_the_same_wherever_the_tile_begins(shift):
    nucleus, offsets = random_maps(7, 40, 40)
    nucleus[:12], nucleus[-12:], nucleus[:, :12], nucleus[:, -12:] = -1, -1, -1, -1
    config = VotingConfig()
    whole, _ = cpu.vote(nucleus, offsets, config)
    padding = ((shift[0], 2), (shift[1], 2))
    moved, _ = cpu.vote(np.pad(nucleus, padding, constant_values=-1.0), np.pad(offsets, ((0, 0), *padding)), config)
    np.testing.assert_array_equal(moved, np.pad(whole, padding))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_cpu_at_size():
    nucleus, offsets = random_maps(3, 1024, 1024)
    config = VotingConfig()
    on_gpu = tensor.vote(torch.from_numpy(nucleus).cuda(), torch.from_numpy(offsets).cuda(), config).cpu().numpy()
    np.testing.assert_array_equal(on_gpu, cpu.vote(nucleus, offsets, config)[0])
