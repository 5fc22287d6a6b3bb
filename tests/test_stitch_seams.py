"""Tiles that disagree near their seams: nothing is cut, doubled or lost, and no pixel has two owners."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import shapely
from scipy import ndimage
from skimage.measure import regionprops
from stitch_oracle import N_THINGS, Truth, canonical, cut, finish, oracle_tile, random_truth

from nucleipan.geometry import Box
from nucleipan.panoptic import PanopticTile
from nucleipan.stitch import StitchContext, StitchSummary, tile_record, write_record
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

Rect = tuple[slice, slice]


def rect(y0: int, x0: int, y1: int, x1: int) -> Rect:
    return slice(y0, y1), slice(x0, x1)


def stitch_views(
    folder: Path,
    views: dict[tuple[int, int], list[list[Rect]]],
    shape: tuple[int, int] = (100, 100),
    stuff: np.ndarray | None = None,
) -> tuple[PanopticStore, StitchSummary]:
    """Tiles of 50 px; ``views`` lists by (row, col) the nuclei a tile sees, each as rectangles of the whole view."""
    stuff = np.full(shape, 7, np.uint8) if stuff is None else stuff
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 50, 40, 1))
    folder.mkdir(exist_ok=True)
    for tile in context.grid:
        plane = np.zeros(shape, np.int32)
        nuclei = views.get((tile.row, tile.col), [])
        for label, parts in enumerate(nuclei, 1):
            for part in parts:
                plane[part] = label
        inside = plane[tile.outer.slices(Box.of_shape(shape))]
        probabilities = np.full((len(nuclei), N_THINGS), 1 / N_THINGS, np.float32)
        panoptic = PanopticTile(tile, cut(stuff, tile.outer), inside, probabilities, np.ones(len(nuclei), np.float32))
        write_record(folder, tile_record(panoptic, context))
    store, summary = finish(folder.with_name(folder.name + ".ome.zarr"), folder, context)
    assert_consistent(store)
    return store, summary


def assert_consistent(store: PanopticStore) -> None:
    """The table says what the raster says, and ids are canonical in the finished store."""
    ids, table = store.instances().astype(np.int32), store.nuclei()
    np.testing.assert_array_equal(canonical(ids), ids)
    n = np.bincount(ids.ravel())[1:]
    assert table["id"].to_pylist() == list(range(1, len(n) + 1))
    np.testing.assert_allclose(table["area_um2"].to_numpy(), n * store.mpp**2)
    boxes = table["bbox"].to_pylist()
    for k, found in enumerate(ndimage.find_objects(ids)):
        y, x = (np.array([s.start, s.stop]) * store.level0_per_pixel for s in found)
        assert boxes[k] == {"xmin": x[0], "ymin": y[0], "xmax": x[1], "ymax": y[1]}
    y, x = np.nonzero(ids)
    of = ids[y, x]
    np.testing.assert_allclose(
        table["centroid_x"].to_numpy(), (np.bincount(of, x)[1:] / n + 0.5) * store.level0_per_pixel
    )
    np.testing.assert_allclose(
        table["centroid_y"].to_numpy(), (np.bincount(of, y)[1:] / n + 0.5) * store.level0_per_pixel
    )
    polygons = shapely.from_wkb(table["geometry"].to_numpy())
    assert shapely.is_valid(polygons).all()
    assert (shapely.bounds(polygons)[:, 0] >= [box["xmin"] for box in boxes]).all()
    for name, unit in (("perimeter", "_um"), ("axis_major_length", "_um"), ("eccentricity", ""), ("solidity", "")):
        expected = [region[name] * (store.mpp if unit else 1) for region in regionprops(ids)]
        np.testing.assert_allclose(table[name + unit].to_numpy(), expected, 1e-6, 1e-6)


def test_seen_by_both_owners_is_kept_once(tmp_path: Path) -> None:
    a, b = [rect(20, 44, 30, 55)], [rect(20, 45, 30, 57)]
    store, summary = stitch_views(tmp_path / "t", {(0, 0): [a], (0, 1): [b]})
    assert (summary.n_nuclei, summary.n_seam, summary.n_contested) == (1, 0, 0)
    assert (store.instances()[20:30, 44:55] == 1).all()


def test_fallen_between_two_cores_is_kept_once(tmp_path: Path) -> None:
    a, b = [rect(20, 45, 30, 57)], [rect(20, 44, 30, 55)]
    _, summary = stitch_views(tmp_path / "t", {(0, 0): [a], (0, 1): [b]})
    assert (summary.n_nuclei, summary.n_seam) == (1, 1)


def test_four_tiles_that_each_see_it_across_the_corner(tmp_path: Path) -> None:
    views = {
        (row, col): [[rect(45 + 2 - 4 * row, 45 + 2 - 4 * col, 57 + 2 - 4 * row, 57 + 2 - 4 * col)]]
        for row in (0, 1)
        for col in (0, 1)
    }
    _, summary = stitch_views(tmp_path / "t", views)
    assert (summary.n_nuclei, summary.n_seam) == (1, 1)


def test_four_tiles_that_all_own_it(tmp_path: Path) -> None:
    views = {
        (row, col): [[rect(43 + 2 * row, 43 + 2 * col, 55 + 2 * row, 55 + 2 * col)]] for row in (0, 1) for col in (0, 1)
    }
    _, summary = stitch_views(tmp_path / "t", views)
    assert (summary.n_nuclei, summary.n_seam) == (1, 0)


def test_what_the_tile_in_charge_does_not_see_is_dropped(tmp_path: Path) -> None:
    _, summary = stitch_views(tmp_path / "t", {(0, 0): [[rect(20, 48, 30, 60)]]})
    assert summary.n_nuclei == 0


def test_a_nucleus_split_by_one_tile_is_not_lost(tmp_path: Path) -> None:
    whole, halves = [rect(20, 38, 30, 60)], [[rect(20, 38, 30, 50)], [rect(20, 50, 30, 60)]]
    store, summary = stitch_views(tmp_path / "t", {(0, 0): [whole], (0, 1): halves})
    assert (summary.n_nuclei, summary.n_vanished) == (1, 1)
    assert (store.instances()[20:30, 38:60] == 1).all()


def test_no_more_than_half_in_common_are_two(tmp_path: Path) -> None:
    left, half, more = ([rect(20, x, 30, x + 10)] for x in (44, 49, 48))
    assert stitch_views(tmp_path / "half", {(0, 0): [left], (0, 1): [half]})[1].n_nuclei == 2
    assert stitch_views(tmp_path / "more", {(0, 0): [left], (0, 1): [more]})[1].n_nuclei == 1


def test_what_was_seen_whole_is_kept_of_what_is_seen_twice(tmp_path: Path) -> None:
    """Both tiles own what they see; the first misses the last 9 columns, which move the centre out of its core."""
    nucleus = [rect(20, 11, 30, 50), rect(24, 50, 26, 130), rect(10, 130, 40, 139)]
    store, summary = stitch_views(tmp_path / "t", {(0, 0): [nucleus], (0, 1): [nucleus]}, (100, 300))
    assert (summary.n_nuclei, summary.n_cut, summary.n_contested) == (1, 0, 0)
    assert np.count_nonzero(store.instances()) == 10 * 39 + 2 * 80 + 30 * 9


def test_a_chain_of_overlaps_does_not_join_what_a_tile_saw_apart(tmp_path: Path) -> None:
    """Left and right, which their owner sees, are linked by what two other tiles see between them."""
    owner = [[rect(40, 38, 48, 44)], [rect(40, 44, 48, 50)]]
    others = {(0, 1): [[rect(40, 39, 48, 47)]], (1, 0): [[rect(40, 43, 48, 50)]]}
    store, summary = stitch_views(tmp_path / "t", {(0, 0): owner, **others})
    assert (summary.n_nuclei, summary.n_contested) == (2, 0)
    assert (store.instances()[44, [38, 43, 44, 49]] == [1, 1, 2, 2]).all()


def test_what_is_left_of_a_nucleus_tells_its_tissue(tmp_path: Path) -> None:
    stuff = np.full((100, 100), 9, np.uint8)
    stuff[:, :58] = 7  # of 12 columns that are seen 7, of 8 that are left 3
    views = {(0, 0): [[rect(20, 36, 30, 55)]], (0, 1): [[rect(20, 51, 30, 63)]]}
    store, _ = stitch_views(tmp_path / "t", views, stuff=stuff)
    assert store.nuclei(["tissue_id"])["tissue_id"].to_pylist() == [7, 9]


def test_contested_pixels_go_to_the_first(tmp_path: Path) -> None:
    store, summary = stitch_views(tmp_path / "t", {(0, 0): [[rect(20, 36, 30, 55)]], (0, 1): [[rect(20, 51, 30, 63)]]})
    assert (summary.n_nuclei, summary.n_contested, summary.n_vanished) == (2, 1, 0)
    ids = store.instances()
    assert (ids[20:30, 36:55] == 1).all()
    assert (ids[20:30, 55:63] == 2).all()


def test_the_first_of_a_contest_may_be_of_the_later_tile(tmp_path: Path) -> None:
    store, summary = stitch_views(tmp_path / "t", {(0, 0): [[rect(24, 36, 34, 55)]], (0, 1): [[rect(20, 51, 30, 63)]]})
    assert (summary.n_nuclei, summary.n_contested) == (2, 1)
    assert (store.instances()[20:30, 51:63] == 1).all()
    assert np.count_nonzero(store.instances() == 2) == 10 * 19 - 6 * 4


def test_what_a_nucleus_loses_at_a_seam_completes_it(tmp_path: Path) -> None:
    first, second = rect(20, 36, 30, 55), rect(24, 49, 40, 63)
    store, summary = stitch_views(tmp_path / "t", {(0, 0): [[first]], (0, 1): [[second]]})
    assert (summary.n_nuclei, summary.n_contested) == (2, 1)
    table = store.nuclei(["is_completed", "completed_geometry", "geometry"]).to_pylist()
    assert [row["is_completed"] for row in table] == [False, True]
    visible, whole = shapely.from_wkb([table[1]["geometry"], table[1]["completed_geometry"]])
    assert whole.contains(visible)
    corner = shapely.box(49, 24, 55, 30)
    assert whole.intersection(corner).area > 0.4 * corner.area
    assert whole.difference(visible.union(corner)).area < 0.05 * corner.area


def test_a_nucleus_that_loses_every_pixel_disappears(tmp_path: Path) -> None:
    above = [[rect(40, 10, 55, 20)], [rect(40, 20, 55, 30)]]
    store, summary = stitch_views(
        tmp_path / "t", {(0, 0): above, (1, 0): [[rect(49, 10, 55, 30)], [rect(70, 10, 80, 20)]]}
    )
    assert (summary.n_nuclei, summary.n_contested, summary.n_vanished) == (3, 1, 1)
    assert store.instances()[75, 15] == 3


def test_ids_follow_the_centres_that_remain(tmp_path: Path) -> None:
    left = [rect(40, 35, 56, 55), rect(50, 55, 56, 62)]
    store, summary = stitch_views(tmp_path / "t", {(0, 0): [left], (0, 1): [[rect(44, 55, 56, 62)]]})
    assert summary.n_contested == 1
    # The right one is second by the centre it came with, and first by the one it is left with.
    assert store.instances()[46, 58] == 1
    assert store.instances()[53, 58] == 2


def test_nuclei_larger_than_the_margin_are_counted(tmp_path: Path) -> None:
    # Tile (0, 0) sees 130 px of the slide's 300.
    long = [rect(20, 5, 30, 60), rect(24, 60, 26, 140)]
    _, summary = stitch_views(tmp_path / "t", {(0, 0): [long]}, (100, 300))
    assert summary.n_cut == 1


@pytest.mark.parametrize(("core", "row", "col"), [(50, 3, 6), (400, 0, 0)])
def test_cut_is_what_reaches_a_side_beyond_which_there_is_more(core: int, row: int, col: int) -> None:
    """One nucleus at a time, at each side of what a tile sees and at none; the second tile sees the whole slide."""
    context = StitchContext(TileGrid((300, 400), Box(0, 0, 300, 400), core, 40, 1))
    tile = context.grid.tile(row, col)
    height, width = tile.outer.shape
    near_y, far_y, near_x, far_x = slice(90), slice(height - 90, None), slice(90), slice(width - 90, None)
    middle_y, middle_x = slice(height // 2 - 3, height // 2 + 3), slice(width // 2 - 3, width // 2 + 3)
    sides = [(near_y, middle_x), (far_y, middle_x), (middle_y, near_x), (middle_y, far_x)]
    is_cut = []
    for where in (*sides, (middle_y, middle_x)):
        plane = np.zeros(tile.outer.shape, np.int32)
        plane[where] = 1
        one = np.ones((1, N_THINGS), np.float32)
        record = tile_record(PanopticTile(tile, np.zeros(plane.shape, np.uint8), plane, one, one[:, 0]), context)
        is_cut += record.is_cut.tolist()
    assert is_cut == [core == 50] * 4 + [False]


def spaced_truth(shape: tuple[int, int], seed: int) -> Truth:
    """Discs of radius 5 to 11 that stay 4 px apart, so that each segmented one belongs to one true one."""
    rng = np.random.default_rng(seed)
    plane = np.zeros(shape, np.int32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    k = 0
    for cy in range(14, shape[0] - 14, 27):
        for cx in range(14, shape[1] - 14, 27):
            k += 1
            plane[
                (y - cy - rng.integers(-2, 3)) ** 2 + (x - cx - rng.integers(-2, 3)) ** 2 <= rng.uniform(5, 10) ** 2
            ] = k
    n = k
    instances = canonical(plane)
    probabilities = rng.dirichlet(np.ones(N_THINGS), n).astype(np.float32)
    return Truth(instances, np.full(shape, 9, np.uint8), probabilities, np.ones(n, np.float32))


def noisy_tile(truth: Truth, panoptic: PanopticTile, seed: int) -> PanopticTile:
    """Every nucleus moved by up to 1 px and shrunk or grown by one, anew in every tile: less than half is lost."""
    tile = panoptic.tile
    rng = np.random.default_rng(seed + 1000 * tile.row + tile.col)
    plane = np.zeros_like(panoptic.instances)
    for label, found in enumerate(ndimage.find_objects(panoptic.instances), 1):
        mask = np.pad(panoptic.instances[found] == label, 4)
        change = rng.integers(0, 3)
        if change:
            mask = (ndimage.binary_erosion if change == 1 else ndimage.binary_dilation)(mask)
        dy, dx = rng.integers(-1, 2, 2)
        y, x = np.nonzero(mask)
        y, x = y + found[0].start - 4 + dy, x + found[1].start - 4 + dx
        is_inside = (y >= 0) & (x >= 0) & (y < plane.shape[0]) & (x < plane.shape[1])
        plane[y[is_inside], x[is_inside]] = label
    return PanopticTile(tile, panoptic.stuff, plane, panoptic.probabilities, panoptic.scores)


@pytest.mark.parametrize("core", [40, 64, 100])
@pytest.mark.parametrize("seed", range(4))
def test_noisy_tiles_neither_cut_nor_double_nor_lose(tmp_path: Path, core: int, seed: int) -> None:
    shape = (420, 420)
    truth = spaced_truth(shape, seed)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), core, 48, 1))
    for tile in context.grid:
        panoptic = noisy_tile(truth, oracle_tile(truth, tile), seed)
        write_record(tmp_path, tile_record(panoptic, context))
    store, summary = finish(tmp_path / "a.ome.zarr", tmp_path, context)
    assert_consistent(store)
    ids = store.instances()
    n_true = int(truth.instances.max())
    assert summary.n_nuclei == n_true
    common = np.zeros((n_true + 1, summary.n_nuclei + 1), int)
    np.add.at(common, (truth.instances.ravel(), ids.ravel()), 1)
    area_true, area_found = common.sum(1), common.sum(0)
    partner = common[1:, 1:].argmax(1) + 1
    assert len(set(partner.tolist())) == n_true
    overlap = common[np.arange(1, n_true + 1), partner]
    assert (overlap > 0.5 * np.minimum(area_true[1:], area_found[partner])).all()


@pytest.mark.slow
def test_ten_thousand_nuclei(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = (4096, 4096)
    truth = random_truth(shape, 11500, seed=1, radii=(4, 13))
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 256, 96, 32))
    tiles = [oracle_tile(truth, tile) for tile in context.grid]
    tile_record(tiles[0], context)
    start = time.process_time()
    for panoptic in tiles:
        write_record(tmp_path, tile_record(panoptic, context))
    middle = time.process_time()
    store, summary = finish(tmp_path / "a.ome.zarr", tmp_path, context, shard=2048)
    end = time.process_time()
    np.testing.assert_array_equal(store.instances(), truth.instances)
    megapixels = math.prod(shape) / 1e6
    with capsys.disabled():
        print(
            f"\n{summary.n_nuclei} nuclei: tiles {1e3 * (middle - start) / megapixels:.2f} ms/MP of CPU, "
            f"assembly {1e3 * (end - middle) / megapixels:.2f} ms/MP of CPU"
        )
