"""Outlines sit on their own nucleus, tints on their own tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import DataError
from nucleipan.geometry import Box
from nucleipan.overlay import legend, overlay_of_store, overlay_with_legend, render_overlay, save_picture
from nucleipan.slide import at_mpp, open_slide
from nucleipan.stitch import StitchContext
from nucleipan.tiles import TileGrid

IMAGE = np.full((8, 10, 3), 200, np.uint8)
RED, PURPLE = (c.color for c in DEFAULT_CLASSES.things[:2])


def literal_boundary(instances: np.ndarray, thickness: int) -> np.ndarray:
    """Pixel by pixel: another id within ``thickness`` along an axis."""
    found = np.zeros(instances.shape, bool)
    for (y, x), own in np.ndenumerate(instances):
        for step in range(1, thickness + 1):
            for ny, nx in ((y - step, x), (y + step, x), (y, x - step), (y, x + step)):
                inside = 0 <= ny < instances.shape[0] and 0 <= nx < instances.shape[1]
                found[y, x] |= bool(own) and inside and instances[ny, nx] != own
    return found


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint32, (8, 10), elements=st.integers(0, 2)), st.integers(1, 3))
def test_outlines_are_the_inner_boundary(instances: np.ndarray, thickness: int) -> None:
    by_id = np.array([0, 1, 2])
    found = render_overlay(IMAGE, instances, by_id, DEFAULT_CLASSES, thickness=thickness)
    boundary = literal_boundary(instances, thickness)
    expected = np.where(boundary[..., None], DEFAULT_CLASSES.colors[by_id[instances]], IMAGE)
    np.testing.assert_array_equal(found, expected)
    by_plane = render_overlay(IMAGE, instances, by_id[instances], DEFAULT_CLASSES, thickness=thickness)
    np.testing.assert_array_equal(found, by_plane)


def test_touching_nuclei_show_two_lines() -> None:
    instances = np.zeros((8, 10), np.int32)
    instances[1:7, 1:5], instances[1:7, 5:9] = 1, 2
    found = render_overlay(IMAGE, instances, np.array([0, 1, 2]), DEFAULT_CLASSES)
    assert tuple(found[3, 4]) == RED
    assert tuple(found[3, 5]) == PURPLE
    assert tuple(found[3, 3]) == tuple(IMAGE[3, 3])


def test_tissue_is_tinted_and_the_input_left_alone() -> None:
    stuff = np.zeros((8, 10), np.uint8)
    stuff[:, 5:], stuff[0] = 9, 1
    nothing, before = np.zeros((8, 10), np.int32), IMAGE.copy()
    found = render_overlay(IMAGE, nothing, np.array([0]), DEFAULT_CLASSES, stuff=stuff, stuff_alpha=0.5)
    expected = np.round(0.5 * IMAGE[4, 7] + 0.5 * np.array(DEFAULT_CLASSES.by_id(9).color))
    np.testing.assert_array_equal(found[4, 7], expected)
    np.testing.assert_array_equal(found[:, :5], IMAGE[:, :5])
    np.testing.assert_array_equal(found[0], IMAGE[0])
    np.testing.assert_array_equal(IMAGE, before)


def test_misfits_are_refused() -> None:
    ids = np.ones((8, 10), np.int32)
    good = {"image": IMAGE, "instances": ids, "nucleus_classes": np.array([0, 1]), "classes": DEFAULT_CLASSES}
    for bad in (
        {"image": IMAGE[:4]},
        {"image": IMAGE.astype(float)},
        {"instances": ids.astype(float)},
        {"nucleus_classes": np.array([0])},
        {"nucleus_classes": np.ones((3, 3), int)},
        {"stuff": np.zeros((2, 2), np.uint8)},
        {"thickness": 0},
        {"stuff_alpha": 2.0},
    ):
        with pytest.raises(DataError):
            render_overlay(**(good | bad))  # type: ignore[arg-type]


def test_legend_shows_the_classes_asked_for() -> None:
    strip = legend(DEFAULT_CLASSES, [1, 9], width=300)
    pixels = {tuple(p) for p in strip.reshape(-1, 3).tolist()}
    assert {RED, DEFAULT_CLASSES.by_id(9).color} <= pixels
    assert PURPLE not in pixels
    assert (strip.shape[1], strip.dtype) == (300, np.uint8)
    assert len(legend(DEFAULT_CLASSES, width=300)) > len(strip)


def test_picture_with_legend_can_be_saved(tmp_path: Path) -> None:
    image = np.full((40, 200, 3), 220, np.uint8)
    instances = np.zeros((40, 200), np.uint16)
    instances[5:20, 5:20] = 1
    stuff = np.full((40, 200), 9, np.uint8)
    picture = overlay_with_legend(image, instances, np.array([0, 2]), DEFAULT_CLASSES, stuff=stuff)
    assert picture.shape[0] > 40
    pixels = {tuple(p) for p in picture[40:].reshape(-1, 3).tolist()}
    assert PURPLE in pixels
    assert RED not in pixels
    save_picture(picture, tmp_path / "overlay.png")
    assert (tmp_path / "overlay.png").stat().st_size > 100


def test_store_on_its_slide(tmp_path: Path) -> None:
    truth, box = random_truth((150, 190), 60), Box(20, 30, 120, 170)
    context = StitchContext(TileGrid((150, 190), Box(0, 0, 150, 190), 80, 64, 1), level0_per_pixel=1.0)
    store, _ = stitch_oracle(tmp_path / "slide.ome.zarr", truth, context)
    pixels = np.random.default_rng(0).integers(0, 255, (150, 190, 3), np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, photometric="rgb", resolution=(20000, 20000), resolutionunit=3)
    with open_slide(tmp_path / "slide.tif") as slide:
        found = overlay_of_store(store, at_mpp(slide, 0.5), box)
        with pytest.raises(DataError, match="not the view's"):
            overlay_of_store(store, at_mpp(slide, 1.0))
    window = box.slices(Box(0, 0, 150, 190))
    ids, plane = store.instances(box), store.class_map(box)
    expected = render_overlay(pixels[window], ids, plane, DEFAULT_CLASSES, stuff=plane)
    np.testing.assert_array_equal(found[:100], expected)
