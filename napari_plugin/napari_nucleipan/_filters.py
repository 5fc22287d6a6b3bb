"""Which nuclei are shown, where they lie, how many they are and in which order they come.

Everything is an operation on whole columns by id, so that a million nuclei take milliseconds; no row is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from napari_nucleipan._nuclei import NucleiView
from nucleipan.classes import VOID_ID, VOID_NAME, PanopticClass
from nucleipan.geometry import Box

PROBABILITY = "probability"
"""A column beside those of the table: the largest of a nucleus's ``probability_...``, that of its class."""

_VOID = PanopticClass(VOID_ID, VOID_NAME, True, (128, 128, 128))
_N_CLASS_IDS = 256


@dataclass(frozen=True)
class Tally:
    """``n``: int64[256], nuclei by class id; ``mm2``: the area that they were counted in."""

    n: np.ndarray
    mm2: float


class Filters:
    """What is asked of the nuclei of ``view``.

    Attributes:
        hidden: ids of classes that are not shown.
        ranges: lowest and highest value that is shown, by column; nuclei without a value are not shown.
    """

    def __init__(self, view: NucleiView) -> None:
        self.view = view
        self.hidden: set[int] = set()
        self.ranges: dict[str, tuple[float, float]] = {}
        self._probability: np.ndarray | None = None
        self._order: tuple[tuple[str, bool], np.ndarray] | None = None

    def forget(self) -> None:
        """Read everything anew: edits have changed it."""
        self._probability = self._order = None

    # Columns

    @property
    def classes(self) -> tuple[PanopticClass, ...]:
        """Kinds of nuclei; void among them only if there are nuclei without a class."""
        has_void = bool((self.view.column("class_id")[self.view.exists] == VOID_ID).any())
        return self.view.store.classes.things + ((_VOID,) if has_void else ())

    @property
    def measures(self) -> tuple[str, ...]:
        """Columns of numbers."""
        names = self.view.numeric_columns
        first = [PROBABILITY] if any(_is_probability(name) for name in names) else []
        first += [name for name in ("area_um2",) if name in names]
        return tuple(dict.fromkeys([*first, *names]))

    @property
    def columns(self) -> tuple[str, ...]:
        """What a table of nuclei shows."""
        return ("id", "class", *self.measures, "tissue")

    def column(self, name: str) -> np.ndarray:
        """[n_ids], values by id; as ``NucleiView.column``, with ``PROBABILITY``. Do not change it."""
        if name != PROBABILITY or PROBABILITY in self.view.numeric_columns:
            return self.view.column(name)
        if self._probability is None:
            largest = np.full(self.view.n_ids, np.nan, np.float32)
            for each in filter(_is_probability, self.view.numeric_columns):
                np.fmax(largest, self.view.column(each), out=largest)
            self._probability = largest
        return self._probability

    # Masks: bool[n_ids], never id 0 or an id that is no nucleus

    def in_ranges(self) -> np.ndarray:
        """Nuclei in all ``ranges``, of any class."""
        mask = self.view.exists
        for name, (low, high) in self.ranges.items():
            values = self.column(name)
            mask &= (values >= low) & (values <= high)
        return mask

    def in_classes(self, mask: np.ndarray) -> np.ndarray:
        """Those in ``mask`` whose class is not ``hidden``."""
        is_shown = np.ones(_N_CLASS_IDS, bool)
        is_shown[list(self.hidden)] = False
        return mask & is_shown[self.view.column("class_id")]

    def in_box(self, mask: np.ndarray, box: Box) -> np.ndarray:
        """Those in ``mask`` whose centroid lies in ``box``, which counts pixels of the store."""
        per_pixel = self.view.store.level0_per_pixel
        y, x = self.view.column("centroid_y"), self.view.column("centroid_x")
        inside = mask & (y >= box.y0 * per_pixel)
        for is_inside in (y < box.y1 * per_pixel, x >= box.x0 * per_pixel, x < box.x1 * per_pixel):
            inside &= is_inside
        return inside

    def tally(self, mask: np.ndarray, box: Box) -> Tally:
        """Count the nuclei in ``mask``, all of which lie in ``box`` (pixels of the store)."""
        n = np.bincount(self.view.column("class_id")[mask], minlength=_N_CLASS_IDS)
        return Tally(n, box.area * self.view.store.mpp**2 / 1e6)

    # Order

    def sorted_ids(self, mask: np.ndarray, column: str, is_descending: bool) -> np.ndarray:
        """int64[n], the ids in ``mask`` by a column, equal ones by id, those without a value last."""
        wanted = (column, is_descending)
        if self._order is None or self._order[0] != wanted:
            self._order = wanted, _ids_by(self._keys(column), is_descending)
        order = self._order[1]
        return order[mask[order]]

    def _keys(self, column: str) -> np.ndarray:
        """[n_ids], numbers that sort as the column does; text is sorted by the rank of its class's name."""
        if column not in ("class", "tissue"):
            return self.column(column)
        names = np.full(_N_CLASS_IDS, "", object)
        for each in self.view.store.classes.classes:
            names[each.id] = each.name
        ranks = np.empty(_N_CLASS_IDS, np.uint8)
        ranks[np.argsort(names, kind="stable")] = np.arange(_N_CLASS_IDS)
        return ranks[self.view.column(f"{column}_id")]


def _ids_by(keys: np.ndarray, is_descending: bool) -> np.ndarray:
    ids = np.arange(len(keys))
    is_missing = np.isnan(keys) if np.issubdtype(keys.dtype, np.floating) else np.zeros(len(keys), bool)
    known, missing = ids[~is_missing], ids[is_missing]
    if is_descending:  # mirrored twice, equal ones stay in the order of ids
        known = known[::-1]
    known = known[np.argsort(keys[known], kind="stable")]
    return np.concatenate([known[::-1] if is_descending else known, missing])


def _is_probability(column: str) -> bool:
    return column.startswith("probability_")
