"""Tissue regions are the connected pieces of the class plane under the nuclei, each as one valid polygon."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.errors import RegionError, StoreError
from nucleipan.exports.regions import GLASS_NAME, MIN_REGION_UM2, TissueRegion, tissue_regions
from nucleipan.exports.sweep import trace_regions
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

PLANES = arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 3))
EVERYWHERE = np.ones((3, 3))


@dataclass
class Piece:
    """A connected piece of a class; ``filled`` has its holes closed, ``holes`` are their sizes."""

    class_id: int
    mask: np.ndarray
    filled: np.ndarray
    holes: list[int]

    @property
    def area(self) -> float:
        return float(self.mask.sum()) - 0.5 + 0.5 * len(self.holes)


def pieces(plane: np.ndarray) -> list[Piece]:
    """Slow and obvious: one at a time, in raster order of their first pixels."""
    found = []
    for class_id in np.unique(plane[plane > 0]).tolist():
        labels, n = ndimage.label(plane == class_id)
        for k in range(1, n + 1):
            mask = labels == k
            outside, n_outside = ndimage.label(np.pad(~mask, 1, constant_values=True), EVERYWHERE)
            holes = [int((outside == i).sum()) for i in range(1, n_outside + 1) if i != outside[0, 0]]
            found.append(Piece(class_id, mask, (outside != outside[0, 0])[1:-1, 1:-1], holes))
    return sorted(found, key=lambda piece: int(np.flatnonzero(piece.mask)[0]))


def bands(plane: np.ndarray, height: int) -> Iterator[np.ndarray]:
    return (plane[y : y + height] for y in range(0, len(plane), height))


def pixels(polygon: shapely.Polygon, shape: tuple[int, int]) -> np.ndarray:
    """Those whose centres lie inside."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return shapely.contains_xy(polygon, x, y)


# -- Tracing ------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(PLANES, st.integers(1, 14))
def test_regions_are_the_connected_pieces(plane: np.ndarray, height: int) -> None:
    class_ids, polygons = trace_regions(bands(plane, height))
    expected = pieces(plane)
    assert class_ids.tolist() == [piece.class_id for piece in expected]
    assert shapely.is_valid(polygons).all()
    for piece, polygon in zip(expected, polygons, strict=True):
        assert polygon.area == piece.area
        assert len(polygon.interiors) == len(piece.holes)
        np.testing.assert_array_equal(pixels(polygon, plane.shape), piece.mask)
        assert polygon.exterior.is_ccw
        assert not any(ring.is_ccw for ring in polygon.interiors)
    assert shapely.area(polygons).sum() == pytest.approx(shapely.union_all(polygons).area), "they overlap nowhere"


@settings(max_examples=200, deadline=None)
@given(PLANES, st.sampled_from([0.5, 1, 1.5, 2.5, 4, 9, 500]))
def test_small_regions_are_left_out_and_small_holes_filled(plane: np.ndarray, min_area: float) -> None:
    class_ids, polygons = trace_regions([plane], min_area)
    expected = []
    for piece in pieces(plane):
        outer = piece.filled.sum() - 0.5
        kept = [n - 0.5 for n in piece.holes if n - 0.5 >= min_area]
        if outer - sum(kept) >= min_area:
            expected.append((piece.class_id, outer - sum(kept), len(kept)))
    found = [(c, p.area, len(p.interiors)) for c, p in zip(class_ids.tolist(), polygons, strict=True)]
    assert found == expected
    assert shapely.is_valid(polygons).all()
    assert shapely.area(polygons).sum() == pytest.approx(shapely.union_all(polygons).area), "they overlap nowhere"


@pytest.mark.parametrize("height", [1, 7, 64, 1000])
def test_a_region_across_bands_is_one_polygon(height: int) -> None:
    """A comb whose teeth meet in the last row only, with a frame around it."""
    plane = np.full((65, 41), 2, np.uint8)
    plane[1:-1, 1:-1] = 0
    plane[2:-2, 2:-2:2] = 1
    plane[-3, 2:-2] = 1
    class_ids, polygons = trace_regions(bands(plane, height))
    assert class_ids.tolist() == [2, 1]
    assert [len(p.interiors) for p in polygons] == [1, 0]
    assert [p.area for p in polygons] == [(plane == 2).sum(), (plane == 1).sum() - 0.5]
    whole = trace_regions([plane])[1]
    assert [p.wkb for p in polygons] == [p.wkb for p in whole]


def test_planes_without_regions() -> None:
    for planes in ([], [np.zeros((3, 4), np.uint8)], [np.ones((2, 2), np.uint8)] * 2):
        class_ids, polygons = trace_regions(planes, 100)
        assert (class_ids.dtype, len(class_ids), len(polygons)) == (np.uint8, 0, 0)


# -- Of a store ---------------------------------------------------------------------------------------------------


def store_of(folder: Path, shape: tuple[int, int], n_nuclei: int, mpp: float) -> PanopticStore:
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 256, 64, 1), 1.37)
    store = stitch_oracle(folder / "slide.ome.zarr", random_truth(shape, n_nuclei), context)[0]
    slide = {"name": "slide.svs", "height": round(shape[0] * 1.37), "width": round(shape[1] * 1.37)}
    return replace(store, spec=replace(store.spec, slide=slide, mpp=mpp))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    """Of one level, so that pixels are traced as they are: 1.5 um wide."""
    return store_of(tmp_path_factory.mktemp("regions"), (200, 240), 180, 1.5)


