"""Centre voting in numba, one thread, without the GIL. See the package for the algorithm.

Nuclei cover a tenth of a tile, so kernels go over lists of pixels (flat indices). Half of the time would go into fresh
memory, which the system hands out page by page: planes are few, and used again.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from nucleipan.network.voting import VotingConfig


def vote(nucleus: np.ndarray, offsets: np.ndarray, config: VotingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Assign nucleus pixels to centres.

    Args:
        nucleus: float32[h, w], logit.
        offsets: float32[2, h, w], (dy, dx) in pixels.

    Returns:
        int32[h, w], 0 = none, else 1..n in raster order of the centres. An instance may have several pieces.
        int32[m], flat indices of the nucleus pixels in raster order: elsewhere there is no instance.
    """
    pixels, landing, votes, landed = _land(nucleus, np.float32(config.threshold), offsets, config.jumps)
    centres = _peaks(_smooth(votes, landed), config.min_score, config.peak_radius)
    _claim(votes, centres, config.reach)
    return _follow(pixels, landing, votes), pixels


def keep_largest_pieces(instances: np.ndarray, pixels: np.ndarray, min_area: int) -> np.ndarray:
    """Reduce every instance to its largest 4-connected piece, drop small ones, renumber in raster order, in place.

    Of equally large pieces the one whose first pixel comes first is kept.

    Args:
        instances: int32[h, w], any ids, 0 = none; then ids are 1..n in raster order of each nucleus's first pixel.
        pixels: as of ``vote``.

    Returns:
        int32[n], the former id of each.
    """
    pixels, piece_of, first = pieces(instances, pixels)
    return _select(instances, pixels, piece_of, first, min_area)


@njit(nogil=True, cache=True)
def _land(nucleus, threshold, offsets, n_jumps):
    """Pixels above ``threshold``, where each ends, int32[h, w] how many end at each pixel, and where any do."""
    h, w = nucleus.shape
    pixels, landing, landed = np.empty(h * w, np.int32), np.empty(h * w, np.int32), np.empty(h * w, np.int32)
    votes = np.zeros((h, w), np.int32)
    half = np.float32(0.5)
    n = n_landed = 0
    for y in range(h):
        for x in range(w):
            if not nucleus[y, x] > threshold:
                continue
            v, u = y, x
            for _ in range(n_jumps):
                if not nucleus[v, u] > threshold:
                    break
                # The offset alone is rounded, so that the result does not depend on the tile's origin.
                dv, du = np.int64(np.floor(offsets[0, v, u] + half)), np.int64(np.floor(offsets[1, v, u] + half))
                if dv == 0 and du == 0:
                    break
                v, u = min(max(v + dv, 0), h - 1), min(max(u + du, 0), w - 1)
            pixels[n], landing[n] = y * w + x, v * w + u
            n += 1
            if votes[v, u] == 0:
                landed[n_landed] = v * w + u
                n_landed += 1
            votes[v, u] += 1
    return pixels[:n], landing[:n], votes, landed[:n_landed]


@njit(nogil=True, cache=True)
def _smooth(votes, landed):
    """Binomial [1, 4, 6, 4, 1] in y and x, zero outside; ``landed`` lists the pixels that have votes."""
    h, w = votes.shape
    weights = np.array((1, 4, 6, 4, 1), np.int32)
    out = np.zeros((h, w), np.int32)
    for i in landed:
        y, x = i // w, i % w
        v = votes[y, x]
        for dy in range(max(-2, -y), min(3, h - y)):
            weighted = v * weights[dy + 2]
            for dx in range(max(-2, -x), min(3, w - x)):
                out[y + dy, x + dx] += weighted * weights[dx + 2]
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
def _claim(votes, centres, reach):
    """Put -(index + 1) of the nearest centre within ``reach`` where votes are; of equally near ones the first."""
    h, w = votes.shape
    for i in range(len(centres)):
        cy, cx = centres[i, 0], centres[i, 1]
        for y in range(max(0, cy - reach), min(h, cy + reach + 1)):
            for x in range(max(0, cx - reach), min(w, cx + reach + 1)):
                if votes[y, x] == 0:
                    continue
                distance = (y - cy) * (y - cy) + (x - cx) * (x - cx)
                if distance > reach * reach:
                    continue
                if votes[y, x] < 0:
                    v, u = centres[-votes[y, x] - 1]
                    if distance >= (y - v) * (y - v) + (x - u) * (x - u):
                        continue
                votes[y, x] = -(i + 1)


@njit(nogil=True, cache=True)
def _follow(pixels, landing, claims):
    out = np.zeros(claims.shape, np.int32)
    flat, claimed = out.ravel(), claims.ravel()
    for k in range(len(pixels)):
        flat[pixels[k]] = max(0, -claimed[landing[k]])
    return out


@njit(nogil=True, cache=True)
def _find(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(nogil=True, cache=True)
def pieces(labels, among):
    """4-connected pieces of equal labels; ``among`` has the flat indices of all pixels with a label, in raster order.

    Returns:
        The pixels that have a label; int32[h * w], the piece that a pixel is in (of others it means nothing); and the
        first pixel of each piece. All pixels in raster order.
    """
    h, w = labels.shape
    pixels, parent = np.empty(len(among), np.int32), np.empty(h * w, np.int32)
    n = 0
    for i in among:
        y, x = i // w, i % w
        v = labels[y, x]
        if v == 0:
            continue
        pixels[n] = i
        n += 1
        is_left, is_above = x > 0 and labels[y, x - 1] == v, y > 0 and labels[y - 1, x] == v
        parent[i] = _find(parent, i - 1) if is_left else i
        if is_above and not (is_left and labels[y - 1, x - 1] == v):  # else they are one already
            a, b = _find(parent, i - w), parent[i]
            parent[max(a, b)] = min(a, b)
    first = np.empty(n, np.int32)
    n_pieces = 0
    for i in pixels[:n]:  # a parent comes first: its entry is a piece already
        if parent[i] == i:
            first[n_pieces] = i
            parent[i] = n_pieces
            n_pieces += 1
        else:
            parent[i] = parent[parent[i]]
    return pixels[:n], parent, first[:n_pieces].copy()


@njit(nogil=True, cache=True)
def _select(labels, pixels, piece_of, first, min_area):
    flat = labels.ravel()
    size = np.zeros(len(first), np.int32)
    for i in pixels:
        size[piece_of[i]] += 1
    largest = 0
    for piece in range(len(first)):
        largest = max(largest, flat[first[piece]])
    best = np.full(largest + 1, -1, np.int32)
    for piece in range(len(first)):  # in raster order, so the first of equally large pieces stays
        label = flat[first[piece]]
        if size[piece] >= min_area and (best[label] < 0 or size[piece] > size[best[label]]):
            best[label] = piece
    old, new_id = np.empty(len(first), np.int32), np.zeros(len(first), np.int32)
    n = 0
    for piece in range(len(first)):
        label = flat[first[piece]]
        if best[label] == piece:
            old[n] = label
            n += 1
            new_id[piece] = n
    for i in pixels:
        flat[i] = new_id[piece_of[i]]
    return old[:n].copy()
