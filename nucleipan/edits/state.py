"""The edits in effect at one moment, ready to be looked up; a new edit gives a new state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from nucleipan.edits.edit import Edit, SavedEdit
from nucleipan.geometry import Box


@dataclass(frozen=True)
class Patch:
    """One nucleus as an edit left it: its bounding box (level-0 pixels) and its pixels, bool[h, w]."""

    box: Box
    mask: np.ndarray = field(repr=False)


@dataclass(frozen=True, eq=False)
class State:
    """Edits that build on each other.

    Attributes:
        saved: in the order they were made.
        class_of: class of every nucleus that is new or has another outline or class than in the table.
        patch_of: pixels of every nucleus that is new or has another outline.
        removed: nuclei that are no more.
    """

    saved: tuple[SavedEdit, ...] = ()
    class_of: Mapping[int, int] = field(default_factory=dict)
    patch_of: Mapping[int, Patch] = field(default_factory=dict)
    removed: frozenset[int] = frozenset()

    @classmethod
    def of(cls, saved: Iterable[SavedEdit]) -> State:
        return EMPTY.followed_by(*saved)

    def followed_by(self, *saved: SavedEdit) -> State:
        class_of, patch_of = dict(self.class_of), dict(self.patch_of)
        for edit in (s.edit for s in saved):
            for nucleus in edit.ended:
                class_of.pop(nucleus, None)
                patch_of.pop(nucleus, None)
            class_of |= edit.classes
            if edit.kind != "class":
                patch_of |= {i: _patch(edit, i) for i in edit.classes}
        return State((*self.saved, *saved), class_of, patch_of, self.removed.union(*(s.edit.ended for s in saved)))

    def classes_of(self, ids: np.ndarray, original: np.ndarray) -> np.ndarray:
        """uint8[n], class of nuclei (0 of none); ``original`` uint8[N + 1] by id."""
        present, index = np.unique(ids, return_inverse=True)
        of_present = [self.class_of.get(i) or original[i] for i in present.tolist()]
        return np.array(of_present, np.uint8)[index]

    @cached_property
    def known(self) -> np.ndarray:
        """uint32[n], nuclei whose class is not the table's or may not be, ascending."""
        return np.array(sorted(self.class_of), np.uint32)

    @cached_property
    def _boxes(self) -> np.ndarray:
        """int64[n, 4], y0, x0, y1, x1 of the edits' boxes."""
        boxes = [(s.edit.box.y0, s.edit.box.x0, s.edit.box.y1, s.edit.box.x1) for s in self.saved]
        return np.array(boxes, np.int64).reshape(-1, 4)

    def meets(self, box: Box, step: int) -> bool:
        """Whether an edit reaches into ``box``, which counts every ``step``-th pixel."""
        return bool(self._near(box, step).any())

    def overlaid(self, ids: np.ndarray, box: Box, step: int) -> np.ndarray:
        """``ids`` of every ``step``-th pixel, changed in place in ``box`` as the edits say, in their order."""
        for k in np.flatnonzero(self._near(box, step)).tolist():
            _lay(self.saved[k].edit, ids, box, step)
        return ids

    def _near(self, box: Box, step: int) -> np.ndarray:
        """bool[n]"""
        corners, boxes = np.array([box.y0, box.x0, box.y1, box.x1]) * step, self._boxes
        return np.logical_and((boxes[:, :2] < corners[2:]).all(1), (boxes[:, 2:] > corners[:2]).all(1))


EMPTY = State()


def _patch(edit: Edit, nucleus: int) -> Patch:
    mask = edit.after == nucleus
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inner = Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
    box = Box(inner.y0 + edit.box.y0, inner.x0 + edit.box.x0, inner.y1 + edit.box.y0, inner.x1 + edit.box.x0)
    return Patch(box, mask[inner.slices(Box.of_shape(edit.box.shape))].copy())


def _lay(edit: Edit, ids: np.ndarray, box: Box, step: int) -> None:
    """The samples of ``box`` are the pixels whose row and column are multiples of ``step``, counted in samples."""
    own = edit.box
    samples = Box(-(-own.y0 // step), -(-own.x0 // step), -(-own.y1 // step), -(-own.x1 // step)).clipped(box)
    if samples.is_empty:
        return
    rows = slice(samples.y0 * step - own.y0, (samples.y1 - 1) * step - own.y0 + 1, step)
    cols = slice(samples.x0 * step - own.x0, (samples.x1 - 1) * step - own.x0 + 1, step)
    target, is_changed = ids[samples.slices(box)], edit.is_changed[rows, cols]
    target[is_changed] = edit.after[rows, cols][is_changed]
