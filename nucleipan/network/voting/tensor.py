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
    landing = _landing(mask, offsets.float(), config.jumps)  # [h, w], flat index
    votes = torch.zeros(h * w, dtype=torch.int32, device=nucleus.device)
    hit = landing[mask]
    votes.index_add_(0, hit, torch.ones_like(hit, dtype=torch.int32))
    centres = _peaks(_smooth(votes.view(h, w)), config.min_score, config.peak_radius)
    claims = _claim(centres, h, w, config.reach)
    return torch.where(mask, claims[landing], 0).to(torch.int32)


def _landing(mask: Tensor, offsets: Tensor, n_jumps: int) -> Tensor:
    """int64[h, w], flat index where each pixel ends."""
    _, h, w = offsets.shape
    step = torch.floor(offsets + 0.5).long()
    y = (torch.arange(h, device=offsets.device)[:, None] + step[0]).clamp(0, h - 1)
    x = (torch.arange(w, device=offsets.device)[None, :] + step[1]).clamp(0, w - 1)
    here = torch.arange(h * w, device=offsets.device).view(h, w)
    target = torch.where(mask, y * w + x, here).reshape(-1)  # off the nuclei a pixel stays where it is
    for _ in range(n_jumps):
        here = target[here]
    return here


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
