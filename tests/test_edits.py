"""Edits lie on top of a store that never changes: undone, they leave it as it was; reopened, they are the same."""

from __future__ import annotations

import getpass
import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
import shapely
import yaozarrs
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05 import Image, Labels
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.edits import (
    Edit,
    EditError,
    EditLog,
    change_class,
    delete_nuclei,
    merge_nuclei,
    nuclei_on_line,
    nucleus_in_polygon,
    redraw_nucleus,
    split_nuclei,
)
from nucleipan.errors import NucleipanError, RegionError, StoreError
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import CHECKSUMS, PanopticStore
from nucleipan.tiles import TileGrid

SHAPE = (1100, 240)  # tall enough for a second level
SCALE = 1.5
LINE = np.array([[-5.0, -5], [5, 5]])  # about a centre
MEASURED = {
    "area_um2",
    "centroid_x",
    "centroid_y",
    "bbox",
    "geometry",
    "tissue_id",
    "tissue",
    "class",
    "class_id",
    "id",
    "is_completed",
}
MEASURED |= {"perimeter_um", "axis_major_length_um", "axis_minor_length_um", "eccentricity", "orientation", "solidity"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    context = StitchContext(TileGrid(SHAPE, Box.of_shape(SHAPE), 600, 50, 1), SCALE)
    truth = random_truth(SHAPE, 500, radii=(5, 12))
    return stitch_oracle(tmp_path_factory.mktemp("edits") / "slide.ome.zarr", truth, context, shard=512)[0]


@pytest.fixture
def store(template: PanopticStore, tmp_path: Path) -> PanopticStore:
    return copied(template, tmp_path)


@pytest.fixture
def log(store: PanopticStore) -> EditLog:
    return EditLog.open(store)


def copied(store: PanopticStore, folder: Path) -> PanopticStore:
    return PanopticStore.open(shutil.copytree(store.path, folder / store.path.name))


@contextmanager
def fresh(template: PanopticStore) -> Iterator[EditLog]:
    with TemporaryDirectory() as folder:
        yield EditLog.open(copied(template, Path(folder)))


def digest(store: PanopticStore) -> str:
    """Of every byte but those of the edits."""
    total = hashlib.sha256()
    for path in sorted(p for p in store.path.rglob("*") if p.is_file() and "edits" not in p.parts):
        total.update(str(path.relative_to(store.path)).encode() + path.read_bytes())
    return total.hexdigest()


def middle(log: EditLog, nucleus: int) -> np.ndarray:
    """(y, x) of a pixel in the middle of a nucleus, in continuous coordinates."""
    box = log.box_of(nucleus)
    y, x = np.nonzero(log.instances(box) == nucleus)
    at = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
    return np.array([y[at] + box.y0 + 0.5, x[at] + box.x0 + 0.5])


def across(log: EditLog, nucleus: int) -> np.ndarray:
    """A line through a nucleus from side to side, across its longer axis."""
    box, centre = log.box_of(nucleus), middle(log, nucleus)
    half = np.array([box.height, 0]) if box.width > box.height else np.array([0, box.width])
    return np.stack([centre - half, centre + half])


def neighbours(log: EditLog) -> tuple[int, int]:
    """Two nuclei that touch."""
    ids = log.instances()
    for shifted, other in ((ids[:, 1:], ids[:, :-1]), (ids[1:], ids[:-1])):
        for a, b in np.unique(np.stack([shifted, other], -1).reshape(-1, 2), axis=0).tolist():
            if a and b and a != b:
                return a, b
    raise AssertionError("no two nuclei touch")


def rows(log: EditLog | PanopticStore, columns: list[str] | None = None) -> dict[int, dict]:
    return {row["id"]: row for row in log.nuclei(columns).to_pylist()}


def some_edit(log: EditLog, kind: str, a: int, b: int, turn: float) -> Edit:
    """An edit of a kind, about nucleus ``a``."""
    match kind:
        case "merge":
            return merge_nuclei(log, [a, b])
        case "split":
            step = np.array([np.sin(turn), np.cos(turn)]) * 40
            return split_nuclei(log, np.stack([middle(log, a) - step, middle(log, a) + step]))
        case "delete":
            return delete_nuclei(log, {a, b})
        case "redraw":
            angles = np.linspace(0, 2 * np.pi, 9)[:-1] + turn
            ring = middle(log, a) + 11 * np.stack([np.sin(angles), np.cos(angles)], 1)
            return redraw_nucleus(log, ring, a if turn < 2 else None, 1 + b % 5)
        case _:
            return change_class(log, [a, b], 1 + (a + b) % 5)


KINDS = st.sampled_from(["merge", "split", "delete", "redraw", "class"])
PLANS = st.lists(st.tuples(KINDS, st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 3.14)), max_size=6)


