"""Corrections as arithmetic on one plane of ids; nothing here knows stores or files.

Planes are uint32[h, w], 0 = no nucleus, and never changed in place. Points are (y, x) in the plane's own frame, where
pixel (i, j) covers [i, i + 1) x [j, j + 1), as in ``nucleipan.polygons``. Pixels that touch at a corner belong
together (8-connected), so a line that parts a nucleus must be 4-connected::

    . . x x .        a diagonal step of the line also takes the pixel between,
    . x x . .        or the nucleus would leak through the corner
    x x . . .
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import shapely
from scipy import ndimage

from nucleipan.edits.edit import EditError

#: What a split leaves on either side, and what a drawn nucleus covers, at least; smaller ones are slips of the hand.
MIN_PX = 8
#: Nuclei up to about so many pixels apart still merge: what lies between them and is free is filled.
MERGE_GAP_PX = 4

_TOUCHING = np.ones((3, 3), bool)


def merge(plane: np.ndarray, ids: Sequence[int], new_id: int) -> np.ndarray:
    """``plane`` with the nuclei ``ids`` as one, ``new_id``.

    Nuclei that do not touch are bridged by free pixels (a morphological closing); others' pixels are never taken.

    Raises:
        EditError: fewer than two nuclei, or they are too far apart to be one.
    """
    if len(set(ids)) < 2:
        raise EditError(f"merging takes two nuclei or more; found {len(set(ids))}; choose another one")
    union = np.isin(plane, ids)
    if not _are_one(plane, ids, union):
        union |= _closed(union) & (plane == 0)
        if not _are_one(plane, ids, union):
            raise EditError(
                f"nuclei {_listed(ids)} are too far apart to be one (gaps up to {MERGE_GAP_PX} free pixels are "
                "filled); merge nuclei that touch, or redraw one"
            )
    merged = plane.copy()
    merged[union] = new_id
    return merged


def split(plane: np.ndarray, line: np.ndarray, first_id: int) -> tuple[np.ndarray, dict[int, int]]:
    """``plane`` with every nucleus that ``line`` (float[n, 2]) parts as two.

    Pixels on the line go to the half they touch. A nucleus that the line enters without reaching the other side is left
    as it is; of one in several pieces, those that the line does not part go to the nearer half.

    Returns:
        The plane, and for each new id, counting from ``first_id``, the nucleus it was a part of.

    Raises:
        EditError: the line parts no nucleus, or one into more than two.
    """
    parted, parent_of = plane.copy(), dict[int, int]()
    rows, cols = line_pixels(line, plane.shape)
    is_line = np.zeros(plane.shape, bool)
    is_line[rows, cols] = True
    for nucleus in np.setdiff1d(plane[is_line], [0]).tolist():
        halves = _halves(plane == nucleus, is_line, nucleus)
        if halves is None:
            continue
        for half in (1, 2):
            new_id = first_id + len(parent_of)
            parted[halves == half] = new_id
            parent_of[new_id] = nucleus
    if not parent_of:
        raise EditError(
            "the line parts no nucleus; draw it from one side of a nucleus to the other, and leave "
            f"{MIN_PX} pixels or more on each"
        )
    return parted, parent_of


def delete(plane: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """``plane`` without the nuclei ``ids``."""
    return np.where(np.isin(plane, ids), np.uint32(0), plane)


def redraw(plane: np.ndarray, ring: np.ndarray, nucleus: int) -> np.ndarray:
    """``plane`` with ``nucleus``, new or not, as what the polygon ``ring`` (float[n, 2]) encloses.

    Pixels of other nuclei are theirs: they are not taken. Where they cut the polygon in pieces, the largest is kept.

    Raises:
        EditError: too little is left.
    """
    is_free = (plane == 0) | (plane == nucleus)
    inside = largest_piece(polygon_mask(ring, plane.shape) & is_free)
    if inside.sum() < MIN_PX:
        raise EditError(
            f"the polygon encloses {inside.sum()} pixels that belong to no other nucleus; expected {MIN_PX} or more"
        )
    redrawn = np.where(plane == nucleus, np.uint32(0), plane)
    redrawn[inside] = nucleus
    return redrawn


def line_pixels(line: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels that a polyline crosses inside ``shape``, in its order, 4-connected.

    Raises:
        EditError: it has fewer than two points, or one is no finite number.
    """
    points = np.asarray(line, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise EditError(f"a line takes two points or more, (y, x) each; found {points.shape}; draw it again")
    samples = [points[:1]]
    for a, b in itertools.pairwise(points):
        n = int(np.ceil(np.abs(b - a).max() * 4)) + 1
        samples.append(a + (b - a) * (np.arange(1, n + 1) / n)[:, None])
    path = np.floor(np.concatenate(samples)).astype(np.int64)
    is_diagonal = (np.diff(path, axis=0) != 0).all(1)
    between = np.stack([path[1:, 0], path[:-1, 1]], 1)
    path = np.insert(path, np.flatnonzero(is_diagonal) + 1, between[is_diagonal], axis=0)
    path = path[((path >= 0) & (path < shape)).all(1)]
    return path[:, 0], path[:, 1]


def polygon_mask(ring: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool[h, w], pixels whose centre lies in the polygon; one that crosses itself encloses each of its loops.

    Raises:
        EditError: it has fewer than three points, or one is no finite number.
    """
    points = np.asarray(ring, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise EditError(f"a polygon takes three points or more, (y, x) each; found {points.shape}; draw it again")
    polygon = shapely.make_valid(shapely.Polygon(points[:, ::-1]))
    shapely.prepare(polygon)
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    return shapely.contains_xy(polygon, cols, rows)


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """bool[h, w], the largest connected piece, of equals the first; empty if ``mask`` is."""
    pieces, n = ndimage.label(mask, _TOUCHING)
    if n < 2:
        return mask
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


def _are_one(plane: np.ndarray, ids: Sequence[int], union: np.ndarray) -> bool:
    """Whether the largest pieces of all nuclei lie in one piece of ``union``."""
    pieces, _ = ndimage.label(union, _TOUCHING)
    return len({int(pieces[largest_piece(plane == i)].max()) for i in ids}) == 1


def _closed(mask: np.ndarray) -> np.ndarray:
    reach = MERGE_GAP_PX // 2
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    padded = np.pad(mask, reach + 1)
    closed = ndimage.binary_closing(padded, y**2 + x**2 <= reach**2 + 1)
    return closed[reach + 1 : -reach - 1, reach + 1 : -reach - 1]


def _halves(mask: np.ndarray, is_line: np.ndarray, nucleus: int) -> np.ndarray | None:
    """uint8[h, w], 1 and 2 on the two halves of ``mask``; None where the line does not part it.

    Raises:
        EditError: it is parted into more than two.
    """
    pieces, n_pieces = ndimage.label(mask, _TOUCHING)
    parts, n_parts = ndimage.label(mask & ~is_line, _TOUCHING)
    sizes = np.bincount(parts.ravel(), minlength=n_parts + 1)
    piece_of = ndimage.maximum(pieces, parts, np.arange(n_parts + 1)) if n_parts else np.zeros(1)
    is_part = (np.arange(n_parts + 1) > 0) & (sizes >= MIN_PX)
    n_of_piece = np.bincount(piece_of[is_part].astype(np.int64), minlength=n_pieces + 1)
    sides = np.flatnonzero(is_part & (n_of_piece[piece_of.astype(np.int64)] > 1))
    if len(sides) == 0:
        return None
    if len(sides) > 2:
        raise EditError(
            f"the line cuts nucleus {nucleus} into {len(sides)} parts; draw one that crosses it once, then the next"
        )
    halves = np.where(parts == sides[0], np.uint8(1), np.where(parts == sides[1], np.uint8(2), np.uint8(0)))
    return _with_loose(_grown(halves, mask), mask)


def _grown(halves: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Both halves, a pixel at a time, until they fill all of ``mask`` that they reach."""
    while True:
        beside = np.where(mask & (halves == 0), ndimage.grey_dilation(halves, footprint=_TOUCHING), 0)
        if not beside.any():
            return halves
        halves = np.maximum(halves, beside.astype(np.uint8))


def _with_loose(halves: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pieces of ``mask`` that no half reaches, each as a whole, join the half nearest to them."""
    loose, n = ndimage.label(mask & (halves == 0), _TOUCHING)
    if n:
        distance, nearest = ndimage.distance_transform_edt(halves == 0, return_indices=True)
        for at in ndimage.minimum_position(distance, loose, np.arange(1, n + 1)):
            at = tuple(int(v) for v in at)
            halves = np.where(loose == loose[at], halves[tuple(nearest[(slice(None), *at)])], halves)
    return halves


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(str(i) for i in sorted(set(ids)))
