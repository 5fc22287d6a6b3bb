"""A store's nuclei in napari: a million of them, recoloured by exchanging one array.

napari draws label images fast and polygons slowly, so nuclei stay the label image that they are in the store. What it
is given is not the ids themselves but, pixel by pixel on the way to the screen, ``value_of[id]``, a number that holds
the id and the colour (see ``_colouring``). To colour by another column, or to hide what a filter rejects, only
``value_of`` changes; pixels that were read stay read.

All positions are world positions: micrometres (y, x) from the slide's corner.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.colormaps import CyclicLabelColormap
from psygnal import Signal, SignalGroup

from napari_nucleipan._chunks import LazyLevel
from napari_nucleipan._colouring import N_COLOURS, SELECTED, Colouring, by_class, by_number
from napari_nucleipan._hover import Hover
from napari_nucleipan._levels import label_levels
from napari_nucleipan._table import NucleiTable
from nucleipan.edits import EditLog
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari.components import ViewerModel
    from napari.layers import Labels

KEY = "nucleipan"
"""Under this name a layer's metadata hold its ``NucleiView``."""

_NONE = np.uint32(0)
_CLICK_PX = 4
_CONTOUR_UM = 0.5
_MAX_UINT32_IDS = 2**32 // N_COLOURS - 2


class NucleiEvents(SignalGroup):
    """``changed``: colours, the visible set or, after ``edited``, the nuclei themselves; ``selected``: an id or 0."""

    changed = Signal()
    edited = Signal()
    selected = Signal(int)


