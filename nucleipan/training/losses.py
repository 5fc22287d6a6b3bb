"""Losses under partial labels.

A pixel's annotation is the *set* of classes it may have. The semantic loss is the negative log of the
probability of that set, the sum over its classes: an exact label is the special case of one class, an
unannotated pixel the case of all of them, with loss zero.

Tissue maps do not mark nuclei. Where the instance head itself sees a nucleus, the pixel is taught as "some
thing", elsewhere as the tissue its map names; otherwise the network could satisfy a tissue map by calling
everything a nucleus.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nucleipan.network.layers import upsample
from nucleipan.network.model import HeadOutputs
from nucleipan.training.config import LossConfig


@dataclass(frozen=True)
class Batch:
    """Targets of B crops.

    Attributes:
        image: float[B, 3, H, W] in [0, 1].
        nucleus: float[B, 1, H, W], 1 on nuclei.
        has_nuclei: bool[B, 1, H, W], where ``nucleus`` and ``offsets`` are annotated.
        offsets: float[B, 2, H, W], pixels.
        offset_weights: float[B, 1, H, W], 1 / size of the nucleus.
        ids: int[B, 1, H, W], 0 = none; each image counts for itself.
        cover: int[B, H, W], row of ``allowed`` for each pixel.
        allowed: bool[n_codes, K].
        thing_code: the row of ``allowed`` that allows all things.
    """

    image: Tensor
    nucleus: Tensor
    has_nuclei: Tensor
    offsets: Tensor
    offset_weights: Tensor
    ids: Tensor
    cover: Tensor
    allowed: Tensor
    thing_code: int

    def to(self, device: torch.device) -> Batch:
        tensors: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


def total_loss(out: HeadOutputs, batch: Batch, config: LossConfig) -> dict[str, Tensor]:
    """Every term, weighted, and their sum under ``total``."""
    terms = {
        "semantic": config.semantic * semantic_loss(out.semantic, batch, config, out.nucleus.detach() > 0),
        "mask": config.mask * mask_loss(out.nucleus.float(), batch),
        "offsets": config.offsets * offset_loss(out.offsets.float(), batch),
    }
    terms["total"] = torch.stack(list(terms.values())).sum()
    return terms


def semantic_loss(semantic: Tensor, batch: Batch, config: LossConfig, seen: Tensor | None = None) -> Tensor:
    """Negative log-probability of the allowed set, at half the tile's resolution.

    Args:
        semantic: float[B, K, H/s, W/s], logits.
        seen: bool[B, 1, H, W], where the network sees nuclei; None if it cannot say: then a pixel of a tissue map is
            that tissue or some thing.
    """
    stride = batch.image.shape[-1] // semantic.shape[-1]
    logits = upsample(semantic.float(), stride // 2)  # [B, K, H/2, W/2]
    unseen = torch.zeros_like(batch.has_nuclei) if seen is None else seen
    is_nucleus = torch.where(batch.has_nuclei, batch.nucleus > 0.5, unseen)[:, 0]
    cover, is_nucleus = batch.cover[:, ::2, ::2], is_nucleus[:, ::2, ::2]
    annotated = cover > 0
    allows_thing = (batch.allowed & batch.allowed[batch.thing_code]).any(1)[cover]
    cover = torch.where(annotated & is_nucleus & ~allows_thing, batch.thing_code, cover)
    allowed = batch.allowed[cover].permute(0, 3, 1, 2)  # [B, K, H/2, W/2]
    if seen is None:
        allowed = allowed | (~batch.has_nuclei[:, :, ::2, ::2] & batch.allowed[batch.thing_code][:, None, None])
    loss = logits.logsumexp(1) - logits.masked_fill(~allowed, -1e4).logsumexp(1)
    weight = annotated * torch.where(is_nucleus, config.thing_pixel, 1.0)
    if config.hardest < 1:
        n = max(1, round(config.hardest * int(annotated.sum())))
        hardest = (loss * annotated).flatten().topk(n).indices
        loss, weight = loss.flatten()[hardest], weight.flatten()[hardest]
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def mask_loss(logit: Tensor, batch: Batch) -> Tensor:
    """Binary cross-entropy plus Dice over all annotated pixels of the batch."""
    known = batch.has_nuclei.float()
    n = known.sum().clamp(min=1)
    entropy = (F.binary_cross_entropy_with_logits(logit, batch.nucleus, reduction="none") * known).sum() / n
    p, t = logit.sigmoid() * known, batch.nucleus * known
    dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    return entropy + dice


def offset_loss(offsets: Tensor, batch: Batch) -> Tensor:
    """Smooth L1 in units of eight pixels; every nucleus has the same weight whatever its size."""
    error = F.smooth_l1_loss(offsets / 8, batch.offsets / 8, beta=0.1, reduction="none").sum(1, keepdim=True)
    weight = batch.offset_weights * batch.has_nuclei
    return (error * weight).sum() / weight.sum().clamp(min=1e-6)
