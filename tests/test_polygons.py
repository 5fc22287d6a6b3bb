"""Outlines are valid and hold exactly the centres of their mask's pixels."""

from __future__ import annotations

import time

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from nucleipan.geometry import Box
from nucleipan.polygons import trace, trace_labels
from nucleipan.synthetic import SyntheticScene

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def rasterized(polygon: shapely.Polygon, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie in the polygon."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return shapely.contains_xy(polygon, x, y)


def largest(mask: np.ndarray) -> np.ndarray:
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


@settings(max_examples=300, deadline=None)
@given(MASKS.filter(np.any))
def test_an_outline_is_valid_and_holds_the_largest_piece(mask: np.ndarray) -> None:
    polygon = trace(mask)
    piece = largest(mask)
    assert shapely.is_valid(polygon)
    np.testing.assert_array_equal(rasterized(polygon, mask.shape), piece)
    n_holes = ndimage.label(np.pad(~piece, 1, constant_values=True))[1] - 1
    assert len(polygon.interiors) == n_holes
    assert abs(polygon.area - piece.sum()) <= 0.5 * abs(1 - n_holes)
    assert area_iou(polygon, piece) >= 0.95


def area_iou(polygon: shapely.Polygon, mask: np.ndarray) -> float:
    """Of a polygon and the squares of a mask's pixels."""
    squares = shapely.union_all([shapely.box(j, i, j + 1, i + 1) for i, j in np.argwhere(mask)])
    return float(polygon.intersection(squares).area / polygon.union(squares).area)


@settings(max_examples=100, deadline=None)
@given(arrays(np.int32, st.tuples(st.integers(2, 14), st.integers(2, 14)), elements=st.integers(0, 4)))
def test_neighbours_are_traced_one_by_one(labels: np.ndarray) -> None:
    present = np.unique(labels[labels > 0])
    lut = np.zeros(5, np.int32)
    lut[present] = np.arange(1, len(present) + 1)
    labels = lut[labels]
    boxes = np.array([[y.start, x.start, y.stop, x.stop] for y, x in ndimage.find_objects(labels)], np.int32)
    polygons = trace_labels(labels, boxes.reshape(-1, 4))
    assert shapely.is_valid(polygons).all()
    for k, polygon in enumerate(polygons):
        np.testing.assert_array_equal(rasterized(polygon, labels.shape), largest(labels == k + 1))


def test_known_shapes() -> None:
    pixel = trace(np.ones((1, 1), bool))
    assert pixel.area == 1 - 4 / 128
    assert pixel.bounds == (0, 0, 1, 1)
    assert len(pixel.exterior.coords) == 9
    ring = trace(np.pad(np.zeros((2, 3), bool), 2, constant_values=True))
    assert len(ring.interiors) == 1
    assert ring.bounds == (0, 0, 7, 6)
    corner = trace(np.eye(2, dtype=bool))
    assert shapely.is_valid(corner)
    assert corner.area == 2 - 4 / 128
    rectangle = trace(np.ones((3, 4), bool))
    assert len(rectangle.exterior.coords) == 9
    assert rectangle.area == 11.5
    y, x = np.mgrid[-20:21, -20:21]
    diagonal = trace(abs(y) + abs(x) < 20)
    assert len(diagonal.exterior.coords) == 5  # staircases become straight


def test_origin_and_scale() -> None:
    mask = np.ones((3, 4), bool)
    assert trace(mask, (10, 20), 4.0).bounds == (80, 40, 96, 52)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        trace(np.zeros((3, 3), bool))


def blobs(n: int, side: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(n, side, side)), (0, 3, 3))
    y, x = np.mgrid[:side, :side] - side / 2
    return (noise * 12 + 1.2 - np.hypot(y, x) / 9) > 0


def test_polygons_of_nuclei_differ_little_from_their_masks() -> None:
    """By area; by pixel centres they do not differ at all. Most are smooth all the same."""
    scene = SyntheticScene((256, 256), 3, spacing=0.7)
    planes = [scene.instances(Box(0, 0, 256, 256)), *(np.where(mask, 1, 0) for mask in blobs(80, 40))]
    ious, is_smooth = [], []
    for plane in planes:
        for label in np.unique(plane[plane > 0]):
            mask = largest(plane == label)
            polygon = trace(mask)
            ious.append(area_iou(polygon, mask))
            is_smooth.append(polygon.area == mask.sum() - 0.5 + 0.5 * len(polygon.interiors))
    assert len(ious) > 60
    assert min(ious) >= 0.95
    assert np.mean(is_smooth) > 0.7


def test_a_comb_is_within_the_promise_too() -> None:
    comb = np.zeros((21, 21), bool)
    comb[::2, ::2] = comb[1::2, 1::2] = True  # as many corners as can be
    polygon = trace(comb)
    assert shapely.is_valid(polygon)
    assert area_iou(polygon, comb) >= 0.95


def test_tracing_is_fast() -> None:
    masks = [largest(mask) for mask in blobs(400, 40) if mask.any()]
    plane = np.concatenate([np.where(mask, k, 0) for k, mask in enumerate(masks, 1)]).astype(np.int32)
    boxes = np.array([[40 * k, 0, 40 * k + 40, 40] for k in range(len(masks))], np.int32)
    shapely.to_wkb(trace_labels(plane, boxes))
    start = time.process_time()
    shapely.to_wkb(trace_labels(plane, boxes))
    assert (time.process_time() - start) / len(masks) < 0.3e-3
