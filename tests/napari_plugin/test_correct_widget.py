"""The correct widget, driven by its signals, its buttons and the mouse: what is saved is what is seen."""

from __future__ import annotations

import getpass
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from example_store import MPP, SHAPE, Example
from napari.utils._proxies import ReadOnlyWrapper
from napari.utils.interactions import mouse_move_callbacks, mouse_press_callbacks, mouse_release_callbacks
from napari.utils.notifications import notification_manager
from napari_nucleipan import _checked_fields
from napari_nucleipan._correct import CorrectWidget
from napari_nucleipan._correct_form import CLASS, DELETE, MERGE, REDRAW, SPLIT, TOOLS
from napari_nucleipan._layers import open_store
from napari_nucleipan._nuclei import nuclei_view
from napari_nucleipan._pencil import LAYER_NAME
from qtpy.QtWidgets import QFileDialog

from nucleipan.datasets import checked, read_nuclei
from nucleipan.edits import EditLog, delete_nuclei, training_fields
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any], example_copy: Example) -> Any:
    viewer = make_napari_viewer()
    open_store(viewer, example_copy.store)
    viewer.scene.camera.zoom = 4
    return viewer


@pytest.fixture
def widget(viewer: Any, qtbot: Any) -> CorrectWidget:
    return docked(viewer, qtbot)


def docked(viewer: Any, qtbot: Any) -> CorrectWidget:
    widget = CorrectWidget(viewer)
    qtbot.addWidget(widget)
    widget.show()
    return widget


@pytest.fixture(autouse=True)
def told() -> Iterator[list[str]]:
    """What the user was told in notifications."""
    notification_manager.records.clear()
    texts: list[str] = []

    def remember(notification: Any) -> None:
        texts.append(notification.message)

    notification_manager.notification_ready.connect(remember)
    yield texts
    notification_manager.notification_ready.disconnect(remember)


def middle(log: EditLog, nucleus: int) -> np.ndarray:
    """World position of a pixel in the middle of a nucleus."""
    box = log.box_of(nucleus)
    y, x = np.nonzero(log.instances(box) == nucleus)
    at = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
    return np.array([y[at] + box.y0 + 0.5, x[at] + box.x0 + 0.5]) * MPP


def neighbours(log: EditLog) -> tuple[int, int]:
    ids = log.instances()
    pairs = np.unique(np.stack([ids[:, 1:], ids[:, :-1]], -1).reshape(-1, 2), axis=0)
    a, b = next(p for p in pairs.tolist() if p[0] and p[1] and p[0] != p[1])
    return a, b


def round_one(log: EditLog) -> int:
    """A large nucleus in one piece, away from the border."""
    ids = log.instances()
    sizes = np.bincount(ids.ravel())
    inside = Box.of_shape(SHAPE).grown(-40)
    return next(i for i in np.argsort(-sizes).tolist() if i and inside.contains(log.box_of(i)))


def across(log: EditLog, nucleus: int) -> np.ndarray:
    centre, box = middle(log, nucleus), log.box_of(nucleus)
    half = np.array([box.height, 0]) if box.width > box.height else np.array([0, box.width])
    return np.stack([centre - half * MPP, centre + half * MPP])


def around(log: EditLog, nucleus: int, radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 17)[:-1]
    return middle(log, nucleus) + radius * np.stack([np.sin(angles), np.cos(angles)], 1)


def shown_ids(viewer: Any) -> list[np.ndarray]:
    """Ids on the screen, by level."""
    view = nuclei_view(viewer)
    of_value = np.vectorize(view.id_of, otypes=[np.uint32])
    return [of_value(level[...]) for level in view.levels]


def check_seen(viewer: Any, widget: CorrectWidget) -> None:
    """The layer shows what the log says, on every level, in the colour of the class; so does the store reopened."""
    log, view = widget.log, widget.view
    assert log is not None
    assert view is not None
    again = EditLog.open(PanopticStore.open(log.store.path))
    for level, ids in enumerate(shown_ids(viewer)):
        for source in (log, again):
            level_of_store = min(level, log.store.n_levels - 1)
            step = 2 ** (level - level_of_store)
            np.testing.assert_array_equal(ids, source.instances(level=level_of_store)[::step, ::step])
    for nucleus in log.changed:
        assert view.colouring.colour_of[nucleus] == log.class_of(nucleus)
    assert widget.form.edits.count() == len(log.edits)


