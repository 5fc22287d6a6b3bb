"""What of a store an export writes: all of it, or a region of interest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from nucleipan.errors import RegionError
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore


def view_box(store: PanopticStore, roi: Box | None) -> Box:
    """``roi``, in level-0 pixels, as a box of the store's own pixels; the whole store without one.

    Raises:
        RegionError: it is empty or not inside the slide.
    """
    whole = Box.of_shape(store.shape)
    if roi is None:
        return whole
    slide = Box(0, 0, store.slide["height"], store.slide["width"])
    if roi.is_empty or not slide.contains(roi):
        raise RegionError(
            f"ROI {roi.y0},{roi.x0},{roi.y1},{roi.x1} is empty or not inside the slide; expected Y0,X0,Y1,X1 in pixels "
            f"of its full resolution, within 0,0,{slide.y1},{slide.x1}"
        )
    return roi.scaled(1 / store.level0_per_pixel).clipped(whole)


def nuclei_in(store: PanopticStore, roi: Box | None, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Rows of the nuclei whose centroid lies in ``roi`` (level-0 pixels), piece by piece in the order of ids.

    Raises:
        RegionError: as ``view_box``.
    """
    box = view_box(store, roi)
    if roi is None:
        yield from store.nuclei_batches(columns)
        return
    wanted = store.nuclei_schema(columns).names
    read = list(dict.fromkeys([*wanted, "centroid_x", "centroid_y"]))
    for table in store.nuclei_batches(read, box):
        x, y = table["centroid_x"], table["centroid_y"]
        across = pc.and_(pc.greater_equal(x, roi.x0), pc.less(x, roi.x1))
        down = pc.and_(pc.greater_equal(y, roi.y0), pc.less(y, roi.y1))
        yield table.filter(pc.and_(across, down)).select(wanted)
