"""What a neighbour covers of a nucleus is completed near the truth; nuclei that merely touch are left as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from scipy import ndimage
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.geometry import Box
from nucleipan.measure import complete_covered
from nucleipan.stitch import StitchContext
from nucleipan.synthetic import SyntheticScene
from nucleipan.tiles import TileGrid

SHAPE = (1024, 1024)
WHOLE = Box.of_shape(SHAPE)


def completed(labels: np.ndarray) -> dict[int, np.ndarray]:
    """bool like ``labels`` (1..n), by label."""
    boxes = np.array([(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)], np.int32)
    found = complete_covered(labels.astype(np.int32), np.arange(1, len(boxes) + 1, dtype=np.int32), boxes)
    masks = {}
    for k, index in enumerate(found.index.tolist()):
        (y0, x0, y1, x1), (dy, dx) = found.bboxes[k], found.corners[k]
        masks[index + 1] = np.zeros(labels.shape, bool)
        masks[index + 1][y0 + dy : y1 + dy, x0 + dx : x1 + dx] = found.labels[y0:y1, x0:x1] == k + 1
    return masks


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def disc(y: float, x: float, radius: float, shape: tuple[int, int] = (60, 60)) -> np.ndarray:
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (cols - x) ** 2 <= radius**2


def test_completed_shapes_are_closer_to_the_truth() -> None:
    scene, rows = SyntheticScene(SHAPE, 1, spacing=0.5), []
    labels = np.unique(scene.instances(WHOLE), return_inverse=True)[1].reshape(SHAPE)
    found = completed(labels)
    for label, nucleus in enumerate(scene.whole_nuclei(WHOLE), 1):
        if label in found:
            truth = np.zeros(SHAPE, bool)
            truth[nucleus.box.slices(WHOLE)] = nucleus.mask
            assert not ((labels == label) & ~found[label]).any()
            rows.append((iou(labels == label, truth), iou(found[label], truth)))
    visible, whole = np.array(rows).T
    assert len(rows) > 40
    assert visible.mean() < 0.85
    assert whole.mean() > 0.92
    assert (whole < visible).mean() < 0.1


def test_nuclei_that_merely_touch_are_rarely_completed() -> None:
    """Nuclei pressed flat: a pixel that several could have belongs to the one in which it lies deepest."""
    scene, depth, labels = SyntheticScene(SHAPE, 2), np.zeros(SHAPE), np.zeros(SHAPE, np.int32)
    nuclei = list(scene.whole_nuclei(WHOLE))
    for label, nucleus in enumerate(nuclei, 1):
        own, inside = ndimage.distance_transform_edt(np.pad(nucleus.mask, 1))[1:-1, 1:-1], nucleus.box.slices(WHOLE)
        own /= own.max()
        is_deeper = own > depth[inside]
        depth[inside][is_deeper], labels[inside][is_deeper] = own[is_deeper], label
    above, below, left, right = labels[:-1], labels[1:], labels[:, :-1], labels[:, 1:]
    touching = np.unique([
        *above[(above > 0) & (below > 0) & (above != below)], *left[(left > 0) & (right > 0) & (left != right)],
    ])  # fmt: skip
    assert len(touching) > 50
    assert len(completed(labels)) <= 0.02 * len(touching)


def test_a_disc_under_a_disc_becomes_round_again() -> None:
    under, over = disc(30, 22, 12), disc(30, 38, 12)
    found = completed(np.where(over, 2, under))
    assert list(found) == [1]
    assert iou(under & ~over, under) < 0.86
    assert iou(found[1], under) > 0.97


def test_only_what_a_neighbour_covers_is_filled() -> None:
    bitten = disc(30, 22, 12) & ~disc(30, 38, 12)
    assert completed(bitten.astype(np.int32)) == {}  # nobody lies there
    apart = np.where(disc(30, 38, 10), 2, bitten)  # a gap between them
    apart[:, 25:28] = np.where(apart[:, 25:28] == 2, 0, apart[:, 25:28])
    bystander = np.where(disc(9, 22, 9) & ~disc(30, 22, 12), 3, np.where(disc(30, 38, 12), 2, bitten))
    found = completed(bystander)
    assert set(found) == {1}
    assert not (found[1] & (bystander == 3)).any()
    for label, mask in completed(apart).items():
        assert not (mask & (apart == 0)).any(), label


def test_what_is_mostly_hidden_is_not_guessed() -> None:
    under, over = disc(30, 22, 12), disc(30, 29, 12)
    labels = np.where(over, 2, under)
    assert 0.3 < iou(labels == 1, under) < 0.45
    assert completed(labels) == {}


def test_the_plane_around_does_not_matter() -> None:
    labels = np.where(disc(30, 38, 12), 2, disc(30, 22, 12))
    expected = completed(labels)[1]
    for top, left in ((0, 0), (3, 7), (300, 41)):
        moved = completed(np.pad(labels, ((top, 5), (left, 9))))[1]
        np.testing.assert_array_equal(moved[top : top + 60, left : left + 60], expected)


def test_a_nucleus_at_the_slides_border() -> None:
    under = disc(8, 12, 12, (30, 40))
    labels = np.where(disc(8, 27, 12, (30, 40)), 2, under)
    assert iou(labels == 1, under) < 0.85
    assert iou(completed(labels)[1], under) > 0.93


def test_no_nuclei() -> None:
    found = complete_covered(np.zeros((5, 5), np.int32), np.empty(0, np.int32), np.empty((0, 4), np.int32))
    assert len(found.index) == 0


def test_stores_keep_them_beside_the_visible_ones(tmp_path: Path) -> None:
    shape = (300, 320)
    truth = random_truth(shape, 260, radii=(5, 11))
    tables = []
    for core in (64, 150, 320):
        context = StitchContext(TileGrid(shape, Box.of_shape(shape), core, 96, 1), 2.0)
        store, _ = stitch_oracle(tmp_path / str(core) / "a.ome.zarr", truth, context)
        tables.append(store.nuclei(["id", "bbox", "is_completed", "completed_geometry", "geometry"]))
    assert all(table.equals(tables[0]) for table in tables), "tiling shows"

    rows = tables[0].to_pylist()
    assert 5 < sum(row["is_completed"] for row in rows) < len(rows) / 2
    ids = store.instances()
    for row in rows:
        assert row["is_completed"] == (row["completed_geometry"] is not None)
        if not row["is_completed"]:
            continue
        visible, whole = shapely.from_wkb([row["geometry"], row["completed_geometry"]])
        assert whole.is_valid
        assert visible.difference(whole).area < 0.04 * visible.area  # corners may be cut differently
        assert whole.area > 1.03 * visible.area
        y, x = np.nonzero(shapely.contains_xy(whole, *np.meshgrid(np.arange(320) * 2 + 1, np.arange(300) * 2 + 1)))
        assert (ids[y, x] > 0).all(), "what is added is a neighbour's"


def test_geoparquet_declares_both_columns(tmp_path: Path) -> None:
    context = StitchContext(TileGrid((120, 120), Box(0, 0, 120, 120), 120, 32, 1))
    store, _ = stitch_oracle(tmp_path / "a.ome.zarr", random_truth((120, 120), 60, radii=(5, 11)), context)
    columns = json.loads(pq.read_schema(store.path / "nuclei.parquet").metadata[b"geo"])["columns"]
    assert set(columns) == {"geometry", "completed_geometry"}
    assert columns["completed_geometry"] == {
        "encoding": "WKB", "geometry_types": ["Polygon"], "crs": None, "edges": "planar",
    }  # fmt: skip
    frame = pytest.importorskip("geopandas").read_parquet(store.path / "nuclei.parquet")
    assert frame.geometry.name == "geometry"
    assert frame.crs is None
    assert frame["completed_geometry"].notna().tolist() == frame["is_completed"].tolist()
    assert frame["is_completed"].any()
    completed_ones = frame.set_geometry("completed_geometry")[frame["is_completed"]]
    assert (completed_ones.area > frame[frame["is_completed"]].area).all()
