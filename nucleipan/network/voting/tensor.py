"""Centre voting in torch operations, for tiles that already lie on a GPU. See the package for the algorithm.

Scatter, pooling and gather only. Sums are of integers and ties are broken by position, so the order in which a
GPU adds does not matter. Pooling runs in float64, which holds the integers used here (below 2**53) exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nucleipan.network.voting import VotingConfig

_KERNEL = (1.0, 4.0, 6.0, 4.0, 1.0)


def vote(nucleus: Tensor, offsets: Tensor, config: VotingConfig) -> Tensor:
    """As ``cpu.vote``: float[h, w] and float[2, h, w] -> int32[h, w]."""
    h, w = nucleus.shape
    mask = nucleus > config.threshold
    landing = _landing(offsets.float())  # [h, w], flat index
    votes = torch.zeros(h * w, dtype=torch.int32, device=nucleus.device)
    hit = landing[mask]
    votes.index_add_(0, hit, torch.ones_like(hit, dtype=torch.int32))
    centres = _peaks(_smooth(votes.view(h, w)), config.min_score, config.peak_radius)
    claims = _claim(centres, h, w, config.reach)
    return torch.where(mask, claims[landing], 0).to(torch.int32)


def keep_largest_pieces(instances: Tensor, min_area: int) -> tuple[Tensor, Tensor]:
    """As ``cpu.keep_largest_pieces``."""
    h, w = instances.shape
    flat = instances.reshape(-1).long()
    roots = _components(instances).reshape(-1)
    inside = flat > 0
    size = torch.zeros_like(flat).index_add_(0, roots[inside], torch.ones_like(flat)[inside])
    first = torch.nonzero((roots == torch.arange(h * w, device=flat.device)) & inside & (size >= min_area))[:, 0]
    # Of each old id the largest piece, the first one among equals: order by size, then by position, keep the top.
    order = torch.argsort(size[first] * (h * w) + (h * w - 1 - first), descending=True)
    ranked = first[order]
    best = torch.full((int(flat.max()) + 1,), h * w, dtype=torch.long, device=flat.device)
    rank = torch.full_like(best, len(ranked))
    rank.scatter_reduce_(0, flat[ranked], torch.arange(len(ranked), device=flat.device), "amin")
    chosen, _ = torch.sort(ranked[rank[rank < len(ranked)]])
    new_id = torch.zeros_like(flat)
    new_id[chosen] = torch.arange(1, len(chosen) + 1, device=flat.device)
    out = torch.where(inside, new_id[roots.clamp(min=0)], 0).view(h, w).to(torch.int32)
    return out, flat[chosen].to(torch.int32)


def _landing(offsets: Tensor) -> Tensor:
    _, h, w = offsets.shape
    step = torch.floor(offsets + 0.5).long()
    y = (torch.arange(h, device=offsets.device)[:, None] + step[0]).clamp(0, h - 1)
    x = (torch.arange(w, device=offsets.device)[None, :] + step[1]).clamp(0, w - 1)
    return y * w + x


def _smooth(votes: Tensor) -> Tensor:
    kernel = torch.tensor(_KERNEL, dtype=torch.float64, device=votes.device)
    x = votes.double()[None, None]
    x = F.conv2d(x, kernel.view(1, 1, 1, 5), padding=(0, 2))
    return F.conv2d(x, kernel.view(1, 1, 5, 1), padding=(2, 0))[0, 0]


def _peaks(score: Tensor, min_score: int, radius: int) -> Tensor:
    """int64[n], raster-ordered flat indices of the centres."""
    h, w = score.shape
    # Score first, earlier position second: unique, and the same order for any tile that holds the window.
    key = score * (h * w) + (h * w - 1 - torch.arange(h * w, dtype=torch.float64, device=score.device).view(h, w))
    top = F.max_pool2d(key[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0]
    return torch.nonzero(((key == top) & (score >= min_score)).reshape(-1))[:, 0]


def _claim(centres: Tensor, h: int, w: int, reach: int) -> Tensor:
    """int64[h * w], index + 1 of the nearest centre within ``reach``, 0 = none."""
    n = len(centres)
    unclaimed = torch.iinfo(torch.int64).max
    best = torch.full((h * w,), unclaimed, dtype=torch.int64, device=centres.device)
    span = torch.arange(-reach, reach + 1, device=centres.device)
    dy, dx = (g.reshape(-1) for g in torch.meshgrid(span, span, indexing="ij"))
    distance = dy * dy + dx * dx
    near = distance <= reach * reach
    dy, dx, distance = dy[near], dx[near], distance[near]
    y, x = (centres // w)[:, None] + dy, (centres % w)[:, None] + dx  # [n, window]
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    key = distance * (n + 1) + torch.arange(1, n + 1, device=centres.device)[:, None]
    best.scatter_reduce_(0, (y * w + x)[inside], key[inside], "amin")
    return torch.where(best == unclaimed, 0, best % (n + 1))


def _components(labels: Tensor) -> Tensor:
    """int64[h, w], flat index of the first pixel of each 4-connected piece of one value; -1 where it is 0."""
    h, w = labels.shape
    index = torch.arange(h * w, device=labels.device).view(h, w)
    root = torch.where(labels > 0, index, -1)
    same_y = (labels[1:] == labels[:-1]) & (labels[1:] > 0)
    same_x = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] > 0)
    while True:
        before = root
        root = root.clone()
        for same, a, b in ((same_y, root[1:], root[:-1]), (same_x, root[:, 1:], root[:, :-1])):
            low = torch.minimum(a, b)
            a.copy_(torch.where(same, low, a))
            b.copy_(torch.where(same, torch.minimum(low, b), b))
        # Jump to the root's root: pieces merge in a logarithmic number of rounds.
        flat = root.reshape(-1)
        root = torch.where(root >= 0, flat[flat.clamp(min=0)].view(h, w), -1)
        if torch.equal(root, before):
            return root
