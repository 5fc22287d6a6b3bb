"""Status bar and tooltip of a nuclei layer: what the pointer is on.

napari asks a layer's ``get_status`` and ``_get_tooltip_text``, from a thread of its own and for as long as it runs; an
exception there would become a notification with every move of the mouse. So these two are put into the layer's place,
and what goes wrong is said where the answer would be.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from napari_nucleipan._table import describe
from nucleipan.errors import NucleipanError, reason

if TYPE_CHECKING:
    from napari.layers import Labels

    from napari_nucleipan._nuclei import NucleiView


class Hover:
    """Tells of the nuclei of ``view`` in ``layer``."""

    def __init__(self, view: NucleiView, layer: Labels) -> None:
        self._view, self._layer = view, weakref.ref(layer)

    def install(self) -> None:
        layer: Any = self._layer()
        layer.get_status, layer._get_tooltip_text = self.status, self.tooltip

    def status(self, position: Any = None, **how: Any) -> dict[str, str]:
        """As ``Layer.get_status``."""
        layer = self._layer()
        if layer is None:
            return {}
        status = type(layer).get_status(layer, position, **how)
        status["value"] = self._text(layer, position, how)
        status["coordinates"] = f"{status['coords']}: {status['value']}"
        return status

    def tooltip(self, position: Any, **how: Any) -> str:
        """As ``Layer._get_tooltip_text``."""
        layer = self._layer()
        return "" if layer is None else self._text(layer, position, how).replace(", ", "\n")

    def _text(self, layer: Labels, position: Any, how: dict[str, Any]) -> str:
        if position is None:
            return ""
        asked = {k: v for k, v in how.items() if k in ("view_direction", "dims_displayed", "world")}
        value: Any = layer.get_value(position, **asked)
        value = value[1] if isinstance(value, tuple) else value
        if not value:
            return ""
        try:
            row = self._view.row(self._view.id_of(value))
        except (NucleipanError, OSError, pa.ArrowException, IndexError) as error:
            return f"({reason(error)})"
        return "" if row is None else describe(row)
