"""The fields of the segment widget: what to segment, with which model, where to, on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari.layers import Layer
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QLabel, QLineEdit, QPushButton, QSpinBox, QWidget

from napari_nucleipan._field import draw_region, drawn_box, slide_path, visible_box
from napari_nucleipan._form import combo, in_form, in_row
from napari_nucleipan._segmenting import AUTO_MODEL, BACKENDS, DEVICES, Request, embedded_models, in_window
from nucleipan.errors import ConfigError, MissingPixelSizeError, RegionError, SlideError
from nucleipan.geometry import Box
from nucleipan.slide import open_slide
from nucleipan.tiles import DEFAULT_TILE

if TYPE_CHECKING:
    import napari

VISIBLE, DRAWN, WHOLE = "visible area", "drawn region", "whole slide"
_MPP_RANGE = (0.01, 100.0)


@dataclass(frozen=True)
class _SlideFacts:
    """What the file says: height and width at full resolution, micrometres per pixel if known."""

    shape: tuple[int, int]
    mpp: float | None


class SegmentForm(QWidget):
    """The fields. ``changed`` tells that another slide or folder was chosen."""

    changed = Signal()

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        self._slides: list[Layer] = []
        self._facts: dict[Path, _SlideFacts] = {}
        self._make_what()
        self._make_how()
        self._lay_out()
        for happened in (viewer.layers.events.inserted, viewer.layers.events.removed, viewer.layers.events.renamed):
            happened.connect(self.list_slides)
        self.list_slides()

    def request(self, overwrite: bool = False) -> Request:
        """What the fields ask for.

        Raises:
            NucleipanError: a field is wrong, or the area is not on the slide.
        """
        layer = self.layer
        path = None if layer is None else slide_path(layer)
        if layer is None or path is None:
            raise SlideError("no slide is open; open one with File > Open")
        facts, mpp = self._facts_of(path), self._mpp_given()
        if mpp is None and facts.mpp is None:
            raise MissingPixelSizeError(
                f"{path.name} does not say how large its pixels are; enter the micrometres per pixel in Pixel size"
            )
        shown = tuple(layer.data.shape[:2])
        if shown != facts.shape:
            raise RegionError(
                f"layer {layer.name!r} shows {shown[0]} x {shown[1]} pixels, but {path.name} holds {facts.shape[0]} x "
                f"{facts.shape[1]}; open the file again with nucleipan"
            )
        return Request(
            path,
            Path(self.out.text().strip() or path.parent).expanduser(),
            self.model.currentData(),
            mpp,
            self.device.currentText().strip(),
            self.backend.currentText(),
            self.tile.value(),
            self._roi(layer),
            overwrite,
        )

    @property
    def layer(self) -> Layer | None:
        """The chosen slide's layer; None while no slide is open."""
        index = self.slide.currentIndex()
        return self._slides[index] if 0 <= index < len(self._slides) else None

    def layer_of(self, path: Path) -> Layer | None:
        """The layer that shows a slide, if it is still open."""
        return next((a for a in self._slides if slide_path(a) == path), None)

    def add_weights(self, path: Path) -> None:
        """Offer a weights file as a model, and choose it."""
        if self.model.findData(str(path)) < 0:
            self.model.addItem(path.name, str(path))
        self.model.setCurrentIndex(self.model.findData(str(path)))

    def list_slides(self, event: object = None) -> None:
        """Offer the slides that are open now, the chosen one first of all."""
        chosen = self.layer
        self._slides = [a for a in self._viewer.layers if slide_path(a) is not None]
        self.slide.blockSignals(True)
        self.slide.clear()
        self.slide.addItems([a.name for a in self._slides])
        self.slide.setCurrentIndex(self._slides.index(chosen) if chosen in self._slides else len(self._slides) - 1)
        self.slide.blockSignals(False)
        if chosen is None or chosen != self.layer:
            self._show_slide()

    def _make_what(self) -> None:
        self.slide = combo("The image to segment: a slide, or a flat image that was opened from a file.")
        self.slide.setPlaceholderText("open a slide first")
        self.slide.currentIndexChanged.connect(self._show_slide)
        self.mpp = QLineEdit()
        self.mpp.setToolTip(
            "Micrometres per pixel at full resolution.\nLeave it empty to use what the slide says, if it does."
        )
        self.area = combo("What to segment. The visible area is what the canvas shows when you press Segment.")
        self.area.addItems([VISIBLE, DRAWN, WHOLE])
        self.draw_button = QPushButton("Draw")
        self.draw_button.setToolTip("Drag a rectangle on the slide; the one selected, else the last, is segmented.")
        self.draw_button.clicked.connect(self._draw)
        self.out = QLineEdit()
        self.out.setToolTip("Folder for the result, <name of the slide>.ome.zarr; empty: the folder of the slide.")
        self.out.textChanged.connect(self.changed)
        self.out_button = _browse_button("Choose a folder.", self._choose_out)

    def _make_how(self) -> None:
        self.model = combo(
            "“automatic” takes the model that fits the slide's pixel size. “nucleipan-open” may be used commercially,\n"
            "and finds nuclei without kinds, and no tissue."
        )
        self.model.addItem("automatic", AUTO_MODEL)
        for name in embedded_models():
            self.model.addItem(name, name)
        self.weights_button = _browse_button("Choose a weights file (.safetensors).", self._choose_weights)
        self.device = combo("Where the network runs. For one of several graphics cards type cuda:1, cuda:2, ...")
        self.device.addItems(DEVICES)
        self.device.setEditable(True)
        self.backend = combo(
            "“auto” is OpenVINO on a CPU, if it is installed, and torch otherwise.\n"
            "“openvino-int8” is faster, with nearly the same nuclei."
        )
        self.backend.addItems(BACKENDS)
        self.tile = QSpinBox()
        self.tile.setRange(256, 8192)
        self.tile.setSingleStep(256)
        self.tile.setValue(DEFAULT_TILE)
        self.tile.setSuffix(" px")
        self.tile.setToolTip(
            "Side of a tile, the step in which results appear.\nSmaller tiles need less memory, larger ones less time."
        )

    def _lay_out(self) -> None:
        form = in_form(
            ("Slide", self.slide),
            ("Area", in_row(self.area, self.draw_button)),
            ("Pixel size", in_row(self.mpp, QLabel("µm"))),
            ("Model", in_row(self.model, self.weights_button)),
            ("Output folder", in_row(self.out, self.out_button)),
            ("Device", self.device),
            ("Backend", self.backend),
            ("Tile", self.tile),
        )
        self.setLayout(form)

    def _show_slide(self) -> None:
        """What the chosen slide's file says, where it stands for what the user may leave out."""
        path = None if self.layer is None else slide_path(self.layer)
        self.draw_button.setEnabled(path is not None)
        self.out.setPlaceholderText("" if path is None else str(path.parent))
        hint = ""
        if path is not None:
            try:
                mpp = self._facts_of(path).mpp
                hint = "needed: the file does not say" if mpp is None else f"{mpp:.4g} (from the slide)"
            except SlideError as error:
                hint = in_window(error)  # said in full when Segment is pressed
        self.mpp.setPlaceholderText(hint)
        self.changed.emit()

    def _facts_of(self, path: Path) -> _SlideFacts:
        if path not in self._facts:
            with open_slide(path) as slide:
                self._facts[path] = _SlideFacts(slide.levels[0].shape, slide.mpp)
        return self._facts[path]

    def _mpp_given(self) -> float | None:
        text = self.mpp.text().strip().replace(",", ".")
        try:
            mpp = float(text) if text else None
        except ValueError:
            mpp = -1.0
        if mpp is not None and not _MPP_RANGE[0] <= mpp <= _MPP_RANGE[1]:
            raise ConfigError(f"pixel size {text!r}: expected micrometres per pixel from 0.01 to 100, such as 0.25")
        return mpp

    def _roi(self, layer: Layer) -> Box | None:
        area = self.area.currentText()
        if area == WHOLE:
            return None
        return visible_box(self._viewer, layer) if area == VISIBLE else drawn_box(self._viewer, layer)

    def _draw(self) -> None:
        layer = self.layer
        if layer is not None:
            self.area.setCurrentText(DRAWN)
            draw_region(self._viewer, layer)

    def _choose_weights(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Weights file", "", "Weights (*.safetensors)")
        if path:
            self.add_weights(Path(path))

    def _choose_out(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Output folder", self.out.text() or self.out.placeholderText())
        if folder:
            self.out.setText(folder)


def _browse_button(tooltip: str, clicked: Callable[[], None]) -> QPushButton:
    button = QPushButton("...")
    button.setToolTip(tooltip)
    button.setMaximumWidth(40)
    button.clicked.connect(clicked)
    return button
