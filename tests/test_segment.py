"""The whole path, with a network that knows the truth and with one that knows nothing.

The oracle sees only what a network sees, a tile's pixels: the truth is written into the colours of a lossless
slide (red: class, green and blue: offset to the nucleus's centre). Red is bright, as in tissue: else it would be pen.
"""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from monai.inferers import PatchInferer
from monai.transforms import Compose, RandGaussianNoised
from torch import Tensor

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import MissingPixelSizeError, RegionError, StoreError
from nucleipan.geometry import Box
from nucleipan.network.build import build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.model import HeadOutputs, PanopticNetConfig
from nucleipan.network.voting import VotingConfig
from nucleipan.network.weights import Model, ModelInfo
from nucleipan.segment import SegmentOptions, segment_slide, store_path
from nucleipan.slide import at_mpp, open_slide
from nucleipan.store import exclusive
from nucleipan.tiles import ALIGN
from nucleipan.transforms import SlideTiles, TileSplitter, default_transforms

K = len(DEFAULT_CLASSES)
SHAPE = (460, 700)
RED = 200  # of class 0


def truth_planes(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Discs with integer centres at least ten pixels apart: ids in raster order of centres, class plane, centres."""
    rng = np.random.default_rng(seed)
    centres: list[tuple[int, int]] = []
    for y, x in rng.integers(0, shape, (4000, 2)):
        if all((y - v) ** 2 + (x - u) ** 2 >= 100 for v, u in centres):
            centres.append((int(y), int(x)))
    centres.sort()
    grid = np.mgrid[: shape[0], : shape[1]]
    distance = np.full(shape, 1e9)
    ids = np.zeros(shape, np.int64)
    for i, (y, x) in enumerate(centres, 1):
        d = (grid[0] - y) ** 2 + (grid[1] - x) ** 2
        nearer = (d < distance) & (d <= rng.integers(12, 60))
        distance[nearer], ids[nearer] = d[nearer], i
    stuff = np.where(np.sin(grid[0] / 60) + np.cos(grid[1] / 45) > 0, 9, 7).astype(np.uint8)
    thing = np.concatenate([[0], rng.integers(1, 6, len(centres))]).astype(np.uint8)
    return ids, np.where(ids > 0, thing[ids], stuff).astype(np.uint8), np.array([(0, 0), *centres])


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    ids, classes, centres = truth_planes(SHAPE, 1)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    rgb = np.full((*SHAPE, 3), 128, np.uint8)
    rgb[..., 0] = RED + classes
    inside = ids > 0
    rgb[..., 1][inside] = (128 + centres[ids][..., 0] - y)[inside]
    rgb[..., 2][inside] = (128 + centres[ids][..., 1] - x)[inside]
    path = tmp_path_factory.mktemp("slide") / "oracle.tiff"
    resolution = (2e4, 2e4)  # pixels per cm: 0.5 um
    tifffile.imwrite(
        path, rgb, tile=(128, 128), photometric="rgb", compression="deflate", resolution=resolution, resolutionunit=3
    )
    return path


def oracle(image: Tensor) -> HeadOutputs:
    colours = image.float()
    classes = colours[:, :1] - RED
    semantic = torch.nn.functional.one_hot(classes[:, 0].long() - 1, K).permute(0, 3, 1, 2) * 20.0 - 10
    is_nucleus = classes <= len(DEFAULT_CLASSES.things)
    # Under a nucleus the tissue is unknown to the slide; say stroma.
    semantic[:, 8] = torch.where(is_nucleus[:, 0], 0.0, semantic[:, 8])
    return HeadOutputs(semantic, torch.where(is_nucleus, 10.0, -10.0), colours[:, 1:] - 128)


def model(name: str = "oracle", margin: int = 32) -> Model:
    decode = DecodeConfig(voting=VotingConfig(peak_radius=4, reach=4, min_votes=1, min_area=1), min_stuff_um2=0)
    config = PanopticNetConfig(instance_channels=(8, 8, 8, 8), semantic_channels=8)
    info = ModelInfo(name, 0.5, margin, DEFAULT_CLASSES, config, decode, "none", (), sha256=name)
    return Model(info, build_network(config, DEFAULT_CLASSES))


def files(store: Path) -> dict[str, bytes]:
    """Every array chunk and the table; metadata name the tile size and may differ."""
    found = {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("c/**/*") if p.is_file()}
    table = pq.read_table(store / "nuclei.parquet")
    return found | {"table": repr(table.to_pydict()).encode()}


@pytest.fixture(scope="module")
def reference(slide, tmp_path_factory):
    return segment_slide(slide, tmp_path_factory.mktemp("reference"), model(), network=oracle)


def test_the_oracle_is_reproduced_exactly(reference):
    ids, classes, _ = truth_planes(SHAPE, 1)
    visible = np.unique(ids[ids > 0])
    store = reference.store
    assert store.n_nuclei == len(visible) > 300
    np.testing.assert_array_equal(store.class_map(), classes)
    got = store.instances()
    assert ((got > 0) == (ids > 0)).all()
    pairs = np.unique(np.stack([ids[ids > 0], got[ids > 0]]), axis=1)
    assert pairs.shape[1] == len(visible), "a nucleus is cut or merged"
    table = store.nuclei(["id", "class_id", "tissue"])
    assert table["id"].to_pylist() == list(range(1, len(visible) + 1))
    assert reference.summary.n_cut == 0


@pytest.mark.parametrize("tile", [64, 128, 192, 512])
def test_tile_size_does_not_matter(slide, reference, tmp_path, tile):
    result = segment_slide(slide, tmp_path, model(), SegmentOptions(tile=tile), network=oracle)
    assert result.n_tiles == -(-SHAPE[0] // tile) * -(-SHAPE[1] // tile)
    assert files(result.store.path) == files(reference.store.path)


def test_an_interrupted_run_continues(slide, reference, tmp_path):
    calls = 0

    def stops(image: Tensor) -> HeadOutputs:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise KeyboardInterrupt
        return oracle(image)

    options = SegmentOptions(tile=128)
    with pytest.raises(KeyboardInterrupt):
        segment_slide(slide, tmp_path, model(), options, network=stops)
    target = store_path(slide, tmp_path)
    assert not target.exists()
    assert target.with_name(target.name + ".partial").is_dir()
    result = segment_slide(slide, tmp_path, model(), options, network=oracle)
    assert 0 < result.n_computed < result.n_tiles
    assert files(result.store.path) == files(reference.store.path)
    again = segment_slide(slide, tmp_path, model(), options, network=stops)
    assert again.summary is None
    assert again.n_computed == 0


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("fails_at", [0, 3, 9, 30])
def test_a_disk_that_fails_leaves_a_run_that_can_be_resumed(slide, reference, tmp_path, monkeypatch, fails_at, reason):
    """It is full, or may not be written any more, at a tile, or (the last) while zarr writes the store's arrays."""
    n_files, replace = 0, os.replace

    def full(source, target, **kwargs):
        nonlocal n_files
        n_files += 1
        if n_files > fails_at:
            raise OSError(reason, os.strerror(reason))
        return replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match=os.strerror(reason)) as caught:
        segment_slide(slide, tmp_path, model(), SegmentOptions(tile=128), network=oracle)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert not store_path(slide, tmp_path).exists()
    result = segment_slide(slide, tmp_path, model(), SegmentOptions(tile=128), network=oracle)
    assert files(result.store.path) == files(reference.store.path)
    if fails_at == 9:
        assert result.n_computed < result.n_tiles


