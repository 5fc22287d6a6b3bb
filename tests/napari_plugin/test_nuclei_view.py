"""Nuclei as napari shows them: which pixels, which colours, what the pointer says, what a click does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import zarr

pytest.importorskip("napari")

from example_store import MPP, Example
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from napari.utils.notifications import notification_manager
from napari_nucleipan._colour_bar import ColourBy, readable
from napari_nucleipan._colouring import MISSING, N_COLOURS, N_STEPS, SELECTED, by_number
from napari_nucleipan._layers import open_store
from napari_nucleipan._nuclei import NucleiView, nuclei_layer, nuclei_view
from qtpy.QtWidgets import QApplication, QLabel

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import StoreError
from nucleipan.store import PanopticStore


@pytest.fixture
def view(example: Example) -> NucleiView:
    return NucleiView(PanopticStore.open(example.store))


@pytest.fixture
def table(example: Example) -> pa.Table:
    return PanopticStore.open(example.store).nuclei()


# Pixels


def test_every_level_shows_every_nucleus(view: NucleiView, example: Example) -> None:
    for level, shown in enumerate(view.levels):
        ids = example.instances[:: 2**level, :: 2**level]
        values = shown[...]
        assert np.array_equal(np.where(values > 0, (values - 1) // N_COLOURS, 0), ids)
        assert np.array_equal(values > 0, ids > 0)


def test_values_give_ids_back(view: NucleiView) -> None:
    for column in ("class", "tissue", "area_um2"):
        view.colour_by(column)
        ids = np.arange(view.n_ids)
        assert [view.id_of(v) for v in view._value_of[:-1]] == ids.tolist()


def test_many_nuclei_get_wider_values(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_nucleipan._nuclei._MAX_UINT32_IDS", 100)
    view = NucleiView(PanopticStore.open(example.store))
    assert view.levels[0].dtype == np.uint64
    assert np.array_equal(view.levels[0][...] // N_COLOURS, example.instances)


def test_ids_that_no_row_knows_are_not_shown(example_copy: Example) -> None:
    plane = zarr.open_array(str(example_copy.store / "labels/nuclei/0"), mode="r+")
    plane[:5, :5] = 4_000_000_000
    view = NucleiView(PanopticStore.open(example_copy.store))
    assert not view.levels[0][:5, :5].any()
    assert view.id_at((0.1, 0.1)) == 0


def test_a_table_with_other_ids_is_refused(example_copy: Example) -> None:
    import pyarrow.parquet as pq

    path = example_copy.store / "nuclei.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.arange(len(table))[::-1]), path)
    with pytest.raises(StoreError, match="ids in its table"):
        NucleiView(PanopticStore.open(example_copy.store))


# Colours


def test_window_shows_class_colours(make_napari_viewer, example: Example) -> None:
    viewer = make_napari_viewer(show=True)
    slide, _, nuclei = open_store(viewer, example.store)
    slide.visible, nuclei.contour, nuclei.opacity = False, 0, 1
    view = nuclei_view(viewer)
    big = int(np.argmax(view.column("area_um2")[1:])) + 1
    place = place_in(example, big)
    expected = DEFAULT_CLASSES.by_id(int(view.column("class_id")[big])).color
    assert middle_pixel(viewer, place) == pytest.approx(expected, abs=2)
    view.colour_by("tissue")
    expected = DEFAULT_CLASSES.by_id(int(view.column("tissue_id")[big])).color
    assert middle_pixel(viewer, place) == pytest.approx(expected, abs=2)
    view.colour_by("area_um2")
    yellow = view.colouring.colors[N_STEPS, :3] * 255
    assert middle_pixel(viewer, place) == pytest.approx(yellow, abs=2)
    view.show(view.column("area_um2") < 0)
    assert max(middle_pixel(viewer, place)) < 60
    view.show(None)
    assert middle_pixel(viewer, place) == pytest.approx(yellow, abs=2)


def test_coarsest_level_and_thumbnail_are_recoloured(make_napari_viewer, example: Example) -> None:
    """napari keeps a copy of the coarsest level; it must not keep its colours."""
    viewer = make_napari_viewer(show=True)
    slide, _, nuclei = open_store(viewer, example.store)
    slide.visible, nuclei.contour, nuclei.opacity = False, 0, 1
    view = nuclei_view(viewer)
    viewer.scene.camera.zoom = 0.7
    big = int(np.argmax(view.column("area_um2")[1:])) + 1
    place = place_in(example, big)
    middle_pixel(viewer, place, zoom=0.7)
    assert nuclei.data_level == 1
    before = nuclei.thumbnail.copy()
    view.colour_by("tissue")
    expected = DEFAULT_CLASSES.by_id(int(view.column("tissue_id")[big])).color
    assert middle_pixel(viewer, place, zoom=0.7) == pytest.approx(expected, abs=2)
    assert not np.array_equal(nuclei.thumbnail, before)


def place_in(example: Example, nucleus: int) -> tuple[float, float]:
    """A world position well inside a nucleus."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(example.instances == nucleus)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return (y + 0.5) * MPP, (x + 0.5) * MPP


