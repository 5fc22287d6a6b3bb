"""Does scoring stay sparse? A whole slide's worth of synthetic nuclei, every score, seconds and peak memory.

    python benchmarks/metrics.py --side 10000 --nuclei 100000

Makes a truth of touching ellipses and a prediction that shifts, resizes, drops and invents some of them, with classes
and tissue. Prints what each step took and the largest memory the process has held up to its end, the maps included.
The kernels are compiled before, on a small pair of maps; that takes seconds once per installation.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from nucleipan.metrics import (
    ImagePair,
    aji,
    aji_plus,
    class_qualities,
    classification_counts,
    detection_counts,
    dice,
    evaluate_pairs,
    instance_quality,
    mean_pq,
    overlaps,
    pair_centroids,
)

CLASSES = ("neoplastic", "inflammatory", "connective", "dead or other", "non-neoplastic epithelial")
TISSUES = ("tumour epithelium", "stroma", "lymphoid", "background")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000, help="pixels")
    parser.add_argument("--nuclei", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    small = synthetic_pair(256, 60, args.seed)
    evaluate_pairs([small], classes=CLASSES, tissues=TISSUES)
    print("step                                seconds  of CPU  peak GiB")
    with measured("making the maps"):
        pair = synthetic_pair(args.side, args.nuclei, args.seed)
    score_nuclei(pair)
    with measured("evaluate_pairs, tissue included"):
        evaluation = evaluate_pairs([pair], classes=CLASSES, tissues=TISSUES)
    print(" ".join(f"{name} {value:.4f}" for name, value in evaluation.summary().items()))


def score_nuclei(pair: ImagePair) -> None:
    """Every nuclei score on its own, from one table."""
    assert pair.pred is not None
    assert pair.true is not None
    assert pair.pred_classes is not None
    assert pair.true_classes is not None
    with measured("overlaps"):
        table = overlaps(pair.pred, pair.true)
    with measured("PQ, Dice"):
        instance_quality(table), dice(table)
    with measured("AJI"):
        aji(table)
    with measured("AJI+"):
        aji_plus(table)
    pred_of, true_of = pair.pred_classes[table.pred.ids], pair.true_classes[table.true.ids]
    with measured("PQ per class, mPQ+"):
        mean_pq(class_qualities(table, pred_of, true_of, len(CLASSES)))
    with measured("F1 of detection and classification"):
        pairs = pair_centroids(table.pred.centroids, table.true.centroids)
        detection_counts(pairs), classification_counts(pairs, pred_of, true_of, len(CLASSES))
    print(f"{len(table.true)} true and {len(table.pred)} predicted nuclei, {len(table.pair_true)} pairs share pixels")


@contextmanager
def measured(step: str) -> Iterator[None]:
    """Print how long the block took and the process's peak memory at its end."""
    began, cpu_began = time.perf_counter(), time.process_time()
    yield
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    print(f"{step:36s}{seconds:7.2f}  {cpu_seconds:6.2f}  {peak_gib:8.2f}", flush=True)


def synthetic_pair(side: int, n_nuclei: int, seed: int) -> ImagePair:
    """Truth and prediction, int32 ids [side, side]; classes by id, one in fifty of the truth unclassified."""
    rng = np.random.default_rng(seed)
    n_cells = int(np.ceil(np.sqrt(n_nuclei)))
    cell = side / n_cells
    cells = np.stack(np.divmod(rng.permutation(n_cells**2)[:n_nuclei], n_cells), -1)  # [n, 2], yx
    centres = (cells + rng.uniform(0.2, 0.8, (n_nuclei, 2))) * cell
    radii = rng.uniform(0.2, 0.5, (n_nuclei, 2)) * cell
    is_true, is_pred = rng.random((2, n_nuclei)) > np.array([[0.05], [0.1]])
    true = draw_ellipses(side, centres[is_true], radii[is_true])
    moved = (centres + rng.normal(0, 0.05 * cell, centres.shape))[is_pred]
    pred = draw_ellipses(side, moved, (radii * rng.uniform(0.85, 1.15, radii.shape))[is_pred])
    classes = rng.integers(1, len(CLASSES) + 1, n_nuclei)
    guessed = np.where(rng.random(n_nuclei) < 0.8, classes, rng.integers(1, len(CLASSES) + 1, n_nuclei))
    classes[::50] = 0
    by_id = [np.concatenate([[0], of[has]]) for of, has in ((guessed, is_pred), (classes, is_true))]
    true_tissue, other_tissue = draw_blocks(side, rng), draw_blocks(side, rng)
    pred_tissue = np.where(np.arange(side) < 0.7 * side, true_tissue, other_tissue)
    return ImagePair("synthetic", pred, by_id[0], true, by_id[1], pred_tissue, true_tissue)


def draw_ellipses(side: int, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """int32[side, side]: id i + 1 where ellipse i is, later ones on top."""
    plane = np.zeros((side, side), np.int32)
    low = np.clip(np.floor(centres - radii), 0, side).astype(int)
    high = np.clip(np.ceil(centres + radii) + 1, 0, side).astype(int)
    for i, ((y0, x0), (y1, x1)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        y = (np.arange(y0, y1) - centres[i, 0]) / radii[i, 0]
        x = (np.arange(x0, x1) - centres[i, 1]) / radii[i, 1]
        plane[y0:y1, x0:x1][y[:, None] ** 2 + x**2 < 1] = i + 1
    return plane


def draw_blocks(side: int, rng: np.random.Generator) -> np.ndarray:
    """uint8[side, side], tissue classes in squares, 0 (unknown) among them."""
    n = 20
    blocks = rng.integers(0, len(TISSUES) + 1, (n, n)).astype(np.uint8)
    nearest = np.arange(side) * n // side
    return blocks[np.ix_(nearest, nearest)]


if __name__ == "__main__":
    main()