# Tools


def test_a_line_merges_what_it_crosses(widget: CorrectWidget, viewer: Any) -> None:
    log = widget.log
    assert log is not None
    a, b = neighbours(log)
    widget.form.tools[MERGE].click()
    widget.pencil.drawn.emit(np.stack([middle(log, a), middle(log, b)]))
    assert {a, b} <= log.removed
    assert widget.form.message.text().startswith("Saved: merge")
    check_seen(viewer, widget)


def test_clicks_and_enter_merge(widget: CorrectWidget, viewer: Any) -> None:
    log = widget.log
    assert log is not None
    a, b = neighbours(log)
    other = round_one(log)
    widget.form.tools[MERGE].click()
    for nucleus in (a, other, b, other):  # the second click takes it back
        widget.pencil.clicked.emit(middle(log, nucleus))
    layer = widget.pencil.layer
    assert layer is not None
    assert len(layer.data) == 2  # marks
    assert f"2 picked ({a}, {b})" in widget.form.message.text()
    layer.keymap[next(k for k in layer.keymap if str(k) == "Enter")](layer)
    assert log.edits[-1].edit.ids == tuple(sorted((a, b)))
    assert len(layer.data) == 0
    check_seen(viewer, widget)


def test_a_line_splits(widget: CorrectWidget, viewer: Any) -> None:
    log = widget.log
    assert log is not None
    nucleus = round_one(log)
    widget.form.tools[SPLIT].click()
    widget.pencil.drawn.emit(across(log, nucleus))
    assert nucleus in log.removed
    assert len(log.edits[-1].edit.made) >= 2
    check_seen(viewer, widget)


def test_a_click_deletes_and_a_line_deletes_several(widget: CorrectWidget, viewer: Any) -> None:
    log = widget.log
    assert log is not None
    nucleus, pair = round_one(log), neighbours(log)
    widget.form.tools[DELETE].click()
    widget.pencil.clicked.emit(middle(log, nucleus))
    assert log.removed == {nucleus}
    widget.pencil.drawn.emit(np.stack([middle(log, i) for i in pair]))
    assert set(pair) <= log.removed
    check_seen(viewer, widget)


def test_an_outline_redraws_or_adds(widget: CorrectWidget, viewer: Any) -> None:
    log = widget.log
    assert log is not None
    nucleus = round_one(log)
    widget.form.tools[REDRAW].click()
    widget.pencil.drawn.emit(around(log, nucleus, 2.0))
    assert log.edits[-1].edit.ids == (nucleus,)
    ring = around(log, nucleus, 2.0)
    widget.form.tools[DELETE].click()
    widget.pencil.clicked.emit(middle(log, nucleus))
    widget.form.tools[REDRAW].click()
    widget.form.classes.setCurrentText("inflammatory")
    widget.pencil.drawn.emit(ring)
    assert log.edits[-1].edit.classes == {log.store.n_nuclei + 1: 2}
    assert "add" in widget.form.edits.item(0).text()
    check_seen(viewer, widget)


def test_the_chosen_class_is_given(widget: CorrectWidget, viewer: Any) -> None:
    log, form = widget.log, widget.form
    assert log is not None
    assert [form.classes.itemText(k) for k in range(form.classes.count())] == [c.name for c in log.store.classes.things]
    nucleus = round_one(log)
    form.classes.setCurrentIndex(log.class_of(nucleus) % 5)
    form.tools[CLASS].click()
    widget.pencil.clicked.emit(middle(log, nucleus))
    assert log.class_of(nucleus) == form.class_id == log.edits[-1].edit.classes[nucleus]
    check_seen(viewer, widget)


def test_undo_brings_everything_back(widget: CorrectWidget, viewer: Any, example: Example) -> None:
    log = widget.log
    assert log is not None
    assert not widget.form.undo.isEnabled()
    widget.form.tools[DELETE].click()
    for nucleus in (round_one(log), *neighbours(log)):
        widget.pencil.clicked.emit(middle(log, nucleus))
    for n in (2, 1, 0):
        widget.form.undo.click()
        assert len(log.edits) == widget.form.edits.count() == n
        check_seen(viewer, widget)
    np.testing.assert_array_equal(shown_ids(viewer)[0], example.instances)
    assert widget.form.message.text().startswith("Undone: delete")
    assert not widget.form.undo.isEnabled()


