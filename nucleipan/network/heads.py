"""The two heads: what every pixel is (semantic), and which nucleus it belongs to (instance).

``SemanticHead`` follows EfficientPS (arXiv 2004.02307, section 3.2): DPC modules gather context on the two
coarse levels, LSFE modules refine the two fine ones, MC modules carry the coarse result into the fine levels, and
everything is concatenated at the finest. The dilations are a parameter: the paper's reach over a street scene,
ours over a gland.

``InstanceHead`` is proposal-free: per pixel a nucleus logit and the offset to the centre of its nucleus. It sees
fine levels only, so that its receptive field, and with it the margin a tile needs, stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from nucleipan.network.layers import conv1x1, conv3x3, separable3x3, upsample

#: Dilations (dy, dx) of the five branches of the dense prediction cell, in pixels of its level.
Dilations = Sequence[tuple[int, int]]

# Offsets are learnt in units of about one nuclear radius, which keeps the layer's weights near one.
_OFFSET_UNIT_PX = 8.0


class DensePredictionCell(nn.Module):
    """DPC (Chen et al., arXiv 1809.04184): a cascade of dilated separable convolutions and their concatenation."""

    def __init__(self, channels: int, out_channels: int, dilations: Dilations) -> None:
        super().__init__()
        first, second, third, fourth, fifth = dilations
        self.first = separable3x3(channels, channels, first)
        self.second = separable3x3(channels, channels, second)
        self.third = separable3x3(channels, channels, third)
        self.fourth = separable3x3(channels, channels, fourth)
        self.fifth = separable3x3(channels, channels, fifth)
        self.project = nn.Sequential(
            nn.Conv2d(5 * channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b, c, d = self.second(a), self.third(a), self.fourth(a)
        e = self.fifth(d)
        return self.project(torch.cat([a, b, c, d, e], 1))


def large_scale_features(n_in: int, n_out: int) -> nn.Sequential:
    """LSFE: two separable 3x3 convolutions."""
    return nn.Sequential(separable3x3(n_in, n_out), separable3x3(n_out, n_out))


class MismatchCorrection(nn.Module):
    """MC: a coarse level made to fit the next finer one, two separable 3x3 convolutions and upsampling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(separable3x3(channels, channels), separable3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return upsample(self.convs(x), 2)


class SemanticHead(nn.Module):
    """Pyramid levels of strides (s, 2s, 4s, 8s) -> ``float[B, n_classes, H/s, W/s]`` logits.

    ``features`` and ``classify`` are its two steps: the features of all levels beside each other, and their classes.
    """

    def __init__(self, channels: int, hidden: int, n_classes: int, dilations: Dilations) -> None:
        super().__init__()
        self.coarse = nn.ModuleList(DensePredictionCell(channels, hidden, dilations) for _ in range(2))
        self.fine = nn.ModuleList(large_scale_features(channels, hidden) for _ in range(2))
        self.correct = nn.ModuleList(MismatchCorrection(hidden) for _ in range(2))
        self.classify = nn.Conv2d(4 * hidden, n_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return self.classify(self.features(levels))

    def features(self, levels: Sequence[Tensor]) -> Tensor:
        """``float[B, 4 * hidden, H/s, W/s]``."""
        p1, p2, p4, p8 = levels
        c8, c4 = self.coarse[1](p8), self.coarse[0](p4)
        c4 = c4 + upsample(c8, 2)
        c2 = self.fine[1](p2) + self.correct[1](c4)
        c1 = self.fine[0](p1) + self.correct[0](c2)
        return torch.cat([c1, upsample(c2, 2), upsample(c4, 4), upsample(c8, 8)], 1)


class InstanceHead(nn.Module):
    """Backbone features of strides (2, 4, 8, 16) -> nucleus logit and offsets at stride 1.

    A U-Net decoder (Ronneberger et al., arXiv 1505.04597): coarse features are narrowed, upsampled, set beside the
    finer ones and mixed by two full 3x3 convolutions; borders between touching nuclei are decided here.

    Returns:
        ``float[B, 1, H, W]`` nucleus logit; ``float[B, 2, H, W]`` offset (dy, dx) in pixels from a pixel to the
        centre of its nucleus.
    """

    def __init__(self, in_channels: Sequence[int], channels: Sequence[int]) -> None:
        """``in_channels`` of the features and ``channels`` of the decoder, both finest first."""
        super().__init__()
        coarser = [*channels[1:], 0]
        self.narrow = nn.ModuleList(conv1x1(c, n) for n, c in pairwise(channels))
        self.mix = nn.ModuleList(
            nn.Sequential(conv3x3(skip + (n if c else 0), n), conv3x3(n, n))
            for skip, n, c in zip(in_channels, channels, coarser, strict=True)
        )
        # Four sub-pixels of (logit, dy, dx) for each pixel of the finest level, alike at first: no checkerboard.
        self.predict = nn.Conv2d(channels[0], 12, 1)
        with torch.no_grad():
            self.predict.weight.copy_(self.predict.weight[::4].repeat_interleave(4, dim=0))
        self.to_pixels = nn.PixelShuffle(2)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self.at_pixels(self.decode(features))

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """``float[B, channels[0], H/2, W/2]``, from which ``at_pixels`` reads logit and offsets."""
        x = self.mix[-1](features[-1])
        for i in range(len(features) - 2, -1, -1):
            x = self.mix[i](
                torch.cat([upsample(self.narrow[i](x), 2), features[i]], 1)
            )  # [B, channels[i], H/2^i, W/2^i]
        return x

    def at_pixels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logit and offsets, as ``forward``."""
        out = self.to_pixels(self.predict(x))  # [B, 3, H, W]
        return out[:, :1], out[:, 1:] * _OFFSET_UNIT_PX
