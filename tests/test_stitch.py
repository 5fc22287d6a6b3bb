"""Stitching tiles of a known slide gives that slide, however it was tiled."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import shapely
from stitch_oracle import Truth, cut, finish, oracle_tile, random_truth, spec_of, stitch_oracle, truth_in

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.stitch import (
    Overview,
    StitchContext,
    StoreLayout,
    assemble,
    finished_tiles,
    read_columns,
    tile_path,
    tile_record,
    write_record,
)
from nucleipan.stitch.candidates import PlaneCache
from nucleipan.stitch.planes import mean_of_four
from nucleipan.store import CHECKSUMS, PanopticStore, open_or_resume
from nucleipan.tiles import Tile, TileGrid

SHAPE = (395, 503)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return random_truth(SHAPE, 700)


def context_of(core: int, extent: Box | None = None, align: int = 1, shape: tuple[int, int] = SHAPE) -> StitchContext:
    return StitchContext(TileGrid(shape, extent or Box.of_shape(shape), core, 64, align), 2.0, mpp=0.5)


def check(store: PanopticStore, truth: Truth, extent: Box) -> None:
    ids, classes, index = truth_in(truth, extent)
    np.testing.assert_array_equal(store.instances(), ids)
    np.testing.assert_array_equal(store.class_map(), classes)
    table = store.nuclei()
    np.testing.assert_array_equal(table["id"].to_numpy(), np.arange(1, len(index) + 1))
    np.testing.assert_array_equal(table["score"].to_numpy(), truth.scores[index])
    y, x = np.nonzero(ids)
    of = ids[y, x].astype(int)
    n = np.bincount(of, minlength=len(index) + 1)[1:]
    np.testing.assert_allclose(table["area_um2"].to_numpy(), n * 0.25)
    np.testing.assert_allclose(table["centroid_y"].to_numpy(), (np.bincount(of, y)[1:] / n + 0.5) * 2)
    np.testing.assert_allclose(table["centroid_x"].to_numpy(), (np.bincount(of, x)[1:] / n + 0.5) * 2)
    assert shapely.is_valid(shapely.from_wkb(table["geometry"].to_numpy())).all()
    counts = np.zeros((len(index) + 1, 15), int)
    np.add.at(counts, (of, truth.stuff[y, x]), 1)
    np.testing.assert_array_equal(table["tissue_id"].to_numpy(), counts[1:].argmax(1))


def content(store: PanopticStore) -> dict[str, str]:
    """Hashes of all files but the root's attributes, which name the tiling, and the list that has their hash."""
    tiled = {store.path / "zarr.json", store.path / CHECKSUMS}
    files = (p for p in store.path.rglob("*") if p.is_file() and p not in tiled)
    return {str(p.relative_to(store.path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize(("core", "align"), [(64, 32), (100, 1), (129, 1), (256, 32), (512, 32)])
def test_stitched_oracle_is_the_truth(tmp_path: Path, truth: Truth, core: int, align: int) -> None:
    context = context_of(core, align=align)
    store, summary = stitch_oracle(tmp_path / "a.ome.zarr", truth, context, seed=core)
    check(store, truth, context.grid.extent)
    assert (summary.n_cut, summary.n_seam, summary.n_contested, summary.n_vanished) == (0, 0, 0, 0)


@pytest.mark.parametrize("extent", [Box(37, 51, 333, 401), Box(0, 0, 50, 503), Box(100, 100, 101, 101)])
@pytest.mark.parametrize("core", [90, 160])
def test_extent_keeps_the_nuclei_centred_in_it_whole(tmp_path: Path, truth: Truth, extent: Box, core: int) -> None:
    context = context_of(core, extent, align=32)
    store, _ = stitch_oracle(tmp_path / "a.ome.zarr", truth, context)
    check(store, truth, extent)


@pytest.mark.parametrize("seed", range(8))
def test_any_slide_any_tiling_any_extent(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(60, 300, 2))
    truth = random_truth((height, width), int(rng.integers(1, 250)), seed)
    (y0, y1), (x0, x1) = (sorted(rng.choice(side + 1, 2, replace=False).tolist()) for side in (height, width))
    grid = TileGrid((height, width), Box(y0, x0, y1, x1), int(rng.integers(20, 250)), 64, int(rng.choice([1, 8, 32])))
    store, _ = stitch_oracle(
        tmp_path / "a.ome.zarr", truth, StitchContext(grid, 2.0, mpp=0.5), seed, int(rng.choice([64, 128]))
    )
    check(store, truth, grid.extent)


def test_tiling_and_order_of_arrival_do_not_change_a_byte(tmp_path: Path, truth: Truth) -> None:
    stores = [
        stitch_oracle(tmp_path / f"{core}.ome.zarr", truth, context_of(core), seed=core)[0] for core in (96, 97, 300)
    ]
    first = content(stores[0])
    assert len(first) > 20
    assert all(content(store) == first for store in stores[1:])


def _compute(folder: Path, truth: Truth, context: StitchContext, indices: list[int]) -> None:
    tiles = list(context.grid)
    for k in indices:
        write_record(folder, tile_record(oracle_tile(truth, tiles[k], k), context, cut(truth.image, tiles[k].outer)))


def test_two_processes_and_resume_equal_one_run(tmp_path: Path, truth: Truth) -> None:
    context = context_of(110)
    n = len(context.grid)
    folder = tmp_path / "tiles"
    folder.mkdir()
    order = [int(k) for k in np.random.default_rng(5).permutation(n)]
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_compute, args=(folder, truth, context, order[k : n // 2 : 2])) for k in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done = finished_tiles(folder, context.grid)
    assert len(done) == n // 2
    missing = [k for k, tile in enumerate(context.grid) if tile not in done]
    with pytest.raises(StoreError, match="no whole tile file"):
        finish(tmp_path / "early.ome.zarr", folder, context)
    _compute(folder, truth, context, missing)
    store, _ = finish(tmp_path / "a.ome.zarr", folder, context)
    fresh, _ = stitch_oracle(tmp_path / "b.ome.zarr", truth, context)
    assert content(store) == content(fresh)


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "empty", "other tiling"])
def test_damaged_tile_files_are_noticed_and_computed_again(tmp_path: Path, truth: Truth, damage: str) -> None:
    context = context_of(200)
    tiles = list(context.grid)
    _compute(tmp_path, truth, context, list(range(len(tiles))))
    path = tile_path(tmp_path, tiles[2])
    data = path.read_bytes()
    middle = len(data) // 2
    if damage == "other tiling":
        other = context_of(150)
        write_record(tmp_path, tile_record(oracle_tile(truth, list(other.grid)[2]), other))
        assert path.read_bytes() != data
    else:
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:-1], "flip": flipped, "garbage": b"x" * len(data), "empty": b""}[damage])
    assert finished_tiles(tmp_path, context.grid) == [t for t in tiles if t != tiles[2]]
    assert not path.exists()
    _compute(tmp_path, truth, context, [2])
    assert finished_tiles(tmp_path, context.grid) == tiles


