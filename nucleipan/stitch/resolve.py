"""Phase 2, decisions: which candidates are nuclei, which pixels are whose, which ids they get.

A candidate whose centre lies in its own tile's core is *owned*. Tiles may differ slightly near a seam, so candidates
of different tiles that share pixels are compared: two that are each other's largest overlap, and share more than
half of the smaller one, are one nucleus seen twice. Of such a group one is kept: seen twice by its owners -> once;
each tile saw the centre in the other's core -> still once. A candidate that is neither owned nor seen by another
tile is dropped: the tile that answers for the place did not see it.

Kept nuclei that still share pixels contest them; the first in canonical order wins. Losers are measured and outlined
anew from what remains (but for their stains, as the image is no longer at hand), completed anew where the winner covers
them, and one that keeps nothing disappears. Ids are then given in canonical order of the *final* centres, so that the
finished table and raster are in order by themselves. All decisions follow from tile files in raster order: neither the
order of arrival nor the number of workers can change them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nucleipan.geometry import Box
from nucleipan.measure import measure_shapes
from nucleipan.polygons import trace
from nucleipan.stitch.candidates import Candidates, Claims, PlaneCache
from nucleipan.stitch.outlines import whole_outlines
from nucleipan.stitch.record import Measures


@dataclass(frozen=True)
class Remainder:
    """What a nucleus is after it lost pixels: WKB outlines of what is left and, if that has its winner in a dent, of
    the whole (else empty); stuff id; float32[6] shape."""

    outline: bytes
    completed: bytes
    tissue: int
    shape: np.ndarray


@dataclass(frozen=True)
class Resolution:
    """Who is who. ``id_of_rank`` turns the order of claims into final ids.

    Attributes:
        rank: uint32[n], 0 for dropped candidates, else 1.. in canonical order of the centres before contests.
        id_of_rank: uint32[K + 1], final id; 0 for nuclei that lost every pixel.
        candidate_of_id: int64[N], candidate behind id i + 1.
        measures: of all candidates, final.
        remainders: by candidate, of those that lost pixels and have some left.
    """

    rank: np.ndarray
    id_of_rank: np.ndarray
    candidate_of_id: np.ndarray
    measures: Measures
    remainders: dict[int, Remainder]


def resolve(candidates: Candidates, cache: PlaneCache, level0_per_pixel: float) -> Resolution:
    """Decide ownership, seams, contests and ids; outlines are scaled by ``level0_per_pixel``."""
    pairs, n_common = _overlaps(candidates, cache)
    kept = np.flatnonzero(_keep(candidates, pairs, n_common))
    rank = np.zeros(len(candidates.is_owned), np.uint32)
    rank[kept[candidates.measures.take(kept).order()]] = np.arange(1, len(kept) + 1)

    m = candidates.measures
    final = Measures(m.n_px.copy(), m.sum_y.copy(), m.sum_x.copy(), m.bbox.copy(), m.first_x.copy())
    remainders: dict[int, Remainder] = {}
    claims = Claims(candidates, rank)
    for loser in _losers(rank, pairs):
        box, ranks = _surroundings(claims, cache, loser)
        rest = ranks == rank[loser]
        _measure_again(final, loser, box, rest)
        if rest.any():
            scale, corner = level0_per_pixel, (box.y0, box.x0)
            number = rank[[loser]].astype(np.int32)
            whole = whole_outlines(ranks.astype(np.int32), number, final.bbox[[loser]], corner, scale)
            remainders[loser] = Remainder(
                _outline(rest, box, scale), whole.get(0, b""), _tissue(candidates, cache, loser, rest, box),
                measure_shapes(rest.astype(np.int32), np.array([[0, 0, *rest.shape]], np.int32))[0],
            )  # fmt: skip
    alive = kept[final.n_px[kept] > 0]
    candidate_of_id = alive[final.take(alive).order()]
    id_of_rank = np.zeros(len(kept) + 1, np.uint32)
    id_of_rank[rank[candidate_of_id]] = np.arange(1, len(candidate_of_id) + 1)
    return Resolution(rank, id_of_rank, candidate_of_id, final, remainders)


def _overlaps(candidates: Candidates, cache: PlaneCache) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of different tiles that share pixels: int64[P, 2], the one of the earlier tile first, and how many."""
    pairs, n_common = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    tree = shapely.STRtree(_as_shapely(candidates.reach))
    for s in range(len(candidates.tiles)):
        near = tree.query(shapely.box(*candidates.reach[s, [1, 0, 3, 2]]))
        for t in np.sort(near[near > s]):
            found = _touching_boxes(candidates, s, int(t))
            if len(found):
                corner_s, corner_t = candidates.boxes[s], candidates.boxes[t]
                common = _count_common(
                    cache.get(s)[0], cache.get(int(t))[0], found - candidates.start[[s, t]] + 1,
                    candidates.measures.bbox[found[:, 0]], candidates.measures.bbox[found[:, 1]],
                    np.array([corner_s.y0, corner_s.x0, corner_t.y0, corner_t.x0]),
                )  # fmt: skip
                pairs.append(found[common > 0])
                n_common.append(common[common > 0])
    return np.concatenate(pairs), np.concatenate(n_common)


def _touching_boxes(candidates: Candidates, s: int, t: int) -> np.ndarray:
    """int64[P, 2], candidates of tiles s and t whose bounding boxes meet."""
    bbox = candidates.measures.bbox
    near_s, near_t = (
        own + np.flatnonzero(_meets(bbox[own:end], candidates.reach[other]))
        for own, end, other in (
            (candidates.start[s], candidates.start[s + 1], t),
            (candidates.start[t], candidates.start[t + 1], s),
        )
    )
    i, j = np.nonzero(_meets(bbox[near_s][:, None], bbox[near_t][None]))
    return np.stack([near_s[i], near_t[j]], 1)


