"""The nuclei that are shown, as rows for Qt. It keeps their ids only; Qt asks for the few cells that are visible."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt

from napari_nucleipan._colour_bar import readable
from napari_nucleipan._filters import Filters

_RIGHT = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
_NO_PARENT = QModelIndex()


class NucleiModel(QAbstractTableModel):
    """Rows are nuclei in the order of ``ids``, int64[n]; columns those of ``Filters.columns``."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = np.zeros(0, np.int64)
        self.columns: tuple[str, ...] = ()
        self._filters: Filters | None = None
        self._mask = np.zeros(0, bool)
        self._sorted_by = ("id", False)

    def show_nuclei(self, filters: Filters | None, mask: np.ndarray) -> None:
        """Show the nuclei in ``mask``, bool[n_ids], in the order that was chosen last."""
        self._filters, self._mask = filters, mask
        columns = () if filters is None else filters.columns
        if self._sorted_by[0] not in columns:
            self._sorted_by = ("id", False)
        self.beginResetModel()
        self.columns = columns
        self.ids = np.zeros(0, np.int64) if filters is None else filters.sorted_ids(mask, *self._sorted_by)
        self.endResetModel()

    def row_of(self, nucleus: int) -> int | None:
        """Where a nucleus is; None if it is not shown."""
        places = np.flatnonzero(self.ids == nucleus)
        return int(places[0]) if len(places) else None

    def text(self, column: str, nucleus: int) -> str:
        """What a cell shows."""
        value = None if self._filters is None else self._filters.column(column)[nucleus]
        if isinstance(value, np.floating):
            return "" if np.isnan(value) else f"{value:#.4g}".rstrip(".") if abs(value) < 1e4 else f"{value:.0f}"
        return "" if value is None else str(value)

    # What Qt asks

    def rowCount(self, parent: QModelIndex = _NO_PARENT) -> int:
        return 0 if parent.isValid() else len(self.ids)

    def columnCount(self, parent: QModelIndex = _NO_PARENT) -> int:
        return 0 if parent.isValid() else len(self.columns)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        column = self.columns[index.column()]
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            return self.text(column, int(self.ids[index.row()]))
        if role == Qt.ItemDataRole.TextAlignmentRole and column not in ("class", "tissue"):
            return _RIGHT
        return None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation != Qt.Orientation.Horizontal or section >= len(self.columns):
            return None
        name = readable(self.columns[section])
        if role == Qt.ItemDataRole.DisplayRole:
            return f"P({name.removeprefix('probability ')})" if name.startswith("probability ") else name
        return f"{name}\nClick to sort by it, again for the other way round." if role == _TOOLTIP else None

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        if 0 <= column < len(self.columns):
            self._sorted_by = (self.columns[column], order == Qt.SortOrder.DescendingOrder)
            self.show_nuclei(self._filters, self._mask)


_TOOLTIP = Qt.ItemDataRole.ToolTipRole
