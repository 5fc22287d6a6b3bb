"""The fields of the correct widget: tools, class, author, and the list of edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QButtonGroup,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_nucleipan._form import combo, in_form, in_row
from nucleipan.classes import PanopticClass, PanopticClasses
from nucleipan.edits import SavedEdit

MERGE, SPLIT, DELETE, REDRAW, CLASS = "Merge", "Split", "Delete", "Redraw", "Class"


@dataclass(frozen=True)
class Tool:
    """``hint``: what to do with the mouse, for people."""

    name: str
    shortcut: str
    hint: str


TOOLS = (
    Tool(MERGE, "Alt+M", "Click the nuclei that are one and press Enter, or drag a line through them."),
    Tool(SPLIT, "Alt+S", "Drag a line across a nucleus, from one side to the other."),
    Tool(DELETE, "Alt+D", "Click what is no nucleus, or drag a line through several."),
    Tool(
        REDRAW, "Alt+R",
        "Drag around a nucleus to outline it anew, or around one that was missed, which gets the chosen class. "
        "Neighbours keep their pixels.",
    ),
    Tool(CLASS, "Alt+C", "Click a nucleus to give it the chosen class, or drag a line through several."),
)  # fmt: skip

_NUMBER = Qt.ItemDataRole.UserRole


class CorrectForm(QWidget):
    """The fields. ``tool_changed``: the name of the tool, empty for none; ``edit_chosen``: the number of an edit."""

    tool_changed = Signal(str)
    edit_chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._make_tools()
        self._make_list()
        self._lay_out()

    # Tools

    @property
    def tool(self) -> str:
        """Name of the tool that is on; empty for none."""
        button = self._group.checkedButton()
        return "" if button is None else button.text()

    def drop_tool(self) -> None:
        """No tool is on."""
        button = self._group.checkedButton()
        if button is not None:
            button.click()

    def set_ready(self, is_ready: bool) -> None:
        """Whether anything can be corrected now."""
        for field in (*self.tools.values(), self.classes, self.author):
            field.setEnabled(is_ready)
        self.undo.setEnabled(is_ready and self.edits.count() > 0)

    @property
    def class_id(self) -> int:
        """Of the class that is chosen."""
        return int(self.classes.currentData())

    def offer_classes(self, things: Sequence[PanopticClass]) -> None:
        """The kinds of nuclei to choose from; the one chosen before stays, if it is among them."""
        chosen = self.classes.currentText()
        self.classes.clear()
        for thing in things:
            swatch = QPixmap(12, 12)
            swatch.fill(QColor(*thing.color))
            self.classes.addItem(QIcon(swatch), thing.name, thing.id)
        self.classes.setCurrentIndex(max(0, self.classes.findText(chosen)))

    def _make_tools(self) -> None:
        self.store = QLabel()
        self.store.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.store.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.author = QLineEdit()
        self.author.setToolTip("Every edit says who made it.")
        self.classes = combo("What Class gives to a nucleus, and Redraw to one that was missed.")
        self.tools: dict[str, QPushButton] = {}
        self._group = QButtonGroup(self)
        self._group.setExclusive(False)
        for tool in TOOLS:
            button = QPushButton(tool.name)
            button.setCheckable(True)
            button.setShortcut(tool.shortcut)
            button.setToolTip(f"{tool.hint}\nHold Space to move the picture, press Escape when done. ({tool.shortcut})")
            button.toggled.connect(lambda is_on, name=tool.name: self._on_toggled(name, is_on))
            self._group.addButton(button)
            self.tools[tool.name] = button
        self.message = QLabel()
        self.message.setWordWrap(True)
        self.message.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.message.setMinimumHeight(4 * self.message.fontMetrics().lineSpacing())

    def _on_toggled(self, name: str, is_on: bool) -> None:
        """At most one tool is on; pressing it again puts it down."""
        for other, button in self.tools.items():
            if is_on and other != name and button.isChecked():
                button.blockSignals(True)
                button.setChecked(False)
                button.blockSignals(False)
        self.tool_changed.emit(name if is_on else "")

    # Edits

    def list_edits(self, saved: Sequence[SavedEdit], classes: PanopticClasses | None) -> None:
        """Edits in the order they were made; the last one is shown first."""
        self.edits.clear()
        for one in reversed(saved if classes is not None else ()):
            what, time = what_was_done(one, classes), one.time.astimezone()
            item = QListWidgetItem(f"{what}\n{one.author}, {time:%d %b %H:%M}")
            item.setData(_NUMBER, one.number)
            item.setToolTip(f"{what}\n{one.author}, {time:%Y-%m-%d %H:%M:%S %Z}\nDouble-click to go there.")
            self.edits.addItem(item)
        self.undo.setEnabled(self.edits.count() > 0)

    def _make_list(self) -> None:
        self.edits = QListWidget()
        self.edits.setSpacing(2)
        self.edits.setMinimumHeight(120)
        self.edits.itemDoubleClicked.connect(lambda item: self.edit_chosen.emit(item.data(_NUMBER)))
        self.undo = QPushButton("Undo")
        self.undo.setShortcut("Alt+Z")
        self.undo.setToolTip("Take back the last edit. (Alt+Z)")

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(in_form(("Store", self.store), ("Author", self.author)))
        column.addWidget(in_row(*self.tools.values(), is_even=True))
        column.addLayout(in_form(("Class", self.classes)))
        column.addWidget(self.message)
        column.addWidget(self.edits, stretch=1)
        column.addWidget(self.undo)


def what_was_done(saved: SavedEdit, classes: PanopticClasses) -> str:
    """One line for people."""
    edit = saved.edit
    before, after = (", ".join(str(i) for i in sorted(ids)) for ids in (edit.ids, edit.made))
    name = classes.by_id(next(iter(edit.classes.values()))).name if edit.classes else ""
    match edit.kind:
        case "merge" | "split":
            return f"{edit.kind} {before} → {after}"
        case "redraw":
            return f"redraw {before}" if edit.ids else f"add {after}, {name}"
        case "class":
            return f"class of {before} → {name}"
        case _:
            return f"{edit.kind} {before}"
