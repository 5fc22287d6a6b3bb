"""What is measured of nuclei equals what slow and obvious code says, and does not depend on where they were cut out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import ndimage
from skimage.measure import regionprops
from stitch_oracle import N_THINGS, Truth, cut, finish, oracle_tile, random_truth, stitch_oracle

from nucleipan.geometry import Box
from nucleipan.measure import (
    SHAPE_COLUMNS,
    STAIN_COLUMNS,
    STAIN_VECTORS,
    Rings,
    distance_to_nearest,
    distance_to_other_class,
    measure_shapes,
    measure_stains,
)
from nucleipan.panoptic import PanopticTile
from nucleipan.stitch import StitchContext, tile_record, write_record
from nucleipan.stitch.table import MAX_BORDER_UM, shape_column
from nucleipan.stitch.tissue import TissueSamples, distance_to_border
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid


def tight_boxes(labels: np.ndarray) -> np.ndarray:
    return np.array([[y.start, x.start, y.stop, x.stop] for y, x in ndimage.find_objects(labels)], np.int32)


# Shape


def ellipse(rng: np.random.Generator) -> np.ndarray:
    a, b, turn = *rng.uniform(0.5, 20, 2), rng.uniform(0, math.pi)
    y, x = np.mgrid[-24:24, -24:24] + rng.uniform(-0.5, 0.5, (2, 1, 1))
    u, v = y * math.cos(turn) + x * math.sin(turn), x * math.cos(turn) - y * math.sin(turn)
    return (u / a) ** 2 + (v / b) ** 2 <= 1


def crumbs(rng: np.random.Generator) -> np.ndarray:
    return rng.random(rng.integers(1, 25, 2)) < rng.uniform(0.02, 0.98)


def blobs(rng: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(rng.random(rng.integers(3, 40, 2)), 1.5) > 0.5


def bars(rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((30, 30), np.bool_)
    for y, x in rng.integers(0, 28, (3, 2)):
        mask[y : y + rng.integers(1, 15), x : x + rng.integers(1, 15)] = True
    return mask


SHAPES = [ellipse, crumbs, blobs, bars]
SMALL = [
    np.ones((1, 1)), np.ones((1, 2)), np.ones((1, 9)), np.ones((9, 1)), np.ones((2, 2)), np.ones((3, 3)),
    np.eye(2), np.eye(7), np.eye(7)[::-1], np.eye(7) + np.eye(7, k=1), np.tri(6), np.tri(6)[::-1],
    np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]), np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]),
    np.array([[1, 0, 1]]), np.array([[1, 0, 0, 0, 1]]).T,
]  # fmt: skip


def check_shape(mask: np.ndarray) -> None:
    labels = (mask != 0).astype(np.int32)
    found = dict(zip(SHAPE_COLUMNS, measure_shapes(labels, tight_boxes(labels))[0].tolist(), strict=True))
    expected = regionprops(labels)[0]
    for name in SHAPE_COLUMNS:
        if name == "orientation":
            if expected.eccentricity > 0.05:  # a circle has none
                turn = (found[name] - expected.orientation + math.pi / 2) % math.pi - math.pi / 2
                assert abs(turn) < 1e-6
        else:
            assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("draw", SHAPES)
def test_shapes_are_those_of_scikit_image(draw: object) -> None:
    rng = np.random.default_rng(0)
    masks = [mask for mask in (draw(rng) for _ in range(150)) if mask.any()]  # type: ignore[operator]
    assert len(masks) > 100
    for mask in masks:
        check_shape(mask)


@pytest.mark.parametrize("mask", SMALL, ids=lambda mask: str(mask.shape))
def test_single_pixels_and_lines(mask: np.ndarray) -> None:
    check_shape(mask)


def test_a_shape_without_a_longer_axis_has_a_fixed_orientation() -> None:
    for mask in (np.ones((1, 1)), np.ones((5, 5)), SMALL[12]):
        labels = mask.astype(np.int32)
        assert measure_shapes(labels, tight_boxes(labels))[0, 4] == np.float32(-math.pi / 4)


def test_touching_instances_are_measured_apart() -> None:
    labels = random_truth((200, 220), 180).instances
    found = measure_shapes(labels, tight_boxes(labels))
    assert len(found) > 100
    for row, region in zip(found, regionprops(labels), strict=True):
        for k in (0, 1, 2, 3, 5):
            assert row[k] == pytest.approx(region[SHAPE_COLUMNS[k]], rel=1e-6, abs=1e-6)


def test_a_shape_is_the_same_wherever_it_lies_and_however_wide_its_box_is() -> None:
    rng = np.random.default_rng(1)
    for draw in SHAPES * 10:
        mask = draw(rng)
        h, w = mask.shape
        if not mask.any():
            continue
        expected = measure_shapes(mask.astype(np.int32), np.array([[0, 0, h, w]], np.int32))
        y, x = (int(v) for v in rng.integers(0, 900, 2))
        plane = np.zeros((y + h + 5, x + w + 5), np.int32)
        plane[y : y + h, x : x + w] = mask
        tight = measure_shapes(plane, tight_boxes(plane))
        wide = measure_shapes(plane, np.array([[max(0, y - 7), x, y + h + 5, x + w + 2]], np.int32))
        assert expected.tobytes() == tight.tobytes() == wide.tobytes()


def test_moments_of_a_nucleus_as_large_as_a_tile_stay_exact() -> None:
    side = 3000
    found = measure_shapes(np.ones((side, side), np.int32), np.array([[0, 0, side, side]], np.int32))[0]
    length = 4 * math.sqrt((side**2 - 1) / 12)
    np.testing.assert_allclose(found, [4 * (side - 1), length, length, 0, -math.pi / 4, 1], 1e-7)


def test_no_instances() -> None:
    plane, none = np.zeros((5, 5), np.int32), np.empty((0, 4), np.int32)
    assert measure_shapes(plane, none).shape == (0, len(SHAPE_COLUMNS))
    stains = measure_stains(np.zeros((5, 5, 3), np.uint8), plane, Rings(none[:, 0], none, 2.0))
    assert stains.shape == (0, len(STAIN_COLUMNS))


# Stains


def slow_stains(image: np.ndarray, instances: np.ndarray, label: int, reach: float) -> list[float]:
    density = -np.log10(np.maximum(image, 1) / 255)
    vectors = STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1)[:, None]
    stains = (density @ np.linalg.inv(vectors))[..., :2]
    inside = instances == label
    ring = (ndimage.distance_transform_edt(~inside) <= reach) & (instances == 0)
    values = []
    for where in (inside, ring):
        for stain in (0, 1):
            chosen = stains[..., stain][where]
            values += [chosen.mean(), chosen.std()] if len(chosen) else [math.nan, math.nan]
    return values


@pytest.mark.parametrize("reach", [1.0, 2.0, 4.3, 8.0])
def test_stains_are_those_of_the_pixels_inside_and_around(reach: float) -> None:
    truth = random_truth((120, 130), 70, seed=3)
    labels, rng = truth.instances, np.random.default_rng(0)
    ids = rng.permutation(np.arange(1, labels.max() + 1, dtype=np.int32))[:40]
    found = measure_stains(truth.image, labels, Rings(ids, tight_boxes(labels)[ids - 1], reach))
    expected = [slow_stains(truth.image, labels, int(k), reach) for k in ids]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_stains_of_a_known_mixture() -> None:
    vectors = STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1)[:, None]
    instances = np.zeros((40, 40), np.int32)
    instances[10:30, 12:28] = 1
    amounts = np.where((instances == 1)[..., None], [0.9, 0.2], [0.1, 0.4])
    image = np.rint(255 * 10.0 ** -(amounts @ vectors[:2])).astype(np.uint8)
    found = measure_stains(image, instances, Rings(np.array([1], np.int32), tight_boxes(instances), 4.0))[0]
    np.testing.assert_allclose(found, [0.9, 0, 0.2, 0, 0.1, 0, 0.4, 0], atol=0.01)


def test_a_nucleus_walled_in_by_others_has_no_surroundings() -> None:
    instances = np.full((30, 30), 2, np.int32)
    instances[10:20, 10:20] = 1
    image = np.full((30, 30, 3), 128, np.uint8)
    found = measure_stains(image, instances, Rings(np.array([1], np.int32), tight_boxes(instances)[:1], 4.0))
    assert np.isfinite(found[0, :4]).all()
    assert np.isnan(found[0, 4:]).all()


@pytest.mark.parametrize("image", [np.zeros((9, 10, 3), np.uint8), np.zeros((10, 10, 3)), np.zeros((10, 10), np.uint8)])
def test_an_image_that_does_not_fit_is_refused(image: np.ndarray) -> None:
    plane = np.ones((10, 10), np.int32)
    with pytest.raises(ValueError, match="was expected to measure stains on; found"):
        measure_stains(image, plane, Rings(np.array([1], np.int32), tight_boxes(plane), 4.0))


def test_stains_need_a_pixel_size() -> None:
    truth = random_truth((60, 60), 5)
    grid = TileGrid((60, 60), Box(0, 0, 60, 60), 60, 0, 1)
    with pytest.raises(ValueError, match="give the StitchContext an mpp"):
        tile_record(oracle_tile(truth, grid.tile(0, 0)), StitchContext(grid), truth.image)


# Neighbours


@pytest.mark.parametrize("spread", [30.0, 3000.0, 100000.0])
@pytest.mark.parametrize("n", [2, 3, 200])
def test_distance_to_the_nearest_other_centre(n: int, spread: float) -> None:
    rng = np.random.default_rng(n)
    centres = rng.uniform(0, spread, (n, 2))
    centres[n // 2 :: 7] = centres[0]  # some lie on the same spot
    centres = centres[np.argsort(np.floor(centres[:, 0]), kind="stable")]
    apart = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    rows = np.floor(centres[:, 0]).astype(np.int64)
    step = max(1, n // 3)
    found = [distance_to_nearest(centres, rows, slice(k, min(k + step, n))) for k in range(0, n, step)]
    np.testing.assert_allclose(np.concatenate(found), apart.min(1), rtol=1e-12)


def test_an_only_centre_has_no_neighbour() -> None:
    assert distance_to_nearest(np.array([[5.5, 3.0]]), np.array([5]), slice(0, 1)).tolist() == [math.inf]


# Borders


def slow_border(plane: np.ndarray, point: np.ndarray, own: int, cap: float) -> float:
    y, x = np.nonzero((plane != own) & (plane != 0))
    return min([cap, *np.hypot(y - point[0], x - point[1])]) if own else math.nan


@pytest.mark.parametrize("seed", range(12))
def test_distance_to_other_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 60, 2))
    coarse = rng.choice([0, 6, 7, 8], (60, 60), p=[0.4, 0.4, 0.1, 0.1] if seed % 2 else [0.05, 0.9, 0.04, 0.01])
    size = int(rng.integers(1, 12))
    plane = np.kron(coarse, np.ones((size, size)))[: shape[0], : shape[1]].astype(np.uint8)
    points = rng.uniform(-1, 1, (200, 2)) + rng.uniform(0, shape, (200, 2))
    points[::5] = points[::5].round()
    own = rng.choice([0, 6, 7, 9], 200).astype(np.uint8)
    cap = float(rng.choice([3.7, 15, 1000]))
    found = distance_to_other_class(plane, points, own, cap)
    expected = [slow_border(plane, p, int(k), cap) for p, k in zip(points, own, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# The table


SHAPE = (700, 430)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return random_truth(SHAPE, 500, seed=5)


def context_of(core: int, extent: Box | None = None) -> StitchContext:
    return StitchContext(TileGrid(SHAPE, extent or Box.of_shape(SHAPE), core, 64, 1), 2.0, mpp=0.5)


@pytest.fixture(scope="module")
def store(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    return stitch_oracle(tmp_path_factory.mktemp("s") / "a.ome.zarr", truth, context_of(150))[0]


def column(store: PanopticStore, name: str) -> np.ndarray:
    return store.nuclei([name])[name].to_numpy()


def test_shape_columns(store: PanopticStore, truth: Truth) -> None:
    regions = regionprops(truth.instances)
    for name in SHAPE_COLUMNS:
        unit = 0.5 if "length" in name or name == "perimeter" else 1.0
        if name != "orientation":
            expected = np.array([region[name] for region in regions]) * unit
            np.testing.assert_allclose(column(store, shape_column(name)), expected, 1e-6, 1e-6)
    is_long = column(store, "eccentricity") > 0.1
    turn = column(store, "orientation") - [region.orientation for region in regions]
    assert (np.abs((turn[is_long] + math.pi / 2) % math.pi - math.pi / 2) < 1e-6).all()


def test_stain_columns(store: PanopticStore, truth: Truth) -> None:
    for k in range(1, store.n_nuclei, 29):
        expected = slow_stains(truth.image, truth.instances, k, 2.0 / 0.5)
        found = [column(store, name)[k - 1] for name in STAIN_COLUMNS]
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_stains_are_null_without_an_image(truth: Truth, tmp_path: Path) -> None:
    context = StitchContext(context_of(300).grid, 2.0)
    table = stitch_oracle(tmp_path / "a.ome.zarr", truth, context)[0].nuclei()
    assert all(table[name].null_count == len(table) for name in STAIN_COLUMNS)
    assert all(table[shape_column(name)].null_count == 0 for name in SHAPE_COLUMNS)


def centres_of(store: PanopticStore) -> np.ndarray:
    """y and x in pixels of the view."""
    return np.stack([column(store, "centroid_y"), column(store, "centroid_x")], 1) / 2 - 0.5


def test_distances_to_the_nearest(store: PanopticStore) -> None:
    centres = centres_of(store)
    apart = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    np.testing.assert_allclose(column(store, "distance_to_nearest_um"), apart.min(1) * 0.5, rtol=1e-6)


@pytest.mark.parametrize("extent", [Box.of_shape(SHAPE), Box(91, 33, 605, 402), Box(3, 9, 5, 11)])
def test_distances_to_the_tissue_border(truth: Truth, tmp_path: Path, extent: Box) -> None:
    store, _ = stitch_oracle(tmp_path / "a.ome.zarr", truth, context_of(170, extent))
    known = np.zeros_like(truth.stuff)
    known[extent.slices(Box.of_shape(SHAPE))] = truth.stuff[extent.slices(Box.of_shape(SHAPE))]
    centres, own = centres_of(store) / 8, column(store, "tissue_id")
    expected = [slow_border(known[::8, ::8], c, int(k), 125.0) * 8 * 0.5 for c, k in zip(centres, own, strict=True)]
    np.testing.assert_allclose(column(store, "distance_to_tissue_border_um"), expected, rtol=1e-6)


def test_no_border_in_reach_is_said_by_the_largest_distance(tmp_path: Path) -> None:
    instances = np.zeros((80, 90), np.int32)
    instances[30:40, 30:40] = 1
    row = only_row(instances, np.full((80, 90), 7, np.uint8), tmp_path / "one.ome.zarr")
    assert row["distance_to_tissue_border_um"] == MAX_BORDER_UM
    assert row["distance_to_nearest_um"] is None
    row = only_row(instances, np.zeros((80, 90), np.uint8), tmp_path / "void.ome.zarr")
    assert row["distance_to_tissue_border_um"] is None


def only_row(instances: np.ndarray, stuff: np.ndarray, path: Path) -> dict[str, object]:
    truth = Truth(instances, stuff, np.full((1, 5), 0.2, np.float32), np.ones(1, np.float32))
    context = StitchContext(TileGrid(stuff.shape, Box.of_shape(stuff.shape), 50, 40, 1), 2.0)
    return stitch_oracle(path, truth, context)[0].nuclei().to_pylist()[0]


@pytest.mark.parametrize("cap", [5.0, 60.0, 2000.0])
def test_bands_of_samples_do_not_show(tmp_path: Path, cap: float) -> None:
    shape = (4400, 30)  # more than four bands
    rng = np.random.default_rng(2)
    stuff = np.repeat(rng.choice([6, 7], 44, p=[0.8, 0.2]), 100)[:, None].repeat(30, 1).astype(np.uint8)
    stuff[2500:4000] = 6
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 333, 32, 1))
    truth = Truth(np.zeros(shape, np.int32), stuff, np.zeros((0, 5)), np.zeros(0))
    for tile in context.grid:
        write_record(tmp_path, tile_record(oracle_tile(truth, tile), context))
    centres = np.sort(rng.uniform(0, shape, (300, 2)), 0)
    own = rng.choice([6, 7], 300).astype(np.uint8)
    samples = TissueSamples(tmp_path, list(context.grid))
    parts = [distance_to_border(samples, centres[k : k + 90], own[k : k + 90], cap) for k in range(0, 300, 90)]
    expected = [slow_border(stuff[::8, ::8], c / 8, int(k), cap / 8) * 8 for c, k in zip(centres, own, strict=True)]
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-12)


def test_new_columns_come_before_the_geometry(store: PanopticStore) -> None:
    schema = store.nuclei_schema()
    assert schema.names[-1] == "geometry"
    measured = [*map(shape_column, SHAPE_COLUMNS), *STAIN_COLUMNS]
    measured += ["distance_to_nearest_um", "distance_to_tissue_border_um"]
    assert all(schema.field(name).type == pa.float32() for name in measured)


def test_a_nucleus_that_loses_pixels_has_the_shape_of_the_rest_and_keeps_its_stains(tmp_path: Path) -> None:
    shape = (100, 100)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 50, 40, 1), 2.0, mpp=0.5)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    left, right = np.zeros((2, *shape), np.int32)
    left[20:30, 36:55], right[18:34, 51:63] = 1, 1
    for tile, plane in zip(context.grid, (left, right, np.zeros_like(left), np.zeros_like(left)), strict=True):
        n = int(plane.max())
        stuff, ones = np.full(tile.outer.shape, 7, np.uint8), np.ones((n, N_THINGS), np.float32)
        panoptic = PanopticTile(tile, stuff, cut(plane, tile.outer), ones / N_THINGS, ones[:, 0])
        write_record(tmp_path, tile_record(panoptic, context, cut(image, tile.outer)))
    store, summary = finish(tmp_path / "a.ome.zarr", tmp_path, context)
    assert (summary.n_nuclei, summary.n_contested) == (2, 1)
    final = regionprops(np.where(left > 0, 1, right * 2))[1]
    row = store.nuclei().to_pylist()[1]
    assert row["area_um2"] == final.area / 4 < right.sum() / 4
    assert row["perimeter_um"] == pytest.approx(final.perimeter / 2)
    assert row["solidity"] == pytest.approx(final.solidity)
    assert [row[name] for name in STAIN_COLUMNS] == pytest.approx(slow_stains(image, right, 1, 4.0), abs=2e-4)