def test_what_a_filter_hides_is_not_changed(widget: CorrectWidget) -> None:
    log, view = widget.log, widget.view
    assert log is not None
    assert view is not None
    a, b = neighbours(log)
    mask = np.ones(view.n_ids, bool)
    mask[a] = False
    view.show(mask)
    widget.form.tools[DELETE].click()
    widget.pencil.clicked.emit(middle(log, a))
    assert not log.edits
    widget.pencil.drawn.emit(np.stack([middle(log, a), middle(log, b)]))
    assert b in log.removed
    assert a not in log.removed


def test_a_nucleus_that_is_gone_is_not_selected(widget: CorrectWidget) -> None:
    log, view = widget.log, widget.view
    assert log is not None
    assert view is not None
    nucleus = round_one(log)
    view.select(nucleus)
    widget.form.tools[DELETE].click()
    widget.pencil.clicked.emit(middle(log, nucleus))
    assert view.selected == 0


# Who, when, what


def test_edits_are_listed_with_author_and_time(widget: CorrectWidget, monkeypatch: pytest.MonkeyPatch) -> None:
    log, form = widget.log, widget.form
    assert log is not None
    monkeypatch.setattr(getpass, "getuser", lambda: "logged-in")
    a, b = neighbours(log)
    form.tools[DELETE].click()
    widget.pencil.clicked.emit(middle(log, a))
    form.author.setText("Dr. Who")
    widget.pencil.clicked.emit(middle(log, b))
    assert [s.author for s in log.edits] == ["logged-in", "Dr. Who"]
    newest, oldest = (form.edits.item(k).text().splitlines() for k in range(2))
    assert newest[0] == f"delete {b}"
    assert newest[1].startswith("Dr. Who, ")
    assert oldest[1].startswith("logged-in, ")


def test_a_double_click_goes_there(widget: CorrectWidget, viewer: Any) -> None:
    log = widget.log
    assert log is not None
    nucleus = round_one(log)
    widget.form.tools[DELETE].click()
    widget.pencil.clicked.emit(middle(log, nucleus))
    box = log.edits[0].edit.box
    viewer.scene.camera.center = (1.0, 1.0)
    widget.form.edits.itemDoubleClicked.emit(widget.form.edits.item(0))
    centre = np.array(viewer.scene.camera.center)[-2:] / MPP
    np.testing.assert_allclose(centre, [(box.y0 + box.y1) / 2, (box.x0 + box.x1) / 2])


def test_edits_of_earlier_days_are_there_again(viewer: Any, qtbot: Any, example_copy: Example) -> None:
    log = EditLog.open(PanopticStore.open(example_copy.store))
    log.append(delete_nuclei(log, [5]), "yesterday")
    log.mark_checked(Box(0, 0, 100, 100), "yesterday")
    widget = docked(viewer, qtbot)
    assert "yesterday" in widget.form.edits.item(0).text()
    assert "1 field" in widget.checked.count.text()
    assert widget.pencil.layer is not None
    assert len(widget.pencil.layer.data) == 1
    check_seen(viewer, widget)


# The pencil


def event(kind: str, y: float, x: float, button: int = 1) -> Any:
    """A mouse event at a world position; the canvas shows 4 pixels per micrometre here."""
    at = {"pos": np.array([x * 4, y * 4]), "position": (y, x)}
    seen = SimpleNamespace(type=kind, button=button, modifiers=(), is_dragging=kind == "mouse_move", **at)
    return ReadOnlyWrapper(seen)


def stroke(layer: Any, path: list[tuple[float, float]]) -> list[int]:
    """Press, move, release as napari does; returns how many shapes were seen on the way."""
    n_seen = []
    mouse_press_callbacks(layer, event("mouse_press", *path[0]))
    for point in path[1:]:
        mouse_move_callbacks(layer, event("mouse_move", *point))
        n_seen.append(len(layer.data))
    mouse_release_callbacks(layer, event("mouse_release", *path[-1]))
    return n_seen


