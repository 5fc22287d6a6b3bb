"""The fields of the explore widget: classes with their numbers, filters, the table of nuclei."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from napari.viewer import Viewer
from qtpy.QtCore import QEvent, QObject, QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QFrame,
    QGridLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from napari_nucleipan._colour_bar import ColourBy, readable
from napari_nucleipan._filters import Tally
from napari_nucleipan._form import combo, in_form, in_row
from napari_nucleipan._range_filter import RangeFilter
from nucleipan.classes import PanopticClass

_NAME_WIDTH = 14
_SWATCH = 12
_TABLE_HEIGHT, _COLUMN_WIDTH = 200, 84
_DENSITY = "Nuclei per mm² of {}."
_HEADERS = (
    ("view", "Nuclei in the part of the slide that the canvas shows, and that lie within the filters' ranges."),
    ("/mm²", _DENSITY.format("what is visible of the segmented part of the slide, tissue or not")),
    ("slide", "All nuclei of the slide that lie within the filters' ranges."),
    ("/mm²", _DENSITY.format("the segmented part of the slide, tissue or not")),
)


class ClassGrid(QWidget):
    """A check box for each class, and how many of its nuclei there are. ``changed``: another set is checked."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.boxes: dict[int, QCheckBox] = {}
        self.numbers: dict[int | None, list[QLabel]] = {}
        """By class id: visible, per mm², slide, per mm²; None for all that are checked."""
        self._classes: tuple[PanopticClass, ...] = ()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(4)
        self._grid.setVerticalSpacing(3)
        self._grid.setColumnStretch(0, 1)

    @property
    def unchecked(self) -> set[int]:
        """Ids of the classes that are not checked."""
        return {k for k, box in self.boxes.items() if not box.isChecked()}

    def check_all(self) -> None:
        for box in self.boxes.values():
            box.blockSignals(True)
            box.setChecked(True)
            box.blockSignals(False)

    def offer(self, classes: tuple[PanopticClass, ...]) -> None:
        """A row for each class; those that were there before stay checked or not."""
        if classes == self._classes:
            return
        unchecked, self._classes = self.unchecked, classes
        while (item := self._grid.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()  # deleting waits for the event loop
                widget.deleteLater()
        self.boxes = {each.id: _class_box(each) for each in classes}
        self.numbers = {}
        for column, (text, tooltip) in enumerate(_HEADERS if classes else (), 1):
            header = _number()
            header.setText(text)
            header.setToolTip(tooltip)
            self._grid.addWidget(header, 0, column)
        for class_id, box in self.boxes.items():
            box.setChecked(class_id not in unchecked)
            box.toggled.connect(self.changed)
            self._add_row(class_id, box)
        if classes:
            label = QLabel("all checked")
            label.setToolTip("The sum of the classes that are checked.")
            self._add_row(None, label)

    def show_tallies(self, visible: Tally, slide: Tally) -> None:
        for class_id, labels in self.numbers.items():
            ids = [class_id] if class_id is not None else list(self.boxes.keys() - self.unchecked)
            for (n_label, density_label), tally in zip((labels[:2], labels[2:]), (visible, slide), strict=True):
                n = int(tally.n[ids].sum())
                n_label.setText(_short(n))
                n_label.setToolTip(f"{n:,} nuclei in {tally.mm2:.4g} mm²")
                density_label.setText(f"{n / tally.mm2:,.0f}" if tally.mm2 else "–")
                density_label.setToolTip(n_label.toolTip())

    def _add_row(self, class_id: int | None, first: QWidget) -> None:
        row = 1 + len(self.numbers)
        self.numbers[class_id] = [_number() for _ in _HEADERS]
        self._grid.addWidget(first, row, 0)
        for column, label in enumerate(self.numbers[class_id], 1):
            self._grid.addWidget(label, row, column)


class ExploreForm(QWidget):
    """The fields. ``filtered``: another class is checked, or another range chosen; ``removed``: it is as without."""

    filtered = Signal()
    filter_wanted = Signal(str)

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.hint = QLabel("Open a store of nuclei or segment a slide.")
        self.hint.setWordWrap(True)
        self.colour_by = ColourBy(viewer)
        self.classes = ClassGrid()
        self.filters: dict[str, RangeFilter] = {}
        self._make_filters()
        self._make_table()
        self._lay_out()
        self.classes.changed.connect(self.filtered)
        self.columns.activated.connect(lambda _: self.filter_wanted.emit(self.columns.currentData()))

    def offer_columns(self, names: Sequence[str]) -> None:
        """What can be filtered by, but for what is filtered by already."""
        self.columns.clear()
        for name in names:
            if name not in self.filters:
                self.columns.addItem(readable(name), name)
        self.columns.setCurrentIndex(-1)

    def add_filter(self, column: str) -> RangeFilter:
        made = self.filters[column] = RangeFilter(column)
        self._filter_list.addWidget(made)
        made.changed.connect(self.filtered)
        made.removed.connect(lambda: self.remove_filter(column))
        return made

    def remove_filter(self, column: str) -> None:
        gone = self.filters.pop(column)
        self._filter_list.removeWidget(gone)
        gone.hide()
        gone.deleteLater()
        self.filtered.emit()

    def _make_filters(self) -> None:
        self.columns = combo("Choose a measurement to see its histogram, and to show only nuclei within a range of it.")
        self.columns.setPlaceholderText("choose a measurement")
        self.reset = QPushButton("Reset")
        self.reset.setToolTip("Show all nuclei: check all classes and remove all filters.")
        self._filter_list = QVBoxLayout()
        self._filter_list.setContentsMargins(0, 0, 0, 0)
        self.shown = QLabel()
        self.shown.setToolTip("How many nuclei of the slide are of a checked class and within all ranges.")

    def _make_table(self) -> None:
        self.table = table = QTableView()
        table.setToolTip("The nuclei that are shown. Choose one to go there; click one on the slide to find it here.")
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        table.setWordWrap(False)
        table.horizontalHeader().setDefaultSectionSize(_COLUMN_WIDTH)
        table.setMinimumHeight(_TABLE_HEIGHT)
        rows = table.verticalHeader()
        rows.hide()
        rows.setSectionResizeMode(rows.ResizeMode.Fixed)  # or Qt asks for the height of every row
        rows.setDefaultSectionSize(table.fontMetrics().height() + 6)
        self.only_visible = QCheckBox("Only the visible area")
        self.only_visible.setToolTip("List only nuclei in the part of the slide that the canvas shows.")
        self.save = QPushButton("Save table as CSV...")
        self.save.setToolTip("Write the rows of the table, in their order and with all columns, to a file.")
        self.message = QLabel()
        self.message.setWordWrap(True)
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.message.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.message.hide()

    def _lay_out(self) -> None:
        self.body = QWidget()
        column = QVBoxLayout(self.body)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.colour_by)
        column.addSpacing(6)
        column.addWidget(self.classes)
        column.addSpacing(6)
        column.addLayout(in_form(("Filter by", in_row(self.columns, self.reset))))
        column.addLayout(self._filter_list)
        column.addWidget(self.shown)
        column.addWidget(self.table, stretch=1)
        column.addWidget(in_row(self.only_visible, self.save))
        column.addWidget(self.message)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.hint)
        layout.addWidget(_Scroll(self.body), stretch=1)