class NucleiView:
    """One store's nuclei as a lazy multiscale label image.

    Args:
        store: where they come from.
        edits: what is shown in place of the store's own nuclei.

    Raises:
        StoreError: the table's ids are not 1, 2, 3, ...
    """

    def __init__(self, store: PanopticStore, edits: EditLog | None = None) -> None:
        self.store, self.table = store, NucleiTable(store, edits)
        self.events = NucleiEvents()
        self.selected = 0
        self._mask: np.ndarray | None = None
        self._layers: weakref.WeakSet[Labels] = weakref.WeakSet()
        # Edits add to the ids, but never so many.
        self.dtype = np.dtype(np.uint32 if store.n_nuclei < _MAX_UINT32_IDS // 2 else np.uint64)
        self._colouring = self._coloured_by("class")
        self._value_of = self._values()
        self.levels = [LazyLevel(each, self._shown, self.dtype) for each in label_levels(store, self._read, _NONE)]
        self.colormap = CyclicLabelColormap(colors=self._colouring.colors, name=KEY)

    @property
    def edits(self) -> EditLog | None:
        """What is shown in place of the store's own nuclei, once ``reload`` was called."""
        return self.table.edits

    @edits.setter
    def edits(self, edits: EditLog | None) -> None:
        self.table.edits = edits

    # What is shown

    @property
    def colouring(self) -> Colouring:
        """By what the nuclei are coloured, with legend or limits."""
        return self._colouring

    @property
    def colour_columns(self) -> tuple[str, ...]:
        """What nuclei can be coloured by."""
        return ("class", "tissue", *self.numeric_columns)

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        """Columns that hold measurements."""
        return self.table.numeric_columns

    def colour_by(self, column: str) -> None:
        """Colour by "class", "tissue" or a numeric column.

        Raises:
            StoreError: there is no such column, or it holds no numbers.
        """
        self._colouring = self._coloured_by(column)
        self._redraw()

    def show(self, mask: np.ndarray | None) -> None:
        """Show only nuclei whose entry in ``mask``, bool[n_ids] by id, is true; None shows all."""
        if mask is not None and (mask.dtype != bool or mask.shape != (self.n_ids,)):
            raise ValueError(f"mask is {mask.dtype} {mask.shape}; expected bool ({self.n_ids},), one entry per id")
        self._mask = mask
        self._redraw()

    @property
    def is_shown(self) -> np.ndarray:
        """bool[n_ids], which nuclei are shown; never id 0."""
        return self.exists if self._mask is None else self.exists & self._mask

    def select(self, nucleus: int) -> None:
        """Highlight one nucleus; 0 for none."""
        if nucleus != self.selected:
            self.selected = nucleus
            self._redraw()
        self.events.selected.emit(nucleus)

    def reload(self) -> None:
        """Forget pixels and columns: edits have changed them."""
        self.levels[0].forget()
        self.table.forget()
        if self._mask is not None:
            # Nuclei that are new are shown until a filter says otherwise.
            shown = np.ones(self.n_ids, bool)
            shown[: len(self._mask)] = self._mask[: self.n_ids]
            self._mask = shown
        self._colouring = self._coloured_by(self._colouring.column)
        self.events.edited.emit()
        self._redraw()

    # What is known of them

    @property
    def n_ids(self) -> int:
        """Length of columns: the largest id, and one for id 0."""
        return self.table.n_ids

    @property
    def exists(self) -> np.ndarray:
        """bool[n_ids], which ids are nuclei: not 0, and not those that edits have removed."""
        return self.table.exists

    @property
    def level0_mpp(self) -> float:
        """Micrometres per level-0 pixel of the slide: the table's coordinates times this are world coordinates."""
        return self.store.mpp / self.store.level0_per_pixel

    def column(self, name: str) -> np.ndarray:
        """As ``NucleiTable.column``: values by id."""
        return self.table.column(name)

    def row(self, nucleus: int) -> dict[str, Any] | None:
        """As ``NucleiTable.row``."""
        return self.table.row(nucleus)

    def centroid(self, nucleus: int) -> tuple[float, float]:
        """World position of a nucleus.

        Raises:
            StoreError: there is none with this id.
        """
        if not 0 < nucleus < self.n_ids:
            raise StoreError(f"{self.store.path}: has no nucleus {nucleus}; ids are 1 to {self.n_ids - 1}")
        y, x = (float(self.column(f"centroid_{axis}")[nucleus]) * self.level0_mpp for axis in "yx")
        return y, x

    def id_at(self, position: tuple[float, ...] | np.ndarray) -> int:
        """The shown nucleus at a world position; 0 where there is none."""
        y, x = (int(np.floor(p / self.store.mpp)) for p in position[-2:])
        if not (0 <= y < self.store.shape[0] and 0 <= x < self.store.shape[1]):
            return 0
        return self.id_of(self.levels[0][y, x].item())

    @staticmethod
    def id_of(value: int) -> int:
        """The nucleus behind a displayed value."""
        return (int(value) - 1) // N_COLOURS if value else 0

    # Layers

    def attach(self, layer: Labels) -> None:
        """Make ``layer``, which shows ``levels``, ours: outlines, recolouring, what the pointer is on, clicks.

        Does nothing if it is attached.
        """
        if layer in self._layers:
            return
        self._layers.add(layer)
        outline(layer, self.store.mpp)
        Hover(self, layer).install()
        layer.mouse_drag_callbacks.append(self._on_press)

    def _on_press(self, layer: Labels, event: Any) -> Iterator[None]:
        """A click selects; a drag, which pans, does not."""
        if event.button != 1 or str(layer.mode) != "pan_zoom":
            return
        start = np.array(event.pos)
        yield
        while event.type == "mouse_move":
            if np.abs(np.array(event.pos) - start).max() > _CLICK_PX:
                return
            yield
        self.select(self.id_at(event.position))

    def _redraw(self) -> None:
        self._value_of = self._values()
        self.levels[-1].update()
        is_other = not np.array_equal(self.colormap.colors, self._colouring.colors)
        if is_other:
            self.colormap = CyclicLabelColormap(colors=self._colouring.colors, name=KEY)
        for layer in list(self._layers):
            if is_other:
                layer.colormap = self.colormap
            else:
                layer.refresh(extent=False)
        self.events.changed.emit()

    def _values(self) -> np.ndarray:
        """[n_ids + 1], the displayed value of each id, 0 for hidden ones, and for all that is no id."""
        colour_of = self._colouring.colour_of
        values = np.zeros(len(colour_of) + 1, self.dtype)
        values[:-1] = np.arange(len(colour_of), dtype=self.dtype) * self.dtype.type(N_COLOURS)
        values[:-1] += colour_of
        values[0] = 0
        if 0 < self.selected < len(colour_of):
            values[self.selected] = self.selected * N_COLOURS + SELECTED
        if self._mask is not None:
            values[:-1][~self._mask] = 0
        return values

    def _coloured_by(self, column: str) -> Colouring:
        if column in ("class", "tissue"):
            return by_class(column, self.column(f"{column}_id"), self.exists, self.store.classes)
        values = self.column(column)
        if not np.issubdtype(values.dtype, np.number):
            raise StoreError(f"{self.store.path}: column {column!r} holds no numbers to colour by")
        return by_number(column, values)

    def _read(self, box: Box, level: int) -> np.ndarray:
        return (self.edits or self.store).instances(box, level)

    def _shown(self, ids: np.ndarray) -> np.ndarray:
        # Ids that no row knows (a damaged store) fall on the last entry: they are not shown.
        return self._value_of.take(ids, mode="clip")


def outline(layer: Labels, mpp: float) -> None:
    """Show outlines only; ``Labels`` takes their width in no other way."""
    layer.contour = max(1, round(_CONTOUR_UM / mpp))


def nuclei_layer(viewer: ViewerModel) -> Labels | None:
    """The nuclei layer that is active, else the topmost one."""
    active = viewer.layers.selection.active
    for layer in (active, *reversed(viewer.layers)):
        if layer is not None and isinstance(layer.metadata.get(KEY), NucleiView):
            return layer
    return None


def nuclei_view(viewer: ViewerModel) -> NucleiView | None:
    """The view of ``nuclei_layer``, attached to it."""
    layer = nuclei_layer(viewer)
    if layer is None:
        return None
    view = layer.metadata[KEY]
    view.attach(layer)
    return view
