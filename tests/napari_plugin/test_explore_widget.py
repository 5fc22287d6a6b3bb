"""Exploring nuclei: what is counted, hidden, listed and saved is what the store's table says, found independently."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

import pyarrow as pa
from example_store import LEVEL0_PER_PIXEL, MPP, SHAPE, Example
from napari.utils.notifications import notification_manager
from napari_nucleipan import _explore
from napari_nucleipan._explore import ExploreWidget
from napari_nucleipan._layers import open_store
from napari_nucleipan._nuclei import nuclei_view
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QFileDialog

from nucleipan.edits import EditLog, delete_nuclei
from nucleipan.store import PanopticStore

UM_PER_LEVEL0 = MPP / LEVEL0_PER_PIXEL


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer(show=True)


@pytest.fixture
def widget(viewer, example: Example, qtbot) -> ExploreWidget:
    """Docked beside the whole slide."""
    open_store(viewer, example.store)
    made = ExploreWidget(viewer)
    viewer.window.add_dock_widget(made, name="Explore")
    qtbot.waitExposed(made)
    notification_manager.records.clear()
    yield made
    if isalive(made):
        made._rest.stop()
        made._narrowed.stop()


@pytest.fixture
def table(example: Example) -> dict[str, np.ndarray]:
    """The store's table, by column."""
    rows = PanopticStore.open(example.store).nuclei()
    texts = {f.name for f in rows.schema if pa.types.is_dictionary(f.type)}
    names = [f.name for f in rows.schema if not (pa.types.is_nested(f.type) or pa.types.is_binary(f.type))]
    return {n: np.array(rows[n].to_pylist(), object) if n in texts else rows[n].to_numpy() for n in names}


def settle(widget: ExploreWidget, qtbot) -> None:
    """Until what was chosen, or where the camera went, has taken effect."""
    QApplication.processEvents()
    qtbot.waitUntil(lambda: not widget._rest.isActive() and not widget._narrowed.isActive(), timeout=5000)


def numbers(widget: ExploreWidget, column: int) -> dict[int | None, int]:
    """A column of the classes' numbers, as text says it."""
    return {k: int(labels[column].text().replace(",", "")) for k, labels in widget.form.classes.numbers.items()}


def shown(widget: ExploreWidget) -> list[int]:
    return np.flatnonzero(nuclei_view(widget._viewer).is_shown).tolist()


def set_range(widget: ExploreWidget, column: str, low: float, high: float) -> None:
    fields = widget.form.filters[column]
    fields.low.setValue(low)
    fields.high.setValue(high)


def test_classes_are_counted_on_the_slide(widget: ExploreWidget, table: dict[str, np.ndarray], qtbot) -> None:
    settle(widget, qtbot)
    n_of = {k: int((table["class_id"] == k).sum()) for k in widget.form.classes.boxes}
    assert numbers(widget, 2) == n_of | {None: len(table["id"])}
    mm2 = SHAPE[0] * SHAPE[1] * MPP**2 / 1e6
    assert numbers(widget, 3)[None] == pytest.approx(len(table["id"]) / mm2, abs=1)
    assert widget.form.shown.text() == f"{len(table['id']):,} of {len(table['id']):,} nuclei shown"


@pytest.mark.parametrize("zoom", [8.0, 20.0])
def test_visible_ones_follow_the_camera(
    widget: ExploreWidget, table: dict[str, np.ndarray], qtbot, zoom: float
) -> None:
    viewer = widget._viewer
    viewer.scene.camera.zoom = zoom
    viewer.scene.camera.center = (0, 60.0, 100.0)
    QApplication.processEvents()
    settle(widget, qtbot)
    height, width = (side / zoom for side in viewer.canvas.size)
    y, x = table["centroid_y"] * UM_PER_LEVEL0, table["centroid_x"] * UM_PER_LEVEL0
    slack = 1.5 * MPP  # the visible box is of whole pixels
    inner = (abs(y - 60) < height / 2 - slack) & (abs(x - 100) < width / 2 - slack)
    outer = (abs(y - 60) < height / 2 + slack) & (abs(x - 100) < width / 2 + slack)
    found = numbers(widget, 0)[None]
    assert 0 < inner.sum() <= found <= outer.sum() < len(y)
    widget.form.only_visible.click()
    assert widget.model.rowCount() == found
    near = np.isin(table["id"], widget.model.ids)
    assert (near[inner]).all()
    assert not (near & ~outer).any()