class _Scroll(QScrollArea):
    """Scrolls up and down, and is as wide as ``content`` needs to be."""

    def __init__(self, content: QWidget) -> None:
        super().__init__()
        self.setWidget(content)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    def minimumSizeHint(self) -> QSize:
        width = self.widget().minimumSizeHint().width() + self.verticalScrollBar().sizeHint().width()
        return QSize(width, super().minimumSizeHint().height())

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.LayoutRequest:  # the content has changed
            self.updateGeometry()
        return super().eventFilter(watched, event)


def _class_box(of: PanopticClass) -> QCheckBox:
    swatch = QPixmap(_SWATCH, _SWATCH)
    swatch.fill(QColor(*of.color))
    box = QCheckBox(textwrap.fill(of.name.replace("&", "&&"), _NAME_WIDTH, break_on_hyphens=False))
    box.setIcon(QIcon(swatch))
    box.setIconSize(swatch.size())
    box.setChecked(True)
    box.setToolTip(f"Show nuclei of the class {of.name}.")
    return box


def _number() -> QLabel:
    label = QLabel()
    label.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    return label


def _short(n: int) -> str:
    """In six characters at most."""
    if n < 100_000:
        return f"{n:,}"
    return f"{n / 1e3:.0f}k" if n < 999_500 else f"{n / 1e6:.2f}M"
