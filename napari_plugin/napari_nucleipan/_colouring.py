"""What colour each nucleus has: by a class, or by a number.

napari's cyclic colormap of ``N_COLOURS`` colours gives value v the colour ``(v - 1) % N_COLOURS + 1`` and leaves 0
transparent. So a nucleus is shown as ``id * N_COLOURS + colour`` with colours 1 .. N_COLOURS: neighbours of the same
colour still differ, and ``(v - 1) // N_COLOURS`` is the id. 254 is the most colours for which napari sends one byte
per pixel to the graphics card.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from napari.utils.colormaps import ensure_colormap

from nucleipan.classes import VOID_NAME, PanopticClasses

N_COLOURS = 254
#: The last colours are taken; the others are classes or steps of a scale.
SELECTED = N_COLOURS
MISSING = N_COLOURS - 1
N_STEPS = N_COLOURS - 2

SCALE = "viridis"
_ROBUST_PERCENT = (1.0, 99.0)
_SELECTED_RGB, _MISSING_RGB = (0, 255, 255), (128, 128, 128)
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Colouring:
    """Colours of all nuclei.

    Attributes:
        column: what they are coloured by.
        colour_of: uint8[n], colour of each id, 1 .. N_COLOURS; 0 for id 0.
        colors: float32[N_COLOURS + 1, 4], RGBA of each colour, transparent for 0.
        legend: names and sRGB of classes; empty for numbers.
        limits: numbers at the ends of the scale, beyond which the colour stays the same; None for classes.
    """

    column: str
    colour_of: np.ndarray
    colors: np.ndarray
    legend: tuple[tuple[str, Rgb], ...] = ()
    limits: tuple[float, float] | None = None


def by_class(column: str, class_ids: np.ndarray, exists: np.ndarray, classes: PanopticClasses) -> Colouring:
    """Colours of the classes of nuclei, uint8[n] by id ("class": things, else stuff).

    Void is grey, and so are classes beyond the 252nd. ``exists`` is bool[n], which ids are nuclei.
    """
    colour_of = np.where((class_ids > 0) & (class_ids <= min(N_STEPS, len(classes))), class_ids, MISSING)
    colour_of[0] = 0
    colors = _blank()
    n = min(N_STEPS, len(classes))
    colors[1 : n + 1, :3] = classes.colors[1 : n + 1] / np.float32(255)
    legend = tuple((c.name, c.color) for c in (classes.things if column == "class" else classes.stuff))
    if (class_ids[exists] == 0).any():
        legend += ((VOID_NAME, _MISSING_RGB),)
    return Colouring(column, colour_of.astype(np.uint8), colors, legend)


def by_number(column: str, values: np.ndarray) -> Colouring:
    """Colours of a scale for numbers [n]; its ends are their 1st and 99th percentile. No number is grey."""
    numbers = values.astype(np.float64)
    is_number = np.isfinite(numbers)
    is_number[0] = False
    low, high = np.percentile(numbers[is_number], _ROBUST_PERCENT).tolist() if is_number.any() else (0.0, 1.0)
    width = high - low if high > low else 1.0
    step = np.clip((np.where(is_number, numbers, low) - low) / width, 0, 1) * (N_STEPS - 1)
    colour_of = np.where(is_number, np.rint(step).astype(np.uint8) + 1, MISSING).astype(np.uint8)
    colour_of[0] = 0
    colors = _blank()
    colors[1 : N_STEPS + 1] = ensure_colormap(SCALE).map(np.linspace(0, 1, N_STEPS))
    return Colouring(column, colour_of, colors, limits=(low, high))


def _blank() -> np.ndarray:
    colors = np.zeros((N_COLOURS + 1, 4), np.float32)
    colors[1:, 3] = 1
    for colour, rgb in ((SELECTED, _SELECTED_RGB), (MISSING, _MISSING_RGB)):
        colors[colour, :3] = np.array(rgb) / 255
    return colors