def test_an_unchecked_class_is_hidden(widget: ExploreWidget, table: dict[str, np.ndarray], qtbot) -> None:
    class_id = int(table["class_id"][0])
    widget.form.classes.boxes[class_id].click()
    settle(widget, qtbot)
    left = table["id"][table["class_id"] != class_id].tolist()
    assert shown(widget) == sorted(left)
    # How many there would be is still said.
    assert numbers(widget, 2)[class_id] == (table["class_id"] == class_id).sum()
    assert numbers(widget, 2)[None] == len(left)
    widget.form.reset.click()
    settle(widget, qtbot)
    assert shown(widget) == sorted(table["id"].tolist())


def test_ranges_and_classes_filter_together(widget: ExploreWidget, table: dict[str, np.ndarray], qtbot) -> None:
    area, score = table["area_um2"], table["score"]
    low, high = (round(float(np.quantile(area, q))) for q in (0.2, 0.7))
    limit = round(float(np.median(score)), 2)
    class_id = int(table["class_id"][3])
    for column in ("area_um2", "score"):
        widget.form.filter_wanted.emit(column)
    set_range(widget, "area_um2", low, high)
    set_range(widget, "score", limit, widget.form.filters["score"].high.maximum())
    widget.form.classes.boxes[class_id].click()
    settle(widget, qtbot)
    expected = (area >= low) & (area <= high) & (score >= limit)
    assert numbers(widget, 2)[class_id] == (expected & (table["class_id"] == class_id)).sum()
    expected &= table["class_id"] != class_id
    assert 0 < expected.sum() < len(area)
    assert shown(widget) == sorted(table["id"][expected].tolist())
    assert sorted(widget.model.ids.tolist()) == shown(widget)
    widget.form.filters["area_um2"].remove.click()
    settle(widget, qtbot)
    expected = (score >= limit) & (table["class_id"] != class_id)
    assert shown(widget) == sorted(table["id"][expected].tolist())


def test_histograms_count_every_nucleus(widget: ExploreWidget, table: dict[str, np.ndarray], qtbot) -> None:
    widget.form.filter_wanted.emit("area_um2")
    limit = round(float(np.median(table["area_um2"])))
    set_range(widget, "area_um2", limit, widget.form.filters["area_um2"].high.maximum())
    settle(widget, qtbot)
    bins = widget.form.filters["area_um2"]._bins
    view = nuclei_view(widget._viewer)
    assert bins.counts(view.exists).sum() == len(table["id"])
    assert bins.counts(view.is_shown).sum() == (table["area_um2"] >= limit).sum()


@pytest.mark.parametrize("column", ["area_um2", "class", "id"])
@pytest.mark.parametrize("order", [Qt.SortOrder.AscendingOrder, Qt.SortOrder.DescendingOrder])
def test_rows_are_sorted(widget: ExploreWidget, table: dict[str, np.ndarray], column: str, order: Qt.SortOrder) -> None:
    widget.form.table.sortByColumn(widget.model.columns.index(column), order)
    keys = table[column][widget.model.ids - 1]
    ahead, behind = (keys[:-1], keys[1:]) if order == Qt.SortOrder.AscendingOrder else (keys[1:], keys[:-1])
    assert (ahead <= behind).all()
    is_equal = keys[:-1] == keys[1:]
    assert (np.diff(widget.model.ids)[is_equal] > 0).all(), "equal ones by id"
    assert sorted(widget.model.ids.tolist()) == table["id"].tolist()