def test_the_mouse_clicks_and_draws(widget: CorrectWidget, qtbot: Any) -> None:
    widget.form.tools[SPLIT].click()
    pencil, layer = widget.pencil, widget.pencil.layer
    assert layer is not None
    drawn: list[np.ndarray] = []
    clicked: list[np.ndarray] = []
    pencil.drawn.connect(drawn.append)
    pencil.clicked.connect(clicked.append)
    assert stroke(layer, [(10, 10), (10, 12), (11, 20), (15, 30)]) == [1, 1, 1]
    np.testing.assert_allclose(drawn[0], [(10, 10), (10, 12), (11, 20), (15, 30), (15, 30)])
    assert len(layer.data) == 0
    stroke(layer, [(10, 10), (10.2, 10.5)])  # a hand that trembles
    np.testing.assert_allclose(clicked, [(10, 10)])
    assert len(drawn) == 1
    mouse_press_callbacks(layer, event("mouse_press", 5, 5, button=2))
    mouse_release_callbacks(layer, event("mouse_release", 50, 50, button=2))
    assert len(drawn) == 1


def test_space_moves_the_picture(widget: CorrectWidget) -> None:
    widget.form.tools[SPLIT].click()
    layer = widget.pencil.layer
    assert layer is not None
    assert not layer.mouse_pan
    drawn: list[np.ndarray] = []
    widget.pencil.drawn.connect(drawn.append)
    held = layer.keymap[next(k for k in layer.keymap if str(k) == "Space")](layer)
    next(held)
    assert layer.mouse_pan
    stroke(layer, [(10, 10), (15, 30)])
    assert drawn == []
    assert next(held, None) is None
    assert not layer.mouse_pan
    stroke(layer, [(10, 10), (15, 30)])
    assert len(drawn) == 1


def test_a_tool_is_put_down(widget: CorrectWidget, viewer: Any) -> None:
    form, layers = widget.form, viewer.layers
    nuclei = layers.selection.active
    form.tools[MERGE].click()
    pencil_layer = widget.pencil.layer
    assert pencil_layer is not None
    assert layers.selection.active is pencil_layer
    assert layers[-1] is pencil_layer
    form.tools[DELETE].click()  # another one takes its place
    assert [name for name, button in form.tools.items() if button.isChecked()] == [DELETE] == [form.tool]
    escape = pencil_layer.keymap[next(k for k in pencil_layer.keymap if str(k) == "Escape")]
    escape(pencil_layer)
    assert form.tool == ""
    assert layers.selection.active is nuclei
    form.tools[SPLIT].click()
    form.tools[SPLIT].click()  # pressed again
    assert form.tool == ""
    form.tools[SPLIT].click()
    layers.selection.active = layers[0]  # the user looks at something else
    assert form.tool == ""
    assert layers.selection.active is layers[0]
    form.tools[SPLIT].click()
    layers.remove(pencil_layer)
    assert form.tool == ""
    form.tools[SPLIT].click()  # the layer is made anew
    assert widget.pencil.layer is not None
    widget.hide()  # behind another tab
    assert form.tool == ""
    assert LAYER_NAME not in [layer.name for layer in layers]


def test_escape_forgets_picks_first(widget: CorrectWidget) -> None:
    log, form = widget.log, widget.form
    assert log is not None
    form.tools[MERGE].click()
    widget.pencil.clicked.emit(middle(log, 3))
    widget.pencil.cancelled.emit()
    assert form.tool == MERGE
    widget.pencil.applied.emit()
    assert "two nuclei or more" in form.message.text() or "no nucleus is chosen" in form.message.text()
    widget.pencil.cancelled.emit()
    assert form.tool == ""


def test_lines_stay_visible_at_any_zoom(widget: CorrectWidget, viewer: Any) -> None:
    log = widget.log
    assert log is not None
    log.mark_checked(Box(0, 0, 50, 50))
    widget.checked.show_log(log, viewer.layers[-1])
    layer = widget.pencil.layer
    assert layer is not None
    for zoom in (0.5, 8.0):
        viewer.scene.camera.zoom = zoom
        assert layer.edge_width[0] * zoom == pytest.approx(3)
    np.testing.assert_allclose(layer.data[0].max(0), [25, 25])


def test_every_tool_has_a_shortcut_and_says_so(widget: CorrectWidget) -> None:
    shortcuts = set()
    for tool in TOOLS:
        button = widget.form.tools[tool.name]
        assert button.shortcut().toString() == tool.shortcut
        assert tool.shortcut in button.toolTip()
        assert tool.hint in button.toolTip()
        shortcuts.add(tool.shortcut)
    assert len(shortcuts) == len(TOOLS)
    assert widget.form.undo.shortcut().toString() in widget.form.undo.toolTip()