def test_a_run_leaves_nothing_in_memory(slide, tmp_path):
    """What refers to itself stays until Python looks for garbage: over a folder of slides, gigabytes of planes."""
    segment_slide(slide, tmp_path / "first", model(), network=oracle)
    gc.collect()
    gc.disable()
    try:
        segment_slide(slide, tmp_path / "second", model(), network=oracle)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(thing).__qualname__ for thing in gc.garbage if type(thing).__module__.startswith("nucleipan")}
        left |= {type(thing).__qualname__ for thing in gc.garbage if isinstance(thing, np.ndarray | Tensor)}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == set()


def test_another_model_is_refused_unless_asked(slide, tmp_path):
    segment_slide(slide, tmp_path, model("first"), network=oracle)
    with pytest.raises(StoreError, match=r"model\.name: 'second' here, 'first' there.*--overwrite"):
        segment_slide(slide, tmp_path, model("second"), network=oracle)
    result = segment_slide(slide, tmp_path, model("second"), SegmentOptions(overwrite=True), network=oracle)
    assert result.store.model["name"] == "second"


def test_region_of_interest(slide, reference, tmp_path):
    roi = Box(101, 203, 305, 444)
    result = segment_slide(slide, tmp_path, model(), SegmentOptions(roi=roi, tile=128), network=oracle)
    assert result.store.shape == SHAPE
    inside = (slice(roi.y0, roi.y1), slice(roi.x0, roi.x1))
    got, whole = result.store.instances(), reference.store.instances()
    frame = reference.store.nuclei(["id", "centroid_x", "centroid_y"])
    y, x = (frame[c].to_numpy() - 0.5 for c in ("centroid_y", "centroid_x"))  # pixel centres lie at half pixels
    owned = frame["id"].to_numpy()[(y >= roi.y0) & (y < roi.y1) & (x >= roi.x0) & (x < roi.x1)]
    assert result.store.n_nuclei == len(owned) > 50
    np.testing.assert_array_equal(got > 0, np.isin(whole, owned))
    free = whole[inside] == 0
    np.testing.assert_array_equal(result.store.class_map()[inside][free], reference.store.class_map()[inside][free])
    assert (result.store.class_map()[: roi.y0 - 20] == 0).all()


