"""By what nuclei are coloured, and what the colours mean: a choice of columns with a legend or a colour bar below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.utils.notifications import show_error
from qtpy.QtCore import QSize
from qtpy.QtGui import QColor, QImage, QPainter
from qtpy.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from napari_nucleipan._colouring import N_STEPS, Colouring, Rgb
from napari_nucleipan._form import combo, in_form
from napari_nucleipan._nuclei import NucleiView, nuclei_view
from nucleipan.errors import NucleipanError

if TYPE_CHECKING:
    from napari.viewer import Viewer

_BAR_HEIGHT, _SWATCH = 14, 12
_LEGEND_COLUMNS = 2
_UNITS = (("_um2", "µm²"), ("_um", "µm"))


class ColourBy(QWidget):
    """Chooses the column that the viewer's nuclei are coloured by, and shows what the colours mean.

    It follows the viewer: the nuclei are those of the active nuclei layer, else of the topmost.
    """

    def __init__(self, viewer: Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._view: NucleiView | None = None
        self.columns = combo("What the colour of a nucleus shows: its class, the tissue it lies in, or a measurement.")
        self.bar, self.legend = ColourBar(), Legend()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(in_form(("Colour by", self.columns)))
        layout.addWidget(self.bar)
        layout.addWidget(self.legend)
        self.columns.currentIndexChanged.connect(self._choose)
        self._follow_viewer()
        self._follow()

    def _follow_viewer(self) -> None:
        layers = self._viewer.layers
        emitters = (layers.events.inserted, layers.events.removed, layers.selection.events.active)
        follow = self._follow
        for emitter in emitters:
            emitter.connect(follow)

        def stop() -> None:
            for emitter in emitters:
                emitter.disconnect(follow)
            self._leave()

        self.destroyed.connect(stop)

    def _follow(self, event: object = None) -> None:
        view = nuclei_view(self._viewer)
        if view is self._view and event is not None:
            return
        self._leave()
        self._view = view
        self.columns.blockSignals(True)
        self.columns.clear()
        for column in () if view is None else view.colour_columns:
            self.columns.addItem(readable(column), column)
        self.columns.blockSignals(False)
        self.columns.setEnabled(view is not None)
        if view is not None:
            view.events.changed.connect(self._show)
        self._show()

    def _leave(self) -> None:
        if self._view is not None:
            self._view.events.changed.disconnect(self._show, missing_ok=True)
            self._view = None

    def _choose(self, _: int) -> None:
        column = self.columns.currentData()
        if self._view is None or column is None or column == self._view.colouring.column:
            return
        try:
            self._view.colour_by(column)
        except NucleipanError as error:
            show_error(str(error))
            self._show()

    def _show(self) -> None:
        colouring = None if self._view is None else self._view.colouring
        if colouring is not None:
            self.columns.blockSignals(True)
            self.columns.setCurrentIndex(self.columns.findData(colouring.column))
            self.columns.blockSignals(False)
        self.bar.show_colouring(colouring)
        self.legend.show_colouring(colouring)


class ColourBar(QWidget):
    """A scale from its lowest to its highest number; hidden where nuclei are coloured by a class."""

    def __init__(self) -> None:
        super().__init__()
        self._strip = _Strip()
        self.low, self.high = QLabel(), QLabel()
        for label, end in ((self.low, "lowest"), (self.high, "highest")):
            label.setToolTip(f"1 % of the nuclei lie beyond this and have the {end} colour")
        ends = QHBoxLayout()
        ends.addWidget(self.low)
        ends.addStretch()
        ends.addWidget(self.high)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 2, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self._strip)
        layout.addLayout(ends)

    def show_colouring(self, colouring: Colouring | None) -> None:
        limits = None if colouring is None else colouring.limits
        self.setVisible(limits is not None)
        if colouring is not None and limits is not None:
            unit = next((f" {name}" for suffix, name in _UNITS if colouring.column.endswith(suffix)), "")
            self.low.setText(f"{limits[0]:.3g}{unit}")
            self.high.setText(f"{limits[1]:.3g}{unit}")
            self._strip.show_colors(colouring.colors[1 : N_STEPS + 1, :3])


class Legend(QWidget):
    """The classes' colours and names; hidden where nuclei are coloured by a number."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 2, 0, 0)
        self._grid.setVerticalSpacing(2)
        self._shown: tuple[tuple[str, Rgb], ...] = ()

    def show_colouring(self, colouring: Colouring | None) -> None:
        entries = () if colouring is None else colouring.legend
        self.setVisible(bool(entries))
        if entries == self._shown:
            return
        self._shown = entries
        while (item := self._grid.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()  # deleting waits for the event loop
                widget.deleteLater()
        for k, (name, rgb) in enumerate(entries):
            label = QLabel(name)
            row, column = divmod(k, _LEGEND_COLUMNS)
            self._grid.addWidget(Swatch(rgb), row, 2 * column)
            self._grid.addWidget(label, row, 2 * column + 1)
            self._grid.setColumnStretch(2 * column + 1, 1)


class Swatch(QWidget):
    """A small square of one colour. (A style sheet would be overruled by napari's theme.)"""

    def __init__(self, rgb: Rgb) -> None:
        super().__init__()
        self._color = QColor(*rgb)
        self.setFixedSize(_SWATCH, _SWATCH)

    def paintEvent(self, event: object) -> None:
        QPainter(self).fillRect(self.rect(), self._color)


class _Strip(QWidget):
    """Colours side by side."""

    def __init__(self) -> None:
        super().__init__()
        self._image = QImage()
        self.setFixedHeight(_BAR_HEIGHT)

    def show_colors(self, colors: np.ndarray) -> None:
        """float[n, 3] in 0..1, from left to right."""
        pixels = np.ascontiguousarray(np.rint(colors * 255).astype(np.uint8))
        # A copy: QImage does not own the memory it is given.
        self._image = QImage(pixels.data, len(pixels), 1, pixels.nbytes, QImage.Format.Format_RGB888).copy()
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(N_STEPS, _BAR_HEIGHT)

    def paintEvent(self, event: object) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        painter.drawImage(self.rect(), self._image)


def readable(column: str) -> str:
    """A column's name for people: ``area_um2`` is "area (µm²)"."""
    for suffix, unit in _UNITS:
        if column.endswith(suffix):
            return f"{column.removesuffix(suffix).replace('_', ' ')} ({unit})"
    return column.replace("_", " ")
