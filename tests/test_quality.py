"""What cannot be judged is void, what can be is left alone, and neither depends on how the slide is tiled."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from test_cli import Cli, cli, write_model
from test_segment import RED, SHAPE, files, model, oracle, slide
from torch import Tensor

from nucleipan.geometry import Box
from nucleipan.network.model import HeadOutputs
from nucleipan.panoptic import PanopticTile
from nucleipan.plausible import AREA_RANGE_UM2, STAIN_RANGES, UNUSABLE_IN_WORDS, notes_of, stain_of
from nucleipan.segment import SegmentOptions, segment_slide
from nucleipan.slide import ArraySlide, QualityMap, at_mpp, open_slide, quality_map, tissue_mask
from nucleipan.slide.quality import FOLDED, GLASS, OUT_OF_FOCUS, PEN, UNUSABLE, USABLE
from nucleipan.store import PanopticStore
from nucleipan.synthetic import SyntheticScene
from nucleipan.tiles import TileGrid

__all__ = ["cli", "slide"]  # fixtures

SIDE = 800
STROKE = np.s_[300:500, 100:700]
INKS = {"green": (25, 140, 80), "black": (20, 20, 22), "blue": (30, 70, 180)}
TISSUES = {"melanin": (70, 42, 25), "lymphocytes": (75, 45, 120), "blood": (170, 30, 35), "fat": (240, 232, 238)}


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """uint8[h, w, 3] at 0.5 um per pixel, some of it glass."""
    return SyntheticScene((SIDE, SIDE), seed=2).rgb(Box(0, 0, SIDE, SIDE))


def judge(rgb: np.ndarray, mpp: float = 0.5, view_mpp: float = 0.5) -> QualityMap:
    with ArraySlide(Path("array"), rgb, mpp=mpp) as opened:
        view = at_mpp(opened, view_mpp)
        return quality_map(view, tissue_mask(view))


def share(quality: QualityMap, kind: int, of: np.ndarray | None = None) -> float:
    kinds = quality.kinds if of is None else quality.kinds[of]
    return float((kinds == kind).sum() / max(1, (kinds != GLASS).sum()))


def cells(area: tuple[slice, slice]) -> tuple[slice, slice]:
    """A part of the image, pixels of 0.5 um, in cells of 8 um."""
    y, x = (slice(-(-s.start // 16), s.stop // 16) for s in area)
    return y, x


def test_good_tissue_is_usable(tissue: np.ndarray) -> None:
    quality = judge(tissue)
    assert set(np.unique(quality.kinds)) <= {GLASS, USABLE}
    assert quality.mpp == 8
    assert not quality.has_void(Box(0, 0, SIDE, SIDE))


@pytest.mark.parametrize(("ink", "ground"), [(i, g) for i in INKS for g in ("glass", "tissue")][:-1])
def test_pen_is_found_on_tissue_and_glass(tissue: np.ndarray, ink: str, ground: str) -> None:
    """But for thin blue ink on tissue, which looks like haematoxylin."""
    drawn = tissue.copy() if ground == "tissue" else np.full_like(tissue, 244)
    drawn[STROKE] = drawn[STROKE] * (0.2 + 0.8 * np.array(INKS[ink]) / 255)
    quality = judge(drawn)
    assert (quality.kinds[cells(STROKE)] == PEN).mean() > 0.99
    far = np.ones_like(quality.kinds, bool)
    far[cells(np.s_[180:620, 0:800])] = False
    assert share(quality, PEN, far) == 0


@pytest.mark.parametrize("name", TISSUES)
def test_dark_and_pale_tissue_is_no_pen(tissue: np.ndarray, name: str) -> None:
    dyed = tissue.copy()
    dyed[STROKE] = np.clip(dyed[STROKE] / tissue[STROKE].mean((0, 1)) * TISSUES[name], 0, 255)
    assert share(judge(dyed), PEN) == 0


FOLD = np.s_[304:432, 96:352]


def layers(tissue: np.ndarray, n: int) -> np.ndarray:
    """The tissue on copies of itself, each a little further on: light goes through all of them."""
    through = [np.roll(tissue, (12 * i, 20 * i), (0, 1)) / 255 for i in range(n)]
    return np.rint(255 * np.prod(through, axis=0)).astype(np.uint8)


@pytest.mark.parametrize("view_mpp", [0.25, 0.5])
def test_folds_are_found(tissue: np.ndarray, view_mpp: float) -> None:
    """A Z-fold: three layers."""
    folded = tissue.copy()
    folded[FOLD] = layers(tissue, 3)[FOLD]
    kinds = judge(folded, view_mpp=view_mpp).kinds
    inside = np.zeros_like(kinds, bool)
    inside[cells(FOLD)] = True
    assert (kinds[inside] == FOLDED).mean() > 0.9
    assert not (kinds[~ndimage.binary_dilation(inside, iterations=2)] == FOLDED).any()


def absorbing(tissue: np.ndarray, times: float | tuple[float, float, float]) -> np.ndarray:
    """The tissue with ``times`` its optical density."""
    return np.rint(255 * (tissue / 255) ** np.array(times)).astype(np.uint8)


def not_folded(tissue: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    y, x = np.mgrid[:SIDE, :SIDE] % 20 - 10  # nuclei of 7 um, 10 um apart
    crowded = absorbing(tissue, (2.8, 2.4, 2.4))
    crowded[y**2 + x**2 < 49] = 20
    left = np.s_[:, :400]
    for name, rgb, where in (
        ("thick everywhere", layers(tissue, 2), np.s_[:]),
        ("half of it thick", layers(tissue, 2), left),
        ("a little denser", absorbing(tissue, 1.3), FOLD),
        ("haematoxylin", absorbing(tissue, (2.4, 1.35, 1.35)), FOLD),
        ("eosin, or blood", absorbing(tissue, (1, 2.5, 2.5)), FOLD),
        ("crowded dark nuclei", crowded, FOLD),
        ("a speck", layers(tissue, 3), np.s_[304:336, 96:224]),
    ):
        changed = tissue.copy()
        changed[where] = rgb[where]
        yield name, changed
    pale = absorbing(tissue, 0.4)
    pale[304:432, 96:480] = absorbing(tissue, 2)[304:432, 96:480]
    yield "tissue among fat", pale


def test_dense_tissue_is_no_fold(tissue: np.ndarray) -> None:
    for name, rgb in not_folded(tissue):
        assert share(judge(rgb), FOLDED) == 0, name


@pytest.mark.parametrize("sigma_um", [2.0, 3.0, 6.0, 12.0])
def test_blur_is_found(tissue: np.ndarray, sigma_um: float) -> None:
    blurred = tissue.copy()
    sigma = sigma_um / 0.5
    blurred[:, :400] = ndimage.gaussian_filter(tissue, (sigma, sigma, 0))[:, :400]
    kinds = judge(blurred).kinds
    left, right = kinds[:, :12], kinds[:, 31:]  # sharp texture nearby outweighs what is lacking for 100 um
    assert (left == OUT_OF_FOCUS).sum() > 0.95 * (left != GLASS).sum() > 100
    assert (right == OUT_OF_FOCUS).sum() == 0


def test_the_map_is_the_same_in_every_grid(tissue: np.ndarray) -> None:
    drawn = tissue.copy()
    drawn[STROKE] = INKS["blue"]
    maps = [judge(drawn, view_mpp=mpp) for mpp in (0.5, 1.0)]
    np.testing.assert_array_equal(maps[0].kinds, maps[1].kinds)
    assert maps[0].scale == 2 * maps[1].scale
    void = [quality.void(Box(0, 0, int(SIDE * 0.5 / mpp), 400)) for quality, mpp in zip(maps, (0.5, 1.0), strict=True)]
    np.testing.assert_array_equal(void[0][::2, :400:2], void[1][:, :200])


def test_nuclei_mostly_in_void_are_left_out_and_others_whole() -> None:
    tile = TileGrid((64, 64), Box(0, 0, 64, 64), 64, 0).tile(0, 0)
    instances = np.zeros((64, 64), np.int32)
    instances[0:10, 0:10], instances[0:10, 28:38], instances[20:30, 25:33] = 1, 2, 3
    probabilities = np.eye(3, 5, dtype=np.float32)
    scores = np.array([0.7, 0.8, 0.9], np.float32)
    where = np.zeros((64, 64), bool)
    where[:, 30:] = True
    left = PanopticTile(tile, np.full((64, 64), 9, np.uint8), instances, probabilities, scores).without(where)
    np.testing.assert_array_equal(left.instances, np.select([instances == 1, instances == 3], [1, 2]))
    assert (left.scores == scores[[0, 2]]).all()
    assert (left.probabilities == probabilities[[0, 2]]).all()
    assert ((left.stuff == 0) == where).all()


def seeing_no_ink(image: Tensor) -> HeadOutputs:
    """The oracle, to which ink is stroma without nuclei."""
    is_ink = (image[:, :1] < RED).expand_as(image)
    return oracle(torch.where(is_ink, torch.tensor([RED + 9, 128, 128], dtype=image.dtype)[None, :, None, None], image))


@pytest.fixture(scope="module")
def marked(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with open_slide(slide) as opened:
        rgb = opened.read(0, Box.of_shape(SHAPE))
    rgb[150:420, 200:460] = INKS["green"]
    path = tmp_path_factory.mktemp("marked") / "marked.tiff"
    tifffile.imwrite(path, rgb, tile=(128, 128), photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3)
    return path


def test_void_does_not_depend_on_tiles(marked: Path, tmp_path: Path) -> None:
    made = [
        segment_slide(marked, tmp_path / str(t), model(), SegmentOptions(tile=t), network=seeing_no_ink)
        for t in (64, 160, 512)
    ]
    assert all(files(m.store.path) == files(made[0].store.path) for m in made)
    assert made[0].n_computed < made[0].n_tiles, "tiles of ink alone are not computed"
    store = made[0].store
    assert (store.class_map(Box(200, 250, 380, 420)) == 0).all()
    assert (store.instances(Box(200, 250, 380, 420)) == 0).all()
    everything = segment_slide(
        marked, tmp_path / "all", model(), SegmentOptions(all_tissue=True), network=seeing_no_ink
    ).store
    assert everything.n_nuclei > store.n_nuclei > 100
    assert (everything.class_map() > 0).all()
    kept = store.instances() > 0
    assert (everything.instances()[kept] > 0).all(), "nuclei at the border are whole"


def test_what_is_void_is_said(cli: Cli, tissue: np.ndarray, tmp_path: Path) -> None:
    blurred = ndimage.gaussian_filter(tissue, (8, 8, 0))
    blurred[:300] = tissue[:300]
    for name, rgb in (("good.tiff", tissue), ("blurred.tiff", blurred)):
        tifffile.imwrite(tmp_path / name, rgb, photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3)
    weights = write_model(tmp_path / "tiny.safetensors", 0)
    slides = (tmp_path / "good.tiff", tmp_path / "blurred.tiff")
    done = cli("segment", *slides, "--out", tmp_path / "out", "--model", weights, "--device", "cpu")
    assert done.code == 0
    notes = [line for line in done.stderr.splitlines() if line.startswith("nucleipan:")]
    assert len(notes) == 1
    assert re.search(r"blurred.tiff: has [3-6]\d\.\d % of its tissue out of focus, void in the result$", notes[0])
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        shares = {Path(row["slide"]).stem: float(row["out_of_focus"]) for row in csv.DictReader(file)}
    assert shares["good"] == 0
    assert 0.3 < shares["blurred"] < 0.65
    store = tmp_path / "out" / "blurred.ome.zarr"
    found = json.loads(cli("info", store, "--json").stdout)
    assert found["quality"]["out_of_focus"] == pytest.approx(shares["blurred"], abs=1e-3)
    assert found["notes"][0] in notes[0]
    assert cli("report", store, "--out", tmp_path / "page.html").code == 0
    assert f"The slide {found['notes'][0]}." in (tmp_path / "page.html").read_text()
    other = cli("segment", slides[1], "--out", tmp_path / "out", "--model", weights, "--device", "cpu", "--all-tissue")
    assert (other.code, "config.all_tissue: True here, False there" in other.stderr) == (1, True)


def test_all_that_is_void_has_words() -> None:
    assert UNUSABLE_IN_WORDS.keys() == UNUSABLE.keys()


def test_unlikely_stains_and_sizes_are_said(marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = segment_slide(marked, tmp_path / "own", model("nucleipan-x"), network=seeing_no_ink).store
    said = notes_of(own)
    assert any("is stained unlike" in note and "there" in note for note in said), said
    area = np.median(own.nuclei(["area_um2"])["area_um2"].to_numpy())
    assert any(f"has nuclei of {area:.0f} um2 (median) at 0.5 um" in note for note in said) == (
        not AREA_RANGE_UM2[0] <= area <= AREA_RANGE_UM2[1]
    )
    monkeypatch.setattr("nucleipan.plausible.AREA_RANGE_UM2", (area + 1, area + 2))
    assert any("is the pixel size right?" in note for note in notes_of(own))
    bare = PanopticStore(own.path, own.spec, own.attributes | {"quality": {"tissue_mm2": own.n_nuclei / 29.0}})
    monkeypatch.setattr("nucleipan.plausible.AREA_RANGE_UM2", (area - 1, area + 1))
    assert [note.startswith(f"has {own.n_nuclei} nuclei on ") for note in notes_of(bare)] == [True]
    other = segment_slide(marked, tmp_path / "other", model("mine"), network=seeing_no_ink).store
    assert len(notes_of(other)) == 1, "another model may have learnt from other stains"
    damaged = PanopticStore(own.path, own.spec, own.attributes | {"quality": {"pen": "x", "density": [1, "y"]}})
    assert not any("stained" in note for note in notes_of(damaged))


def test_stains_are_told_apart() -> None:
    h_and_e, dab = stain_of((0.20, 0.33, 0.15)), stain_of((0.2, 0.4, 0.6))
    within = [STAIN_RANGES[name][0] <= value <= STAIN_RANGES[name][1] for name, value in h_and_e.items()]
    assert all(within)
    assert dab["the plane of both"] > 25
