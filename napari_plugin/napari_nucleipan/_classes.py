"""A store's class map in napari: tissue and nuclei as areas, in the classes' colours."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np
from napari.utils.colormaps import CyclicLabelColormap

from napari_nucleipan._chunks import LazyLevel
from napari_nucleipan._levels import label_levels
from napari_nucleipan._nuclei import NucleiView
from nucleipan.classes import VOID_ID, VOID_NAME, PanopticClasses
from nucleipan.geometry import Box

if TYPE_CHECKING:
    from napari.layers import Labels

CLASSES_KEY = "nucleipan_classes"
"""Under this name a layer's metadata hold its ``ClassMap``."""


class ClassMap:
    """The class map that belongs to ``view``, with its edits, as a lazy multiscale label image."""

    def __init__(self, view: NucleiView) -> None:
        self._view = view
        self._layers: weakref.WeakSet[Labels] = weakref.WeakSet()
        self.levels = [LazyLevel(each) for each in label_levels(view.store, self._read, np.uint8(VOID_ID))]
        view.events.edited.connect(self._redraw)

    def attach(self, layer: Labels) -> None:
        """Redraw ``layer``, which shows ``levels``, whenever edits change something."""
        self._layers.add(layer)

    def _redraw(self) -> None:
        self.levels[0].forget()
        self.levels[-1].update()
        for layer in list(self._layers):
            layer.refresh(extent=False)

    def _read(self, box: Box, level: int) -> np.ndarray:
        return (self._view.edits or self._view.store).class_map(box, level)


def class_colormap(classes: PanopticClasses) -> CyclicLabelColormap:
    """Colours of class ids. A cycle as long as a byte is no cycle; DirectLabelColormap takes a second to prepare."""
    colors = np.zeros((256, 4), np.float32)
    n = len(classes) + 1
    colors[1:n] = np.c_[classes.colors[1:n], np.full(n - 1, 255)] / np.float32(255)
    return CyclicLabelColormap(colors=colors)


def class_names(classes: PanopticClasses) -> dict[str, list]:
    """What napari's status bar says of class ids: a layer's ``features``."""
    return {"index": [0, *(c.id for c in classes.classes)], "class": [VOID_NAME, *(c.name for c in classes.classes)]}