def test_the_status_bar_tells_of_nuclei(widget: CorrectWidget) -> None:
    log = widget.log
    assert log is not None
    widget.form.tools[DELETE].click()
    layer = widget.pencil.layer
    assert layer is not None
    status = layer.get_status(tuple(middle(log, 7)), view_direction=None, dims_displayed=[0, 1], world=True)
    assert "nucleus 7" in status["coordinates"]


# Errors


@pytest.mark.parametrize(
    ("tool", "path", "message"),
    [
        (MERGE, [[5, 5], [5, 6]], "nucleus"),
        (SPLIT, [[-50, -50], [-20, -20]], "outside the slide"),
        (REDRAW, [[5, 5], [5, 5.5], [5.5, 5.5]], "polygon"),
    ],
)
def test_what_cannot_be_done_is_said(
    widget: CorrectWidget, told: list[str], tool: str, path: list[list[float]], message: str
) -> None:
    widget.form.tools[tool].click()
    widget.pencil.drawn.emit(np.array(path, float))
    assert message in widget.form.message.text()
    assert any(message in text for text in told)
    assert widget.form.tool == tool
    assert widget.log is not None
    assert not widget.log.edits


def test_a_click_beside_nuclei_only_says_so(widget: CorrectWidget, told: list[str]) -> None:
    ids = widget.log.instances() if widget.log else None
    assert ids is not None
    y, x = np.argwhere(ids == 0)[0]
    for tool in (MERGE, DELETE, CLASS):
        widget.form.tools[tool].click()
        widget.pencil.clicked.emit(np.array([y + 0.5, x + 0.5]) * MPP)
        assert "There is no nucleus" in widget.form.message.text()
    for tool in (SPLIT, REDRAW):
        widget.form.tools[tool].click()
        widget.pencil.clicked.emit(np.array([5.0, 5.0]))
        assert widget.form.message.text().startswith("Drag")
    assert told == []


def test_another_program_is_noticed(widget: CorrectWidget, told: list[str]) -> None:
    log = widget.log
    assert log is not None
    other = EditLog.open(PanopticStore.open(log.store.path))
    other.append(delete_nuclei(other, [5]))
    widget.form.tools[DELETE].click()
    widget.pencil.clicked.emit(middle(log, 9))
    assert "changed by another program" in widget.form.message.text()
    assert any("changed by another program" in text for text in told)
    widget.checked.mark.click()
    assert "changed by another program" in widget.form.message.text()


def test_damaged_edits_are_said_and_nothing_can_be_corrected(
    viewer: Any, qtbot: Any, example_copy: Example, told: list[str]
) -> None:
    (example_copy.store / "edits").mkdir()
    (example_copy.store / "edits" / "000001.tif").write_bytes(b"II*\0")
    widget = docked(viewer, qtbot)
    assert "000001.tif: is no whole edit" in widget.form.message.text()
    assert any("is no whole edit" in text for text in told)
    assert widget.log is None
    assert not any(button.isEnabled() for button in widget.form.tools.values())
    assert not widget.checked.isEnabled()


def test_without_a_store_it_says_what_to_open(make_napari_viewer: Callable[..., Any], qtbot: Any) -> None:
    viewer = make_napari_viewer()
    widget = docked(viewer, qtbot)
    assert "Open a store" in widget.form.message.text()
    assert not any(button.isEnabled() for button in widget.form.tools.values())
    widget.pencil.drawn.emit(np.zeros((2, 2)))
    widget.pencil.clicked.emit(np.zeros(2))
    widget.form.undo.click()
    viewer.add_image(np.zeros((5, 5)))
    assert widget.log is None


def test_it_follows_the_store_that_is_open(
    make_napari_viewer: Callable[..., Any], qtbot: Any, example: Example, example_copy: Example
) -> None:
    viewer = make_napari_viewer()
    widget = docked(viewer, qtbot)
    first = open_store(viewer, example_copy.store)
    assert widget.log is not None
    assert widget.log.store.path == example_copy.store
    assert widget.form.tools[MERGE].isEnabled()
    second = open_store(viewer, example.store)
    assert widget.log.store.path == example.store
    viewer.layers.selection.active = first[-1]
    assert widget.log.store.path == example_copy.store
    viewer.layers.selection.active = second[0]  # a slide says nothing about which store
    assert widget.log.store.path == example_copy.store
    for layer in first:
        viewer.layers.remove(layer)
    assert widget.log.store.path == example.store
    viewer.layers.clear()
    assert widget.log is None
    assert "Open a store" in widget.form.message.text()


