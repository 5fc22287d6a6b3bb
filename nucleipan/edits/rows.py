"""The table of nuclei with edits: rows of the original that still hold, and rows measured anew.

Class, area, shape, place, outline and tissue follow from pixels and are measured as the original's were. What would
need the slide or the network again is null: a number that is missing is better than one of another nucleus. So is the
whole shape of a nucleus that was drawn anew: whoever drew it has seen what it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from nucleipan.classes import VOID_NAME, PanopticClasses
from nucleipan.edits.originals import Originals
from nucleipan.edits.state import Patch, State
from nucleipan.geometry import Box
from nucleipan.measure import SHAPE_COLUMNS, measure_shapes
from nucleipan.polygons import trace
from nucleipan.stitch.table import shape_column

_SHAPE = {shape_column(name): k for k, name in enumerate(SHAPE_COLUMNS)}
_TISSUE = ("tissue_id", "tissue")


class EditedTable:
    """Rows of a store's table under edits. What was measured of a nucleus is kept while it keeps its pixels."""

    def __init__(self, originals: Originals) -> None:
        self._originals = originals
        self._measured: dict[int, _Measured] = {}

    def batches(self, state: State, columns: Sequence[str] | None, box: Box | None) -> Iterator[pa.Table]:
        """See ``EditLog.nuclei_batches``."""
        store = self._originals.store
        if not state.saved:
            yield from store.nuclei_batches(columns, box)
            return
        names = store.nuclei_schema(columns).names
        gone = list(state.removed | state.patch_of.keys())
        near = sorted(i for i, patch in state.patch_of.items() if box is None or not patch.box.clipped(box).is_empty)
        for table in store.nuclei_batches(list(dict.fromkeys([*names, "id", "class_id"])), box):
            ids = table["id"].to_numpy()
            is_kept = ~np.isin(ids, gone)
            kept = _reclassed(table.filter(pa.array(is_kept)), state, store.classes).select(names)
            # Nuclei that were redrawn go between others; new ones have the largest ids.
            n_due = bisect_right(near, int(ids[-1])) if len(ids) else 0
            due, near = near[:n_due], near[n_due:]
            if due:
                joined = pa.concat_tables([kept, self._rows_of(state, columns, due)]).unify_dictionaries()
                order = np.argsort(np.concatenate([ids[is_kept], np.array(due)]), kind="stable")
                kept = joined.combine_chunks().take(pa.array(order))
            yield kept
        if near:
            yield self._rows_of(state, columns, near)

    def _rows_of(self, state: State, columns: Sequence[str] | None, nuclei: Iterable[int]) -> pa.Table:
        """Rows of ``nuclei``, all of which have their pixels from an edit."""
        store = self._originals.store
        schema, names = store.nuclei_schema(columns), _names(store.classes)
        rows = []
        for nucleus in nuclei:
            class_id = state.class_of[nucleus]
            row = self._of(nucleus, state.patch_of[nucleus]).row(schema.names)
            rows.append(row | {"id": nucleus, "class_id": class_id, "class": names[class_id]})
        return pa.table([_column([row.get(f.name) for row in rows], f.type) for f in schema], schema=schema)

    def _of(self, nucleus: int, patch: Patch) -> _Measured:
        known = self._measured.get(nucleus)
        if known is None or known.patch is not patch:
            known = self._measured[nucleus] = _Measured(self._originals, patch)
        return known


class _Measured:
    """What is measured of one nucleus, each part when it is first asked for."""

    def __init__(self, originals: Originals, patch: Patch) -> None:
        self._originals, self.patch = originals, patch

    def row(self, wanted: Sequence[str]) -> dict[str, Any]:
        row = self._place | {"is_completed": False}
        if "geometry" in wanted:
            row = row | {"geometry": self._outline}
        if not _SHAPE.keys().isdisjoint(wanted):
            row = row | self._shape
        if not set(_TISSUE).isdisjoint(wanted):
            row = row | self._tissue
        return row

    @cached_property
    def _place(self) -> dict[str, Any]:
        store, box = self._originals.store, self.patch.box
        scale, (rows, cols) = store.level0_per_pixel, np.nonzero(self.patch.mask)
        return {
            "area_um2": len(rows) * store.mpp**2,
            "centroid_y": (int(rows.sum()) / len(rows) + box.y0 + 0.5) * scale,
            "centroid_x": (int(cols.sum()) / len(cols) + box.x0 + 0.5) * scale,
            "bbox": {"xmin": box.x0 * scale, "ymin": box.y0 * scale, "xmax": box.x1 * scale, "ymax": box.y1 * scale},
        }

    @cached_property
    def _outline(self) -> bytes:
        box = self.patch.box
        return bytes(trace(self.patch.mask, (box.y0, box.x0), self._originals.store.level0_per_pixel).wkb)

    @cached_property
    def _shape(self) -> dict[str, float]:
        whole = np.array([[0, 0, *self.patch.box.shape]], np.int32)
        values = measure_shapes(self.patch.mask.astype(np.int32), whole)[0].tolist()
        mpp = self._originals.store.mpp
        return {name: values[k] * mpp if name.endswith("_um") else values[k] for name, k in _SHAPE.items()}

    @cached_property
    def _tissue(self) -> dict[str, Any]:
        under = self._originals.tissue(self.patch.box)[self.patch.mask]
        tissue = int(np.bincount(under).argmax())
        return {"tissue_id": tissue, "tissue": _names(self._originals.store.classes)[tissue]}


def _reclassed(table: pa.Table, state: State, classes: PanopticClasses) -> pa.Table:
    """Rows of the original under their present class."""
    ids = table["id"].to_numpy()
    index = np.flatnonzero(np.isin(ids, state.known))
    if len(index) == 0:
        return table
    class_id = table["class_id"].to_numpy().copy()
    class_id[index] = [state.class_of[int(i)] for i in ids[index]]
    table = table.set_column(table.column_names.index("class_id"), table.schema.field("class_id"), pa.array(class_id))
    if "class" in table.column_names:
        names = pa.DictionaryArray.from_arrays(pa.array(class_id.astype(np.int32)), pa.array(_names(classes)))
        table = table.set_column(table.column_names.index("class"), table.schema.field("class"), names)
    return table


def _names(classes: PanopticClasses) -> list[str]:
    return [VOID_NAME, *(c.name for c in classes.classes)]


def _column(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(list(values), kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)
