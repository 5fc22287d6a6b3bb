"""A store as people corrected it, for whatever reads stores: exports, reports, descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nucleipan.edits.log import EditLog
from nucleipan.geometry import Box
from nucleipan.store import LabelArray, PanopticStore


def open_corrected(path: Path | str) -> PanopticStore:
    """The store at ``path`` with the corrections that are saved in it, those of this moment.

    Ids stay as they are, so they may have gaps. Of nuclei whose outline was corrected, columns that only the model or
    the slide could tell are null, see ``EditLog.nuclei_batches``.

    Raises:
        StoreError: as ``PanopticStore.open`` and ``EditLog.open``.
    """
    return corrected(PanopticStore.open(path))


def corrected(store: PanopticStore) -> PanopticStore:
    """As ``open_corrected``, of a store that is open."""
    log = EditLog.open(store)
    return _CorrectedStore(store.path, store.spec, store.attributes, log) if log.edits else store


@dataclass(frozen=True)
class _CorrectedStore(PanopticStore):
    log: EditLog

    @property
    def n_nuclei(self) -> int:
        return self._n_nuclei

    @cached_property
    def _n_nuclei(self) -> int:
        return sum(table.num_rows for table in self.log.nuclei_batches(["id"]))

    @property
    def last_id(self) -> int:
        return self.log.next_id - 1

    @property
    def corrections(self) -> dict[str, Any]:
        edits = self.log.edits
        people = sorted({saved.author for saved in edits})
        return {"edits": len(edits), "authors": people, "last": max(saved.time for saved in edits).isoformat()}

    def array(self, name: str, level: int = 0) -> LabelArray:
        return _CorrectedArray(super().array(name, level), self.log, name, level)

    def nuclei_batches(self, columns: Sequence[str] | None = None, box: Box | None = None) -> Iterator[pa.Table]:
        return self.log.nuclei_batches(columns, box)


@dataclass(frozen=True)
class _CorrectedArray:
    """A level of labels with corrections; ``selection`` is up to two slices without steps, as lazy readers ask."""

    original: LabelArray
    log: EditLog
    name: str
    level: int
    ndim = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return self.original.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.original.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.original.chunks

    @property
    def shards(self) -> tuple[int, ...] | None:
        return self.original.shards

    def __getitem__(self, selection: Any) -> np.ndarray:
        given = selection if isinstance(selection, tuple) else (selection,)
        spans = [each.indices(n) for each, n in zip((*given, slice(None), slice(None)), self.shape, strict=False)]
        (y0, y1, _), (x0, x1, _) = spans
        box = Box(y0, x0, max(y0, y1), max(x0, x1))
        return (self.log.instances if self.name == "nuclei" else self.log.class_map)(box, self.level)
