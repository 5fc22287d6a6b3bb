"""One column's range: its histogram with two handles, and the same two numbers in fields."""

from __future__ import annotations

import math

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QDoubleSpinBox, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_nucleipan._colour_bar import readable
from napari_nucleipan._form import in_row
from napari_nucleipan._histogram import Bins, Histogram

_DIGITS, _MOST_DECIMALS = 3, 6


class RangeFilter(QWidget):
    """``changed``: the range is another; ``removed``: the user wants none of this column."""

    changed = Signal()
    removed = Signal()

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column
        self._bins = Bins.of(np.zeros(1), np.zeros(1, bool))
        self.histogram = Histogram()
        self.histogram.setToolTip(
            f"{readable(column)}: all nuclei in grey, those that are shown in blue.\nDrag the handles to show only "
            "nuclei between them.\nA few in a thousand may lie beyond the picture; its first and last bar count them."
        )
        self.low, self.high = self._field("Lowest"), self._field("Highest")
        self.high.setValue(self.high.maximum())
        self.log = QCheckBox("log")
        self.log.setToolTip("Bars as high as the logarithm of their numbers, so that rare values are seen.")
        self.remove = QPushButton("Remove")
        self.remove.setToolTip("Remove this filter.")
        name = QLabel(readable(column))
        name.setWordWrap(True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 4, 0, 4)
        layout.setSpacing(2)
        layout.addWidget(in_row(name, self.log, self.remove))
        layout.addWidget(self.histogram)
        layout.addWidget(in_row(self.low, self.high, is_even=True))
        self.low.valueChanged.connect(self._on_typed)
        self.high.valueChanged.connect(self._on_typed)
        self.histogram.dragged.connect(self._on_dragged)
        self.log.toggled.connect(self._on_log)
        self.remove.clicked.connect(self.removed)

    @property
    def range(self) -> tuple[float, float] | None:
        """Lowest and highest value that is shown; None while that is all of them."""
        low, high = self.low.value(), self.high.value()
        return None if low <= self.low.minimum() and high >= self.high.maximum() else (low, high)

    def show_values(self, values: np.ndarray, exists: np.ndarray) -> None:
        """The column's values, [n_ids]; an end of the range that was not moved stays at the end."""
        low_is_open, high_is_open = self.low.value() <= self.low.minimum(), self.high.value() >= self.high.maximum()
        self._bins = bins = Bins.of(values, exists)
        decimals = 0 if np.issubdtype(values.dtype, np.integer) else _decimals(bins.high - bins.low)
        # Rounded outwards: the ends include every nucleus.
        lowest = math.floor(bins.lowest * 10**decimals) / 10**decimals
        highest = math.ceil(bins.highest * 10**decimals) / 10**decimals
        for field, is_open, end in ((self.low, low_is_open, lowest), (self.high, high_is_open, highest)):
            field.blockSignals(True)
            field.setDecimals(decimals)
            field.setSingleStep(max(10**-decimals, float(f"{(bins.high - bins.low) / 50:.1g}")))
            field.setRange(lowest, highest)
            if is_open:
                field.setValue(end)
            field.blockSignals(False)
        self._show_ends()

    def show_shown(self, exists: np.ndarray, is_shown: np.ndarray) -> None:
        """Masks, bool[n_ids], of all nuclei and of those that are shown."""
        self.histogram.show_counts(self._bins.counts(exists), self._bins.counts(is_shown))

    def _field(self, what: str) -> QDoubleSpinBox:
        field = QDoubleSpinBox()
        field.setKeyboardTracking(False)
        field.setToolTip(
            f"{what} value of a nucleus that is shown.\nOnce the range is narrowed, nuclei without a value are hidden "
            "(those redrawn by hand have few)."
        )
        return field

    def _on_typed(self) -> None:
        if self.low.value() > self.high.value():
            other = self.high if self.sender() is self.low else self.low
            other.setValue(self.low.value() if other is self.high else self.high.value())  # tells of the change
            return
        self._show_ends()
        self.changed.emit()

    def _on_dragged(self, low: float, high: float) -> None:
        bins = self._bins
        for field, share, end in ((self.low, low, self.low.minimum()), (self.high, high, self.high.maximum())):
            # At the end of the axis a handle includes what lies beyond.
            is_at_end = share == (0.0 if field is self.low else 1.0)
            field.blockSignals(True)
            field.setValue(end if is_at_end else bins.low + share * (bins.high - bins.low))
            field.blockSignals(False)
        self.changed.emit()

    def _on_log(self, is_log: bool) -> None:
        self.histogram.is_log = is_log
        self.histogram.update()

    def _show_ends(self) -> None:
        bins = self._bins
        self.histogram.show_ends(
            *((field.value() - bins.low) / (bins.high - bins.low) for field in (self.low, self.high))
        )


def _decimals(width: float) -> int:
    return min(_MOST_DECIMALS, max(0, _DIGITS - 1 - math.floor(math.log10(width))))
