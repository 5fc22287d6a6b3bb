"""Clicks and strokes on nuclei: a layer of a handful of shapes, which lies on top while something is corrected.

A drag draws a stroke instead of moving the picture; while Space is held it moves the picture, as in napari's own
tools. The layer shows the stroke, marks where nuclei were picked, and frames the fields that were checked; nuclei
themselves never become shapes. All positions are world positions: micrometres (y, x) from the slide's corner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Layer, Shapes
from qtpy.QtCore import QObject, Signal

if TYPE_CHECKING:
    import napari

LAYER_NAME = "corrections"
_CLICK_PX = 4
_STEP_PX = 2
_STROKE, _MARK, _FRAME = "#ffd400", "#00ffff", "#3ddc84"
_LINE_PX, _MARK_PX, _REDRAW_AT = 3.0, 6.0, 0.2


class Pencil(QObject):
    """Tells what was clicked (y, x) or drawn (float[n, 2]); Enter and Escape; that it was put aside by napari."""

    clicked = Signal(object)
    drawn = Signal(object)
    applied = Signal()
    cancelled = Signal()
    dropped = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._layer: Shapes | None = None
        self._is_on = self._is_moving = False
        self._stroke: list[np.ndarray] = []
        self._marks: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []
        self._drawn_zoom = 0.0
        viewer.layers.selection.events.active.connect(self._on_active)
        viewer.scene.camera.events.zoom.connect(self._on_zoom)

    @property
    def layer(self) -> Shapes | None:
        """The layer, while it is in the viewer."""
        return self._layer if self._layer is not None and self._layer in self._viewer.layers else None

    def take(self, below: Layer) -> None:
        """From now on the mouse picks and draws on ``below``, of which the status bar tells."""
        layer = self.layer or self._new_layer()
        layer.get_status = below.get_status  # type: ignore[method-assign]
        self._is_on = False  # what follows is not the user's choice of a layer
        self._viewer.layers.move(self._viewer.layers.index(layer), len(self._viewer.layers))
        layer.visible = True
        self._viewer.layers.selection.active = layer
        layer.mouse_pan = False
        self._is_on = True

    def put_down(self) -> None:
        """From now on the mouse moves the picture again."""
        self._is_on = False
        self.mark([])
        if self.layer is not None:
            self.layer.mouse_pan = True

    def mark(self, points: Sequence[np.ndarray]) -> None:
        """Mark positions (y, x)."""
        self._marks = list(points)
        self._draw()

    def frame(self, corners: Sequence[np.ndarray]) -> None:
        """Frame fields, each by its upper left and lower right corner, float[2, 2]."""
        self._frames = list(corners)
        if self._frames and self.layer is None:
            active = self._viewer.layers.selection.active
            self._new_layer()
            self._viewer.layers.selection.active = active
        self._draw()

    def put_away(self) -> None:
        """Put it down and take its layer out of the viewer; what was framed is framed again by the next ``frame``."""
        self.put_down()
        self._frames = []
        if self.layer is not None:
            self._viewer.layers.remove(self.layer)

    def _new_layer(self) -> Shapes:
        self._layer = self._viewer.add_shapes(
            name=LAYER_NAME, ndim=2, units=("um", "um"), axis_labels=("y", "x"), opacity=1.0
        )
        self._layer.editable = False
        self._layer.mouse_drag_callbacks.append(self._on_drag)
        self._layer.bind_key("Enter", lambda _: self.applied.emit(), overwrite=True)
        self._layer.bind_key("Escape", lambda _: self.cancelled.emit(), overwrite=True)
        self._layer.bind_key("Space", self._while_space, overwrite=True)
        return self._layer

    def _while_space(self, layer: Shapes) -> Iterator[None]:
        self._is_moving = layer.mouse_pan = True
        yield
        self._is_moving, layer.mouse_pan = False, not self._is_on

    def _on_active(self, event: Any = None) -> None:
        """Another layer was chosen, or this one was deleted."""
        if self._is_on and self._viewer.layers.selection.active is not self.layer:
            self.put_down()
            self.dropped.emit()

    def _on_drag(self, layer: Shapes, event: Any) -> Iterator[None]:
        if event.button != 1 or not self._is_on or self._is_moving:
            return
        start = last = np.array(event.pos)
        path, is_stroke = [np.array(event.position[-2:])], False
        yield
        while event.type == "mouse_move":
            at = np.array(event.pos)
            is_stroke = is_stroke or np.abs(at - start).max() > _CLICK_PX
            if np.abs(at - last).max() >= _STEP_PX:
                last = at
                path.append(np.array(event.position[-2:]))
            if is_stroke:
                self._stroke = path
                self._draw()
            yield
        self._stroke = []
        self._draw()
        if is_stroke:
            self.drawn.emit(np.array([*path, event.position[-2:]]))
        else:
            self.clicked.emit(path[0])

    def _on_zoom(self, event: Any = None) -> None:
        """Lines stay about as wide on the screen."""
        if abs(np.log(self._viewer.scene.camera.zoom / (self._drawn_zoom or 1))) > _REDRAW_AT:
            self._draw()

    def _draw(self) -> None:
        layer = self.layer
        if layer is None:
            return
        self._drawn_zoom = self._viewer.scene.camera.zoom
        px = 1 / self._drawn_zoom
        width = _LINE_PX * px
        layer.data = []
        for corners in self._frames:
            layer.add(corners, shape_type="rectangle", edge_color=_FRAME, face_color="transparent", edge_width=width)
        for point in self._marks:
            square = point + _MARK_PX * px * np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
            layer.add(square, shape_type="ellipse", edge_color=_MARK, face_color="transparent", edge_width=width)
        if len(self._stroke) > 1:
            layer.add(np.array(self._stroke), shape_type="path", edge_color=_STROKE, edge_width=width)
