"""One-to-one pairing of maximal total weight in a sparse bipartite graph.

Nuclei only compete with their neighbours, so nearly every pair stands alone and is taken as it is; what is left goes
through a sparse Jonker-Volgenant solver. The dense Hungarian matrix of 100,000 nuclei would be 80 GB.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching


def pair_by_weight(rows: np.ndarray, cols: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the chosen edges: every row and column at most once, the sum of weights maximal.

    ``rows`` and ``cols`` are non-negative integers [k], each (row, col) once; ``weights`` [k] are positive.
    """
    if len(rows) == 0:
        return np.zeros(0, np.int64)
    is_alone = (np.bincount(rows)[rows] == 1) & (np.bincount(cols)[cols] == 1)
    contested = np.flatnonzero(~is_alone)
    chosen = _pair_contested(rows[contested], cols[contested], weights[contested])
    return np.sort(np.concatenate([np.flatnonzero(is_alone), contested[chosen]]))


def _pair_contested(rows: np.ndarray, cols: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if len(rows) == 0:
        return np.zeros(0, np.int64)
    row_ids, r = np.unique(rows, return_inverse=True)
    col_ids, c = np.unique(cols, return_inverse=True)
    n, m = len(row_ids), len(col_ids)
    # A private spare column of weight 0 lets every row stay single, so that a full matching always exists. Costs are
    # kept above zero because sparse matrices cannot tell a cost of zero from no edge.
    top = float(weights.max())
    costs = np.concatenate([2 * top - weights, np.full(n, 2 * top)])
    graph = coo_array((costs, (np.concatenate([r, np.arange(n)]), np.concatenate([c, m + np.arange(n)]))), (n, m + n))
    matched_rows, matched_cols = min_weight_full_bipartite_matching(graph.tocsr())
    taken = set(zip(matched_rows.tolist(), matched_cols.tolist(), strict=True))
    return np.array([i for i, edge in enumerate(zip(r.tolist(), c.tolist(), strict=True)) if edge in taken], np.int64)
