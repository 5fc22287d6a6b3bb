"""Small convolution blocks that every part of the network is built from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv1x1(n_in: int, n_out: int) -> nn.Sequential:
    """1x1 convolution and BatchNorm, no activation: a lateral connection."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))


def conv3x3(n_in: int, n_out: int) -> nn.Sequential:
    """Full 3x3 convolution, BatchNorm and ReLU; keeps height and width."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


def separable3x3(n_in: int, n_out: int, dilation: tuple[int, int] = (1, 1)) -> nn.Sequential:
    """Depthwise 3x3 and pointwise 1x1, BatchNorm and ReLU; keeps height and width."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_in, 3, padding=dilation, dilation=dilation, groups=n_in, bias=False),
        nn.Conv2d(n_in, n_out, 1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    )


class InvertedResidual(nn.Module):
    """MobileNetV2's block (arXiv 1801.04381): widen four times, depthwise 3x3, narrow, add.

    The last BatchNorm starts at zero: a new block changes nothing until it has learnt something.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, channels, 1, bias=False),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear, pixel areas aligned (``align_corners=False``): independent of where a tile was cut."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
