"""The window that ``nucleipan view`` opens: a slide, its nuclei and classes, and the plugin's widgets docked."""

from __future__ import annotations

import gc
from pathlib import Path

import napari
from napari.utils.notifications import show_error, show_warning
from qtpy import QtWidgets  # where there is no Qt binding, this fails and napari does not

from napari_nucleipan._layers import LayerData, add_layers, slide_layers, store_layers
from nucleipan.errors import StoreError, reason
from nucleipan.store import PanopticStore, is_own_store
from nucleipan.store.origin import is_slide_of

PLUGIN = "nucleipan"
WIDGETS = ("Explore", "Segment", "Correct")


def view(slide: Path, store: Path | None = None) -> None:
    """Open the window and wait until it is closed.

    Raises:
        SlideError, StoreError: what was given cannot be read, or does not belong together.
    """
    open_window(slide, store)
    # What was loaded so far stays until the end. Looking through it for garbage, again and again, takes 0.2 s each
    # time: a jerk when the window is moved over the slide.
    gc.collect()
    gc.freeze()
    napari.run()


def open_window(slide: Path, store: Path | None = None) -> napari.Viewer:
    """A window of ``slide`` with ``store``, or with the store found beside it; ``slide`` may be a store itself.

    Raises:
        SlideError, StoreError: what was given cannot be read, or does not belong together.
    """
    data = _layers(slide, store)  # before there is a window that would have to be closed
    viewer = napari.Viewer(title=f"nucleipan - {slide.name}")
    add_layers(viewer, data)
    docks: list[QtWidgets.QDockWidget] = []
    for name in WIDGETS:
        try:
            docks.append(viewer.window.add_plugin_dock_widget(PLUGIN, name, tabify=bool(docks))[0])
        except RuntimeError as error:  # npe2's, of a widget that cannot be imported; the slide is shown all the same
            show_error(f"{name} cannot be opened: {reason(error)}")
    if docks:
        docks[0].raise_()
    return viewer


def _layers(slide: Path, store: Path | None) -> list[LayerData]:
    if store is not None:
        return store_layers(store, slide)
    if is_own_store(slide):
        return store_layers(slide)
    beside = _store_beside(slide)
    return slide_layers(slide) if beside is None else store_layers(beside, slide)


def _store_beside(slide: Path) -> Path | None:
    """The store that ``nucleipan segment`` would have written here, if it was made from this very slide."""
    slide = slide.absolute()
    path = slide.with_name(f"{slide.stem.removesuffix('.ome')}.ome.zarr")
    if path == slide or not is_own_store(path):
        return None
    try:
        return path if is_slide_of(PanopticStore.open(path), slide) else None
    except StoreError as error:  # nobody asked for it: the slide opens all the same
        show_warning(reason(error))
        return None
