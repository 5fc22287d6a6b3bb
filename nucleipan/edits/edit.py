"""One correction: which pixels change from which nuclei to which, and what class the new ones have.

Ids keep their meaning. A merge or a split ends nuclei and makes others under ids that no nucleus of the store ever had;
a nucleus that is redrawn or gets another class stays itself and keeps its id.

| kind | ``ids`` (there before) | ``classes`` (there afterwards) |
|---|---|---|
| merge | two or more, all end | one new |
| split | one or more, all end | two new for each |
| delete | one or more, all end | none |
| redraw | the one that is redrawn, or none | the same, or one new |
| class | one or more | the same |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from nucleipan.errors import NucleipanError
from nucleipan.geometry import Box

Kind = Literal["merge", "split", "delete", "redraw", "class"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Longest side of an edit's box: corrections are made by hand, on what a screen shows.
MAX_SIDE = 4096
#: Ids are unsigned 32-bit numbers.
MAX_ID = 2**32 - 1


class EditError(NucleipanError, ValueError):
    """A correction cannot be made as drawn or chosen."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A correction that is complete in itself: applying it needs nothing but the pixels it was made for.

    Attributes:
        kind: what was done.
        ids: the nuclei it ends or changes, ascending.
        classes: class of every nucleus that it makes or changes, by id.
        box: where, in level-0 pixels of the store. It holds all of the nuclei, and may hold others.
        before, after: uint32[h, w], ids in ``box``; pixels that are equal in both are not touched.

    Raises:
        ValueError: the parts contradict each other.
    """

    kind: Kind
    ids: tuple[int, ...]
    classes: Mapping[int, int]
    box: Box
    before: np.ndarray
    after: np.ndarray

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(problem)

    @cached_property
    def ended(self) -> frozenset[int]:
        """The nuclei that are no more."""
        return frozenset(self.ids) - self.classes.keys()

    @cached_property
    def made(self) -> frozenset[int]:
        """The nuclei that are new."""
        return frozenset(self.classes.keys()) - frozenset(self.ids)

    @cached_property
    def is_changed(self) -> np.ndarray:
        """bool[h, w], the pixels it touches."""
        return self.before != self.after

    def _problem(self) -> str | None:
        """What contradicts itself; None where nothing does."""
        if self.kind not in KINDS:
            return f"kind {self.kind!r} is none of {', '.join(KINDS)}"
        for plane in (self.before, self.after):
            if plane.dtype != np.uint32 or plane.shape != self.box.shape or plane.size == 0:
                return f"pixels {plane.dtype}{list(plane.shape)} do not fill {self.box} with uint32"
        if max(self.box.shape) > MAX_SIDE:
            return f"{self.box} has a side of more than {MAX_SIDE} pixels"
        counts = {
            "merge": len(self.ids) >= 2 and len(self.made) == 1 and len(self.classes) == 1,
            "split": len(self.ids) >= 1 and len(self.made) == len(self.classes) == 2 * len(self.ids),
            "delete": len(self.ids) >= 1 and not self.classes,
            "redraw": len(self.ids) <= 1 and len(self.classes) == 1 and not self.ended,
            "class": len(self.ids) >= 1 and not self.made and not self.ended,
        }
        if not counts[self.kind] or list(self.ids) != sorted(set(self.ids)):
            return f"a {self.kind} of nuclei {list(self.ids)} cannot leave {sorted(self.classes)}"
        changed = self.is_changed
        lost, gained = (set(np.unique(plane[changed]).tolist()) - {0} for plane in (self.before, self.after))
        if not lost <= set(self.ids) or not gained <= set(self.classes) or (self.kind == "class" and changed.any()):
            return "pixels change that belong to other nuclei"
        there = [set(np.unique(plane).tolist()) for plane in (self.before, self.after)]
        if not set(self.ids) <= there[0] or self.made & there[0]:
            return "the pixels before are not those of the nuclei it names"
        if not set(self.classes) <= there[1] or self.ended & there[1]:
            return "the pixels afterwards are not those of the nuclei it names"
        return None


@dataclass(frozen=True)
class SavedEdit:
    """An edit that is in a store.

    Attributes:
        number: counts the edits of a store from 1, those undone included.
        author: who made it, as text.
        time: when, in UTC, to the second.
    """

    number: int
    author: str
    time: datetime
    edit: Edit