@pytest.fixture(scope="module")
def fine_store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    """Of two levels with an odd side; the second has pixels of 2 um."""
    return store_of(tmp_path_factory.mktemp("fine"), (151, 1101), 300, 1.0)


def tissue_plane(store: PanopticStore, level: int = 0) -> np.ndarray:
    """Tissue classes with nuclei filled in one by one; 0 on glass."""
    plane = store.class_map(level=level)
    ids = store.instances(level=level)
    for row in store.nuclei(["id", "tissue_id"]).to_pylist():
        plane[ids == row["id"]] = row["tissue_id"]
    plane[plane == store.classes.by_name(GLASS_NAME).id] = 0
    return plane


def in_pixels(regions: list[TissueRegion], store: PanopticStore) -> np.ndarray:
    """Their polygons in pixels of the store."""
    return shapely.transform([r.polygon for r in regions], lambda points: points / store.level0_per_pixel)


def test_regions_of_a_store(store: PanopticStore) -> None:
    regions = tissue_regions(store)
    plane = tissue_plane(store)
    min_px = MIN_REGION_UM2 / store.mpp**2
    large = [piece for piece in pieces(plane) if piece.mask.sum() > min_px + 1]
    assert len(large) > 10
    assert [r.class_id for r in regions] == [piece.class_id for piece in large]
    for region, piece, polygon in zip(regions, large, in_pixels(regions, store), strict=True):
        assert polygon.is_valid
        found = pixels(polygon, plane.shape)
        assert found[piece.mask].all()
        is_new = found & ~piece.mask
        assert is_new.sum() == sum(n for n in piece.holes if n - 0.5 < min_px)
        assert region.area_um2 == pytest.approx((found.sum() - 0.5 + 0.5 * len(polygon.interiors)) * store.mpp**2)
        assert region.polygon.exterior.is_ccw


def test_nuclei_leave_no_holes(store: PanopticStore) -> None:
    """Whatever its own class, a nucleus lies in a region of its tissue, unless that is too small a piece."""
    regions = tissue_regions(store)
    n_inside, n_expected = 0, 0
    for row in store.nuclei(["tissue", "tissue_id", "geometry"]).to_pylist():
        tissue = shapely.union_all([r.polygon for r in regions if r.class_id == row["tissue_id"]])
        nucleus = shapely.from_wkb(row["geometry"])
        n_expected += row["tissue"] != GLASS_NAME
        n_inside += tissue.intersection(nucleus).area > 0.95 * nucleus.area
    assert 0.95 * n_expected < n_inside <= n_expected


def test_coarser_levels_keep_to_the_outlines(fine_store: PanopticStore) -> None:
    assert fine_store.n_levels == 2
    regions = tissue_regions(fine_store)
    polygons = in_pixels(regions, fine_store)
    assert shapely.is_valid(polygons).all()
    coarse, fine = tissue_plane(fine_store, 1), tissue_plane(fine_store)
    y, x = np.mgrid[: coarse.shape[0], : coarse.shape[1]]
    n_kept = 0
    for region, polygon in zip(regions, polygons, strict=True):
        inside = shapely.contains_xy(polygon, 2 * x + 0.5, 2 * y + 0.5)
        n_kept += int((coarse[inside] == region.class_id).sum())
        assert (coarse[inside] == region.class_id).mean() > 0.9, "but for what is filled, its samples are of its class"
    assert n_kept > 0.95 * (coarse > 0).sum()
    for class_id in np.unique(fine[fine > 0]):
        area = sum(p.area for r, p in zip(regions, polygons, strict=True) if r.class_id == class_id)
        assert area == pytest.approx((fine == class_id).sum(), rel=0.05)
    assert shapely.total_bounds(polygons).tolist() == [0, 0, 1101, 151], "they end where the slide ends"


def test_a_part_is_cut_out(store: PanopticStore) -> None:
    scale = store.level0_per_pixel
    whole = tissue_regions(store)
    roi = Box(50, 61, 150, 251)
    box = roi.scaled(1 / scale)
    window = shapely.box(box.x0 * scale, box.y0 * scale, box.x1 * scale, box.y1 * scale)
    parts = tissue_regions(store, roi)
    assert 0 < len(parts) < len(whole)
    for part in parts:
        assert shapely.is_valid(part.polygon)
        assert window.buffer(1e-9).contains(part.polygon)
    for class_id in {r.class_id for r in parts}:
        found, expected = (
            shapely.union_all([r.polygon for r in regions if r.class_id == class_id]) for regions in (parts, whole)
        )
        # Beyond the corners, what the window cuts off may be too small to keep.
        assert found.symmetric_difference(expected.intersection(window)).area < 2 * MIN_REGION_UM2 * (scale / 1.5) ** 2
    assert tissue_regions(store, Box(0, 0, 1, 1)) == []
    with pytest.raises(RegionError, match="not inside the slide"):
        tissue_regions(store, Box(0, 0, 1000, 1000))


def test_a_nucleus_without_a_row_is_refused(store: PanopticStore, tmp_path: Path) -> None:
    copy = replace(store, path=Path(shutil.copytree(store.path, tmp_path / "slide.ome.zarr")))
    zarr.open_array(str(copy.path / "labels/nuclei/0"))[3, 4] = store.n_nuclei + 1
    with pytest.raises(StoreError, match=rf"nucleus {store.n_nuclei + 1}, its table has {store.n_nuclei};"):
        tissue_regions(copy)
