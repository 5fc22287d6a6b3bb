"""Rows and forms, the same in every widget."""

from __future__ import annotations

from qtpy.QtWidgets import QComboBox, QFormLayout, QHBoxLayout, QLabel, QSizePolicy, QWidget

_LONG_NAME = "Image size"


def in_form(*rows: tuple[str, QWidget]) -> QFormLayout:
    """Fields with names before them; fields of several forms below each other are in line."""
    form = QFormLayout()
    form.setContentsMargins(0, 0, 0, 0)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    for name, field in rows:
        label = QLabel(name)
        label.setMinimumWidth(label.fontMetrics().horizontalAdvance(_LONG_NAME))
        form.addRow(label, field)
    return form


def in_row(*widgets: QWidget, is_even: bool = False) -> QWidget:
    """Widgets side by side; the first takes the room that is left, or all do."""
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for i, widget in enumerate(widgets):
        layout.addWidget(widget, stretch=1 if is_even or i == 0 else 0)
    return row


def combo(tooltip: str) -> QComboBox:
    """A combo box that long names do not widen."""
    made = QComboBox()
    made.setToolTip(tooltip)
    made.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    made.setMinimumContentsLength(12)
    made.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return made
