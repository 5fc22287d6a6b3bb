"""Pictures of a segmentation: nuclei as outlines on the image, tissue as a pale tint.

An outline is the *inner* boundary of a nucleus, pixels of its own that face another id. So two touching nuclei show two
lines, the line never covers a neighbour, and where the image ends it stays open: the nucleus goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from PIL import Image, ImageDraw, ImageFont

from nucleipan.classes import PanopticClasses
from nucleipan.errors import DataError
from nucleipan.files import whole_file
from nucleipan.geometry import Box

if TYPE_CHECKING:
    from nucleipan.slide.view import SlideView
    from nucleipan.store import PanopticStore

_FONT_PX = 14
_ROW_PX = 22


def render_overlay(
    image: np.ndarray,
    instances: np.ndarray,
    nucleus_classes: np.ndarray,
    classes: PanopticClasses,
    *,
    thickness: int = 1,
    stuff: np.ndarray | None = None,
    stuff_alpha: float = 0.25,
) -> np.ndarray:
    """Draw nuclei, and tissue if given, on a copy of an image; uint8[h, w, 3].

    Outlines are pixels of the nucleus itself that face another id; at the image's end they stay open.

    Args:
        image: uint8[h, w, 3], sRGB.
        instances: integer [h, w], 0 = no nucleus.
        nucleus_classes: class id of every nucleus, either by id (``nucleus_classes[id]``) or as a plane [h, w].
        classes: gives the colours; class 0 is drawn black.
        thickness: of the outlines, in pixels inwards.
        stuff: uint8[h, w], tissue class ids; void and thing classes are not tinted.
        stuff_alpha: opacity of the tint, 0 to 1.

    Raises:
        DataError: shapes differ, an id has no class, or a number is out of range.
    """
    _check_planes(image, instances, stuff)
    if thickness < 1 or not 0 <= stuff_alpha <= 1:
        raise DataError(f"thickness must be >= 1 and stuff_alpha in 0..1; found {thickness} and {stuff_alpha}")
    overlay = image.copy()
    if stuff is not None:
        _tint(overlay, np.ascontiguousarray(stuff, np.uint8), _tints(classes, stuff_alpha))
    colors = classes.colors
    if nucleus_classes.ndim == 2:
        if nucleus_classes.shape != instances.shape:
            raise DataError(f"class plane {nucleus_classes.shape} and instances {instances.shape} differ in shape")
        _outline_by_plane(overlay, instances, np.ascontiguousarray(nucleus_classes, np.uint8), colors, thickness)
    else:
        largest = int(instances.max(initial=0))
        if largest >= len(nucleus_classes):
            raise DataError(f"nucleus {largest} has no entry in a class list of {len(nucleus_classes)}")
        _outline_by_id(overlay, instances, colors[nucleus_classes], thickness)
    return overlay


def legend(classes: PanopticClasses, present: Iterable[int] | None = None, *, width: int = 640) -> np.ndarray:
    """White strip uint8[h, width, 3] with a swatch and a name per class, things first.

    ``present`` limits it to these class ids.
    """
    wanted = set(range(len(classes) + 1)) if present is None else {int(i) for i in present}
    shown = [c for c in (*classes.things, *classes.stuff) if c.id in wanted]
    font = ImageFont.load_default(_FONT_PX)
    places, x, y = [], 8, 4
    for c in shown:
        entry_width = _ROW_PX + int(font.getlength(c.name)) + 16
        if x > 8 and x + entry_width > width:
            x, y = 8, y + _ROW_PX
        places.append((x, y))
        x += entry_width
    strip = Image.new("RGB", (width, y + _ROW_PX + 4), "white")
    draw = ImageDraw.Draw(strip)
    for c, (left, top) in zip(shown, places, strict=True):
        box = (left, top + 4, left + 14, top + 18)
        if c.is_thing:
            draw.rectangle(box, outline=c.color, width=3)
        else:
            draw.rectangle(box, fill=c.color, outline="gray")
        draw.text((left + _ROW_PX, top + _ROW_PX // 2), c.name, fill="black", font=font, anchor="lm")
    return np.asarray(strip)


def overlay_with_legend(
    image: np.ndarray,
    instances: np.ndarray,
    nucleus_classes: np.ndarray,
    classes: PanopticClasses,
    *,
    stuff: np.ndarray | None = None,
    thickness: int = 1,
) -> np.ndarray:
    """``render_overlay`` with the legend of the classes in the picture beneath it; uint8[h + strip, w, 3]."""
    overlay = render_overlay(image, instances, nucleus_classes, classes, thickness=thickness, stuff=stuff)
    if nucleus_classes.ndim == 2:
        present = set(np.unique(nucleus_classes[instances > 0]).tolist())
    else:
        present = set(np.unique(nucleus_classes[np.unique(instances[instances > 0])]).tolist())
    if stuff is not None:
        present |= set(np.unique(stuff).tolist()) & set(classes.stuff_ids.tolist())
    return np.concatenate([overlay, legend(classes, present, width=image.shape[1])])


def overlay_of_store(
    store: PanopticStore, view: SlideView, box: Box | None = None, *, thickness: int = 1
) -> np.ndarray:
    """Picture with legend of a part of a slide, uint8[h + strip, w, 3], sRGB.

    Args:
        store: made from the slide of ``view``.
        view: the slide at the store's pixel size, ``at_mpp(slide, store.mpp)``.
        box: part to draw, in pixels of the view; all of it by default, which then must fit into memory.
        thickness: of the outlines, in pixels inwards.

    Raises:
        DataError: the store was not made in this view's grid.
        RegionError: the box leaves the view.
    """
    if store.shape != view.shape:
        raise DataError(
            f"the store's grid {store.shape} is not the view's {view.shape}; view the slide at {store.mpp} mpp"
        )
    box = Box.of_shape(view.shape) if box is None else box
    plane = store.class_map(box)
    return overlay_with_legend(
        view.read(box), store.instances(box), plane, store.classes, stuff=plane, thickness=thickness
    )


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write uint8[h, w, 3] as PNG or JPEG, by the suffix of ``path``, in one atomic step.

    Raises:
        DataError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        Image.fromarray(picture).save(temporary)


def _check_planes(image: np.ndarray, instances: np.ndarray, stuff: np.ndarray | None) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(f"an overlay needs a uint8 image [h, w, 3]; found {image.dtype} {image.shape}")
    if image.shape[:2] != instances.shape or (stuff is not None and stuff.shape != instances.shape):
        found = f"instances {instances.shape}" + ("" if stuff is None else f", stuff {stuff.shape}")
        raise DataError(f"planes must have the image's shape {image.shape[:2]}; found {found}")
    if instances.dtype.kind not in "iu":
        raise DataError(f"instances must be integer ids; found {instances.dtype}")


def _tints(classes: PanopticClasses, alpha: float) -> np.ndarray:
    """uint8[256, 3, 256]: what a tissue class makes of every value of every channel."""
    values = np.arange(256, dtype=np.float64)
    blend = np.broadcast_to(values, (256, 3, 256)).copy()
    for c in classes.stuff:
        blend[c.id] = (1 - alpha) * values + alpha * np.array(c.color, np.float64)[:, None]
    return np.round(blend).astype(np.uint8)


@njit(cache=True, nogil=True)
def _tint(overlay, stuff, tints):
    height, width = stuff.shape
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                overlay[y, x, channel] = tints[stuff[y, x], channel, overlay[y, x, channel]]


@njit(cache=True, nogil=True)
def _is_boundary(instances, y, x, thickness):
    """Whether another id lies within ``thickness`` pixels up, down, left or right, inside the image."""
    height, width = instances.shape
    own = instances[y, x]
    for step in range(1, thickness + 1):
        if y >= step and instances[y - step, x] != own:
            return True
        if y + step < height and instances[y + step, x] != own:
            return True
        if x >= step and instances[y, x - step] != own:
            return True
        if x + step < width and instances[y, x + step] != own:
            return True
    return False


@njit(cache=True, nogil=True)
def _outline_by_id(overlay, instances, color_of_id, thickness):
    height, width = instances.shape
    for y in range(height):
        for x in range(width):
            nucleus = instances[y, x]
            if nucleus > 0 and _is_boundary(instances, y, x, thickness):
                for channel in range(3):
                    overlay[y, x, channel] = color_of_id[nucleus, channel]


@njit(cache=True, nogil=True)
def _outline_by_plane(overlay, instances, plane, colors, thickness):
    height, width = instances.shape
    for y in range(height):
        for x in range(width):
            if instances[y, x] > 0 and _is_boundary(instances, y, x, thickness):
                for channel in range(3):
                    overlay[y, x, channel] = colors[plane[y, x], channel]
