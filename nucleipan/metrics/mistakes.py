"""What became of the nuclei that PQ counts as not found, and of the predictions that match none.

Two models of one PQ may fail differently: one runs crowded nuclei together, the other overlooks pale ones. Every true
nucleus without a match has one of four causes, the first that applies ("most" is more than half):

- *merged*: most of it lies in a prediction that also holds most of another true nucleus;
- *split*: predictions cover most of it, and two or more of them lie mostly in it;
- *missed*: no prediction reaches an IoU of 0.1 with it;
- *misshapen*: one does, but the outline does not fit.

A prediction without a match is *extra* if it lies mostly where there is no nucleus and reaches an IoU of 0.1 with none;
the others belong to nuclei of the first four kinds. Merges, splits, missed and extra objects are the errors of Caicedo
et al. 2019 (doi:10.1002/cyto.a.23863), the lower threshold is that of TIDE (arXiv 2008.08115). In detail the rules are
not theirs (Caicedo et al. count predictions, not nuclei, as merged), so that counts do not compare.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from nucleipan.metrics.overlaps import Overlaps
from nucleipan.metrics.quality import matches


@dataclass(frozen=True, slots=True)
class Mistakes:
    """Counts; ``+`` pools images. The first four are true nuclei and add up to the false negatives of PQ."""

    merged: int = 0
    split: int = 0
    missed: int = 0
    misshapen: int = 0
    extra: int = 0

    def __add__(self, other: Mistakes) -> Mistakes:
        return Mistakes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def count_mistakes(table: Overlaps) -> Mistakes:
    """Why true nuclei and predictions have no match with an IoU above 0.5. All comparisons are of integers."""
    n, m, shared = len(table.true), len(table.pred), table.intersections
    is_left, is_unmatched = np.ones(n, bool), np.ones(m, bool)
    matched = matches(table)
    is_left[table.pair_true[matched]], is_unmatched[table.pair_pred[matched]] = False, False

    holds_most = 2 * shared > table.true.areas[table.pair_true]
    lies_in = 2 * shared > table.pred.areas[table.pair_pred]
    is_near = 10 * shared >= table.unions
    n_held = np.bincount(table.pair_pred[holds_most], minlength=m)
    is_covered = 2 * table.covered_true > table.true.areas

    counts = {}
    for name, applies in (
        ("merged", _any(holds_most & (n_held[table.pair_pred] > 1), table.pair_true, n)),
        ("split", is_covered & (np.bincount(table.pair_true[lies_in], minlength=n) > 1)),
        ("missed", ~_any(is_near, table.pair_true, n)),
        ("misshapen", np.ones(n, bool)),
    ):
        counts[name] = int((is_left & applies).sum())
        is_left &= ~applies
    is_off = (2 * table.covered_pred < table.pred.areas) & ~_any(is_near, table.pair_pred, m)
    return Mistakes(**counts, extra=int((is_unmatched & is_off).sum()))


def _any(pairs: np.ndarray, of: np.ndarray, n: int) -> np.ndarray:
    """bool[n], those that a pair (bool[k]) is true of."""
    return np.bincount(of[pairs], minlength=n) > 0
