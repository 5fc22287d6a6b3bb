"""Which part of which slide the user means: layers of slides, the visible field, a drawn rectangle.

Boxes are in pixels of the slide's full resolution, whatever units, scale or other layers the viewer has. napari's
pixel (0, 0) spans -0.5 to 0.5; half a pixel is added wherever its coordinates become ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pint
from napari.layers import Image, Layer, Shapes

from napari_nucleipan._layers import SLIDE_KEY
from nucleipan.errors import RegionError
from nucleipan.geometry import Box
from nucleipan.store import is_own_store

if TYPE_CHECKING:
    import napari

REGION_NAME = "region to segment"
_IS_REGION = "nucleipan_region"
_EDGE_PX = 3
# Shapes are float32, in any unit.
_HAIR_PX = 0.02


def slide_path(layer: Layer) -> Path | None:
    """The file or folder of the slide that an image layer shows, None if it is no slide or comes from no file."""
    if not isinstance(layer, Image) or layer.ndim != 2:
        return None
    path = layer.metadata.get(SLIDE_KEY) or layer.source.path
    return None if path is None or is_own_store(Path(path)) else Path(path)


def visible_box(viewer: napari.viewer.Viewer, layer: Layer) -> Box:
    """The part of the slide on ``layer`` that the canvas shows now.

    Raises:
        RegionError: the slide is not in view, or not seen flat from above.
    """
    dims = viewer.dims
    if tuple(dims.displayed) != (dims.ndim - 2, dims.ndim - 1):
        raise RegionError("the visible area is known in the plain 2D view only; switch to it")
    camera = viewer.scene.camera
    half = np.asarray(viewer.canvas.viewbox_size(viewer.layers)) / (2 * camera.zoom)
    corners = np.asarray(camera.center)[-2:] + half * [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    return _box_on(
        layer, corners * _ratio(viewer.layers.extent.units, layer.units), "the slide is not in view; move it there"
    )


def drawn_box(viewer: napari.viewer.Viewer, layer: Layer) -> Box:
    """The part of the slide on ``layer`` within the bounds of the selected, else the last, shape.

    The active Shapes layer is looked at, else the topmost that holds a shape.

    Raises:
        RegionError: nothing is drawn, or not on the slide.
    """
    active = viewer.layers.selection.active
    drawn = [a for a in (active, *reversed(viewer.layers)) if isinstance(a, Shapes) and len(a.data)]
    if not drawn:
        raise RegionError("no region is drawn yet; press Draw and drag a rectangle on the slide")
    shapes = drawn[0]
    chosen = sorted(shapes.selected_data) or [len(shapes.data) - 1]
    points = np.concatenate([np.asarray(shapes.data[i]) for i in chosen])
    corners = np.array([shapes.data_to_world(p) for p in points])[:, -2:]
    corners = corners * _ratio(shapes.units, layer.units)
    return _box_on(layer, corners, "the drawn region lies outside the slide; draw it on the slide")


def draw_region(viewer: napari.viewer.Viewer, layer: Layer) -> Shapes:
    """The layer for regions, made if need be, ready for a rectangle to be dragged."""
    shapes = next((a for a in viewer.layers if a.metadata.get(_IS_REGION)), None)
    if shapes is None:
        shapes = viewer.add_shapes(
            name=REGION_NAME,
            ndim=2,
            scale=layer.scale,
            translate=layer.translate,
            units=layer.units,
            edge_color="#ffd400",
            face_color="#ffd40018",
            edge_width=_EDGE_PX / (viewer.scene.camera.zoom * float(layer.scale[-1])),
            metadata={_IS_REGION: True},
        )
    viewer.layers.selection.active = shapes
    shapes.mode = "add_rectangle"
    return shapes


def use_pixel_size(viewer: napari.viewer.Viewer, layer: Layer, mpp: float) -> None:
    """Put the slide on ``layer`` where its store will be: into micrometres from the slide's corner.

    What is seen stays where it is. A viewer of plain pixels becomes one of micrometres with all its layers; where the
    slide had another pixel size than is used now, or another place, it moves alone, with the regions drawn on it.
    """
    um = pint.get_application_registry().Unit("um")
    old = tuple(layer.units)
    factor = mpp / np.asarray(layer.scale)[-2:]
    shift = -np.asarray(layer.data_to_world((-0.5, -0.5)))[-2:] * factor
    if old == (um, um) and np.allclose(factor, 1, rtol=1e-6) and np.allclose(shift, 0, atol=1e-6 * mpp):
        return
    is_plain = all(str(unit) in ("pixel", "dimensionless") for unit in old)
    for other in viewer.layers:
        moves = is_plain or other == layer or other.metadata.get(_IS_REGION)
        if moves and other.ndim == 2 and tuple(other.units) == old:
            other.scale, other.translate = other.scale * factor, other.translate * factor + shift
            other.units = (um, um)
    camera = viewer.scene.camera
    *depth, y, x = camera.center
    camera.center = (*depth, *(np.array([y, x]) * factor + shift))
    camera.zoom = camera.zoom / float(factor[-1])


def _box_on(layer: Layer, corners: np.ndarray, otherwise: str) -> Box:
    """The pixels of ``layer`` within ``corners``, float[n, 2] in its own units.

    Raises:
        RegionError: there are none; the message is ``otherwise``.
    """
    points = np.array([layer.world_to_data(c) for c in corners]) + 0.5
    (y0, x0), (y1, x1) = np.floor(points.min(0) + _HAIR_PX), np.ceil(points.max(0) - _HAIR_PX)
    height, width = layer.data.shape[:2]
    box = Box(int(y0), int(x0), int(y1), int(x1)).clipped(Box(0, 0, height, width))
    if box.is_empty:
        raise RegionError(otherwise)
    return box


def _ratio(source: Any, target: Any) -> np.ndarray | float:
    """What one unit of ``source`` is in units of ``target``, by axis; 1 where they cannot be compared."""
    if source is None:
        return 1.0
    try:
        return np.array([(1 * a).to(b).magnitude for a, b in zip(source[-2:], target[-2:], strict=True)])
    except pint.DimensionalityError:
        return 1.0
