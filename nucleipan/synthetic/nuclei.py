"""Nuclei of a synthetic scene: ellipses with dents, and how they are drawn over each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.geometry import Box

# By thing class: half axes in um (long, short), their relative spread, haematoxylin, chromatin contrast.
NUCLEI = (
    (5.2, 4.0, 0.25, 0.62, 0.45),
    (3.2, 2.9, 0.10, 1.05, 0.20),
    (6.0, 1.9, 0.20, 0.80, 0.20),
    (2.6, 2.0, 0.30, 1.25, 0.10),
    (4.3, 3.2, 0.12, 0.70, 0.25),
)
SPINDLE = 2  # connective nuclei: two that cross would cut each other in pieces


class Cells(NamedTuple):
    """Candidate nuclei, one per row.

    ``cell`` is the raster index of its cell, ``yx`` and ``axes`` (half, long and short) are in pixels, ``kind`` counts
    thing classes from 0, ``shape`` is what ``_elliptic_radius`` takes.
    """

    cell: np.ndarray
    yx: np.ndarray
    kind: np.ndarray
    axes: np.ndarray
    shape: np.ndarray


class Canvas(NamedTuple):
    """Planes of ``box`` while nuclei are drawn on it; ``chromatin`` is noise in 0..1."""

    box: Box
    instances: np.ndarray
    classes: np.ndarray
    haematoxylin: np.ndarray
    eosin: np.ndarray
    chromatin: np.ndarray


class WholeNucleus(NamedTuple):
    """A nucleus as if nothing lay over it: bool[h, w] over ``box``."""

    id: int
    box: Box
    mask: np.ndarray


def draw(cells: Cells, i: int, canvas: Canvas) -> None:
    """Draw nucleus ``i`` over what is on the canvas."""
    box = _around(cells, i).clipped(canvas.box)
    if box.is_empty:
        return
    window, radius = box.slices(canvas.box), _radius(cells, i, box)
    inside = radius < 1
    kind = int(cells.kind[i])
    _, _, _, stain, contrast = NUCLEI[kind]
    rim = 0.85 + 0.35 * np.clip((radius - 0.7) / 0.3, 0, 1)
    amount = stain * rim * (1 - contrast / 2 + contrast * canvas.chromatin[window] * 1.4)
    canvas.instances[window][inside] = cells.cell[i] + 1
    canvas.classes[window][inside] = DEFAULT_CLASSES.things[kind].id
    canvas.haematoxylin[window][inside] = amount[inside]
    canvas.eosin[window][inside] = 0.10


def whole(cells: Cells, i: int, scene: Box) -> WholeNucleus:
    """Nucleus ``i`` as far as it lies in ``scene``."""
    box = _around(cells, i).clipped(scene)
    return WholeNucleus(int(cells.cell[i]) + 1, box, _radius(cells, i, box) < 1)


def _around(cells: Cells, i: int) -> Box:
    cy, cx = cells.yx[i]
    reach = float(cells.axes[i].max()) * 1.25 + 1
    return Box(int(cy - reach), int(cx - reach), int(cy + reach) + 1, int(cx + reach) + 1)


def _radius(cells: Cells, i: int, box: Box) -> np.ndarray:
    """``_elliptic_radius`` at the centres of the pixels of ``box``."""
    cy, cx = cells.yx[i]
    dy, dx = np.arange(box.y0, box.y1)[:, None] + 0.5 - cy, np.arange(box.x0, box.x1)[None, :] + 0.5 - cx
    return _elliptic_radius(dy, dx, cells.axes[i], cells.shape[i])


def _elliptic_radius(dy: np.ndarray, dx: np.ndarray, axes: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Below 1 inside an ellipse whose outline is dented by its second and third harmonic."""
    turn, phase2, phase3, dent2, dent3 = shape
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = dy * np.cos(turn) - dx * np.sin(turn)
    u, v = along / axes[0], across / axes[1]
    angle = np.arctan2(v, u)
    return np.hypot(u, v) / (1 + dent2 * np.cos(2 * angle + phase2) + dent3 * np.cos(3 * angle + phase3))
