"""The widget that corrects nuclei: merge, split, delete, redraw, change class, each with a click or a stroke.

Every edit is saved at once, beside the store's own nuclei and never over them, and is seen at once: the nuclei layer
reads the store through the same log. What cannot be done is said and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from napari.utils.notifications import show_error
from qtpy.QtWidgets import QSizePolicy, QVBoxLayout, QWidget

from napari_nucleipan._checked_fields import CheckedFields
from napari_nucleipan._correct_form import CLASS, DELETE, MERGE, REDRAW, SPLIT, TOOLS, CorrectForm, what_was_done
from napari_nucleipan._layers import stem_of
from napari_nucleipan._nuclei import KEY, NucleiView, nuclei_layer
from napari_nucleipan._pencil import Pencil
from nucleipan.edits import (
    Edit,
    EditLog,
    author_or_user,
    change_class,
    delete_nuclei,
    merge_nuclei,
    nuclei_on_line,
    nucleus_in_polygon,
    redraw_nucleus,
    split_nuclei,
)
from nucleipan.errors import NucleipanError, reason

if TYPE_CHECKING:
    import napari

_START = "Choose a tool; hold Space to move the picture while it is on."
_HINTS = {tool.name: tool.hint for tool in TOOLS}
_NO_STORE = "Open a store of nuclei first: File > Open Folder, or nucleipan view."


class CorrectWidget(QWidget):
    """Corrections of the store whose nuclei layer is, or was last, the active one."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        self._layer: Labels | None = None
        self._log: EditLog | None = None
        self._picked: dict[int, np.ndarray] = {}
        self._is_exporting = False
        self.form, self.checked = CorrectForm(), CheckedFields(viewer)
        self.pencil = Pencil(viewer, self)
        column = QVBoxLayout(self)
        column.addWidget(self.form, stretch=1)
        column.addWidget(self.checked)
        # Else napari adds room below: the list of edits is to have it.
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self._connect()
        self._follow()

    def _connect(self) -> None:
        form, pencil, layers = self.form, self.pencil, self._viewer.layers
        form.author.setPlaceholderText(author_or_user(None))
        form.tool_changed.connect(self._on_tool)
        form.edit_chosen.connect(self._go_to)
        form.undo.clicked.connect(self._undo)
        form.author.textChanged.connect(self._on_author)
        self.checked.changed.connect(self._frame_checked)
        self.checked.busy.connect(self._on_busy)
        self.checked.said.connect(form.message.setText)
        self.checked.refused.connect(self._refuse)
        pencil.clicked.connect(self._on_click)
        pencil.drawn.connect(self._on_stroke)
        pencil.applied.connect(self._merge_picked)
        pencil.cancelled.connect(self._on_escape)
        pencil.dropped.connect(form.drop_tool)
        for happened in (layers.events.inserted, layers.events.removed, layers.selection.events.active):
            happened.connect(self._follow)

    def showEvent(self, event: Any) -> None:
        super().showEvent(event)
        self._frame_checked()

    def hideEvent(self, event: Any) -> None:
        """Behind another tab nothing is corrected."""
        super().hideEvent(event)
        self.form.drop_tool()
        self.pencil.put_away()

    # Which store

    @property
    def view(self) -> NucleiView | None:
        """The nuclei that are corrected."""
        return None if self._layer is None else self._layer.metadata[KEY]

    @property
    def log(self) -> EditLog | None:
        """Their edits; None where there is nothing to correct."""
        return self._log

    def _follow(self, event: Any = None) -> None:
        """The active layer's store, if it shows nuclei; else stay with the one before, while it is open."""
        active = self._viewer.layers.selection.active
        is_ours = active is not None and isinstance(active.metadata.get(KEY), NucleiView)
        if not is_ours and self._layer in self._viewer.layers:
            return
        layer = nuclei_layer(self._viewer)
        if layer is self._layer and layer is not None:
            return
        self.form.drop_tool()
        self._layer, self._log = layer, None
        problem = _NO_STORE
        if self.view is not None:
            try:
                self._log = _log_of(self.view)
            except NucleipanError as error:
                problem = reason(error)
                show_error(problem)
        self._show_log("" if self._log is not None else problem)

    def _show_log(self, problem: str) -> None:
        form, log = self.form, self._log
        form.store.setText("" if log is None else stem_of(log.store))
        form.store.setToolTip("" if log is None else str(log.store.path))
        form.offer_classes(() if log is None else log.store.classes.things)
        form.message.setText(problem or _START)
        self._list_edits()
        self.checked.show_log(log, self._layer)
        self._on_busy(False)

    def _list_edits(self) -> None:
        log = self._log
        self.form.list_edits(() if log is None else log.edits, None if log is None else log.store.classes)

    def _on_busy(self, is_busy: bool) -> None:
        """Nothing is corrected while it is exported."""
        self._is_exporting = is_busy
        if is_busy:
            self.form.drop_tool()
        is_ready = self._log is not None and not is_busy
        self.form.set_ready(is_ready)
        self.checked.setEnabled(is_ready)

    def _on_author(self, text: str) -> None:
        self.checked.author = text

    def _frame_checked(self) -> None:
        if self.isVisible():
            self.pencil.frame(self.checked.corners())

    # Tools

    def _on_tool(self, name: str) -> None:
        self._pick_none()
        if name:
            self.form.message.setText(_HINTS[name])
            self.pencil.take(self._layer)
        else:
            self.form.message.setText(_START)
            self.pencil.put_down()
            if self._layer in self._viewer.layers and self._viewer.layers.selection.active is self.pencil.layer:
                self._viewer.layers.selection.active = self._layer

    def _on_escape(self) -> None:
        """First forget what was picked, then put the tool down."""
        if self._picked:
            self._pick_none()
            self.form.message.setText(_HINTS[MERGE])
        else:
            self.form.drop_tool()

    def _on_click(self, point: np.ndarray) -> None:
        nucleus = 0 if self.view is None else self.view.id_at(point)
        tool = self.form.tool
        if tool in (SPLIT, REDRAW):
            self.form.message.setText(_HINTS[tool])
        elif not nucleus:
            self.form.message.setText("There is no nucleus; click on one.")
        elif tool == MERGE:
            self._pick(nucleus, point)
        else:
            self._change(tool, lambda _: [nucleus])

    def _on_stroke(self, path: np.ndarray) -> None:
        if self.view is None:
            return
        drawn, tool, class_id = path / self.view.store.mpp, self.form.tool, self.form.class_id
        if tool == SPLIT:
            self._save(lambda log: split_nuclei(log, drawn))
        elif tool == REDRAW:
            self._save(lambda log: _redrawn(log, drawn, class_id))
        else:
            self._change(tool, lambda log: self._shown(nuclei_on_line(log, drawn)))

    def _change(self, tool: str, choose: Callable[[EditLog], list[int]]) -> None:
        """Merge, delete or reclassify the nuclei that are chosen."""
        if tool == MERGE:
            self._save(lambda log: merge_nuclei(log, choose(log)))
        elif tool == DELETE:
            self._save(lambda log: delete_nuclei(log, choose(log)))
        elif tool == CLASS:
            self._save(lambda log: change_class(log, choose(log), self.form.class_id))

    def _shown(self, nuclei: tuple[int, ...]) -> list[int]:
        """Those that a filter does not hide: nobody corrects what he does not see."""
        is_shown = self.view.is_shown if self.view is not None else np.zeros(0, bool)
        return [i for i in nuclei if i < len(is_shown) and is_shown[i]]

    # Picking

    def _pick(self, nucleus: int, point: np.ndarray) -> None:
        """Choose a nucleus for a merge; a second click takes it back."""
        if self._picked.pop(nucleus, None) is None:
            self._picked[nucleus] = point
        self.pencil.mark(list(self._picked.values()))
        n = len(self._picked)
        more = "press Enter to merge them" if n > 1 else "click the next one"
        self.form.message.setText(f"{n} picked ({', '.join(map(str, self._picked))}); {more}." if n else _HINTS[MERGE])

    def _pick_none(self) -> None:
        self._picked.clear()
        self.pencil.mark([])

    def _merge_picked(self) -> None:
        if self.form.tool == MERGE:
            self._change(MERGE, lambda _: list(self._picked))

    # Edits

    def _save(self, make: Callable[[EditLog], Edit]) -> None:
        """Make an edit, save it, show it."""
        log = self._log
        if log is None or self._is_exporting:
            return
        try:
            saved = log.append(make(log), self.form.author.text())
        except NucleipanError as error:
            self._refuse(reason(error))
            return
        self._pick_none()
        self._show_edits(f"Saved: {what_was_done(saved, log.store.classes)}.")

    def _undo(self) -> None:
        if self._log is None:
            return
        try:
            undone = self._log.undo()
        except NucleipanError as error:
            self._refuse(reason(error))
            return
        self._pick_none()
        self._show_edits(f"Undone: {what_was_done(undone, self._log.store.classes)}.")

    def _show_edits(self, text: str) -> None:
        if self.view is not None and self._log is not None:
            if self.view.selected and not self._log.has(self.view.selected):
                self.view.select(0)
            self.view.reload()
        self._list_edits()
        self.form.message.setText(text)

    def _refuse(self, text: str) -> None:
        self.form.message.setText(text)
        show_error(text)

    def _go_to(self, number: int) -> None:
        """Look at an edit."""
        if self._log is None:
            return
        box = next(saved.edit.box for saved in self._log.edits if saved.number == number)
        mpp = self._log.store.mpp
        self._viewer.scene.camera.center = ((box.y0 + box.y1) / 2 * mpp, (box.x0 + box.x1) / 2 * mpp)


def _log_of(view: NucleiView) -> EditLog:
    """The edits that a view shows, from now on those that will be made too."""
    if view.edits is None:
        view.edits = log = EditLog.open(view.store)
        if log.edits or log.undone:  # ids that were used once are not used again: columns are longer
            view.reload()
    return view.edits


def _redrawn(log: EditLog, ring: np.ndarray, class_id: int) -> Edit:
    nucleus = nucleus_in_polygon(log, ring)
    return redraw_nucleus(log, ring, nucleus, class_id if nucleus is None else None)
