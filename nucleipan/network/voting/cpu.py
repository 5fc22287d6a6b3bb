"""Centre voting in numba, one thread, without the GIL. See the package for the algorithm."""

from __future__ import annotations

import numpy as np
from numba import njit

from nucleipan.network.voting import VotingConfig

_FAR = np.int32(2**30)


def vote(nucleus: np.ndarray, offsets: np.ndarray, config: VotingConfig) -> np.ndarray:
    """Assign nucleus pixels to centres.

    Args:
        nucleus: float32[h, w], logit.
        offsets: float32[2, h, w], (dy, dx) in pixels.

    Returns:
        int32[h, w], 0 = none, else 1..n in raster order of the centres. An instance may have several pieces.
    """
    landing, votes = _land(nucleus > np.float32(config.threshold), offsets, config.jumps)
    centres = _peaks(_smooth(votes), config.min_score, config.peak_radius)
    claims = _claim(centres, nucleus.shape[0], nucleus.shape[1], config.reach)
    return _follow(landing, claims)


def keep_largest_pieces(instances: np.ndarray, min_area: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce every instance to its largest 4-connected piece, drop small ones, renumber in raster order.

    Of equally large pieces the one whose first pixel comes first is kept.

    Args:
        instances: int32[h, w], any ids, 0 = none.

    Returns:
        int32[h, w] with ids 1..n in raster order of each nucleus's first pixel, and int32[n], the old id of each.
    """
    roots = components(instances)
    return _select(instances, roots, min_area)


@njit(nogil=True, cache=True)
def _land(mask, offsets, n_jumps):
    """Flat index where each pixel of the mask ends (-1 elsewhere), and how many end at each pixel."""
    h, w = mask.shape
    landing = np.full((h, w), -1, np.int32)
    votes = np.zeros((h, w), np.int32)
    half = np.float32(0.5)
    for y in range(h):
        for x in range(w):
            if not mask[y, x]:
                continue
            v, u = y, x
            for _ in range(n_jumps):
                if not mask[v, u]:
                    break
                # The offset alone is rounded, so that the result does not depend on the tile's origin.
                dv, du = np.int64(np.floor(offsets[0, v, u] + half)), np.int64(np.floor(offsets[1, v, u] + half))
                v, u = min(max(v + dv, 0), h - 1), min(max(u + du, 0), w - 1)
            landing[y, x] = v * w + u
            votes[v, u] += 1
    return landing, votes


@njit(nogil=True, cache=True)
def _smooth(votes):
    """Binomial [1, 4, 6, 4, 1] in y and x, zero outside."""
    h, w = votes.shape
    rows = np.zeros((h, w), np.int32)
    out = np.zeros((h, w), np.int32)
    for y in range(h):
        for x in range(w):
            v = votes[y, x]
            if v:
                rows[y, x] += 6 * v
                if x >= 1:
                    rows[y, x - 1] += 4 * v
                if x >= 2:
                    rows[y, x - 2] += v
                if x + 1 < w:
                    rows[y, x + 1] += 4 * v
                if x + 2 < w:
                    rows[y, x + 2] += v
    for y in range(h):
        for x in range(w):
            v = rows[y, x]
            if v:
                out[y, x] += 6 * v
                if y >= 1:
                    out[y - 1, x] += 4 * v
                if y >= 2:
                    out[y - 2, x] += v
                if y + 1 < h:
                    out[y + 1, x] += 4 * v
                if y + 2 < h:
                    out[y + 2, x] += v
    return out


@njit(nogil=True, cache=True)
def _peaks(score, min_score, radius):
    """Raster-ordered (y, x) of pixels that no pixel in the window beats; of equals the first wins."""
    h, w = score.shape
    found = []
    for y in range(h):
        for x in range(w):
            s = score[y, x]
            if s < min_score:
                continue
            is_peak = True
            for v in range(max(0, y - radius), min(h, y + radius + 1)):
                for u in range(max(0, x - radius), min(w, x + radius + 1)):
                    t = score[v, u]
                    if t > s or (t == s and (v < y or (v == y and u < x))):
                        is_peak = False
                        break
                if not is_peak:
                    break
            if is_peak:
                found.append((y, x))
    out = np.zeros((len(found), 2), np.int32)
    for i, (y, x) in enumerate(found):
        out[i, 0] = y
        out[i, 1] = x
    return out


@njit(nogil=True, cache=True)
def _claim(centres, h, w, reach):
    """Index + 1 of the nearest centre within ``reach``; of equally near ones the first."""
    claims = np.zeros((h, w), np.int32)
    distance = np.full((h, w), _FAR, np.int32)
    for i in range(len(centres)):
        cy, cx = centres[i, 0], centres[i, 1]
        for y in range(max(0, cy - reach), min(h, cy + reach + 1)):
            for x in range(max(0, cx - reach), min(w, cx + reach + 1)):
                d = (y - cy) * (y - cy) + (x - cx) * (x - cx)
                if d <= reach * reach and d < distance[y, x]:
                    distance[y, x] = d
                    claims[y, x] = i + 1
    return claims


@njit(nogil=True, cache=True)
def _follow(landing, claims):
    h, w = landing.shape
    out = np.zeros((h, w), np.int32)
    flat = claims.ravel()
    for y in range(h):
        for x in range(w):
            if landing[y, x] >= 0:
                out[y, x] = flat[landing[y, x]]
    return out


@njit(nogil=True, cache=True)
def _find(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(nogil=True, cache=True)
def components(labels):
    """int32[h * w], flat index of the first pixel of the 4-connected piece a pixel is in; -1 where the value is 0."""
    h, w = labels.shape
    parent = np.full(h * w, -1, np.int32)
    for y in range(h):
        for x in range(w):
            v = labels[y, x]
            if v == 0:
                continue
            i = y * w + x
            parent[i] = i
            if x > 0 and labels[y, x - 1] == v:
                parent[i] = _find(parent, i - 1)
            if y > 0 and labels[y - 1, x] == v:
                a, b = _find(parent, i - w), _find(parent, i)
                if a != b:
                    parent[max(a, b)] = min(a, b)
    for i in range(h * w):
        if parent[i] >= 0:
            parent[i] = parent[parent[i]]
    return parent


@njit(nogil=True, cache=True)
def _select(labels, roots, min_area):
    h, w = labels.shape
    size = np.zeros(h * w, np.int32)
    for i in range(h * w):
        if roots[i] >= 0:
            size[roots[i]] += 1
    best = np.full(labels.max() + 1, -1, np.int32)
    flat = labels.ravel()
    for i in range(h * w):  # roots in raster order, so the first of equally large pieces stays
        if roots[i] == i and size[i] >= min_area:
            b = best[flat[i]]
            if b < 0 or size[i] > size[b]:
                best[flat[i]] = i
    new_id = np.zeros(h * w, np.int32)
    old = []
    for i in range(h * w):
        if roots[i] == i and best[flat[i]] == i:
            old.append(flat[i])
            new_id[i] = len(old)
    out = np.zeros((h, w), np.int32)
    for y in range(h):
        for x in range(w):
            r = roots[y * w + x]
            if r >= 0:
                out[y, x] = new_id[r]
    old_ids = np.zeros(len(old), np.int32)
    for i in range(len(old)):
        old_ids[i] = old[i]
    return out, old_ids
