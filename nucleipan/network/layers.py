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


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear, pixel areas aligned (``align_corners=False``): independent of where a tile was cut."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