# Training data


def test_the_visible_field_is_marked(widget: CorrectWidget, viewer: Any) -> None:
    log = widget.log
    assert log is not None
    assert widget.checked.count.text() == "no field yet"
    viewer.scene.camera.zoom = 8
    viewer.scene.camera.center = (100.0, 200.0)
    widget.form.author.setText("Dr. Who")
    widget.checked.mark.click()
    (field,) = log.checked
    assert field.author == "Dr. Who"
    assert Box.of_shape(SHAPE).contains(field.box)
    centre = ((field.box.y0 + field.box.y1) / 2 * MPP, (field.box.x0 + field.box.x1) / 2 * MPP)
    np.testing.assert_allclose(centre, (100, 200), atol=2 * MPP)
    assert "1 field" in widget.checked.count.text()
    assert widget.pencil.layer is not None
    assert len(widget.pencil.layer.data) == 1
    widget.checked.unmark.click()
    assert log.checked == ()
    assert not widget.checked.unmark.isEnabled()
    viewer.scene.camera.center = (-5000.0, -5000.0)
    widget.checked.mark.click()
    assert log.checked == ()
    assert "not in view" in widget.form.message.text()


def test_training_data_are_exported(
    widget: CorrectWidget, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = widget.log
    assert log is not None
    widget.form.tools[DELETE].click()
    widget.pencil.clicked.emit(middle(log, round_one(log)))
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "out"), ""))
    widget.checked.field.setValue(256)
    go_on = threading.Event()
    real = _checked_fields.export_training

    def slow(*arguments: Any) -> int:
        assert go_on.wait(30)
        return real(*arguments)

    monkeypatch.setattr(_checked_fields, "export_training", slow)
    widget.form.tools[SPLIT].click()
    widget.checked.export.click()
    assert widget.form.tool == ""
    assert not widget.form.tools[SPLIT].isEnabled()  # nothing changes under its feet
    go_on.set()
    qtbot.waitUntil(lambda: "exported to" in widget.form.message.text(), timeout=30000)
    qtbot.waitUntil(lambda: widget.form.tools[SPLIT].isEnabled(), timeout=30000)
    items = read_nuclei(tmp_path / "out")
    for item, box in zip(items, training_fields(log, 256), strict=True):
        np.testing.assert_array_equal(checked(item).ids > 0, log.instances(box) > 0)


def test_an_export_that_fails_is_said(
    widget: CorrectWidget, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "out"), ""))
    widget.checked.export.click()
    qtbot.waitUntil(lambda: "nothing is edited or marked" in widget.form.message.text(), timeout=30000)
    assert any("nothing is edited or marked" in text for text in told)
    qtbot.waitUntil(lambda: widget.form.tools[SPLIT].isEnabled(), timeout=30000)


def test_a_slide_that_moved_is_asked_for(
    make_napari_viewer: Callable[..., Any], qtbot: Any, example_copy: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = example_copy.slide.parent / "elsewhere"
    elsewhere.mkdir()
    slide = example_copy.slide.rename(elsewhere / "slide.tif")
    viewer = make_napari_viewer()
    open_store(viewer, example_copy.store)
    widget = docked(viewer, qtbot)
    log = widget.log
    assert log is not None
    log.append(delete_nuclei(log, [5]))
    answers = iter(["", str(slide)])
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (next(answers), ""))
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(elsewhere / "out"), ""))
    widget.checked.export.click()  # thought better of it
    assert not widget.form.message.text().startswith("Exporting")
    widget.checked.export.click()
    qtbot.waitUntil(lambda: "exported to" in widget.form.message.text(), timeout=30000)
    assert (elsewhere / "out" / "README.txt").is_file()


def test_a_store_that_is_read_only_is_said(
    widget: CorrectWidget, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    log = widget.log
    assert log is not None

    def refused(*_: Any) -> None:
        raise StoreError("edits cannot be written (Permission denied); copy the store to where you may write")

    monkeypatch.setattr(log, "append", refused)
    widget.form.tools[DELETE].click()
    widget.pencil.clicked.emit(middle(log, 9))
    assert "Permission denied" in widget.form.message.text()
    assert any("Permission denied" in text for text in told)