def carry_out(log: EditLog, plan: list[tuple[str, int, int, float]]) -> None:
    """What of a plan can be done; nuclei are chosen among those that are near each other and there."""
    for kind, i, j, turn in plan:
        there = np.unique(log.instances(Box(0, 0, 150, 240)))
        there = there[there > 0].tolist()
        touching = neighbours(log) if kind == "merge" and i % 2 else (there[i % len(there)], there[j % len(there)])
        try:
            edit = some_edit(log, kind, *touching, turn)
        except EditError:
            continue
        log.append(edit, "A")


# Reading


@given(PLANS)
@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
def test_edits_hold_whatever_they_are(template: PanopticStore, plan: list[tuple[str, int, int, float]]) -> None:
    with fresh(template) as log:
        bytes_before = digest(log.store)
        ids, classes = [log.instances()], [log.class_map()]
        carry_out(log, plan)
        check_planes(log)
        check_table(log)
        check_reopened(log)
        while log.edits:  # undo is the way back, one by one
            ids.append(log.instances())
            log.undo()
        np.testing.assert_array_equal(log.instances(), ids[0])
        np.testing.assert_array_equal(log.class_map(), classes[0])
        assert rows(log) == rows(log.store)
        assert log.removed == frozenset()
        assert digest(log.store) == bytes_before


