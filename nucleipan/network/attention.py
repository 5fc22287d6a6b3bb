"""What one branch of a panoptic network tells another: the attention modules of AUNet (arXiv 1812.03904).

Background and foreground exclude each other, so the tissue branch is told where nuclei are: by the proposal head on
every pyramid level (proposal attention), and by the masks, put back to their places (mask attention). Both have one
form, for features S and what the other branch knows, P::

    M = 1 - sigmoid(f(ReLU(f(P, w1)), w2))    S'  = S * M + S      where: one plane, high off the nuclei
    N = sigmoid(GN(f(GAP(S'), w3)))           S'' = S' * N + S'    which channels: told by the whole tile

f is a 1x1 convolution, GAP the mean over all pixels, GN group normalisation. Optionally the tissue also tells the
nuclei: which kind a nucleus is depends on where it lies.

GAP looks at the whole tile. Where a tile is cut therefore shows in every pixel, a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Protocol

from torch import Tensor, nn

from nucleipan.network.boxes import Rois
from nucleipan.network.layers import separable3x3
from nucleipan.network.roi import roi_upsample


class Attention(Protocol):
    """How the branches of a network tell each other what they know; lists are over pyramid levels."""

    def levels(self, levels: list[Tensor], hidden: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels for the semantic head, and for the heads of regions; ``hidden`` is the proposal head's."""

    def tissue_features(self, features: Tensor, masks: Tensor, rois: Rois, stride: int) -> Tensor:
        """The semantic head's last features, at ``stride``, knowing the mask features of regions."""


class NoAttention(nn.Module):
    """Branches that share the pyramid and nothing else: EfficientPS."""

    def levels(self, levels: list[Tensor], hidden: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return levels, levels

    def tissue_features(self, features: Tensor, masks: Tensor, rois: Rois, stride: int) -> Tensor:
        return features


class AuNetAttention(nn.Module):
    """Proposal and mask attention; with ``stuff_to_things`` also the way back, from tissue to nuclei."""

    def __init__(self, widths: tuple[int, int, int], width: int, n_levels: int, stuff_to_things: bool) -> None:
        """``widths`` of pyramid, mask features and semantic features; ``width`` between the two convolutions."""
        super().__init__()
        pyramid, masks, semantic = widths
        self.background = nn.ModuleList(separable3x3(pyramid, pyramid) for _ in range(n_levels))
        self.proposals = nn.ModuleList(ForegroundAttention(pyramid, pyramid, width) for _ in range(n_levels))
        self.masks = ForegroundAttention(masks, semantic, width)
        self.tissue = nn.ModuleList(plane_of(pyramid, width) for _ in range(n_levels)) if stuff_to_things else None

    def levels(self, levels: list[Tensor], hidden: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        stuff = [conv(p) for conv, p in zip(self.background, levels, strict=True)]
        things = levels
        if self.tissue is not None:
            things = [p * plane(s).sigmoid() + p for plane, p, s in zip(self.tissue, levels, stuff, strict=True)]
        return [attend(s, p) for attend, s, p in zip(self.proposals, stuff, hidden, strict=True)], things

    def tissue_features(self, features: Tensor, masks: Tensor, rois: Rois, stride: int) -> Tensor:
        b, _, h, w = features.shape
        return self.masks(features, roi_upsample(masks, rois, stride, (b, h, w)))


class ForegroundAttention(nn.Module):
    """``float[B, C, h, w]`` and what the foreground knows, ``float[B, P, h, w]`` -> ``float[B, C, h, w]``."""

    def __init__(self, foreground: int, channels: int, width: int) -> None:
        super().__init__()
        self.where = plane_of(foreground, width)
        # Groups of at least two channels: after the mean a channel is one number.
        groups = gcd(16, channels // 2) if channels % 2 == 0 else 1
        self.which = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GroupNorm(groups, channels), nn.Sigmoid())

    def forward(self, features: Tensor, foreground: Tensor) -> Tensor:
        features = features * (1 - self.where(foreground).sigmoid()) + features
        return features * self.which(features.mean((2, 3), keepdim=True)) + features


def plane_of(channels: int, width: int) -> nn.Sequential:
    """f(ReLU(f(x, w1)), w2): one plane of logits."""
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(inplace=True), nn.Conv2d(width, 1, 1))
