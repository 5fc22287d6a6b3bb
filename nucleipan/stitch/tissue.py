"""Phase 2, tissue: how far nuclei lie from the border of theirs.

Tissue borders are smooth and far apart, so samples of the stuff plane, 8 pixels apart in both directions, are enough.
Tiles keep those of their cores; they lie on one lattice over the slide, whatever the tiling. Bands of them are put
together when nuclei in that height are asked for, with a margin as wide as distances are looked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nucleipan.measure import distance_to_other_class
from nucleipan.stitch.record import SAMPLE_STEP, read_columns, sampled
from nucleipan.tiles import Tile

_BAND = 128


class TissueSamples:
    """The samples of all tiles; what the band used last is made of is kept, as the next one mostly overlaps it."""

    def __init__(self, folder: Path, tiles: list[Tile]) -> None:
        self._folder, self._tiles = folder, tiles
        self._boxes = [sampled(tile.core) for tile in tiles]
        self._width = max(box.x1 for box in self._boxes)
        self._parts: dict[int, np.ndarray] = {}

    def rows(self, first: int, last: int) -> np.ndarray:
        """uint8[last - first, w], stuff ids from the slide's left side on; 0 where nothing was segmented."""
        plane = np.zeros((last - first, self._width), np.uint8)
        parts = {}
        for k, box in enumerate(self._boxes):
            y0, y1 = max(first, box.y0), min(last, box.y1)
            if y0 < y1:
                parts[k] = self._parts[k] if k in self._parts else self._read(k)
                plane[y0 - first : y1 - first, box.x0 : box.x1] = parts[k][y0 - box.y0 : y1 - box.y0]
        self._parts = parts
        return plane

    def _read(self, k: int) -> np.ndarray:
        return read_columns(self._folder, self._tiles[k], ("samples",))[1]["samples"]


def distance_to_border(samples: TissueSamples, centres: np.ndarray, own: np.ndarray, cap: float) -> np.ndarray:
    """Distance in pixels of the view from centres to the nearest sample of other tissue.

    Args:
        centres: float64[n, 2], y and x of pixels of the view.
        own: uint8[n], stuff id of the tissue each belongs to.
        cap: given where there is none within it.

    Returns:
        float64[n], NaN where ``own`` is void; void is no tissue.
    """
    points, reach = centres / SAMPLE_STEP, cap / SAMPLE_STEP
    margin, bands = int(reach) + 2, (points[:, 0] // _BAND).astype(np.int64)
    distances = np.empty(len(points))
    for band in np.unique(bands):
        here = np.flatnonzero(bands == band)
        first = max(0, int(band) * _BAND - margin)
        plane = samples.rows(first, (int(band) + 1) * _BAND + margin)
        distances[here] = distance_to_other_class(plane, points[here] - (first, 0), own[here], reach)
    return distances * SAMPLE_STEP
