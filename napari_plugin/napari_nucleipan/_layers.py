"""Slides and stores as napari layers, all in one world: micrometres (y, x) from the slide's corner.

napari puts a pixel's centre at its index. The corner is the one point that a slide, its coarser levels and a store of
another pixel size share, so every layer is moved by half of its own pixel: then a nucleus and its image coincide at
every pixel size, and the table's coordinates are world coordinates but for a factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Labels, Layer
from napari.utils.notifications import Notification, notification_manager, show_error, show_warning

from napari_nucleipan._chunks import LazyLevel
from napari_nucleipan._classes import CLASSES_KEY, ClassMap, class_colormap, class_names
from napari_nucleipan._levels import slide_levels
from napari_nucleipan._nuclei import KEY, NucleiView
from napari_nucleipan._slide_of_store import FoundSlide, find_slide
from nucleipan.edits import EditLog
from nucleipan.errors import NucleipanError, StoreError, reason
from nucleipan.slide import Slide, open_slide
from nucleipan.store import PanopticStore
from nucleipan.store.origin import open_slide_of

if TYPE_CHECKING:
    from napari.components import LayerList, ViewerModel

LayerData = tuple[Any, dict[str, Any], str]

SLIDE_KEY = "nucleipan_slide"
"""Under this name the metadata of a layer whose pixels are a slide's hold the slide's path."""

STORE_KEY = "nucleipan_store"
"""Under this name the metadata of a layer whose pixels are a store's (nuclei, classes, overview) hold the store's
absolute path."""

OVERVIEW_KEY = "nucleipan_overview"
"""Under this name an overview's metadata hold an ``Overview``."""

_CLASSES_OPACITY = 0.4


def slide_layers(path: Path | str) -> list[LayerData]:
    """One image layer of a slide.

    Raises:
        SlideError: it cannot be read.
    """
    slide = open_slide(path)
    if slide.mpp is None:
        show_warning(f"{Path(path).name} carries no pixel size: it is shown in pixels, not in micrometres")
    return [_image(slide, Path(path).name, slide.mpp, {SLIDE_KEY: Path(path)})]


def store_layers(path: Path | str, slide_path: Path | str | None = None) -> list[LayerData]:
    """The slide or the store's overview, the classes and the nuclei of a store.

    Raises:
        StoreError: it is no finished store.
        SlideError: the slide given is not the store's, or cannot be read.
    """
    store = PanopticStore.open(path)
    found = find_slide(store, None if slide_path is None else Path(slide_path))
    view = NucleiView(store, _saved_edits(store))
    return [_below(store, found), _classes(view), _nuclei(view)]


def open_store(viewer: ViewerModel, path: Path | str, slide_path: Path | str | None = None) -> list[Layer]:
    """Add ``store_layers`` to a viewer; ask for the slide if it is not there."""
    return add_layers(viewer, store_layers(path, slide_path))


def open_slide_in(viewer: ViewerModel, path: Path | str) -> list[Layer]:
    """Add ``slide_layers`` to a viewer."""
    return add_layers(viewer, slide_layers(path))


def watch(layers: LayerList) -> None:
    """``adopt`` every layer of ours that comes into a viewer's layers from now on; calling it again does no harm."""
    layers.events.inserted.connect(_on_inserted)
    layers.events.removed.connect(_on_removed)


def adopt(layers: LayerList, layer: Layer) -> None:
    """Make a layer of ours work in its viewer: hover, clicks, recolouring; the question for a missing slide.

    Layers that a reader made come without all this, because a reader returns data. Calling it again does no harm.
    """
    view = layer.metadata.get(KEY)
    if isinstance(view, NucleiView) and isinstance(layer, Labels):
        view.attach(layer)
    classes = layer.metadata.get(CLASSES_KEY)
    if isinstance(classes, ClassMap) and isinstance(layer, Labels):
        classes.attach(layer)
    overview = layer.metadata.get(OVERVIEW_KEY)
    if isinstance(overview, Overview) and not overview.was_asked:
        overview.was_asked = True
        _ask_for_slide(layers, layer, overview)


def show_slide_instead(layers: LayerList, overview_layer: Layer, path: Path | str) -> Layer:
    """Put the store's slide, found at last, in the place of its overview.

    Raises:
        SlideError: it cannot be read, or is not the slide that the store was made from.
    """
    store = overview_layer.metadata[OVERVIEW_KEY].store
    found = FoundSlide(open_slide_of(store, Path(path)), False, "")
    layer = Layer.create(*_below(store, found))
    place = layers.index(overview_layer)
    del layers[place]
    layers.insert(place, layer)
    return layer


