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

from nucleipan.polygons import trace, trace_labels

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
    assert polygon.area == pytest.approx(piece.sum() - 0.5 + 0.5 * n_holes)


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
    diamond = trace(np.ones((1, 1), bool))
    assert diamond.area == 0.5
    assert diamond.bounds == (0, 0, 1, 1)
    ring = trace(np.pad(np.zeros((2, 3), bool), 2, constant_values=True))
    assert len(ring.interiors) == 1
    assert ring.bounds == (0, 0, 7, 6)
    corner = trace(np.eye(2, dtype=bool))
    assert shapely.is_valid(corner)
    assert corner.area == pytest.approx(1.5)
    rectangle = trace(np.ones((3, 4), bool))
    assert len(rectangle.exterior.coords) == 9


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


def test_area_is_kept() -> None:
    ious = []
    for mask in blobs(120, 40):
        piece = largest(mask)
        if piece.sum() > 50:
            polygon = trace(mask)
            squares = shapely.union_all([shapely.box(j, i, j + 1, i + 1) for i, j in np.argwhere(piece)])
            ious.append(polygon.intersection(squares).area / polygon.union(squares).area)
    assert len(ious) > 50
    assert min(ious) >= 0.95


def test_tracing_is_fast() -> None:
    masks = [largest(mask) for mask in blobs(400, 40) if mask.any()]
    plane = np.concatenate([np.where(mask, k, 0) for k, mask in enumerate(masks, 1)]).astype(np.int32)
    boxes = np.array([[40 * k, 0, 40 * k + 40, 40] for k in range(len(masks))], np.int32)
    shapely.to_wkb(trace_labels(plane, boxes))
    start = time.process_time()
    shapely.to_wkb(trace_labels(plane, boxes))
    assert (time.process_time() - start) / len(masks) < 0.3e-3
