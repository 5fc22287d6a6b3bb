"""What is known of each nucleus, by id: columns for colours and filters, rows for people.

A column is read when it is first asked for, and kept; a row comes from a row group, of which the last few are kept. The
table is the store's, or what edits make of it: then some ids are gone and some are new.
"""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nucleipan.edits import EditLog
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore
from nucleipan.store.columns import is_number

# Numbers that name something are nothing to colour or filter by.
_NAMES = frozenset({"id", "class_id", "tissue_id"})


class NucleiTable:
    """The table of a store's nuclei; may be asked from several threads at once.

    ``edits`` may be set at any time; ``forget`` makes it, and every later change of it, visible.

    Raises:
        StoreError: the ids are not 1, 2, 3, ...
    """

    def __init__(self, store: PanopticStore, edits: EditLog | None = None) -> None:
        self.store, self.edits = store, edits
        self._columns: dict[str, np.ndarray] = {}
        # Rows are asked for by the status bar's thread, and two readers of one file must not meet.
        self._lock = Lock()
        self._file = pq.ParquetFile(store.path / "nuclei.parquet", memory_map=True)
        groups = range(self._file.num_row_groups)
        self._last_ids = np.cumsum([self._file.metadata.row_group(k).num_rows for k in groups])
        self._scalars = [field.name for field in self._file.schema_arrow if not pa.types.is_binary(field.type)]
        self._row_group = lru_cache(4)(self._read_row_group)
        ids = store.nuclei(["id"])["id"].to_numpy()
        if not np.array_equal(ids, np.arange(1, len(ids) + 1)):
            raise StoreError(f"{store.path}: the ids in its table are not 1, 2, 3, ...; segment the slide again")

    @property
    def n_ids(self) -> int:
        """Length of columns: the largest id, and one for id 0."""
        return len(self.column("id"))

    @property
    def exists(self) -> np.ndarray:
        """bool[n_ids], which ids are nuclei: not 0, and not those that edits have removed."""
        return self.column("id") > 0

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        """Columns that hold measurements."""
        return tuple(f.name for f in self.store.nuclei_schema() if is_number(f.type) and f.name not in _NAMES)

    def column(self, name: str) -> np.ndarray:
        """Values of a column by id; 0, NaN or "" for ids that are no nucleus, such as 0. Do not change it.

        Raises:
            StoreError: there is no such column, or it holds more than one value per nucleus.
        """
        if name not in self._columns:
            self._columns[name] = self._read_column(name)
        return self._columns[name]

    def row(self, nucleus: int) -> dict[str, Any] | None:
        """A row without its outline; None if there is no nucleus with this id."""
        if not 0 < nucleus < self.n_ids:
            return None
        if self.edits is not None:
            return self._edited_row(nucleus)
        group = self._row_group(int(np.searchsorted(self._last_ids, nucleus)))
        return _row(group, nucleus - int(group["id"][0].as_py()))

    def forget(self) -> None:
        """Read everything anew: edits have changed it."""
        self._columns.clear()

    def _read_column(self, name: str) -> np.ndarray:
        names = ["id"] if name == "id" else ["id", name]
        with self._lock:
            table = (self.edits or self.store).nuclei(names)
            n_ids = self.store.n_nuclei + 1 if self.edits is None else self.edits.next_id
        column, ids = table[name], table["id"].to_numpy()
        if pa.types.is_dictionary(column.type):
            coded = column.unify_dictionaries().combine_chunks()
            found = np.array([*coded.dictionary.to_pylist(), ""], object)[coded.indices.fill_null(-1).to_numpy()]
            nothing: Any = ""
        elif is_number(column.type):
            found = column.to_numpy()  # nulls become NaN
            nothing = np.nan if np.issubdtype(found.dtype, np.floating) else 0
        else:
            raise StoreError(f"{self.store.path}: column {name!r} does not hold one value per nucleus")
        values = np.full(n_ids, nothing, found.dtype)
        values[ids] = found
        return values

    def _edited_row(self, nucleus: int) -> dict[str, Any] | None:
        """The row of a nucleus under edits, found where its centroid is."""
        if not self.exists[nucleus] or self.edits is None:
            return None
        y, x = (int(self.column(f"centroid_{axis}")[nucleus] / self.store.level0_per_pixel) for axis in "yx")
        with self._lock:
            near = self.edits.nuclei(self._scalars, Box(y, x, y + 1, x + 1).grown(1))
        place = np.flatnonzero(near["id"].to_numpy() == nucleus)
        return _row(near, int(place[0])) if len(place) else None

    def _read_row_group(self, group: int) -> pa.Table:
        with self._lock:
            return self._file.read_row_group(group, columns=self._scalars)


def describe(row: dict[str, Any]) -> str:
    """One line for people: id, class and its probability, area, tissue."""
    probabilities = [v for k, v in row.items() if k.startswith("probability_") and v is not None]
    kind = f"{row['class']} {max(probabilities):.2f}" if probabilities else str(row["class"])
    parts = [f"nucleus {row['id']}", kind, f"{row['area_um2']:.1f} µm²"]
    return ", ".join(parts + ([f"in {row['tissue']}"] if row["tissue"] else []))


def _row(table: pa.Table, place: int) -> dict[str, Any]:
    return {name: table[name][place].as_py() for name in table.column_names}