@dataclass
class Overview:
    """What an overview's metadata hold: whose it is, why the slide is not shown, and whether the user was told."""

    store: PanopticStore
    note: str
    was_asked: bool = False


def _on_inserted(event: Any) -> None:
    adopt(event.source, event.value)


def _on_removed(event: Any) -> None:
    """Free the pixels now: napari holds on to layers that were removed."""
    layer = event.value
    for level in layer.data if layer.metadata.keys() & {SLIDE_KEY, STORE_KEY} else ():
        if isinstance(level, LazyLevel):
            level.forget()


def add_layers(viewer: ViewerModel, data: list[LayerData]) -> list[Layer]:
    """Add layers to a viewer and make the last one active."""
    watch(viewer.layers)
    added = [viewer.add_layer(Layer.create(*each)) for each in data]
    viewer.layers.selection.active = added[-1]
    return added


def placed(mpp: float) -> dict[str, Any]:
    """Scale and place of a layer whose pixels are ``mpp`` micrometres wide and begin at the slide's corner."""
    return {"scale": (mpp, mpp), "translate": (mpp / 2, mpp / 2), "units": ("um", "um"), "axis_labels": ("y", "x")}


def stem_of(store: PanopticStore) -> str:
    """A store's name without its suffixes."""
    return store.path.name.removesuffix(".zarr").removesuffix(".ome")


def _ask_for_slide(layers: LayerList, layer: Layer, overview: Overview) -> None:
    """A notification with a button, not a dialog: whoever wants the nuclei only is not stopped."""

    def choose(*_event: Any) -> None:
        from qtpy.QtWidgets import QFileDialog

        folder = str(overview.store.path.absolute().parent)
        path, _ = QFileDialog.getOpenFileName(None, f"Find {overview.store.slide.get('name', 'the slide')}", folder)
        if path:
            try:
                show_slide_instead(layers, layer, path)
            except (NucleipanError, OSError, ValueError) as error:
                show_error(reason(error))

    message = f"{overview.note}. Its low-resolution overview is shown instead."
    notification_manager.dispatch(Notification(message, "warning", actions=[("Find slide...", choose)]))


def _below(store: PanopticStore, found: FoundSlide) -> LayerData:
    """The slide's image, or the store's, in the world of the store."""
    path = found.slide.path
    if found.is_overview:
        metadata = {STORE_KEY: path.absolute(), OVERVIEW_KEY: Overview(store, found.note)}
        return _image(found.slide, f"{stem_of(store)} overview", found.slide.mpp, metadata)
    metadata = {STORE_KEY: path.absolute()} if path == store.path else {SLIDE_KEY: path}
    # The store's pixel size counts, not the slide's own: the user may have known better.
    return _image(found.slide, path.name, store.mpp / store.level0_per_pixel, metadata)


def _image(slide: Slide, name: str, mpp: float | None, metadata: dict[str, Any]) -> LayerData:
    more = {"name": name, "rgb": True, "multiscale": True, "interpolation2d": "linear", "metadata": metadata}
    place = {"scale": (1, 1), "translate": (0.5, 0.5)} if mpp is None else placed(mpp)
    return slide_levels(slide), more | place, "image"


def _classes(view: NucleiView) -> LayerData:
    """Tissue and nuclei as areas; hidden at first, since it covers the slide."""
    shown = ClassMap(view)
    more = {
        "name": f"{stem_of(view.store)} classes",
        "multiscale": True,
        "colormap": class_colormap(view.store.classes),
        "features": class_names(view.store.classes),
        "opacity": _CLASSES_OPACITY,
        "visible": False,
        "metadata": {STORE_KEY: view.store.path.absolute(), CLASSES_KEY: shown},
    }
    return shown.levels, more | placed(view.store.mpp), "labels"


def _nuclei(view: NucleiView) -> LayerData:
    more = {
        "name": f"{stem_of(view.store)} nuclei",
        "multiscale": True,
        "colormap": view.colormap,
        "opacity": 1.0,  # outlines
        "metadata": {STORE_KEY: view.store.path.absolute(), KEY: view},
    }
    return view.levels, more | placed(view.store.mpp), "labels"


def _saved_edits(store: PanopticStore) -> EditLog | None:
    """What somebody has corrected; where that cannot be read, the user is told and sees the original."""
    try:
        log = EditLog.open(store)
    except StoreError as error:
        show_warning(f"{reason(error)}; the nuclei are shown as they were before any correction")
        return None
    return log if log.edits else None
