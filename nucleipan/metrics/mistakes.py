"""What became of the nuclei that PQ counts as not found, and of the predictions that match none.

Two models of one PQ may fail differently: one runs crowded nuclei together, the other overlooks pale ones. Each calls
for something else, so every true nucleus without a match is put down to one of four, the first that applies:

- *merged*: most of it lies in a prediction that also holds most of another true nucleus;
- *split*: two predictions or more lie mostly in it;
- *missed*: no more than half of it is covered by predictions;
- *misshapen*: it was found, but the outline does not fit.

Of predictions without a match, those that lie mostly where there is no nucleus are *extra*; the others are the other
side of the above. Merges, splits, missed and extra objects are told apart as by Caicedo et al. 2019
(doi:10.1002/cyto.a.23863); "most" is more than half, so that a nucleus is mostly in one prediction at most.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from nucleipan.metrics.overlaps import Overlaps
from nucleipan.metrics.quality import matches


@dataclass(frozen=True, slots=True)
class Mistakes:
    """Counts; ``+`` pools images. The first four add up to the false negatives of PQ."""

    merged: int = 0
    split: int = 0
    missed: int = 0
    misshapen: int = 0
    extra: int = 0

    def __add__(self, other: Mistakes) -> Mistakes:
        return Mistakes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def mistakes(table: Overlaps) -> Mistakes:
    """Why nuclei of the truth, and predictions, have no match with an IoU above 0.5."""
    n, m, shared = len(table.true), len(table.pred), 2 * table.intersections
    matched = matches(table)
    is_found, is_right = np.zeros(n, bool), np.zeros(m, bool)
    is_found[table.pair_true[matched]], is_right[table.pair_pred[matched]] = True, True

    holds_most = shared > table.true.areas[table.pair_true]
    n_held = np.bincount(table.pair_pred[holds_most], minlength=m)
    is_merged = np.zeros(n, bool)
    is_merged[table.pair_true[holds_most & (n_held[table.pair_pred] > 1)]] = True
    lies_in = shared > table.pred.areas[table.pair_pred]
    is_split = np.bincount(table.pair_true[lies_in], minlength=n) > 1
    is_missed = 2 * _summed(table.intersections, table.pair_true, n) <= table.true.areas
    on_nuclei = _summed(table.intersections, table.pair_pred, m)

    is_merged &= ~is_found
    is_split &= ~is_found & ~is_merged
    is_missed &= ~is_found & ~is_merged & ~is_split
    told = is_merged | is_split | is_missed
    return Mistakes(
        merged=int(is_merged.sum()),
        split=int(is_split.sum()),
        missed=int(is_missed.sum()),
        misshapen=int((~is_found & ~told).sum()),
        extra=int((~is_right & (2 * on_nuclei < table.pred.areas)).sum()),
    )


def _summed(pixels: np.ndarray, of: np.ndarray, n: int) -> np.ndarray:
    """int64[n], ``pixels`` added up by ``of``."""
    return np.bincount(of, weights=pixels, minlength=n).astype(np.int64)