def test_a_small_region_costs_little(slide, tmp_path):
    result = segment_slide(slide, tmp_path, model(), SegmentOptions(roi=Box(200, 300, 232, 332)), network=oracle)
    assert result.redundancy * 32 * 32 <= (32 + 2 * 32 + 2 * (ALIGN - 1)) ** 2


def test_a_finished_store_does_not_depend_on_the_tile(slide, tmp_path):
    segment_slide(slide, tmp_path, model(), SegmentOptions(tile=128), network=oracle)
    again = segment_slide(slide, tmp_path, model(), SegmentOptions(tile=256), network=oracle)
    assert again.summary is None
    assert again.n_computed == 0


def test_what_is_not_ours_is_never_replaced(slide, tmp_path):
    target = store_path(slide, tmp_path)
    target.mkdir()
    (target / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {"ome": {}}}')
    with pytest.raises(StoreError, match="not written by nucleipan and is never replaced"):
        segment_slide(slide, tmp_path, model(), SegmentOptions(overwrite=True), network=oracle)
    assert "ome" in (target / "zarr.json").read_text()


def test_two_processes_do_not_write_one_store(slide, tmp_path):
    with exclusive(store_path(slide, tmp_path)), pytest.raises(StoreError, match="written by another process"):
        segment_slide(slide, tmp_path, model(), network=oracle)
    assert segment_slide(slide, tmp_path, model(), network=oracle).store.n_nuclei > 300
    assert [p.name for p in tmp_path.iterdir()] == ["oracle.ome.zarr"], "no lock is left behind"


def test_an_overruled_pixel_size_is_said(slide, tmp_path):
    result = segment_slide(slide, tmp_path, model(), SegmentOptions(mpp=0.6), network=lambda x: oracle(x * 0 + RED + 7))
    assert [n.split(";")[0] for n in result.notes] == [
        "says 0.5 um per pixel",
        "has 0.6 um per pixel and was enlarged to the model's 0.5",
    ]


@pytest.mark.parametrize("roi", [Box(0, 0, 0, 0), Box(0, 0, 461, 10), Box(-1, 0, 10, 10), Box(20, 20, 10, 30)])
def test_regions_outside_the_slide_are_refused(slide, tmp_path, roi):
    with pytest.raises(RegionError, match="expected Y0,X0,Y1,X1"):
        segment_slide(slide, tmp_path, model(), SegmentOptions(roi=roi), network=oracle)
    assert not list(tmp_path.iterdir())


def test_no_pixel_size_is_an_error(tmp_path):
    tifffile.imwrite(tmp_path / "bare.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    with pytest.raises(MissingPixelSizeError, match="--mpp"):
        segment_slide(tmp_path / "bare.tif", tmp_path, model(), network=oracle)


def test_glass_is_skipped(tmp_path):
    rgb = np.full((300, 600, 3), 250, np.uint8)
    rgb[100:140, 40:90] = (120, 60, 130)
    path = tmp_path / "glass.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3)
    seen = []

    def counts(image: Tensor) -> HeadOutputs:
        seen.append(image.shape)
        return oracle(torch.full_like(image, RED + 7))

    result = segment_slide(path, tmp_path, model(), SegmentOptions(tile=128), network=counts)
    assert 0 < len(seen) == result.n_computed < result.n_tiles
    assert (result.store.class_map()[:, 400:] == DEFAULT_CLASSES.by_name("background").id).all()


def test_monai_users_add_their_own_transforms(slide):
    with open_slide(slide) as opened:
        view = at_mpp(opened, 0.5)
        chain = Compose([*default_transforms(view).transforms, RandGaussianNoised("image", prob=1.0)])
        splitter = TileSplitter(128, ALIGN)
        patches = list(splitter(view))
        assert len(patches) == 4 * 6
        assert splitter.get_input_shape(view) == SHAPE
        assert patches[7][1] == (128 - ALIGN, 128 - ALIGN)
        tiles = SlideTiles(view, [], chain)
        assert len(tiles) == 0


def test_monai_patch_inferer_takes_our_splitter(slide):
    with open_slide(slide) as opened:
        view = at_mpp(opened, 0.5)
        inferer = PatchInferer(splitter=TileSplitter(256, 0), batch_size=1)
        mean = inferer(view, lambda x: x[:, :1] * 255)
        assert mean.shape[-2:] == SHAPE
        expected = view.read(Box(0, 0, 256, 256))[..., 0]
        np.testing.assert_allclose(mean[0, 0, :256, :256].numpy(), expected, atol=1e-3)
