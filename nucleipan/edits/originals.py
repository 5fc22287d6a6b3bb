"""What edits need to know of all nuclei of a store: where each lies, its class and the tissue around it.

Three arrays by id, 18 bytes a nucleus, read from the table once and when first asked for; nothing here changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc

from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore


@dataclass(frozen=True)
class Originals:
    """The nuclei of ``store`` as they were segmented."""

    store: PanopticStore

    @cached_property
    def class_of(self) -> np.ndarray:
        """uint8[N + 1], 0 first."""
        return self._by_id("class_id")

    @cached_property
    def tissue_of(self) -> np.ndarray:
        """uint8[N + 1], 0 first: the tissue under each, which the class map cannot show."""
        return self._by_id("tissue_id")

    def box_of(self, nucleus: int) -> Box:
        """Its bounding box in level-0 pixels of the store."""
        xmin, ymin, xmax, ymax = (int(v) for v in self._bboxes[nucleus - 1])
        return Box(ymin, xmin, ymax, xmax)

    def tissue(self, box: Box, level: int = 0) -> np.ndarray:
        """uint8[h, w], tissue everywhere, also under the nuclei, where it is that of the nucleus as a whole."""
        ids, classes = self.store.instances(box, level), self.store.class_map(box, level)
        return np.where(ids > 0, self.tissue_of[self.known(ids)], classes)

    def known(self, ids: np.ndarray) -> np.ndarray:
        """``ids`` of the store's raster, which must have rows in its table.

        Raises:
            StoreError: one has none.
        """
        if int(ids.max(initial=0)) > self.store.n_nuclei:
            raise StoreError(
                f"{self.store.path} holds nucleus {ids.max()}, its table ends at {self.store.n_nuclei}; "
                "segment the slide again with --overwrite"
            )
        return ids

    def _by_id(self, column: str) -> np.ndarray:
        values = self.store.nuclei([column])[column].to_numpy()
        return np.concatenate([np.zeros(1, np.uint8), values.astype(np.uint8)])

    @cached_property
    def _bboxes(self) -> np.ndarray:
        """int32[N, 4], half-open x0, y0, x1, y1 in level-0 pixels of the store."""
        bbox = self.store.nuclei(["bbox"])["bbox"]
        sides = [pc.struct_field(bbox, side).to_numpy() for side in ("xmin", "ymin", "xmax", "ymax")]
        return np.rint(np.stack(sides, 1) / self.store.level0_per_pixel).astype(np.int32)
