"""Outlines of nuclei as WKB polygons in level-0 slide pixels: what is seen of them, and what they are whole.

``bbox`` (int32[n, 4], half-open y0, x0, y1, x1) counts in the grid of the view, in which the first pixel of a plane
lies at ``corner``; ``scale`` is level-0 pixels per pixel of the view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import shapely

from nucleipan.measure import complete_covered
from nucleipan.polygons import trace_labels


def visible_outlines(labels: np.ndarray, bbox: np.ndarray, corner: tuple[int, int], scale: float) -> Sequence[bytes]:
    """Of instances 1..n of a plane, int32[h, w]."""
    return _wkb(trace_labels(labels, _within(bbox, corner), corner, scale))


def whole_outlines(
    instances: np.ndarray, numbers: np.ndarray, bbox: np.ndarray, corner: tuple[int, int], scale: float
) -> dict[int, bytes]:
    """Of those of the nuclei ``numbers`` (int32[n]) that others cover in part, by their position there.

    ``instances`` int32[h, w] holds all nuclei that may cover them.
    """
    found = complete_covered(instances, numbers, _within(bbox, corner))
    wkb = _wkb(trace_labels(found.labels, found.bboxes, found.corners + corner, scale))
    return dict(zip(found.index.tolist(), wkb, strict=True))


def packed(parts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """uint8[b], one after the other, and int64[n] where each ends."""
    return np.frombuffer(b"".join(parts), np.uint8), np.cumsum([len(part) for part in parts], dtype=np.int64)


def unpacked(blob: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> Iterator[bytes]:
    """Those parts of what ``packed`` gave."""
    starts, content = np.concatenate([[0], ends]), blob.tobytes()
    for row in rows:
        yield content[starts[row] : starts[row + 1]]


def _wkb(polygons: np.ndarray) -> Sequence[bytes]:
    return shapely.to_wkb(polygons, byte_order=1)


def _within(bbox: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    return bbox - np.array([*corner, *corner], np.int32)
