"""Pictures of a report and what is drawn over them, in pixels of each picture."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from nucleipan.classes import VOID_ID
from nucleipan.geometry import Box
from nucleipan.report.fields import Field, outlines
from nucleipan.report.frame import GLASS_NAME, Frame
from nucleipan.report.slides import field_pixels, overview_pixels
from nucleipan.slide import Slide

LOCATOR_PX = 320
_TINT = 0.6
_DARKEST = 60


@dataclass(frozen=True)
class Bar:
    """A scale bar: its length in pixels of the picture, and in words."""

    length_px: float
    text: str


@dataclass(frozen=True)
class Picture:
    """A picture, ready for a page.

    Attributes:
        source: data URI.
        height, width: in its own pixels.
        bar: its scale.
        marks: boxes to draw on it, (x, y, width, height) in its pixels.
    """

    source: str
    height: int
    width: int
    bar: Bar
    marks: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class FieldPicture:
    """A field with its outlines: an SVG path for each thing class, empty where it has no nucleus."""

    picture: Picture
    reason: str
    paths: tuple[str, ...]
    n_nuclei: int


@dataclass(frozen=True)
class Overviews:
    """The part that was segmented as it is and with its tissue; the whole slide where that is more."""

    plain: Picture
    tissue: Picture
    locator: Picture | None


def overviews(frame: Frame, slide: Slide | None, fields: list[Field]) -> Overviews:
    """Raises StoreError, SlideError: as ``overview_pixels``."""
    extent = frame.store.spec.extent
    pixels = overview_pixels(frame, slide, extent)
    boxes = [field.box for field in fields]
    plain = _picture(pixels, frame, extent, boxes)
    tissue = _picture(_tinted(pixels, frame), frame, extent)
    if frame.is_whole_slide():
        return Overviews(plain, tissue, None)
    whole = Box.of_shape(frame.store.shape)
    return Overviews(plain, tissue, _picture(overview_pixels(frame, None, whole, LOCATOR_PX), frame, whole, [extent]))


def field_picture(slide: Slide, frame: Frame, field: Field) -> FieldPicture:
    """Raises SlideError, StoreError: the slide or an outline is damaged there."""
    pixels, corner = field_pixels(slide, frame, field.box)
    paths, n = outlines(frame, field.box, corner)
    return FieldPicture(_picture(pixels, frame, field.box), field.reason, tuple(paths), n)


def data_uri(content: bytes, kind: str) -> str:
    """``content`` as a data URI of the MIME type ``kind``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _picture(pixels: np.ndarray, frame: Frame, box: Box, marked: list[Box] | None = None) -> Picture:
    """``pixels`` show ``box``, and those ``marked`` are drawn on it; boxes in pixels of the view."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=86, optimize=True)
    height, width = pixels.shape[:2]
    sy, sx = height / box.height, width / box.width
    marks = [((m.x0 - box.x0) * sx, (m.y0 - box.y0) * sy, m.width * sx, m.height * sy) for m in marked or ()]
    um_per_px = frame.store.mpp / sx
    return Picture(data_uri(out.getvalue(), "image/jpeg"), height, width, _bar(width, um_per_px), tuple(marks))


def _bar(width_px: int, um_per_px: float) -> Bar:
    """The longest of 1, 2, 5, 10, ... micrometres that spans at most a quarter of the picture."""
    quarter = width_px * um_per_px / 4
    power = 10.0 ** math.floor(math.log10(quarter))
    length_um = next(power * k for k in (5, 2, 1) if power * k <= quarter * (1 + 1e-9))
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    return Bar(length_um / um_per_px, text)


def _tinted(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """The picture of the segmented part in pale grey, its tissue in colour: pink tissue would tint the tints."""
    plane = _tissue_plane(frame, (pixels.shape[0], pixels.shape[1]))
    grey = _DARKEST + (1 - _DARKEST / 255) * np.asarray(Image.fromarray(pixels).convert("L"), np.float32)
    opacity = np.where(plane == VOID_ID, 0, _TINT).astype(np.float32)[..., None]
    return np.round((1 - opacity) * grey[..., None] + opacity * frame.store.classes.colors[plane]).astype(np.uint8)


def _tissue_plane(frame: Frame, shape: tuple[int, int]) -> np.ndarray:
    """uint8[shape], tissue ids of the segmented part, void for background; nuclei get the tissue next to them."""
    store, extent = frame.store, frame.store.spec.extent
    levels = [level for level in range(store.n_levels) if max(extent.shape) / 2**level >= max(shape)]
    level = levels[-1] if levels else 0
    whole = Box(0, 0, *store.array("classes", level).shape)
    box = extent.scaled(1 / 2**level).clipped(whole)
    plane = store.class_map(box, level)
    rows, cols = ((np.arange(n) + 0.5) * m // n for n, m in zip(shape, plane.shape, strict=True))
    plane = plane[rows.astype(np.int64)[:, None], cols.astype(np.int64)]
    is_nucleus = np.isin(plane, store.classes.thing_ids)
    if is_nucleus.any() and not is_nucleus.all():
        near = ndimage.distance_transform_edt(is_nucleus, return_distances=False, return_indices=True)
        plane = plane[tuple(near)]
    shown = np.zeros(256, np.uint8)
    for c in frame.tissues:
        shown[c.id] = VOID_ID if c.name == GLASS_NAME else c.id
    return shown[plane]