def check_planes(log: EditLog) -> None:
    """What changed lies in patches; levels and parts agree; classes follow ids."""
    store, ids, classes = log.store, log.instances(), log.class_map()
    original, old_classes = store.instances(), store.class_map()
    touched = np.zeros(SHAPE, bool)
    for saved in log.edits:
        touched[saved.edit.box.slices(Box.of_shape(SHAPE))] = True
    np.testing.assert_array_equal(ids[~touched], original[~touched])
    np.testing.assert_array_equal(classes[~touched], old_classes[~touched])
    for level in range(store.n_levels):
        step = 2**level
        np.testing.assert_array_equal(log.instances(level=level), ids[::step, ::step])
        np.testing.assert_array_equal(log.class_map(level=level), classes[::step, ::step])
        for box in (Box(3, 5, 91, 113), Box(40, 60, 41, 61), Box(0, 7, 120, 8)):
            part = Box(box.y0 // step, box.x0 // step, box.y1 // step + 1, box.x1 // step + 1)
            slices = part.slices(Box.of_shape(log.instances(level=level).shape))
            np.testing.assert_array_equal(log.instances(part, level), ids[::step, ::step][slices])
            np.testing.assert_array_equal(log.class_map(part, level), classes[::step, ::step][slices])
    present = np.unique(ids[ids > 0]).tolist()
    assert all(log.has(i) for i in present)
    assert not set(present) & log.removed
    class_of = np.zeros(log.next_id, np.uint8)
    class_of[present] = [log.class_of(i) for i in present]
    np.testing.assert_array_equal(classes[ids > 0], class_of[ids[ids > 0]])
    is_bare = (ids == 0) & (original > 0)
    tissue = np.array([0, *store.nuclei(["tissue_id"])["tissue_id"].to_pylist()])
    np.testing.assert_array_equal(classes[is_bare], tissue[original[is_bare]])
    is_free = (ids == 0) & (original == 0)
    np.testing.assert_array_equal(classes[is_free], old_classes[is_free])


def check_table(log: EditLog) -> None:
    """One row for each nucleus of the raster, measured from its pixels; others as they were."""
    store, ids = log.store, log.instances()
    table, old = rows(log), rows(store)
    assert log.nuclei().schema == store.nuclei_schema()
    assert list(table) == np.unique(ids[ids > 0]).tolist()
    for nucleus, row in table.items():
        if nucleus in old and nucleus not in log.changed:
            assert row == old[nucleus]
            continue
        y, x = np.nonzero(ids == nucleus)
        assert row["class_id"] == log.class_of(nucleus)
        assert row["class"] == store.classes.by_id(row["class_id"]).name
        assert row["area_um2"] == pytest.approx(len(y) * store.mpp**2)
        assert row["centroid_y"] == pytest.approx((y.mean() + 0.5) * SCALE)
        assert row["centroid_x"] == pytest.approx((x.mean() + 0.5) * SCALE)
        box = {"xmin": x.min(), "ymin": y.min(), "xmax": x.max() + 1, "ymax": y.max() + 1}
        assert row["bbox"] == {side: value * SCALE for side, value in box.items()}
        assert log.box_of(nucleus) == Box(box["ymin"], box["xmin"], box["ymax"], box["xmax"])
        outline = shapely.from_wkb(row["geometry"])
        assert outline.is_valid
        assert shapely.box(*(row["bbox"].values())).contains(outline)
    for box in (Box(0, 0, 60, 60), Box(30, 100, 120, 200)):
        sides = np.array([box.x0, box.y0, box.x1, box.y1]) * SCALE
        near = [i for i, r in table.items() if meets(list(r["bbox"].values()), sides)]
        found = log.nuclei(["area_um2", "class"], box)
        assert found.column_names == ["area_um2", "class"]
        assert found.to_pylist() == [{"area_um2": table[i]["area_um2"], "class": table[i]["class"]} for i in near]


def meets(bbox: list[float], sides: np.ndarray) -> bool:
    return bool(bbox[0] < sides[2] and bbox[1] < sides[3] and bbox[2] > sides[0] and bbox[3] > sides[1])


def check_reopened(log: EditLog) -> None:
    again = EditLog.open(PanopticStore.open(log.store.path))
    np.testing.assert_array_equal(again.instances(), log.instances())
    np.testing.assert_array_equal(again.class_map(), log.class_map())
    assert rows(again) == rows(log)
    assert again.removed == log.removed
    assert again.next_id == log.next_id
    for mine, theirs in zip(log.edits, again.edits, strict=True):
        assert (mine.number, mine.author, mine.time) == (theirs.number, theirs.author, theirs.time)
        assert (mine.edit.kind, mine.edit.ids, mine.edit.classes) == (
            theirs.edit.kind, theirs.edit.ids, theirs.edit.classes,
        )  # fmt: skip


def test_without_edits_a_log_is_its_store(log: EditLog) -> None:
    store = log.store
    np.testing.assert_array_equal(log.instances(), store.instances())
    np.testing.assert_array_equal(log.class_map(), store.class_map())
    assert log.nuclei().equals(store.nuclei())
    assert log.next_id == store.n_nuclei + 1
    assert not log.folder.exists()


def test_what_was_measured_again_is_what_the_store_would_say(log: EditLog) -> None:
    """A nucleus redrawn with all its own pixels keeps every number that pixels tell."""
    old = rows(log.store)
    compact = [i for i, row in old.items() if row["solidity"] > 0.9 and row["area_um2"] > 20][:25]
    for nucleus in compact:
        outline = shapely.from_wkb(old[nucleus]["geometry"])
        ring = shapely.get_coordinates(outline.exterior)[:, ::-1] / SCALE
        edit = redraw_nucleus(log, ring, nucleus)
        np.testing.assert_array_equal(edit.before, edit.after)
        log.append(edit)
    new = rows(log)
    for nucleus in compact:
        assert new[nucleus]["is_completed"] is False
        assert new[nucleus]["completed_geometry"] is None
        for column in MEASURED - {"is_completed"}:
            assert new[nucleus][column] == pytest.approx(old[nucleus][column]) if column != "geometry" else True
        assert shapely.from_wkb(new[nucleus]["geometry"]).equals(shapely.from_wkb(old[nucleus]["geometry"]))
        assert all(new[nucleus][c] is None for c in old[nucleus] if c not in MEASURED)
    assert [row["id"] for row in log.nuclei(["id"]).to_pylist()] == sorted(new)
    assert log.changed == tuple(compact)


def test_a_class_is_all_that_changes_with_the_class(log: EditLog) -> None:
    old = rows(log)
    wanted = 1 + old[7]["class_id"] % 5
    log.append(change_class(log, [7], wanted))
    new = rows(log)
    assert new[7] == old[7] | {"class_id": wanted, "class": log.store.classes.by_id(wanted).name}
    assert new | {7: None} == old | {7: None}
    np.testing.assert_array_equal(log.instances(), log.store.instances())
    is_own = log.instances() == 7
    assert (log.class_map()[is_own] == wanted).all()


def test_boxes_and_levels_are_those_of_the_store(log: EditLog) -> None:
    log.append(delete_nuclei(log, [1]))
    for wrong, level in ((Box(0, 0, SHAPE[0] + 1, 5), 0), (None, 9)):
        for read in (log.instances, log.class_map):
            with pytest.raises(RegionError):
                read(wrong, level)
    with pytest.raises(StoreError, match="no column 'size'"):
        log.nuclei(["size"])


# Ids


def test_ids_are_never_given_twice(log: EditLog) -> None:
    a, b = neighbours(log)
    given_ids = []
    for k in range(3):
        made = log.append(merge_nuclei(log, [a, b])).edit.made
        given_ids += list(made)
        if k < 2:
            log.undo()
            log = EditLog.open(log.store)
    assert given_ids == [log.store.n_nuclei + k for k in (1, 2, 3)]
    assert [s.number for s in log.undone] == [1, 2]
    assert log.edits[0].number == 3
    assert sorted(p.name for p in log.folder.glob("*.tif")) == ["000001.undone.tif", "000002.undone.tif", "000003.tif"]


def test_edits_build_on_edits(log: EditLog) -> None:
    a, b = neighbours(log)
    whole = log.instances() == a
    whole |= log.instances() == b
    merged = min(log.append(merge_nuclei(log, [a, b], 3)).edit.made)
    assert log.class_of(merged) == 3
    parts = log.append(split_nuclei(log, across(log, merged))).edit
    halves = [i for i in parts.made if log.class_of(i) == 3 and (log.instances() == i).any()]
    assert merged in parts.ids
    assert len(halves) >= 2
    np.testing.assert_array_equal(np.isin(log.instances(), halves) & whole, whole)
    assert {a, b, merged} <= log.removed
    log.append(delete_nuclei(log, halves[:1]))
    for gone in (a, merged, halves[0], 10**6, 0, -1):
        assert not log.has(gone)
        with pytest.raises(EditError, match=f"no nucleus {gone}"):
            log.class_of(gone)
        with pytest.raises(EditError, match=f"no nucleus {gone}"):
            delete_nuclei(log, [gone])
    check_reopened(log)


def test_an_edit_that_comes_too_late_is_refused(log: EditLog) -> None:
    a, b = neighbours(log)
    stale = [merge_nuclei(log, [a, b]), delete_nuclei(log, [a]), change_class(log, [b], 1 + log.class_of(b) % 5)]
    ring = np.array([[0.0, 0], [30, 0], [30, 30], [0, 30]])
    drawn = redraw_nucleus(log, ring, None, 1)
    log.append(delete_nuclei(log, [a, b]))
    log.append(redraw_nucleus(log, ring, None, 2))
    for edit in (*stale, drawn):
        with pytest.raises(EditError, match="does not fit"):
            log.append(edit)
    assert len(log.edits) == 2


def test_pixels_that_moved_meanwhile_are_noticed(log: EditLog) -> None:
    a, _ = neighbours(log)
    late = delete_nuclei(log, [a])
    log.append(redraw_nucleus(log, middle(log, a) + 8 * np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]), a))
    with pytest.raises(EditError, match="no longer as they were"):
        log.append(late)


