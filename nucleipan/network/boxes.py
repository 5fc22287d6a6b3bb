"""Boxes around nuclei: overlap, coding against anchors, non-maximum suppression.

A box is (y0, x0, y1, x1) in pixels of the tile, half-open, float. Boxes of a batch lie in one flat list; ``Rois`` tells
which image each belongs to. Everything is plain torch and the same on every device: results follow from the numbers
and, where those are equal, from the order of the list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# exp of a coded size stays below 1000 / 16, as in Faster R-CNN's first implementation.
_MAX_LOG_SIZE = 4.135166556742356
# Pairs of boxes compared at once; bounds memory at about 200 MB.
_PAIRS_AT_ONCE = 1 << 21


@dataclass(frozen=True, eq=False)
class Rois:
    """Regions of interest of a batch.

    Attributes:
        boxes: float32[N, 4].
        image: int64[N], index of the image in the batch.
    """

    boxes: Tensor
    image: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: Tensor | slice) -> Rois:
        return Rois(self.boxes[index], self.image[index])


def join_rois(parts: list[Rois]) -> Rois:
    """All of ``parts``, in order."""
    return Rois(torch.cat([p.boxes for p in parts]), torch.cat([p.image for p in parts]))


def areas(boxes: Tensor) -> Tensor:
    """float[..., 4] -> float[...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and of union of boxes that broadcast against each other, float[..., 4] each."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    sides = (high - low).clamp(min=0)
    both = sides[..., 0] * sides[..., 1]
    return both, areas(a) + areas(b) - both


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast; 0 where both are empty."""
    both, either = overlap(a, b)
    return both / either.clamp(min=torch.finfo(both.dtype).tiny)


def clip(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """The part of each box that lies in an image of ``shape`` (height, width)."""
    limit = boxes.new_tensor([*shape, *shape])
    return torch.minimum(boxes.clamp(min=0), limit)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float]) -> Tensor:
    """What has to be said of ``anchors`` to get ``boxes`` (Ren et al., arXiv 1506.01497): (dy, dx, dh, dw).

    ``weights`` multiply positions and sizes, to bring targets near one.
    """
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + size / 2 - anchors[..., :2] - anchor_size / 2) / anchor_size
    return torch.cat([weights[0] * shift, weights[1] * torch.log(size / anchor_size)], -1)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float]) -> Tensor:
    """Inverse of ``encode``, in float32; a size changes by a factor of 62.5 at most."""
    deltas = deltas.float()
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + anchor_size / 2 + deltas[..., :2] / weights[0] * anchor_size
    half = torch.exp((deltas[..., 2:] / weights[1]).clamp(max=_MAX_LOG_SIZE)) * anchor_size / 2
    return torch.cat([centre - half, centre + half], -1)


def nms(boxes: Tensor, scores: Tensor, group: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression: boxes that no better kept box of their group overlaps by more than ``threshold``.

    Of equal scores the first in the list is the better one. Two facts make the greedy loop parallel: boxes that overlap
    are neighbours in y, so few pairs have to be looked at; and repeating "a box stays unless one that stayed
    suppresses it" reaches the greedy answer, after as many rounds as the longest chain of suppressions.

    Args:
        boxes: float[N, 4].
        scores: float[N].
        group: int[N]; boxes of different groups don't see each other.
        threshold: intersection over union.

    Returns:
        int64[n], indices of kept boxes by falling score.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    better, worse = _overlapping(boxes[order].float(), group[order], threshold)
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    while True:
        now = torch.ones_like(kept)
        now[worse[kept[better]]] = False
        if torch.equal(now, kept):
            return order[kept]
        kept = now


def _overlapping(boxes: Tensor, group: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """int64[P] each: pairs of the same group that overlap by more than ``threshold``, the earlier of the list first."""
    device, n = boxes.device, len(boxes)
    if n == 0:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return none, none
    # Along one axis: groups one after the other, boxes by their upper side.
    low, high = boxes[:, 0].double(), boxes[:, 2].double()
    start = group.double() * (high.max() - low.min() + 1) + low
    by_start = torch.argsort(start, stable=True)
    ends = torch.searchsorted(start[by_start], (start + (high - low).clamp(min=0))[by_start])
    first = torch.arange(n, device=device) + 1
    counts = (ends - first).clamp(min=0)  # of boxes that begin before this one ends
    total = torch.cumsum(counts, 0)
    pairs = []
    row = 0
    while row < n:
        done = int(total[row - 1]) if row else 0
        stop = max(row + 1, int(torch.searchsorted(total, done + _PAIRS_AT_ONCE, right=True)))
        some = counts[row:stop]
        a = torch.repeat_interleave(torch.arange(row, stop, device=device), some)
        b = torch.arange(len(a), device=device) - torch.repeat_interleave(total[row:stop] - some - done, some) + a + 1
        a, b = by_start[a], by_start[b]
        both, either = overlap(boxes[a], boxes[b])
        close = (both > threshold * either) & (group[a] == group[b])
        a, b = a[close], b[close]
        pairs.append(torch.stack([torch.minimum(a, b), torch.maximum(a, b)]))
        row = stop
    better, worse = torch.cat(pairs, 1)
    return better, worse