def _meets(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether half-open boxes (y0, x0, y1, x1 in the last axis) share a pixel; broadcasts."""
    lower, upper = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    return (lower < upper).all(-1)


def _as_shapely(boxes: np.ndarray) -> np.ndarray:
    return shapely.box(boxes[:, 1], boxes[:, 0], boxes[:, 3], boxes[:, 2])


def _keep(candidates: Candidates, pairs: np.ndarray, n_common: np.ndarray) -> np.ndarray:
    """bool[n]: one of each group of candidates that are one nucleus, and every owned candidate that is in none."""
    n, tile_of, n_px = len(candidates.is_owned), candidates.tile_of, candidates.measures.n_px
    a, b = pairs[:, 0], pairs[:, 1]
    is_same = 2 * n_common > np.minimum(n_px[a], n_px[b])
    is_same &= _is_largest(a, tile_of[b], n_common, b) & _is_largest(b, tile_of[a], n_common, a)
    links = coo_array((np.ones(is_same.sum(), np.int8), (a[is_same], b[is_same])), shape=(n, n))
    n_groups, group = connected_components(links, directed=False)

    is_kept = np.zeros(n, np.bool_)
    # First of its group: seen whole before cut, owned before not, then the earlier tile and nucleus.
    order = np.lexsort((np.arange(n), ~candidates.is_owned, candidates.is_cut, group))
    first = order[np.diff(group[order], prepend=-1) > 0]
    has_owner = np.bincount(group, candidates.is_owned, minlength=n_groups) > 0
    is_kept[first] = has_owner | (np.bincount(group, minlength=n_groups) > 1)
    # A chain of overlaps may join two nuclei of one tile; that tile saw them apart, so both stay.
    is_kept |= candidates.is_owned & (tile_of == tile_of[first][group])
    return is_kept


def _is_largest(candidate: np.ndarray, other_tile: np.ndarray, n_common: np.ndarray, other: np.ndarray) -> np.ndarray:
    """bool[P]: no pair of the same candidate with the same other tile shares more pixels (earlier partner on ties)."""
    order = np.lexsort((other, -n_common, other_tile, candidate))
    is_new = np.diff(candidate[order], prepend=-1) != 0
    is_new |= np.diff(other_tile[order], prepend=-1) != 0
    is_largest = np.zeros(len(candidate), np.bool_)
    is_largest[order[is_new]] = True
    return is_largest


def _losers(rank: np.ndarray, pairs: np.ndarray) -> list[int]:
    """Kept candidates that share pixels with kept ones before them, in order."""
    kept = pairs[(rank[pairs] > 0).all(1)]
    return np.unique(np.where(rank[kept[:, 0]] < rank[kept[:, 1]], kept[:, 1], kept[:, 0])).tolist()


def _surroundings(claims: Claims, cache: PlaneCache, candidate: int) -> tuple[Box, np.ndarray]:
    """A box around a candidate, three times as large, and uint32[h, w], ranks of the nuclei that get its pixels."""
    box = _box(claims.candidates, candidate)
    box = box.grown(max(box.shape))
    ranks = np.zeros(box.shape, np.uint32)
    for tile in claims.candidates.near(box).tolist():
        claims.add(tile, cache.get(tile)[0], ranks, box)
    return box, ranks


def _tissue(candidates: Candidates, cache: PlaneCache, candidate: int, rest: np.ndarray, box: Box) -> int:
    """Most frequent stuff id under ``rest``, bool[h, w] over ``box``, as the candidate's own tile has it."""
    own, tile = _box(candidates, candidate), int(candidates.tile_of[candidate])
    stuff = cache.get(tile)[1][own.slices(candidates.boxes[tile])]
    return int(np.bincount(stuff[rest[own.slices(box)]]).argmax())


def _box(candidates: Candidates, candidate: int) -> Box:
    return Box(*(int(v) for v in candidates.measures.bbox[candidate]))


def _measure_again(measures: Measures, candidate: int, box: Box, mask: np.ndarray) -> None:
    rows, cols = np.nonzero(mask)
    measures.n_px[candidate] = len(rows)
    if len(rows):
        rows, cols = rows + box.y0, cols + box.x0
        measures.sum_y[candidate], measures.sum_x[candidate] = rows.sum(), cols.sum()
        measures.bbox[candidate] = rows[0], cols.min(), rows[-1] + 1, cols.max() + 1
        measures.first_x[candidate] = cols[0]


def _outline(mask: np.ndarray, box: Box, scale: float) -> bytes:
    return bytes(shapely.to_wkb(trace(mask, (box.y0, box.x0), scale), byte_order=1))


@numba.njit(cache=True, nogil=True)
def _count_common(
    plane_a: np.ndarray, plane_b: np.ndarray, labels: np.ndarray,
    bbox_a: np.ndarray, bbox_b: np.ndarray, corners: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """int64[P], pixels that are ``labels[p, 0]`` in one plane and ``labels[p, 1]`` in the other."""
    n_common = np.zeros(len(labels), np.int64)
    for p in range(len(labels)):
        for y in range(max(bbox_a[p, 0], bbox_b[p, 0]), min(bbox_a[p, 2], bbox_b[p, 2])):
            for x in range(max(bbox_a[p, 1], bbox_b[p, 1]), min(bbox_a[p, 3], bbox_b[p, 3])):
                if plane_a[y - corners[0], x - corners[1]] == labels[p, 0]:
                    n_common[p] += plane_b[y - corners[2], x - corners[3]] == labels[p, 1]
    return n_common