# What users choose and draw


def test_the_largest_gives_a_merged_nucleus_its_class(log: EditLog) -> None:
    a, b = neighbours(log)
    largest = max((a, b), key=lambda i: (log.instances() == i).sum())
    other = 1 + log.class_of(largest) % 5
    log.append(change_class(log, [a + b - largest], other)) if log.class_of(a + b - largest) != other else None
    (class_id,) = merge_nuclei(log, [a, b]).classes.values()
    assert class_id == log.class_of(largest)


def test_a_line_finds_nuclei_in_its_order(log: EditLog) -> None:
    found = nuclei_on_line(log, np.array([[60.0, 0], [60, 240]]))
    row = log.instances(Box(60, 0, 61, 240))[0]
    assert list(found) == list(dict.fromkeys(row[row > 0].tolist()))
    assert nuclei_on_line(log, np.array([[60.0, 240], [60, 0]])) == tuple(reversed(found))


def test_a_polygon_means_the_nucleus_it_is_drawn_on(log: EditLog) -> None:
    nucleus = max(range(1, 60), key=lambda i: log.box_of(i).area)
    centre = middle(log, nucleus)
    square = np.array([[-1.0, -1], [-1, 1], [1, 1], [1, -1]])
    assert nucleus_in_polygon(log, centre + 3 * square) == nucleus  # inside it
    box = log.box_of(nucleus)
    hull = np.array([[box.y0, box.x0], [box.y0, box.x1], [box.y1, box.x1], [box.y1, box.x0]], float)
    assert nucleus_in_polygon(log, hull) == nucleus  # around it
    log.append(delete_nuclei(log, [nucleus]))
    assert nucleus_in_polygon(log, centre + 3 * square) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda log: delete_nuclei(log, []), "no nucleus is chosen"),
        (lambda log: merge_nuclei(log, [3]), "two nuclei or more"),
        (lambda log: merge_nuclei(log, [1, log.store.n_nuclei]), "too far apart"),
        (lambda log: change_class(log, [3], 9), "no kind of nucleus"),
        (lambda log: change_class(log, [3], log.class_of(3)), "already"),
        (lambda log: redraw_nucleus(log, np.array([[0, 0], [0, 9], [9, 9]]), None), "needs a class"),
        (lambda log: redraw_nucleus(log, np.array([[0, 0], [0, 9], [9, 9]]), None, 99), "no kind of nucleus"),
        (lambda log: split_nuclei(log, np.array([[-50, -50], [-9, -9]])), "outside the slide"),
        (lambda log: split_nuclei(log, np.array([[5, 5]])), "two points"),
        (lambda log: redraw_nucleus(log, np.full((3, 2), np.inf), None, 1), "draw it again"),
    ],
)
def test_what_cannot_be_done_is_refused(log: EditLog, make: Callable[[EditLog], Edit], message: str) -> None:
    with pytest.raises(EditError, match=message):
        make(log)
    assert issubclass(EditError, NucleipanError)


