"""What the table says of nuclei that the raster says too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nucleipan.classes import VOID_ID, VOID_NAME, PanopticClass
from nucleipan.errors import StoreError, reason
from nucleipan.store import Finding, PanopticStore

TABLE = "nuclei.parquet"

_COLUMNS = ("id", "class_id", "class", "tissue_id", "tissue", "area_um2", "centroid_y", "centroid_x", "bbox")
_SIDES = ("ymin", "xmin", "ymax", "xmax")


@dataclass(frozen=True)
class Rows:
    """Columns of the table, in the order of its rows; what is missing is 0 or NaN.

    Attributes:
        ids: int64[n].
        class_id: uint8[n].
        area_um2: float64[n].
        centroid: float64[n, 2], y and x in level-0 slide pixels.
        bbox: float64[n, 4], half-open y0, x0, y1, x1 in level-0 slide pixels.
    """

    ids: np.ndarray
    class_id: np.ndarray
    area_um2: np.ndarray
    centroid: np.ndarray
    bbox: np.ndarray


def read_rows(store: PanopticStore) -> tuple[Rows | None, list[Finding]]:
    """The rows, None if they cannot be read; and what contradicts itself in them."""
    parts: list[Rows] = []
    misnamed: list[int] = []
    things, tissues = store.classes.things, (PanopticClass(VOID_ID, VOID_NAME, False, (0, 0, 0)), *store.classes.stuff)
    try:
        for table in store.nuclei_batches(_COLUMNS):
            parts.append(_rows(table))
            for key, known in (("class", things), ("tissue", tissues)):
                misnamed += parts[-1].ids[_is_misnamed(table, key, known)].tolist()
    except StoreError as error:
        return None, [Finding(TABLE, f"cannot be read ({reason(error.__cause__ or error)})")]
    except (pa.ArrowException, ValueError, TypeError) as error:
        return None, [Finding(TABLE, f"has columns of another kind ({reason(error)})")]
    found = [Finding(TABLE, f"class or tissue is none of the store's: {some(misnamed)}")] if misnamed else []
    empty = _rows(store.nuclei_schema(_COLUMNS).empty_table())
    return Rows(*(np.concatenate([getattr(p, name) for p in (empty, *parts)]) for name in Rows.__annotations__)), found


def some(ids: list[int]) -> str:
    """``nucleus 3`` or ``7 nuclei (3, 5, 9, ...)``."""
    if len(ids) == 1:
        return f"nucleus {ids[0]}"
    return f"{len(ids):,} nuclei ({', '.join(map(str, ids[:3]))}{', ...' if len(ids) > 3 else ''})"


def _rows(table: pa.Table) -> Rows:
    def floats(column: pa.ChunkedArray) -> np.ndarray:
        return column.cast(pa.float64()).to_numpy()

    return Rows(
        table["id"].cast(pa.int64()).fill_null(0).to_numpy(),
        table["class_id"].cast(pa.uint8()).fill_null(0).to_numpy(),
        floats(table["area_um2"]),
        np.stack([floats(table["centroid_y"]), floats(table["centroid_x"])], 1),
        np.stack([floats(pc.struct_field(table["bbox"], side)) for side in _SIDES], 1),
    )


def _is_misnamed(table: pa.Table, key: str, known: tuple[PanopticClass, ...]) -> np.ndarray:
    """bool[n]: the number of a class is none of ``known``, or its name is another's."""
    names = pa.array([{c.id: c.name for c in known}.get(i) for i in range(256)], pa.string())
    expected = names.take(table[f"{key}_id"].cast(pa.uint8()).combine_chunks())
    is_named = pc.equal(table[key].cast(pa.string()).combine_chunks(), expected)
    return ~is_named.fill_null(False).to_numpy(zero_copy_only=False)
