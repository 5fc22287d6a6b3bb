"""What napari calls to open files: our stores, and slides.

A reader returns data; what makes nuclei layers more than data (hover, clicks, recolouring) is added when they come
into a viewer, see ``_layers.watch``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari

from napari_nucleipan._layers import LayerData, slide_layers, store_layers, watch
from nucleipan.slide import is_slide
from nucleipan.store import is_own_store

Reader = Callable[[Any], list[LayerData]]


def get_store_reader(path: str | list[str]) -> Reader | None:
    """A reader for a store of ours; None for anything else, and for several paths."""
    return read_store if isinstance(path, str) and is_own_store(Path(path)) else None


def get_slide_reader(path: str | list[str]) -> Reader | None:
    """A reader for whatever ``nucleipan.slide.open_slide`` knows; None for stores of ours, and for several paths."""
    if not isinstance(path, str) or is_own_store(Path(path)):
        return None
    return slide_layers if is_slide(path) else None


def read_store(path: str) -> list[LayerData]:
    """Layers of a store, which will work in the viewer that is in front.

    Raises:
        StoreError: it cannot be read.
    """
    viewer = napari.current_viewer()
    if viewer is not None:
        watch(viewer.layers)
    return store_layers(path)
