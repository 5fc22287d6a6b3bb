"""Two-way feature pyramid of EfficientPS (arXiv 2004.02307, section 3.1).

One path carries coarse context down to fine levels, the other fine detail up to coarse ones; each has its own
lateral connections, and the two meet by addition::

    C2 --l--> T2 <--up-- T4 <--up-- T8 ...       P_i = separable3x3(T_i + B_i)
    C2 --l'-> B2 -down-> B4 -down-> B8 ...
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nucleipan.network.layers import conv1x1, separable3x3, upsample


class TwoWayFpn(nn.Module):
    """Levels of rising stride, each twice the one before -> as many levels of ``channels`` channels."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.top_down = nn.ModuleList(conv1x1(n, channels) for n in in_channels)
        self.bottom_up = nn.ModuleList(conv1x1(n, channels) for n in in_channels)
        self.merge = nn.ModuleList(separable3x3(channels, channels) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        down = [lateral(c) for lateral, c in zip(self.top_down, features, strict=True)]
        for i in range(len(down) - 2, -1, -1):
            down[i] = down[i] + upsample(down[i + 1], 2)
        up = [lateral(c) for lateral, c in zip(self.bottom_up, features, strict=True)]
        for i in range(1, len(up)):
            up[i] = up[i] + F.max_pool2d(up[i - 1], 2)
        return [merge(t + b) for merge, t, b in zip(self.merge, down, up, strict=True)]