def test_an_edit_that_contradicts_itself_cannot_be() -> None:
    before = np.zeros((4, 4), np.uint32)
    before[:2] = 1
    for kind, ids, classes, after, message in (
        ("delete", (1,), {}, before, "pixels afterwards"),  # still there
        ("delete", (2,), {}, before, "pixels before"),  # was not there
        ("class", (1,), {1: 2}, before * 0, "other nuclei"),  # pixels change
        ("merge", (1,), {5: 2}, before * 5, "a merge of"),  # of one
        ("redraw", (), {5: 2}, before * 5, "other nuclei"),  # takes what is 1's
        ("paint", (1,), {1: 2}, before, "kind 'paint'"),
        ("delete", (1,), {}, np.zeros((4, 4), np.int64), "with uint32"),
        ("delete", (1,), {}, np.zeros((4, 5), np.uint32), "with uint32"),
    ):
        with pytest.raises(ValueError, match=message):
            Edit(kind, ids, classes, Box(0, 0, 4, 4), before, after)  # type: ignore[arg-type]
    Edit("delete", (1,), {}, Box(0, 0, 4, 4), before, before * 0)


# Who and when


def test_an_edit_tells_who_and_when(log: EditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "pathologist")
    first = log.append(delete_nuclei(log, [1]))
    second = log.append(delete_nuclei(log, [2]), "  Dr. Ö. Ünal ")
    assert (first.author, second.author) == ("pathologist", "Dr. Ö. Ünal")
    assert timedelta(0) <= datetime.now(UTC) - first.time < timedelta(minutes=1)
    assert [s.author for s in EditLog.open(log.store).edits] == ["pathologist", "Dr. Ö. Ünal"]
    for wrong in ("a" * 201, "a\nb"):
        with pytest.raises(EditError, match="author"):
            log.append(delete_nuclei(log, [3]), wrong)

    def nobody() -> str:
        raise KeyError("uid")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert log.append(delete_nuclei(log, [3]), "").author == "unknown"


def test_nothing_to_undo_is_said(log: EditLog) -> None:
    with pytest.raises(EditError, match="no edit to undo"):
        log.undo()


# The store


def test_a_store_with_edits_is_a_valid_store(log: EditLog) -> None:
    log.append(delete_nuclei(log, [1]))
    log.mark_checked(Box(0, 0, 100, 100))
    path = log.store.path
    Image.from_zarr(zarr.open_group(str(path), mode="r"))
    Labels.from_zarr(zarr.open_group(str(path / "labels"), mode="r"))
    for part in ("", "labels/nuclei", "labels/classes"):
        yaozarrs.validate_zarr_store(str(path / part))
    again = PanopticStore.open(path)
    np.testing.assert_array_equal(again.instances(), log.store.instances())
    assert again.nuclei().equals(log.store.nuclei())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = {name for name, _ in zarr.open_group(str(path), mode="r").members()}
    assert {n for n in names if not n.isdigit()} == {"labels"}
    assert {str(w.message).split()[2] for w in caught} <= {"nuclei.parquet", "edits", CHECKSUMS}


def test_a_table_without_later_columns_is_served(store: PanopticStore) -> None:
    """Stores of earlier versions have fewer columns."""
    import pyarrow.parquet as pq

    table = store.nuclei().drop_columns(["solidity", "haematoxylin_od_mean"])
    pq.write_table(table, store.path / "nuclei.parquet", row_group_size=50)
    log = EditLog.open(PanopticStore.open(store.path))
    a, b = neighbours(log)
    merged = log.append(merge_nuclei(log, [a, b])).edit
    found = log.nuclei()
    assert found.schema == table.schema
    assert found["id"].to_pylist()[-1] == min(merged.made)
    assert isinstance(found["class"].chunk(0), pa.DictionaryArray)
