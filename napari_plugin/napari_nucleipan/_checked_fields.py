"""The part of the correct widget that makes training data: fields that were looked through, and their export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Layer
from napari.qt.threading import create_worker
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QLabel, QPushButton, QSpinBox, QVBoxLayout, QWidget

from napari_nucleipan._field import visible_box
from napari_nucleipan._form import in_form, in_row
from napari_nucleipan._layers import SLIDE_KEY
from nucleipan.edits import EditLog, export_training
from nucleipan.errors import NucleipanError, reason
from nucleipan.store.origin import is_slide_of

if TYPE_CHECKING:
    import napari

    from nucleipan.store import PanopticStore


class CheckedFields(QWidget):
    """``changed``: fields were marked or unmarked; ``busy``: an export began or ended; ``said`` and ``refused``: for
    people."""

    changed = Signal()
    busy = Signal(bool)
    said = Signal(str)
    refused = Signal(str)

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        self._log: EditLog | None = None
        self._layer: Layer | None = None
        self.author = ""
        self._make_fields()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(in_form(("Checked", self.count)))
        column.addWidget(in_row(self.mark, self.unmark, is_even=True))
        column.addLayout(in_form(("Image size", self.field)))
        column.addWidget(self.export)

    def _make_fields(self) -> None:
        self.count = QLabel()
        self.mark = QPushButton("Mark visible field")
        self.mark.setToolTip(
            "Note that in the field you see every nucleus is right and none is missing.\n"
            "Checked fields are what training data are made of."
        )
        self.mark.clicked.connect(lambda: self._change(self._mark))
        self.unmark = QPushButton("Unmark last")
        self.unmark.setToolTip("Take back the field that was marked last.")
        self.unmark.clicked.connect(lambda: self._change(self._unmark))
        self.field = QSpinBox()
        self.field.setRange(64, 4096)
        self.field.setSingleStep(64)
        self.field.setValue(512)
        self.field.setSuffix(" px")
        self.field.setToolTip("Longest side of an image of the training data; fields are cut evenly.")
        self.export = QPushButton("Export training data...")
        self.export.setToolTip(
            "Write the checked fields, or without any the fields around edits,\n"
            "as images and labels that nucleipan train reads."
        )
        self.export.clicked.connect(self._export)

    def show_log(self, log: EditLog | None, layer: Layer | None) -> None:
        """Of which store, and which layer shows it."""
        self._log, self._layer = log, layer
        self._show()

    def corners(self) -> list[np.ndarray]:
        """Each field's upper left and lower right corner as world positions, float[2, 2]."""
        if self._log is None:
            return []
        boxes = (checked.box for checked in self._log.checked)
        return [np.array([[b.y0, b.x0], [b.y1, b.x1]]) * self._log.store.mpp for b in boxes]

    def _show(self) -> None:
        boxes = [] if self._log is None else [checked.box for checked in self._log.checked]
        area = 0.0 if self._log is None else sum(box.area for box in boxes) * self._log.store.mpp**2 / 1e6
        fields = "1 field" if len(boxes) == 1 else f"{len(boxes)} fields"
        self.count.setText(f"{fields}, {area:.2g} mm²" if boxes else "no field yet")
        self.unmark.setEnabled(bool(boxes))
        self.changed.emit()

    def _change(self, how: Callable[[EditLog, Layer], None]) -> None:
        if self._log is not None and self._layer is not None:
            try:
                how(self._log, self._layer)
            except NucleipanError as error:
                self.refused.emit(reason(error))
            self._show()

    def _mark(self, log: EditLog, layer: Layer) -> None:
        log.mark_checked(visible_box(self._viewer, layer), self.author)

    def _unmark(self, log: EditLog, layer: Layer) -> None:
        log.unmark_checked(log.checked[-1])

    def _export(self) -> None:
        slide = None if self._log is None else self._find_slide(self._log.store)
        if self._log is None or slide is None:
            return
        store = self._log.store.path.absolute()
        start = store.with_name(store.name.removesuffix(".ome.zarr") + "-corrected")
        out, _ = QFileDialog.getSaveFileName(self, "New folder for the training data", str(start))
        if out:
            self.busy.emit(True)
            self.said.emit("Exporting ...")
            worker = create_worker(_exported, self._log, slide, Path(out), self.field.value())
            worker.returned.connect(self._on_exported)
            worker.finished.connect(self._on_ended)
            worker.start()

    def _on_exported(self, outcome: _Outcome) -> None:
        (self.refused if outcome.is_refused else self.said).emit(outcome.text)

    def _on_ended(self) -> None:
        self.busy.emit(False)

    def _find_slide(self, store: PanopticStore) -> Path | None:
        """The slide that is open, the one beside the store, or the one that the user finds."""
        name, folder = str(store.slide.get("name", "")), store.path.absolute().parent
        opened = (layer.metadata.get(SLIDE_KEY) for layer in self._viewer.layers)
        for path in (*opened, folder / Path(name).name):
            if path is not None and is_slide_of(store, Path(path)):
                return Path(path)
        found, _ = QFileDialog.getOpenFileName(self, f"Find {name or 'the slide'}", str(folder))
        return Path(found) if found else None


@dataclass(frozen=True)
class _Outcome:
    """Of an export, in words. (A worker that returns an exception is taken for one that broke.)"""

    text: str
    is_refused: bool = False


def _exported(log: EditLog, slide: Path, out: Path, field: int) -> _Outcome:
    """Runs in a thread of its own."""
    try:
        n = export_training(log, slide, out, field)
    except NucleipanError as error:
        return _Outcome(reason(error), is_refused=True)
    fields = "1 field" if n == 1 else f"{n} fields"
    return _Outcome(f"{fields} exported to {out}; its README.txt says how to train on them.")