def test_cells_are_what_the_table_says(widget: ExploreWidget, table: dict[str, np.ndarray]) -> None:
    model = widget.model
    for row in (0, model.rowCount() // 2, model.rowCount() - 1):
        for k, column in enumerate(model.columns):
            if column in table:
                text, value = model.data(model.index(row, k)), table[column][model.ids[row] - 1]
                if isinstance(value, np.floating):
                    assert (text == "") if math.isnan(value) else float(text) == pytest.approx(value, rel=1e-3)
                else:
                    assert text == str(value or "")


def test_a_row_leads_to_its_nucleus(widget: ExploreWidget, table: dict[str, np.ndarray], qtbot) -> None:
    row = 17
    nucleus = int(widget.model.ids[row])
    widget.form.table.selectRow(row)
    view, camera = nuclei_view(widget._viewer), widget._viewer.scene.camera
    assert view.selected == nucleus
    y, x = (table[f"centroid_{axis}"][nucleus - 1] * UM_PER_LEVEL0 for axis in "yx")
    assert tuple(camera.center)[-2:] == pytest.approx((y, x))
    assert camera.zoom * math.sqrt(4 / math.pi * table["area_um2"][nucleus - 1]) >= 24, "large enough to be seen"
    settle(widget, qtbot)


def test_a_nucleus_leads_to_its_row(widget: ExploreWidget, qtbot) -> None:
    view = nuclei_view(widget._viewer)
    center = tuple(widget._viewer.scene.camera.center)
    nucleus = view.n_ids - 5
    view.select(nucleus)
    row = widget.form.table.currentIndex().row()
    assert widget.model.ids[row] == nucleus
    assert widget.form.table.visualRect(widget.form.table.currentIndex()).isValid()
    assert tuple(widget._viewer.scene.camera.center) == center, "the slide stays where it is"
    view.select(0)
    assert not widget.form.table.currentIndex().isValid()
    settle(widget, qtbot)


def save(widget: ExploreWidget, path: Path, monkeypatch: pytest.MonkeyPatch, qtbot) -> None:
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    widget.form.save.click()
    qtbot.waitUntil(widget.form.save.isEnabled, timeout=10_000)


def test_the_table_is_saved_as_it_is_shown(
    widget: ExploreWidget, table: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot
) -> None:
    class_id = int(table["class_id"][0])
    widget.form.classes.boxes[class_id].click()
    settle(widget, qtbot)
    widget.form.table.sortByColumn(widget.model.columns.index("area_um2"), Qt.SortOrder.DescendingOrder)
    save(widget, tmp_path / "nuclei.csv", monkeypatch, qtbot)
    with open(tmp_path / "nuclei.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["id"]) for r in rows] == widget.model.ids.tolist()
    assert tuple(rows[0]) == widget.model.columns
    for r in rows:
        k = int(r["id"]) - 1
        assert (r["class"], r["tissue"]) == (table["class"][k], table["tissue"][k] or "")
        assert float(r["area_um2"]) == pytest.approx(table["area_um2"][k], rel=1e-6)
    assert f"{len(rows):,} nuclei saved" in widget.form.message.text()


def test_what_cannot_be_saved_is_told(
    widget: ExploreWidget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot
) -> None:
    save(widget, tmp_path / "missing" / "nuclei.csv", monkeypatch, qtbot)
    assert [note.severity.value for note in notification_manager.records] == ["error"]
    assert "nuclei.csv" in notification_manager.records[0].message
    assert list(tmp_path.iterdir()) == []


def test_texts_are_no_formulas(tmp_path: Path) -> None:
    columns = {"id": np.arange(3), "class": np.array(["", "=1+1", "stroma"], object), "@x": np.array([0, np.nan, 2.5])}
    _explore.write_csv(tmp_path / "a.csv", columns, np.array([2, 1]))
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.reader(file)) == [["id", "class", "'@x"], ["2", "stroma", "2.5"], ["1", "'=1+1", ""]]


def test_it_follows_corrections(viewer, example_copy: Example, qtbot) -> None:
    open_store(viewer, example_copy.store)
    widget = ExploreWidget(viewer)
    qtbot.addWidget(widget)
    view = nuclei_view(viewer)
    log = EditLog.open(view.store)
    log.append(delete_nuclei(log, [2, 3]))
    view.edits = log
    view.reload()
    assert not {2, 3} & set(widget.model.ids.tolist())
    assert widget.model.rowCount() == view.store.n_nuclei - 2
    assert f"{view.store.n_nuclei - 2:,} of" in widget.form.shown.text()
    settle(widget, qtbot)


def test_it_follows_the_layers(viewer, example: Example, qtbot) -> None:
    widget = ExploreWidget(viewer)
    qtbot.addWidget(widget)
    assert not widget.form.body.isEnabled()
    assert not widget.form.hint.isHidden()
    open_store(viewer, example.store)
    assert widget.form.body.isEnabled()
    assert widget.form.hint.isHidden()
    assert widget.model.rowCount() == PanopticStore.open(example.store).n_nuclei
    viewer.layers.clear()
    assert not widget.form.body.isEnabled()
    assert widget.model.rowCount() == 0
    settle(widget, qtbot)


def test_closed_it_hides_nothing(widget: ExploreWidget, table: dict[str, np.ndarray], qtbot) -> None:
    viewer = widget._viewer
    widget.form.classes.boxes[int(table["class_id"][0])].click()
    settle(widget, qtbot)
    view = nuclei_view(viewer)
    assert view.is_shown.sum() < len(table["id"])
    viewer.window.remove_dock_widget(widget)
    widget.deleteLater()
    qtbot.waitUntil(lambda: view.is_shown.sum() == len(table["id"]), timeout=5000)
    view.colour_by("tissue")  # nobody listens any more
