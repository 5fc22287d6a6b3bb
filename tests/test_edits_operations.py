"""Corrections on planes of ids: what was asked for happens, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from stitch_oracle import random_truth

from nucleipan.edits import EditError
from nucleipan.edits.operations import (
    MIN_PX,
    delete,
    largest_piece,
    line_pixels,
    merge,
    polygon_mask,
    redraw,
    split,
)
from nucleipan.polygons import trace

TOUCHING = np.ones((3, 3))
PLANE = random_truth((90, 110), 45, radii=(4, 11)).instances.astype(np.uint32)
N = int(PLANE.max())
POINT = st.tuples(st.floats(-5, 95), st.floats(-5, 115))


def n_pieces(mask: np.ndarray) -> int:
    return ndimage.label(mask, TOUCHING)[1]


def disc(cy: float, cx: float, radius: float, shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - cy) ** 2 + (x - cx) ** 2 <= radius**2


def two_discs(distance: int) -> np.ndarray:
    plane = np.zeros((40, 60), np.uint32)
    plane[10:20, 10:20] = 1
    plane[10:20, 20 + distance : 30 + distance] = 2
    return plane


# Merge


@pytest.mark.parametrize("distance", [0, 1, 4])
def test_near_nuclei_become_one_piece(distance: int) -> None:
    merged = merge(two_discs(distance), [1, 2], 9)
    assert set(np.unique(merged)) == {0, 9}
    assert n_pieces(merged == 9) == 1
    assert (merged[10:20, 10:20] == 9).all()
    assert (merged[:, :10] == 0).all()


def test_touching_nuclei_keep_exactly_their_pixels() -> None:
    plane = two_discs(0)
    np.testing.assert_array_equal(merge(plane, [1, 2], 9) == 9, plane > 0)


@pytest.mark.parametrize("distance", [7, 20])
def test_far_nuclei_are_not_one(distance: int) -> None:
    with pytest.raises(EditError, match="too far apart"):
        merge(two_discs(distance), [1, 2], 9)


def test_a_bridge_takes_no_pixel_of_another() -> None:
    plane = two_discs(3)
    plane[:, 21] = 3
    with pytest.raises(EditError, match="too far apart"):
        merge(plane, [1, 2], 9)
    plane[13:16, 21] = 0
    merged = merge(plane, [1, 2], 9)
    np.testing.assert_array_equal(merged == 3, plane == 3)
    assert n_pieces(merged == 9) == 1


def test_one_nucleus_is_none_to_merge() -> None:
    with pytest.raises(EditError, match="two nuclei or more"):
        merge(two_discs(0), [1, 1], 9)


@given(st.sets(st.integers(1, N), min_size=2, max_size=4))
def test_merging_changes_what_was_chosen_and_free_pixels_only(ids: set[int]) -> None:
    try:
        merged = merge(PLANE, sorted(ids), N + 1)
    except EditError:
        return
    others = (PLANE > 0) & ~np.isin(PLANE, list(ids))
    np.testing.assert_array_equal(merged[others], PLANE[others])
    assert (merged[np.isin(PLANE, list(ids))] == N + 1).all()
    assert not np.isin(merged, list(ids)).any()


# Split


def test_a_line_makes_halves() -> None:
    plane = np.where(disc(20, 30, 12), np.uint32(5), np.uint32(0))
    parted, parent_of = split(plane, np.array([[0.0, 30.5], [40.0, 30.5]]), 7)
    assert parent_of == {7: 5, 8: 5}
    np.testing.assert_array_equal(parted > 0, plane > 0)
    sides = [np.nonzero(parted == half)[1] for half in parent_of]
    left, right = sorted(sides, key=np.mean)
    assert left.max() - right.min() <= 1  # pixels on the line may go to either side
    assert {int(left.min()), int(right.max())} == {18, 42}


@given(st.lists(POINT, min_size=2, max_size=4))
@settings(max_examples=150)
def test_halves_are_connected_and_make_up_the_nucleus(points: list[tuple[float, float]]) -> None:
    try:
        parted, parent_of = split(PLANE, np.array(points), N + 1)
    except EditError:
        return
    assert sorted(parent_of) == list(range(N + 1, N + 1 + len(parent_of)))
    for nucleus in set(parent_of.values()):
        halves = [new for new, old in parent_of.items() if old == nucleus]
        assert len(halves) == 2
        np.testing.assert_array_equal(np.isin(parted, halves), nucleus == PLANE)
        for half in halves:
            assert (parted == half).sum() >= MIN_PX
            if n_pieces(nucleus == PLANE) == 1:
                assert n_pieces(parted == half) == 1
    untouched = ~np.isin(PLANE, list(parent_of.values()))
    np.testing.assert_array_equal(parted[untouched], PLANE[untouched])


@given(st.integers(1, N), st.floats(0, np.pi))
def test_a_straight_line_through_the_middle_parts_what_is_round(nucleus: int, angle: float) -> None:
    mask = nucleus == PLANE
    y, x = (v + 0.5 for v in np.nonzero(mask))
    hull = shapely.convex_hull(shapely.MultiPoint(np.stack([x, y], 1)))
    assume(len(y) >= 40 and len(y) > 0.9 * hull.area and n_pieces(mask) == 1)
    centre, step = np.array([y.mean(), x.mean()]), np.array([np.sin(angle), np.cos(angle)]) * 60
    _, parent_of = split(np.where(mask, PLANE, 0).astype(np.uint32), np.stack([centre - step, centre + step]), N + 1)
    assert set(parent_of.values()) == {nucleus}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([[20, 20], [20, 30]], "parts no nucleus"),  # ends inside
        ([[0, 0], [0, 50]], "parts no nucleus"),  # beside it
        ([[8.5, 0], [8.5, 59]], "parts no nucleus"),  # a slip of a pixel or two
        ([[20, 0]], "two points"),
        ([[20, 0], [np.nan, 3]], "two points"),
    ],
)
def test_lines_that_part_nothing_are_refused(line: list[list[float]], message: str) -> None:
    plane = np.where(disc(20, 30, 12), np.uint32(5), np.uint32(0))
    with pytest.raises(EditError, match=message):
        split(plane, np.array(line, float), 7)


def test_three_parts_are_refused() -> None:
    plane = np.zeros((40, 60), np.uint32)
    plane[5:35, 10:50] = 4
    plane[15:25, 20:50] = 0  # a C, open to the right
    with pytest.raises(EditError, match="nucleus 4 into 3 parts"):
        split(plane, np.array([[0.0, 40], [40, 40]]), 7)
    assert len(split(plane, np.array([[0.0, 40], [20, 40]]), 7)[1]) == 2


def test_a_loose_piece_goes_to_the_nearer_half() -> None:
    plane = np.where(disc(20, 30, 12), np.uint32(5), np.uint32(0))
    plane[20, 50:58] = 5
    parted, _ = split(plane, np.array([[0.0, 30.5], [40.0, 30.5]]), 7)
    assert (parted[20, 50:58] == parted[20, 40]).all()
    assert parted[20, 40] != parted[20, 20]


def test_a_line_through_several_parts_all_it_crosses() -> None:
    plane = two_discs(5)
    plane[30:40, 40:50] = 3
    _, parent_of = split(plane, np.array([[15.0, 0], [15, 45], [35, 45]]), 10)  # ends inside the third
    assert parent_of == {10: 1, 11: 1, 12: 2, 13: 2}


@given(st.lists(POINT, min_size=2, max_size=5))
def test_line_pixels_follow_the_line_without_corners(points: list[tuple[float, float]]) -> None:
    rows, cols = line_pixels(np.array(points), (90, 110))
    everywhere = line_pixels(np.array(points) + 10, (120, 140))
    steps = np.abs(np.diff(np.stack(everywhere, 1), axis=0)).sum(1)
    assert (steps <= 1).all()  # never diagonal
    line = shapely.LineString(np.array(points)[:, ::-1])
    assume(line.length > 0)
    distance = shapely.distance(line, shapely.points(cols + 0.5, rows + 0.5))
    assert (distance <= 1.3).all()


# Delete and redraw


@given(st.sets(st.integers(1, N), min_size=1, max_size=5))
def test_deleting_leaves_the_others(ids: set[int]) -> None:
    left = delete(PLANE, sorted(ids))
    assert left.dtype == np.uint32
    np.testing.assert_array_equal(left, np.where(np.isin(PLANE, list(ids)), 0, PLANE))


@given(st.integers(1, N))
def test_its_own_outline_redraws_a_nucleus_as_it_was(nucleus: int) -> None:
    mask = largest_piece(nucleus == PLANE)
    filled = ndimage.binary_fill_holes(mask)
    assume(mask.sum() >= MIN_PX)
    ring = shapely.get_coordinates(trace(mask).exterior)[:, ::-1]
    redrawn = redraw(PLANE, ring, nucleus)
    assert ((redrawn == nucleus) <= filled).all()
    assert ((redrawn == nucleus) >= mask).all()
    others = (PLANE > 0) & ~(nucleus == PLANE)
    np.testing.assert_array_equal(redrawn[others], PLANE[others])


@given(st.lists(POINT, min_size=3, max_size=7), st.integers(1, N + 1))
def test_redrawing_takes_free_pixels_only(points: list[tuple[float, float]], nucleus: int) -> None:
    try:
        redrawn = redraw(PLANE, np.array(points), nucleus)
    except EditError:
        return
    others = (PLANE > 0) & ~(nucleus == PLANE)
    np.testing.assert_array_equal(redrawn[others], PLANE[others])
    own = redrawn == nucleus
    assert n_pieces(own) == 1
    assert own.sum() >= MIN_PX
    assert (own <= polygon_mask(np.array(points), PLANE.shape)).all()
    assert set(np.unique(redrawn)) <= set(np.unique(PLANE)) | {nucleus}


@pytest.mark.parametrize("ring", [[[0, 0], [2, 0], [2, 2], [0, 2]], [[30, 30], [35, 35], [32, 32]], [[0, 0], [9, 9]]])
def test_polygons_around_next_to_nothing_are_refused(ring: list[list[float]]) -> None:
    with pytest.raises(EditError, match="polygon"):
        redraw(np.zeros((40, 60), np.uint32), np.array(ring, float), 1)


def test_planes_given_are_never_changed() -> None:
    plane = two_discs(2)
    plane.flags.writeable = False
    merge(plane, [1, 2], 9)
    split(plane, np.array([[15.0, 0], [15, 59]]), 9)
    delete(plane, [1])
    redraw(plane, np.array([[20.0, 10], [30, 10], [30, 20]]), 9)
