"""The synthetic slide is a function of position, and its files say the same as the scene."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import DataError, RegionError
from nucleipan.geometry import Box
from nucleipan.slide import at_mpp, open_slide, tissue_mask
from nucleipan.slide.openslide import OpenSlideSlide
from nucleipan.synthetic import SyntheticScene, write_slide, write_truth

SHAPE = (900, 1130)
WHOLE = Box.of_shape(SHAPE)
PLANES = ("rgb", "instances", "classes", "stuff")


@pytest.fixture(scope="module")
def scene() -> SyntheticScene:
    return SyntheticScene(SHAPE, seed=3)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 850), st.integers(0, 1080), st.integers(1, 400), st.integers(1, 400))
def test_any_box_is_a_part_of_the_whole(scene: SyntheticScene, y: int, x: int, h: int, w: int) -> None:
    box = Box(y, x, y + h, x + w).clipped(WHOLE)
    alone = SyntheticScene(SHAPE, seed=3)
    for plane in PLANES:
        np.testing.assert_array_equal(
            getattr(alone, plane)(box), getattr(scene, plane)(WHOLE)[box.slices(WHOLE)], err_msg=plane
        )


def test_planes_agree(scene: SyntheticScene) -> None:
    instances, classes, stuff = (getattr(scene, p)(WHOLE) for p in PLANES[1:])
    assert (instances.dtype, classes.dtype, stuff.dtype) == (np.uint32, np.uint8, np.uint8)
    assert np.isin(stuff, DEFAULT_CLASSES.stuff_ids).all()
    on = instances > 0
    assert np.isin(classes[on], DEFAULT_CLASSES.thing_ids).all()
    np.testing.assert_array_equal(classes[~on], stuff[~on])
    ids = np.unique(instances[on])
    assert len(ids) > 150
    assert ids.max() <= scene.max_id
    assert (ndimage.minimum(classes, instances, ids) == ndimage.maximum(classes, instances, ids)).all()
    assert len(np.unique(stuff)) >= 4
    assert 0.05 < on.mean() < 0.5


def test_it_looks_like_stained_tissue(scene: SyntheticScene) -> None:
    rgb, instances, stuff = scene.rgb(WHOLE).astype(int), scene.instances(WHOLE), scene.stuff(WHOLE)
    glass = DEFAULT_CLASSES.by_name("background").id
    assert rgb[(stuff == glass) & (instances == 0)].mean() > 235
    nuclei, around = rgb[instances > 0].mean(0), rgb[(instances == 0) & (stuff != glass)].mean(0)
    assert (nuclei < around - 30).all()
    assert nuclei[2] > nuclei[0]  # nuclei are blue, eosin is pink
    assert around[0] > around[1] + 15


def test_instances_are_connected(scene: SyntheticScene) -> None:
    instances = scene.instances(WHOLE)
    ids = np.unique(instances[instances > 0])
    ranks = np.where(instances > 0, np.searchsorted(ids, instances) + 1, 0)
    for i, where in enumerate(ndimage.find_objects(ranks), start=1):
        assert ndimage.label(ranks[where] == i, np.ones((3, 3)))[1] == 1


def test_seeds_differ_and_scenes_travel(scene: SyntheticScene) -> None:
    box = Box(100, 100, 300, 300)
    assert (SyntheticScene(SHAPE, seed=4).rgb(box) != scene.rgb(box)).mean() > 0.3
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scene)).rgb(box), scene.rgb(box))  # noqa: S301


def test_bad_arguments(scene: SyntheticScene, tmp_path: Path) -> None:
    with pytest.raises(RegionError):
        SyntheticScene((0, 5))
    with pytest.raises(RegionError):
        scene.rgb(Box(0, 0, 901, 5))
    with pytest.raises(DataError):
        write_slide(scene, tmp_path / "a.tif", tile=250)


@pytest.mark.parametrize("compression", ["jpeg", "deflate", "none"])
def test_written_slide(scene: SyntheticScene, tmp_path: Path, compression: str) -> None:
    path = tmp_path / "slide.tiff"
    write_slide(scene, path, compression=compression)
    assert list(tmp_path.iterdir()) == [path]
    with open_slide(path) as slide, OpenSlideSlide(path) as oracle:
        assert [level.downsample for level in slide.levels] == [1, 4, 16]
        assert slide.levels == oracle.levels
        assert slide.mpp == pytest.approx(0.5)
        assert oracle.mpp == pytest.approx(0.5)
        for level, described in enumerate(slide.levels):
            box = Box.of_shape(described.shape)
            np.testing.assert_array_equal(slide.read(level, box), oracle.read(level, box))
        found = slide.read(0, WHOLE).astype(int)
        difference = np.abs(found - scene.rgb(WHOLE))
        assert difference.mean() < 4 if compression == "jpeg" else difference.max() == 0
        # A coarse level is the mean of the fine one.
        coarse = slide.read(1, Box(0, 0, 225, 282)).astype(float)
        exact = scene.rgb(WHOLE)[:900, :1128].reshape(225, 4, 282, 4, 3).mean((1, 3))
        assert np.abs(coarse - exact).mean() < 3
        tissue = tissue_mask(at_mpp(slide, 0.5))
        assert 0.3 < tissue.fraction <= 1


def test_written_truth(scene: SyntheticScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_truth(scene, tmp_path, stem="a")
    instances, classes = scene.instances(WHOLE), scene.classes(WHOLE)
    labels = imagecodecs.imread(tmp_path / "labels" / "a.png")
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, instances)
    np.testing.assert_array_equal(imagecodecs.imread(tmp_path / "tissue" / "a.png"), scene.stuff(WHOLE))
    listed = {int(k): v for k, v in json.loads((tmp_path / "classes" / "a.json").read_text()).items()}
    assert set(listed) == set(np.unique(instances[instances > 0]).tolist())
    lut = np.zeros(scene.max_id + 1, np.uint8)
    lut[list(listed)] = list(listed.values())
    np.testing.assert_array_equal(lut[instances][instances > 0], classes[instances > 0])

    monkeypatch.setattr("nucleipan.synthetic.writing._MAX_PNG_PIXELS", 0)
    write_truth(scene, tmp_path / "large", stem="a")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "large" / "labels" / "a.tif"), instances)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "large" / "tissue" / "a.tif"), scene.stuff(WHOLE))
