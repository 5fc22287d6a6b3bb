"""How close completed shapes of covered nuclei come to the truth, and how often nuclei are completed that only touch.

    python benchmarks/completion.py

Synthetic scenes in which nuclei lie over each other, at several least distances (``spacing``, in sums of their radii).
Of each nucleus the whole shape is known. Prints, for those that were completed, the mean IoU with it of what is visible
and of the completed shape, and the share of completed ones that came out worse than visible. As a control, the same
nuclei pressed flat: no pixel is covered, each belongs to the nucleus in which it lies deeper, so that nuclei touch
along straight and bent lines; none of these should be completed. Last, the time per megapixel.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy import ndimage

from nucleipan.geometry import Box
from nucleipan.measure import complete_covered
from nucleipan.synthetic import SyntheticScene, WholeNucleus

SIDE_UM = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=3, help="of each kind")
    args = parser.parse_args()
    of_covered(SyntheticScene((256, 256)))  # compiles
    print("mpp   spacing  hidden>3%  completed  of these  visible  whole  worse   flat  completed  ms/MP")
    for mpp in (0.5, 0.25):
        for spacing in (0.88, 0.7, 0.5):
            shape = (round(SIDE_UM / mpp),) * 2
            scenes = [SyntheticScene(shape, seed, mpp, spacing=spacing) for seed in range(args.scenes)]
            found = [of_covered(scene) for scene in scenes]
            rows = np.concatenate([rows for rows, _ in found])
            flat = np.array([of_flat(scene) for scene in scenes]).sum(0)
            is_hidden, is_completed = rows[:, 0] > 0.03, rows[:, 3] > 0
            visible, whole = rows[is_completed, 1], rows[is_completed, 2]
            speed = 1e3 * min(seconds for _, seconds in found) / (shape[0] * shape[1] / 1e6)
            print(
                f"{mpp:4}  {spacing:7}  {is_hidden.sum():9}  {is_completed.sum():9}  "
                f"{(is_hidden & is_completed).sum():8}  {visible.mean():7.3f}  {whole.mean():5.3f}  "
                f"{(whole < visible).mean():5.3f}  {flat[0]:5}  {flat[1]:9}  {speed:5.2f}"
            )


def of_covered(scene: SyntheticScene) -> tuple[np.ndarray, float]:
    """float64[n, 4] of all nuclei: share that is hidden, IoU with the truth of what is visible and of what was
    completed, whether it was; and the seconds that completing took."""
    whole = Box.of_shape(scene.shape)
    ids, labels = np.unique(scene.instances(whole), return_inverse=True)
    labels = labels.reshape(scene.shape).astype(np.int32)
    completed, seconds = completed_masks(labels)
    rows = []
    for label, nucleus in enumerate(scene.whole_nuclei(whole), 1):
        assert nucleus.id == ids[label]
        window = nucleus.box.grown(max(nucleus.box.shape)).clipped(whole)
        truth, mask = np.zeros(window.shape, bool), labels[window.slices(whole)] == label
        truth[nucleus.box.slices(window)] = nucleus.mask
        hidden, visible = 1 - mask.sum() / truth.sum(), iou(mask, truth)
        if label in completed:
            box, own = completed[label]
            mask[box.slices(window)] = own
        rows.append((hidden, visible, iou(mask, truth), label in completed))
    return np.array(rows, float), seconds


def of_flat(scene: SyntheticScene) -> tuple[int, int]:
    """Number of the nuclei, pressed flat, that touch others, and of those that were completed."""
    labels = flattened(list(scene.whole_nuclei(Box.of_shape(scene.shape))), scene.shape)
    beside = np.concatenate([
        np.stack([labels[:, 1:], labels[:, :-1]], -1).reshape(-1, 2),
        np.stack([labels[1:], labels[:-1]], -1).reshape(-1, 2),
    ])  # fmt: skip
    touching = beside[(beside > 0).all(1) & (beside[:, 0] != beside[:, 1])]
    return len(np.unique(touching)), len(completed_masks(labels)[0])


def flattened(nuclei: list[WholeNucleus], shape: tuple[int, int]) -> np.ndarray:
    """int32[h, w], 1.. for each nucleus; a pixel goes to the one in which it lies deeper, by share of the depth."""
    whole, depth, plane = Box.of_shape(shape), np.zeros(shape), np.zeros(shape, np.int32)
    for label, nucleus in enumerate(nuclei, 1):
        own = ndimage.distance_transform_edt(np.pad(nucleus.mask, 1))[1:-1, 1:-1]
        own /= own.max()
        inside = nucleus.box.slices(whole)
        is_deeper = own > depth[inside]
        depth[inside][is_deeper], plane[inside][is_deeper] = own[is_deeper], label
    present = np.unique(plane[plane > 0])
    return np.where(plane > 0, np.searchsorted(present, plane) + 1, 0).astype(np.int32)


def completed_masks(labels: np.ndarray) -> tuple[dict[int, tuple[Box, np.ndarray]], float]:
    """Boxes and bool[h, w] in them, by label, and the processor time that it took to find them."""
    boxes = np.array([(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)], np.int32)
    numbers = np.arange(1, len(boxes) + 1, dtype=np.int32)
    start = time.process_time()
    found = complete_covered(labels, numbers, boxes)
    seconds = time.process_time() - start
    masks = {}
    for k, index in enumerate(found.index.tolist()):
        (y0, x0, y1, x1), (dy, dx) = found.bboxes[k].tolist(), found.corners[k].tolist()
        masks[index + 1] = Box(y0 + dy, x0 + dx, y1 + dy, x1 + dx), found.labels[y0:y1, x0:x1] == k + 1
    return masks, seconds


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


if __name__ == "__main__":
    main()