def middle_pixel(viewer, place: tuple[float, float], zoom: float = 8.0) -> tuple[int, ...]:
    """What the window shows at a world position."""
    viewer.scene.camera.zoom, viewer.scene.camera.center = zoom, (0, *place)
    for _ in range(3):
        QApplication.processEvents()
    shown = viewer.screenshot(canvas_only=True, flash=False)
    return tuple(int(v) for v in shown[shown.shape[0] // 2, shown.shape[1] // 2, :3])


@given(arrays(np.float64, st.integers(2, 40), elements=st.floats(-1e6, 1e6) | st.just(np.nan)))
def test_a_scale_keeps_the_order(values: np.ndarray) -> None:
    values[0] = np.nan
    colouring = by_number("x", values)
    known = np.flatnonzero(np.isfinite(values))
    steps = colouring.colour_of[known].astype(int)
    assert (np.diff(steps[np.argsort(values[known], kind="stable")]) >= 0).all()
    assert ((steps >= 1) & (steps <= N_STEPS)).all()
    assert (colouring.colour_of[1:][np.isnan(values[1:])] == MISSING).all()
    assert colouring.colour_of[0] == 0


def test_outliers_do_not_stretch_the_scale() -> None:
    values = np.concatenate([[np.nan], np.linspace(0, 1, 1000), [1e9]])
    low, high = by_number("x", values).limits
    assert -0.01 < low < 0.02
    assert 0.98 < high < 1.01


def test_unknown_and_unfit_columns_are_refused(view: NucleiView) -> None:
    for column in ("nothing", "geometry", "bbox"):
        with pytest.raises(StoreError):
            view.colour_by(column)
    assert view.colouring.column == "class"


def test_a_filter_needs_an_entry_per_id(view: NucleiView) -> None:
    with pytest.raises(ValueError, match="one entry per id"):
        view.show(np.ones(view.n_ids - 1, bool))


def test_hidden_nuclei_are_not_there(view: NucleiView, example: Example) -> None:
    is_small = view.column("area_um2") < np.median(view.column("area_um2")[1:])
    view.show(is_small)
    shown = np.unique(view.levels[0][...])
    assert set(((shown[shown > 0] - 1) // N_COLOURS).tolist()) == set(np.flatnonzero(view.is_shown).tolist())
    hidden = int(np.flatnonzero(~is_small)[1])
    assert view.id_at(place_in(example, hidden)) == 0


def test_events_tell(view: NucleiView) -> None:
    told: list[object] = []
    view.events.changed.connect(lambda: told.append("changed"))
    view.events.selected.connect(told.append)
    view.colour_by("tissue")
    view.show(None)
    view.select(3)
    view.select(3)
    assert told == ["changed", "changed", "changed", 3, 3]


# What is known


def test_columns_go_by_id(view: NucleiView, table: pa.Table) -> None:
    assert view.n_ids == len(table) + 1
    for name in ("class_id", "area_um2", "probability_connective"):
        assert view.column(name)[1:] == pytest.approx(table[name].to_numpy())
    assert view.column("class")[0] == ""
    assert view.column("class")[1:].tolist() == table["class"].to_pylist()
    assert np.isnan(view.column("area_um2")[0])
    assert not view.exists[0]
    assert view.exists[1:].all()
    assert set(view.numeric_columns).isdisjoint({"id", "class_id", "tissue_id", "bbox", "geometry", "class"})


def test_rows_are_those_of_the_table(view: NucleiView, table: pa.Table) -> None:
    for nucleus in (1, 49, 50, 51, len(table)):  # row groups have 50 rows
        row = view.row(nucleus)
        assert row == table.drop_columns(["geometry", "completed_geometry"]).slice(nucleus - 1, 1).to_pylist()[0]
    assert view.row(0) is None
    assert view.row(len(table) + 1) is None


def test_centroids_are_world_positions(view: NucleiView, example: Example) -> None:
    for nucleus in range(1, view.n_ids, 37):
        y, x = np.nonzero(example.instances == nucleus)
        assert view.centroid(nucleus) == pytest.approx(((y.mean() + 0.5) * MPP, (x.mean() + 0.5) * MPP))
    for nucleus in (0, view.n_ids):
        with pytest.raises(StoreError, match="has no nucleus"):
            view.centroid(nucleus)


def test_positions_give_nuclei(view: NucleiView, example: Example) -> None:
    rng = np.random.default_rng(0)
    for y, x in rng.integers(0, example.instances.shape, (50, 2)):
        assert view.id_at(((y + 0.5) * MPP, (x + 0.5) * MPP)) == example.instances[y, x]
    height, width = (side * MPP for side in example.instances.shape)
    for outside in ((-0.1, 5), (5, -0.1), (height + 0.1, 5), (5, width + 0.1)):
        assert view.id_at(outside) == 0


# The pointer


def test_hover_tells_id_class_probability_and_area(make_napari_viewer, example: Example) -> None:
    viewer = make_napari_viewer()
    layer = open_store(viewer, example.store)[-1]
    viewer.tooltip.visible = viewer.mouse_over_canvas = True
    view = nuclei_view(viewer)
    viewer.cursor.position = place_in(example, 7)
    found: list = []
    thread = threading.Thread(target=lambda: found.append(viewer._calc_status_from_cursor()))  # as napari does
    thread.start()
    thread.join()
    status, tooltip = found[0]
    row = view.row(7)
    expected = [
        "nucleus 7", row["class"], f"{max(v for k, v in row.items() if k.startswith('probability_')):.2f}",
        f"{row['area_um2']:.1f} µm²", row["tissue"],
    ]  # fmt: skip
    for text in expected:
        assert text in status["value"]
        assert text in status["coordinates"]
        assert text in tooltip
    assert "25400" not in status["coordinates"]
    y, x = np.argwhere(example.instances == 0)[0]
    status = layer.get_status(((y + 0.5) * MPP, (x + 0.5) * MPP), world=True)
    assert status["value"] == ""
    assert layer.get_status(None)["value"] == ""


def test_a_click_selects_and_a_drag_does_not(make_napari_viewer, example: Example) -> None:
    viewer = make_napari_viewer()
    layer = open_store(viewer, example.store)[-1]
    view = nuclei_view(viewer)
    selected: list[int] = []
    view.events.selected.connect(selected.append)
    place = place_in(example, 7)
    press(layer, place, moves=[(100, 101)])
    assert (selected, view.selected) == ([7], 7)
    assert view._value_of[7] == 7 * N_COLOURS + SELECTED
    press(layer, place_in(example, 8), moves=[(100, 120)])
    press(layer, place_in(example, 8), button=2)
    assert selected == [7]
    press(layer, (-5.0, -5.0))
    assert (selected, view.selected) == ([7, 0], 0)
    assert view._value_of[7] != 7 * N_COLOURS + SELECTED


def press(layer, position: tuple[float, float], moves: list[tuple[int, int]] | None = None, button: int = 1) -> None:
    """Press, move over ``moves`` (pixels of the canvas, from 100, 100), release."""
    event = SimpleNamespace(button=button, type="mouse_press", pos=(100, 100), position=position, modifiers=())
    callbacks = [callback(layer, event) for callback in layer.mouse_drag_callbacks]
    callbacks = [callback for callback in callbacks if isinstance(callback, Iterator)]
    for kind, pos in [
        ("mouse_press", (100, 100)),
        *(("mouse_move", m) for m in moves or ()),
        ("mouse_release", (0, 0)),
    ]:
        event.type, event.pos = kind, pos
        for callback in callbacks:
            next(callback, None)


def test_the_active_nuclei_layer_counts(make_napari_viewer, example: Example) -> None:
    viewer = make_napari_viewer()
    assert nuclei_layer(viewer) is None
    first = open_store(viewer, example.store)[-1]
    second = open_store(viewer, example.store)[-1]
    assert nuclei_layer(viewer) is second
    viewer.layers.selection.active = first
    assert nuclei_layer(viewer) is first
    viewer.layers.selection.active = viewer.layers[0]
    assert nuclei_layer(viewer) is second


# Edits


def test_edits_are_shown_in_place_of_the_store(example_copy: Example) -> None:
    edits = pytest.importorskip("nucleipan.edits")
    store = PanopticStore.open(example_copy.store)
    log = edits.EditLog.open(store)
    view = NucleiView(store, log)
    values = view.levels[0][...]
    log.append(edits.delete_nuclei(log, [7]))
    log.append(edits.change_class(log, [8], 4))
    view.reload()
    is_seven = example_copy.instances == 7
    assert not view.levels[0][...][is_seven].any()
    others = ~np.isin(example_copy.instances, (7, 8))
    assert np.array_equal(view.levels[0][...][others], values[others])
    assert not view.exists[7]
    assert view.row(7) is None
    assert view.row(8)["class"] == DEFAULT_CLASSES.by_id(4).name
    assert view.column("class_id")[8] == 4


def test_saved_edits_are_there_when_a_store_is_opened(make_napari_viewer, example_copy: Example) -> None:
    edits = pytest.importorskip("nucleipan.edits")
    log = edits.EditLog.open(PanopticStore.open(example_copy.store))
    log.append(edits.delete_nuclei(log, [7]))
    viewer = make_napari_viewer()
    _, classes, nuclei = open_store(viewer, example_copy.store)
    is_seven = example_copy.instances == 7
    assert not nuclei.data[0][...][is_seven].any()
    assert not np.isin(classes.data[0][...][is_seven], DEFAULT_CLASSES.thing_ids).any()
    # And those that are made while it is open, at every level.
    other = edits.EditLog.open(PanopticStore.open(example_copy.store))
    other.append(edits.change_class(other, [8], 4))
    view = nuclei_view(viewer)
    view.edits = other
    view.reload()
    for level, (shown, pixels) in enumerate(zip(classes.data, nuclei.data, strict=True)):
        is_eight = np.where(pixels[...] > 0, (pixels[...] - 1) // N_COLOURS, 0) == 8
        assert is_eight.any()
        assert (shown[...][is_eight] == 4).all(), level
        assert (np.asarray(shown)[is_eight] == 4).all(), level


def test_damaged_edits_are_told_of(make_napari_viewer, example_copy: Example) -> None:
    edits = pytest.importorskip("nucleipan.edits")
    log = edits.EditLog.open(PanopticStore.open(example_copy.store))
    log.append(edits.delete_nuclei(log, [7]))
    next((example_copy.store / "edits").glob("*.tif")).write_bytes(b"nothing")
    notification_manager.records.clear()
    nuclei = open_store(make_napari_viewer(), example_copy.store)[-1]
    assert "as they were before any correction" in notification_manager.records[0].message
    assert np.array_equal(nuclei.data[0][...] // N_COLOURS, example_copy.instances)


def test_a_table_that_fails_is_told_of_in_the_status_bar(
    make_napari_viewer, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = open_store(make_napari_viewer(), example.store)[-1]

    def fail(nucleus: int) -> None:
        raise StoreError("nuclei.parquet is damaged")

    monkeypatch.setattr(layer.metadata["nucleipan"].table, "row", fail)
    status = layer.get_status(place_in(example, 7), world=True)
    assert status["value"] == "(nuclei.parquet is damaged)"


# Colour by


def test_colour_by_follows_the_viewer(make_napari_viewer, example: Example) -> None:
    viewer = make_napari_viewer()
    control = ColourBy(viewer)
    assert not control.columns.isEnabled()
    open_store(viewer, example.store)
    view = nuclei_view(viewer)
    assert control.columns.isEnabled()
    assert control.columns.currentData() == "class"
    assert (control.legend.isHidden(), control.bar.isHidden()) == (False, True)

    control.columns.setCurrentIndex(control.columns.findData("area_um2"))
    assert view.colouring.column == "area_um2"
    assert (control.legend.isHidden(), control.bar.isHidden()) == (True, False)
    low, high = view.colouring.limits
    assert (control.bar.low.text(), control.bar.high.text()) == (f"{low:.3g} µm²", f"{high:.3g} µm²")

    view.colour_by("tissue")
    assert control.columns.currentData() == "tissue"
    shown = [label.text() for label in control.legend.findChildren(QLabel) if not label.isHidden()]
    assert shown == [c.name for c in DEFAULT_CLASSES.stuff]
    viewer.layers.clear()
    assert not control.columns.isEnabled()
    assert control.columns.count() == 0
    control.deleteLater()
    QApplication.processEvents()
    open_store(viewer, example.store)  # a control that is gone is not asked


def test_names_of_columns_are_readable() -> None:
    assert readable("area_um2") == "area (µm²)"
    assert readable("distance_to_nearest_um") == "distance to nearest (µm)"
    assert readable("probability_dead_or_other") == "probability dead or other"
