"""Scores of whole instance maps that weigh nuclei by their pixels: AJI, AJI+ and Dice.

All three are nan where both maps are empty, 0 where one is.
"""

from __future__ import annotations

import numpy as np

from nucleipan.metrics.assignment import pair_by_weight
from nucleipan.metrics.overlaps import Overlaps


def aji(table: Overlaps) -> float:
    """Aggregated Jaccard index as Kumar et al. 2017 (IEEE TMI 36(7), algorithm 1) define it.

    Every true nucleus takes the predicted one of highest IoU, even one taken before; predictions nobody took join the
    union. A true nucleus that meets no prediction adds its area to the union. The paper leaves ties open; here the
    larger intersection wins, then the earlier first pixel.
    """
    order = np.lexsort((table.pair_pred, -table.intersections, -table.ious, table.pair_true))
    _, first = np.unique(table.pair_true[order], return_index=True)
    return _aggregate(table, order[first])


def aji_plus(table: Overlaps) -> float:
    """AJI+ of HoVer-Net (Graham et al. 2019, arXiv 1812.06499): pairs are one-to-one with maximal total IoU."""
    return _aggregate(table, pair_by_weight(table.pair_true, table.pair_pred, table.ious))


def dice(table: Overlaps) -> float:
    """Dice coefficient of the nucleus pixels, instances ignored (DICE1 of HoVer-Net)."""
    total = int(table.true.areas.sum() + table.pred.areas.sum())
    return 2 * int(table.intersections.sum()) / total if total else float("nan")


def _aggregate(table: Overlaps, pairs: np.ndarray) -> float:
    alone_true = np.ones(len(table.true), bool)
    alone_pred = np.ones(len(table.pred), bool)
    alone_true[table.pair_true[pairs]] = False
    alone_pred[table.pair_pred[pairs]] = False
    alone = table.true.areas[alone_true].sum() + table.pred.areas[alone_pred].sum()
    union = int(table.unions[pairs].sum() + alone)
    return int(table.intersections[pairs].sum()) / union if union else float("nan")