def test_a_full_disk_is_one_line(tmp_path: Path, truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    context = context_of(200)
    record = tile_record(oracle_tile(truth, next(iter(context.grid))), context)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StoreError, match="cannot be written \\(No space left on device\\)"):
        write_record(tmp_path, record)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_assembly_is_repeated(tmp_path: Path, truth: Truth) -> None:
    context = context_of(200)
    path = tmp_path / "a.ome.zarr"
    run = open_or_resume(path, spec_of(context.grid))
    _compute(run.tiles_folder, truth, context, list(range(len(context.grid))))
    layout = StoreLayout("slide", DEFAULT_CLASSES, 0.5, 32, 128, 50, run.attributes())

    def fails(box: Box) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assemble(run.folder, run.tiles_folder, context, layout, Overview((50, 60), 4.0, fails))
    assert not path.exists()
    assert open_or_resume(path, spec_of(context.grid)).is_resumed
    store, _ = finish(path, run.tiles_folder, context)
    check(store, truth, context.grid.extent)
    assert not run.folder.exists()


def test_empty_slide(tmp_path: Path) -> None:
    truth = Truth(np.zeros((70, 90), np.int32), np.full((70, 90), 6, np.uint8), np.zeros((0, 5)), np.zeros(0))
    context = context_of(50, shape=(70, 90))
    store, summary = stitch_oracle(tmp_path / "a.ome.zarr", truth, context)
    assert summary.n_nuclei == 0
    assert store.nuclei().num_rows == 0
    assert (store.class_map() == 6).all()
    assert not store.instances().any()


def test_pyramid_is_a_strided_copy(tmp_path: Path) -> None:
    truth = random_truth((300, 2301), 900, seed=3)
    store, _ = stitch_oracle(tmp_path / "a.ome.zarr", truth, context_of(500, shape=(300, 2301)), shard=256)
    assert store.n_levels == 3
    for level in range(store.n_levels):
        step = 2**level
        np.testing.assert_array_equal(store.instances(level=level), store.instances()[::step, ::step])
        np.testing.assert_array_equal(store.class_map(level=level), store.class_map()[::step, ::step])


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 5, 7), (1, 1)])
def test_the_overview_shrinks_to_rounded_means(shape: tuple[int, ...]) -> None:
    plane = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    small = mean_of_four(plane)
    height, width = shape[-2:]
    assert small.shape[-2:] == (-(-height // 2), -(-width // 2))
    for y, x in np.ndindex(*small.shape[-2:]):
        rows, cols = [2 * y, min(2 * y + 1, height - 1)], [2 * x, min(2 * x + 1, width - 1)]
        four = plane[..., rows, :][..., cols].astype(float)
        np.testing.assert_array_equal(small[..., y, x], np.floor(four.mean((-2, -1)) + 0.5))


def test_planes_used_last_are_kept_as_far_as_there_is_room(
    tmp_path: Path, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, read = context_of(200), []
    tiles = list(context.grid)
    _compute(tmp_path, truth, context, [0, 1, 2])
    largest = max(sum(p.nbytes for p in PlaneCache(tmp_path, tiles).get(k)) for k in range(3))

    def reading(folder: Path, tile: Tile, names: tuple[str, ...]) -> tuple[Box, dict[str, np.ndarray]]:
        read.append(tile)
        return read_columns(folder, tile, names)

    monkeypatch.setattr("nucleipan.stitch.candidates.read_columns", reading)
    cache = PlaneCache(tmp_path, tiles, budget_mb=2 * largest / 2**20)
    for k in (0, 1, 0, 2, 0, 2, 1):
        cache.get(k)
    assert read == [tiles[k] for k in (0, 1, 2, 1)]
