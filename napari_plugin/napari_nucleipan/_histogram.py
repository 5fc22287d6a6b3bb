"""A histogram whose ends can be dragged: all nuclei in grey, those that are shown in colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from qtpy.QtCore import QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QMouseEvent, QPainter, QPen
from qtpy.QtWidgets import QWidget

N_BINS = 64
_NO_BIN = 255
_AXIS_PERCENT = (0.1, 99.9)
_HEIGHT, _MARGIN, _GRIP = 64, 5, 4
_ALL, _SHOWN, _OUTSIDE = QColor(140, 140, 140, 120), QColor(64, 150, 220), QColor(0, 0, 0, 70)


@dataclass(frozen=True)
class Bins:
    """The numbers of a column in ``N_BINS`` equal steps.

    Attributes:
        low, high: ends of the axis. A few in a thousand lie beyond and are counted in the first and last step.
        lowest, highest: of all numbers.
        bin_of: uint8[n_ids], the step of each id; 255 where there is no number.
    """

    low: float
    high: float
    lowest: float
    highest: float
    bin_of: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, exists: np.ndarray) -> Bins:
        """``values`` [n_ids] of those ids that are nuclei, ``exists`` bool[n_ids]."""
        is_number = exists & np.isfinite(values)
        numbers = values[is_number].astype(np.float64)
        bin_of = np.full(len(values), _NO_BIN, np.uint8)
        if not len(numbers):
            return cls(0.0, 1.0, 0.0, 1.0, bin_of)
        low, high = np.percentile(numbers, _AXIS_PERCENT).tolist()
        if high <= low:
            low, high = low - 0.5, low + 0.5
        bin_of[is_number] = np.clip((numbers - low) * (N_BINS / (high - low)), 0, N_BINS - 1).astype(np.uint8)
        return cls(low, high, float(numbers.min()), float(numbers.max()), bin_of)

    def counts(self, mask: np.ndarray) -> np.ndarray:
        """int64[N_BINS], nuclei in ``mask``, bool[n_ids], by step."""
        return np.bincount(self.bin_of[mask], minlength=_NO_BIN + 1)[:N_BINS]


class Histogram(QWidget):
    """Draws counts, and a handle at either end of a range.

    ``dragged``: where the handles were dragged to, as shares 0 to 1 of the axis.
    """

    dragged = Signal(float, float)

    def __init__(self) -> None:
        super().__init__()
        self.is_log = False
        self._all = self._shown = np.zeros(N_BINS, np.int64)
        self._ends = [0.0, 1.0]
        self._held: int | None = None
        self.setFixedHeight(_HEIGHT)
        self.setMouseTracking(True)

    def show_counts(self, of_all: np.ndarray, of_shown: np.ndarray) -> None:
        """int64[N_BINS], all nuclei and those that are shown."""
        self._all, self._shown = of_all, of_shown
        self.update()

    def show_ends(self, low: float, high: float) -> None:
        """Put the handles at these shares of the axis."""
        self._ends = np.clip([low, high], 0.0, 1.0).tolist()
        self.update()

    def handle_at(self, end: int) -> QPointF:
        """The middle of the low (0) or the high (1) handle in pixels of the widget."""
        return QPointF(self._x(self._ends[end]), self.height() / 2)

    def sizeHint(self) -> QSize:
        return QSize(200, _HEIGHT)

    # The mouse

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            share = self._share(event)
            low, high = self._ends
            # Of two handles in one place the one that can move to where the pointer is.
            self._held = int(share > low) if low == high else int(abs(share - high) < abs(share - low))
            self._drag(share)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if self._held is not None:
            self._drag(self._share(event))
        near = min(abs(event.position().x() - self._x(end)) for end in self._ends) <= _GRIP
        self.setCursor(Qt.CursorShape.SizeHorCursor if near or self._held is not None else Qt.CursorShape.ArrowCursor)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self._held = None

    def _drag(self, share: float) -> None:
        if self._held is None:
            return
        low, high = self._ends
        self._ends[self._held] = max(share, low) if self._held else min(share, high)
        self.update()
        self.dragged.emit(*self._ends)

    def _share(self, event: QMouseEvent) -> float:
        return min(1.0, max(0.0, (event.position().x() - _MARGIN) / max(1, self.width() - 2 * _MARGIN)))

    def _x(self, share: float) -> float:
        return _MARGIN + share * (self.width() - 2 * _MARGIN)

    # The picture

    def paintEvent(self, event: object) -> None:
        painter = QPainter(self)
        self._paint_bars(painter, self._all, _ALL)
        self._paint_bars(painter, self._shown, _SHOWN)
        height, ink = self.height(), self.palette().windowText().color()
        left, right = map(self._x, self._ends)
        painter.fillRect(QRectF(_MARGIN, 0, left - _MARGIN, height), _OUTSIDE)
        painter.fillRect(QRectF(right, 0, self.width() - _MARGIN - right, height), _OUTSIDE)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for x in (left, right):
            painter.setPen(QPen(ink, 1.5))
            painter.drawLine(QPointF(x, 0), QPointF(x, height))
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(ink)
            painter.drawRoundedRect(QRectF(x - _GRIP + 0.5, height / 2 - 8, 2 * _GRIP - 1, 16), 3, 3)

    def _paint_bars(self, painter: QPainter, counts: np.ndarray, color: QColor) -> None:
        heights, full = (np.log1p(n) if self.is_log else n for n in (counts, self._all.max()))
        if full <= 0:
            return
        step = (self.width() - 2 * _MARGIN) / N_BINS
        for k in np.flatnonzero(counts).tolist():
            # One nucleus can be seen, too.
            height = max(1.0, float(heights[k] / full) * (self.height() - 2))
            painter.fillRect(QRectF(_MARGIN + k * step, self.height() - height, step, height), color)
