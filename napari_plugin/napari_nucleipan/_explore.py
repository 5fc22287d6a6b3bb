"""The widget that explores nuclei: by class, by measurement, by place; as colours, numbers and a table.

What is shown is one mask over all ids, made from check boxes and ranges: the canvas, the numbers and the table follow
it. Numbers of the visible area follow the camera, a moment after it has come to rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error
from qtpy.QtCore import QItemSelectionModel, QModelIndex, Qt, QTimer
from qtpy.QtWidgets import QFileDialog, QSizePolicy, QVBoxLayout, QWidget

from napari_nucleipan._explore_form import ExploreForm
from napari_nucleipan._field import visible_box
from napari_nucleipan._filters import Filters
from napari_nucleipan._layers import stem_of
from napari_nucleipan._nuclei import NucleiView, nuclei_layer, nuclei_view
from napari_nucleipan._nuclei_csv import write_csv
from napari_nucleipan._nuclei_model import NucleiModel
from nucleipan.errors import NucleipanError, RegionError, reason
from nucleipan.geometry import Box

if TYPE_CHECKING:
    import napari

_REST_MS, _FILTER_MS = 120, 40
# On the screen: smaller nuclei are looked at more closely, until they are as large as the second number.
_LEGIBLE_PX, _CLOSE_PX = 24, 60
_NOWHERE = Box(0, 0, 0, 0)


class ExploreWidget(QWidget):
    """The nuclei of the active, else the topmost, nuclei layer."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        self._view: NucleiView | None = None
        self._filters: Filters | None = None
        self._in_ranges = self._is_shown = np.zeros(0, bool)
        self._is_following = self._is_saving = False
        self.form, self.model = ExploreForm(viewer), NucleiModel()
        self.form.table.setModel(self.model)
        self.form.table.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.form.table.setSortingEnabled(True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(9, 9, 3, 9)  # a scroll bar may come on the right
        layout.addWidget(self.form)
        # Else napari adds room below: the table is to have it.
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self._rest, self._narrowed = self._timer(_REST_MS, self._look), self._timer(_FILTER_MS, self._filter)
        self._connect()
        self._follow_viewer()
        self._follow()

    def _timer(self, ms: int, then: Any) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(ms)
        timer.timeout.connect(then)
        return timer

    def _connect(self) -> None:
        form = self.form
        form.filtered.connect(self._narrowed.start)
        form.filter_wanted.connect(self._add_filter)
        form.reset.clicked.connect(self._reset)
        form.only_visible.toggled.connect(self._list)
        form.save.clicked.connect(self._save)
        form.table.clicked.connect(self._on_row)
        form.table.selectionModel().currentRowChanged.connect(self._on_row)
        self.model.modelReset.connect(self._mark_row)

    def _follow_viewer(self) -> None:
        viewer = self._viewer
        layers, camera = viewer.layers, viewer.scene.camera
        happened = (layers.events.inserted, layers.events.removed, layers.selection.events.active)
        moved = (camera.events.center, camera.events.zoom, viewer.canvas.events.size, viewer.dims.events.ndisplay)
        links = [(emitter, self._follow) for emitter in happened] + [(emitter, self._on_moved) for emitter in moved]
        for emitter, callback in links:
            emitter.connect(callback)

        def stop() -> None:
            for emitter, callback in links:
                emitter.disconnect(callback)
            self._leave()

        self.destroyed.connect(stop)

    def showEvent(self, event: Any) -> None:
        super().showEvent(event)
        self._on_moved()

    def hideEvent(self, event: Any) -> None:
        """Behind another tab it does not follow the camera."""
        super().hideEvent(event)
        self._rest.stop()

    # Which nuclei

    def _follow(self, event: Any = None) -> None:
        view = nuclei_view(self._viewer)
        if view is self._view and event is not None:
            return
        self._leave()
        self._view, self._filters = view, None if view is None else Filters(view)
        form = self.form
        form.hint.setVisible(view is None)
        form.body.setEnabled(view is not None)
        form.message.hide()
        if view is not None:
            view.events.edited.connect(self._on_edited)
            view.events.selected.connect(self._mark_row)
        self._reset()

    def _leave(self) -> None:
        """All nuclei are shown again."""
        view, self._view = self._view, None
        if view is not None:
            view.events.edited.disconnect(self._on_edited, missing_ok=True)
            view.events.selected.disconnect(self._mark_row, missing_ok=True)
            view.show(None)

    def _on_edited(self) -> None:
        if self._filters is not None:
            self._filters.forget()
            for column, chosen in self.form.filters.items():
                chosen.show_values(self._filters.column(column), self._filters.view.exists)
            self._filter()

    # Filters

    def _add_filter(self, column: str) -> None:
        if self._filters is not None:
            self.form.add_filter(column).show_values(self._filters.column(column), self._filters.view.exists)
            self._filter()

    def _reset(self) -> None:
        for column in list(self.form.filters):
            self.form.remove_filter(column)
        self.form.classes.check_all()
        self._filter()

    def _filter(self) -> None:
        """Show what is asked for: on the canvas, in numbers, in the histograms and in the table."""
        self._narrowed.stop()
        form, filters = self.form, self._filters
        form.offer_columns(() if filters is None else filters.measures)
        form.classes.offer(() if filters is None else filters.classes)
        if filters is None:
            form.shown.setText("")
            self._list()
            return
        filters.hidden = form.classes.unchecked
        filters.ranges = {name: each.range for name, each in form.filters.items() if each.range is not None}
        self._in_ranges = filters.in_ranges()
        self._is_shown = filters.in_classes(self._in_ranges)
        exists = filters.view.exists
        n_shown, n = np.count_nonzero(self._is_shown), np.count_nonzero(exists)
        filters.view.show(self._is_shown if n_shown < n else None)
        form.shown.setText(f"{n_shown:,} of {n:,} nuclei shown")
        for each in form.filters.values():
            each.show_shown(exists, self._is_shown)
        self._count()
        self._list()

    # The visible area

    def _on_moved(self, event: Any = None) -> None:
        if self.isVisible() and self._view is not None:
            self._rest.start()

    def _look(self) -> None:
        if self._filters is not None:
            self._count()
            if self.form.only_visible.isChecked():
                self._list()

    def _visible(self, filters: Filters) -> Box:
        """The segmented part of what the canvas shows, in pixels of the store; empty where that is nothing."""
        layer = nuclei_layer(self._viewer)
        try:
            seen = _NOWHERE if layer is None else visible_box(self._viewer, layer)
        except RegionError:  # the slide is elsewhere, or seen from the side
            seen = _NOWHERE
        seen = seen.clipped(filters.view.store.spec.extent)
        return _NOWHERE if seen.is_empty else seen

    def _count(self) -> None:
        filters = self._filters
        if filters is not None:
            seen = self._visible(filters)
            visible = filters.tally(filters.in_box(self._in_ranges, seen), seen)
            self.form.classes.show_tallies(visible, filters.tally(self._in_ranges, filters.view.store.spec.extent))

    # The table

    def _list(self) -> None:
        mask, filters = self._is_shown, self._filters
        if filters is not None and self.form.only_visible.isChecked():
            mask = filters.in_box(mask, self._visible(filters))
        self.model.show_nuclei(filters, mask)
        self._offer_to_save()

    def _mark_row(self, _: int = 0) -> None:
        """Mark the row of the nucleus that is selected on the canvas."""
        table, view = self.form.table, self._view
        row = self.model.row_of(view.selected) if view is not None and view.selected else None
        index = QModelIndex() if row is None else self.model.index(row, max(0, table.currentIndex().column()))
        self._is_following = True
        how = QItemSelectionModel.SelectionFlag.ClearAndSelect | QItemSelectionModel.SelectionFlag.Rows
        table.selectionModel().setCurrentIndex(index, how)
        self._is_following = False
        if row is not None:
            table.scrollTo(index)

    def _on_row(self, index: QModelIndex, _: QModelIndex | None = None) -> None:
        """Go to the nucleus of a row."""
        view = self._view
        if self._is_following or view is None or not index.isValid():
            return
        nucleus = int(self.model.ids[index.row()])
        camera = self._viewer.scene.camera
        size_um = float(np.sqrt(4 / np.pi * view.column("area_um2")[nucleus]))
        if size_um * camera.zoom < _LEGIBLE_PX:
            camera.zoom = _CLOSE_PX / size_um
        camera.center = view.centroid(nucleus)
        view.select(nucleus)

    # The file

    def _save(self) -> None:
        if self._filters is None:
            return
        store = self._filters.view.store
        start = store.path.absolute().with_name(f"{stem_of(store)}-nuclei.csv")
        path, _ = QFileDialog.getSaveFileName(self, "Save table", str(start), "CSV (*.csv *.csv.gz)")
        if not path:
            return
        # Columns are never changed, only exchanged: edits made meanwhile do no harm.
        columns = {name: self._filters.column(name) for name in self._filters.columns}
        self._say("Saving ...")
        self._is_saving = True
        self._offer_to_save()
        worker: Any = create_worker(_saved, Path(path), columns, self.model.ids)
        worker.returned.connect(self._on_saved)
        worker.start()

    def _on_saved(self, outcome: _Outcome) -> None:
        self._is_saving = False
        self._offer_to_save()
        self._say(outcome.text)
        if outcome.is_refused:
            show_error(outcome.text)

    def _offer_to_save(self) -> None:
        self.form.save.setEnabled(len(self.model.ids) > 0 and not self._is_saving)

    def _say(self, text: str) -> None:
        # Paths have no spaces to break a line at.
        self.form.message.setText(text.replace("/", "/\u200b"))
        self.form.message.show()


@dataclass(frozen=True)
class _Outcome:
    """Of saving, in words."""

    text: str
    is_refused: bool = False


def _saved(path: Path, columns: Mapping[str, np.ndarray], ids: np.ndarray) -> _Outcome:
    """Runs in a thread of its own."""
    try:
        write_csv(path, columns, ids)
    except NucleipanError as error:
        return _Outcome(reason(error), is_refused=True)
    return _Outcome(f"{len(ids):,} nuclei saved to {path}")
