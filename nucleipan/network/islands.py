"""Tissue islands too small to mean anything go to the class around them."""

from __future__ import annotations

import numpy as np
from numba import njit

from nucleipan.network.voting.cpu import pieces


def absorb_islands(logits: np.ndarray, min_area: int) -> np.ndarray:
    """Reassign 4-connected regions of fewer than ``min_area`` pixels to the class they border most.

    All islands are judged on the map as it was, so the result does not depend on the order. An island that fills
    the whole map, or borders nothing but itself, stays. In ``logits`` the winner and the loser are swapped in
    place, so that their argmax is the returned map.

    Args:
        logits: float32[S, h, w].

    Returns:
        int32[h, w], index of the class of each pixel.
    """
    labels = _argmax(logits)
    _, piece_of, first = pieces(labels + 1, np.arange(labels.size, dtype=np.int32))
    return _absorb(logits, labels, piece_of.reshape(labels.shape), len(first), min_area)


@njit(nogil=True, cache=True)
def _argmax(logits):
    """Of equals the first, like numpy's, which is slow along the first axis."""
    n, h, w = logits.shape
    best, labels = logits[0].copy(), np.zeros((h, w), np.int32)
    for c in range(1, n):
        for y in range(h):
            for x in range(w):
                if logits[c, y, x] > best[y, x]:
                    best[y, x] = logits[c, y, x]
                    labels[y, x] = c
    return labels


@njit(nogil=True, cache=True)
def _absorb(logits, labels, piece_of, n_pieces, min_area):
    h, w = labels.shape
    size = np.zeros(n_pieces, np.int32)
    for y in range(h):
        for x in range(w):
            size[piece_of[y, x]] += 1
    index = np.full(n_pieces, -1, np.int32)
    n_islands = 0
    for piece in range(n_pieces):
        if size[piece] < min_area:
            index[piece] = n_islands
            n_islands += 1
    borders = np.zeros((n_islands, logits.shape[0]), np.int32)
    for y in range(h):
        for x in range(w):
            island = index[piece_of[y, x]]
            if island < 0:
                continue
            c = labels[y, x]
            for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                v, u = y + dy, x + dx
                if 0 <= v < h and 0 <= u < w and labels[v, u] != c:
                    borders[island, labels[v, u]] += 1
    out = labels.copy()
    for y in range(h):
        for x in range(w):
            island = index[piece_of[y, x]]
            if island >= 0 and borders[island].max() > 0:
                new, old = borders[island].argmax(), labels[y, x]
                out[y, x] = new
                logits[new, y, x], logits[old, y, x] = logits[old, y, x], logits[new, y, x]
    return out
