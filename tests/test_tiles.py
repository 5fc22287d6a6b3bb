"""Boxes, tiles and classes: arithmetic that everything else stands on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleipan.classes import DEFAULT_CLASSES, PanopticClass, PanopticClasses
from nucleipan.errors import ConfigError
from nucleipan.geometry import Box
from nucleipan.tiles import TileGrid

SIDES = st.integers(1, 400)


@st.composite
def boxes(draw, low: int = -50, high: int = 50) -> Box:
    y0, x0, y1, x1 = (draw(st.integers(low, high)) for _ in range(4))
    return Box(min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1))


@st.composite
def grids(draw) -> TileGrid:
    shape = draw(SIDES), draw(SIDES)
    y0, x0 = (draw(st.integers(0, side - 1)) for side in shape)
    extent = Box(y0, x0, draw(st.integers(y0 + 1, shape[0])), draw(st.integers(x0 + 1, shape[1])))
    align = draw(st.sampled_from([1, 8, 32]))
    return TileGrid(shape, extent, draw(st.integers(1, 300)), draw(st.integers(0, 100)), align)


def mask(box: Box) -> np.ndarray:
    out = np.zeros((101, 101), bool)
    out[box.slices(Box(-50, -50, 51, 51))] = True
    return out


@given(boxes(), boxes())
def test_boxes_are_sets_of_pixels(a, b):
    np.testing.assert_array_equal(mask(a.clipped(b)), mask(a) & mask(b))
    assert a.contains(b) == bool((mask(a) >= mask(b)).all())
    assert a.area == mask(a).sum()


@given(boxes(), st.floats(0.2, 5))
def test_a_scaled_box_covers_the_scaled_pixels(box, factor):
    scaled = box.scaled(factor)
    assert scaled.y0 <= box.y0 * factor + 1e-6
    assert scaled.x1 >= box.x1 * factor - 1e-6
    assert scaled.y0 > box.y0 * factor - 1 - 1e-6
    assert scaled.x1 < box.x1 * factor + 1 + 1e-6
    assert box.scaled(3).scaled(1 / 3) == box


@given(grids())
@settings(deadline=None)
def test_cores_partition_the_extent(grid):
    count = np.zeros(grid.slide_shape, int)
    tiles = list(grid)
    for tile in tiles:
        count[tile.core.slices(Box.of_shape(grid.slide_shape))] += 1
    inside = np.zeros(grid.slide_shape, int)
    inside[grid.extent.slices(Box.of_shape(grid.slide_shape))] = 1
    np.testing.assert_array_equal(count, inside)
    assert len(grid) == len(tiles) == grid.n_rows * grid.n_cols
    assert [(t.row, t.col) for t in tiles] == sorted((t.row, t.col) for t in tiles)


@given(grids())
@settings(deadline=None)
def test_margins_surround_the_core_up_to_the_slides_border(grid):
    slide = Box.of_shape(grid.slide_shape)
    for tile in grid:
        assert tile.outer.contains(tile.core)
        assert slide.contains(tile.outer)
        assert tile.outer.contains(tile.core.grown(grid.margin).clipped(slide))
        assert tile.outer.y0 % grid.align == 0
        assert tile.outer.x0 % grid.align == 0


@given(grids())
@settings(deadline=None)
def test_all_tiles_are_computed_at_the_same_size(grid):
    sizes = {tuple(-(-side // grid.align) for side in tile.outer.shape) for tile in grid}
    assert len(sizes) == 1
    height, width = (side * grid.align for side in sizes.pop())
    most = grid.core + 2 * grid.margin
    assert height <= most
    assert width <= most


def test_the_extent_is_divided_evenly():
    grid = TileGrid((8192, 2100), Box(0, 0, 8192, 2100), 2048, 128)
    assert [t.core for t in grid][:2] == [Box(0, 0, 2048, 1088), Box(0, 1088, 2048, 2100)]
    assert [t.outer for t in grid][:2] == [Box(0, 0, 2304, 1344), Box(0, 768, 2304, 2100)]


def test_redundancy_is_computed_over_kept():
    grid = TileGrid((8192, 8192), Box(0, 0, 8192, 8192), 2048, 128)
    assert grid.redundancy == pytest.approx((2304 / 2048) ** 2)
    assert TileGrid((500, 500), Box(0, 0, 500, 500), 2048, 128).redundancy == 1


@pytest.mark.parametrize(
    ("core", "margin", "extent"),
    [(0, 1, Box(0, 0, 9, 9)), (8, -1, Box(0, 0, 9, 9)), (8, 1, Box(0, 0, 11, 9)), (8, 1, Box(3, 3, 3, 9))],
)
def test_impossible_grids_are_refused(core, margin, extent):
    with pytest.raises(ConfigError):
        TileGrid((10, 10), extent, core, margin)


def test_a_tile_outside_the_grid_is_refused():
    with pytest.raises(ConfigError, match="outside the grid of 1 x 1"):
        TileGrid((10, 10), Box(0, 0, 10, 10), 32, 0).tile(0, 1)


def test_classes_round_trip():
    assert PanopticClasses.from_list(DEFAULT_CLASSES.to_list()) == DEFAULT_CLASSES
    assert len(DEFAULT_CLASSES.things) + len(DEFAULT_CLASSES.stuff) == len(DEFAULT_CLASSES)
    for c in DEFAULT_CLASSES.classes:
        assert DEFAULT_CLASSES.by_name(c.name) is DEFAULT_CLASSES.by_id(c.id) is c
        assert tuple(DEFAULT_CLASSES.colors[c.id]) == c.color
    assert len({c.color for c in DEFAULT_CLASSES.classes}) == len(DEFAULT_CLASSES), "colours must tell classes apart"


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        ([PanopticClass(2, "a", True, (0, 0, 0))], "count 1, 2, 3"),
        ([PanopticClass(1, "a", False, (0, 0, 0))], "at least one thing"),
        ([PanopticClass(1, "a", True, (0, 0, 0)), PanopticClass(2, "a", True, (1, 0, 0))], "unique"),
        ([PanopticClass(1, "void", True, (0, 0, 0))], "unique and not"),
        ([PanopticClass(i, n, True, (0, 0, 0)) for i, n in ((1, "a b"), (2, "a-b"))], r"found \['a b', 'a-b'\]"),
    ],
)
def test_impossible_classes_are_refused(classes, match):
    with pytest.raises(ConfigError, match=match):
        PanopticClasses(tuple(classes))


@pytest.mark.parametrize("item", [{}, {"id": 1, "name": "a", "is_thing": True, "color": [0, 0, 900]}, {"id": "x"}])
def test_malformed_class_lists_are_refused(item):
    with pytest.raises(ConfigError):
        PanopticClasses.from_list([item])


def test_unknown_class_lists_the_known():
    with pytest.raises(ConfigError, match="unknown class 'nerve'; known classes: neoplastic"):
        DEFAULT_CLASSES.by_name("nerve")
