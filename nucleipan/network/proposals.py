"""Region proposals (Ren et al., arXiv 1506.01497): where on the pyramid a nucleus might be.

At every cell of every level lie a few anchors, boxes of fixed size and several shapes. One small head, shared by
all levels, says for each whether it is on an object and how to move it there. The best, after non-maximum suppression,
are looked at by the heads that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nucleipan.network.boxes import Rois, clip, decode, join_rois, nms
from nucleipan.network.layers import separable3x3

#: How anchors are coded: see ``boxes.encode``.
ANCHOR_WEIGHTS = (1.0, 1.0)
# On small crops, where a rate per area would leave too few.
_FEWEST = 64

Size = Annotated[float, Field(gt=0, le=4096)]


class ProposalConfig(BaseModel):
    """Anchors and how many of them become proposals. The paper's counts are per image; slides have no such thing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor_sizes: tuple[Size, Size, Size, Size] = Field(
        (14.0, 28.0, 56.0, 112.0), description="side of the square anchor on each level, in pixels of the working grid"
    )
    anchor_ratios: tuple[Size, ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, max_length=9, description="height over width, at equal area"
    )
    tried_per_mpx: int = Field(
        16_000, gt=0, description="anchors of each level that are decoded, the best first, per megapixel"
    )
    kept_per_mpx: int = Field(8_000, gt=0, description="proposals after suppression, of all levels, per megapixel")
    max_iou: float = Field(0.7, gt=0, le=1, description="of two proposals that overlap more, the better stays")


@dataclass(frozen=True, eq=False)
class ProposalMaps:
    """What the head says on each level.

    Attributes:
        hidden: float[B, C, h, w], features that objectness is read from.
        objectness: float[B, A * h * w], logits; anchors in the order of ``anchors``.
        deltas: float[B, A * h * w, 4].
        anchors: float32[A * h * w, 4], the same for all images.
    """

    hidden: list[Tensor]
    objectness: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class ProposalHead(nn.Module):
    """Levels of ``channels`` channels -> ``ProposalMaps``."""

    def __init__(self, channels: int, strides: Sequence[int], config: ProposalConfig) -> None:
        super().__init__()
        n_anchors = len(config.anchor_ratios)
        self.strides, self.config = tuple(strides), config
        self.hidden = separable3x3(channels, channels)
        self.objectness = nn.Conv2d(channels, n_anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * n_anchors, 1)
        for layer in (self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> ProposalMaps:
        hidden = [self.hidden(x) for x in levels]
        return ProposalMaps(
            hidden,
            [self.objectness(x).permute(0, 2, 3, 1).flatten(1) for x in hidden],
            [self.deltas(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in hidden],
            [
                place_anchors(x.shape[-2:], stride, size, self.config.anchor_ratios, x.device)
                for x, stride, size in zip(hidden, self.strides, self.config.anchor_sizes, strict=True)
            ],
        )


def place_anchors(
    shape: Sequence[int], stride: int, size: float, ratios: Sequence[float], device: torch.device
) -> Tensor:
    """float32[h * w * A, 4] for a map of ``shape`` (h, w), around the centres of its cells, in raster order."""
    sides = torch.tensor([(size * r**0.5, size / r**0.5) for r in ratios], device=device)  # [A, 2]
    y, x = ((torch.arange(n, device=device) + 0.5) * stride for n in shape)
    centre = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)[:, :, None]  # [h, w, 1, 2]
    return torch.cat([centre - sides / 2, centre + sides / 2], -1).reshape(-1, 4)


@torch.no_grad()
def propose(maps: ProposalMaps, shape: tuple[int, int], config: ProposalConfig) -> Rois:
    """The best boxes of each image of ``shape`` (height, width), image by image, by falling objectness.

    What reaches over the image is cut; what is then less than a pixel high or wide is dropped.
    """
    mpx = shape[0] * shape[1] / 1e6
    n_tried, n_kept = (max(_FEWEST, round(rate * mpx)) for rate in (config.tried_per_mpx, config.kept_per_mpx))
    found = []
    for image in range(len(maps.objectness[0])):
        boxes, scores, level = [], [], []
        for i, (objectness, deltas, anchors) in enumerate(zip(maps.objectness, maps.deltas, maps.anchors, strict=True)):
            best = torch.sort(objectness[image].float(), descending=True, stable=True).indices[:n_tried]
            boxes.append(clip(decode(deltas[image, best], anchors[best], ANCHOR_WEIGHTS), shape))
            scores.append(objectness[image, best].float())
            level.append(torch.full_like(best, i))
        all_boxes = torch.cat(boxes)
        fits = ((all_boxes[:, 2:] - all_boxes[:, :2]) >= 1).all(1)
        all_boxes = all_boxes[fits]
        kept = nms(all_boxes, torch.cat(scores)[fits], torch.cat(level)[fits], config.max_iou)[:n_kept]
        found.append(Rois(all_boxes[kept], torch.full_like(kept, image)))
    return join_rois(found)
