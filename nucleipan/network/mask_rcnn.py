"""The heads of Mask R-CNN (He et al., arXiv 1703.06870) as EfficientPS has them: masks by separable convolutions.

A box head names the class of a region and corrects its box, class by class. A mask head draws what is inside, again one
plane for each class. "Nothing" is class 0 of the box head; thing class t of ours is its class t + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nucleipan.network.boxes import Rois, clip, decode, nms
from nucleipan.network.layers import separable3x3

#: How the box head codes its corrections: see ``boxes.encode``.
BOX_WEIGHTS = (10.0, 5.0)

Bins = Annotated[int, Field(ge=2, le=64)]
Share = Annotated[float, Field(ge=0, le=1)]


class InstanceConfig(BaseModel):
    """Size of the box and mask heads, and what counts as found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    box_bins: Bins = Field(7, description="side of the features that RoIAlign gives the box head")
    mask_bins: Bins = Field(14, description="the same of the mask head; masks come out twice as large")
    box_features: int = Field(1024, ge=8, le=4096, description="width of the box head's two layers")
    mask_channels: int = Field(256, ge=8, le=512, description="width of the mask head's four layers")
    min_score: Share = Field(0.5, description='probability of "there is a nucleus" above which a region is one')
    max_iou: Share = Field(0.5, description="of two regions that overlap more, the better stays")


class BoxHead(nn.Module):
    """``float[N, C, s, s]`` -> class logits ``float[N, T + 1]`` and corrections ``float[N, T, 4]``."""

    def __init__(self, channels: int, n_things: int, config: InstanceConfig) -> None:
        super().__init__()
        width = config.box_features
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * config.box_bins**2, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
        )
        self.classify = nn.Linear(width, n_things + 1)
        self.correct = nn.Linear(width, 4 * n_things)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.normal_(self.correct.weight, std=0.001)
        for layer in (self.classify, self.correct):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layers(x.contiguous())
        return self.classify(x), self.correct(x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """``float[N, C, s, s]`` -> features ``float[N, mask_channels, s, s]``; ``predict`` makes logits of them."""

    def __init__(self, channels: int, n_things: int, config: InstanceConfig) -> None:
        super().__init__()
        width = config.mask_channels
        self.layers = nn.Sequential(separable3x3(channels, width), *(separable3x3(width, width) for _ in range(3)))
        self.enlarge = nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2), nn.ReLU(inplace=True))
        self.draw = nn.Conv2d(width, n_things, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def predict(self, features: Tensor, thing: Tensor) -> Tensor:
        """Logits ``float[N, 2s, 2s]`` of each region's own class, ``thing`` int64[N]."""
        return self.planes(features)[torch.arange(len(thing), device=thing.device), thing]

    def planes(self, features: Tensor) -> Tensor:
        """Logits ``float[N, T, 2s, 2s]`` of all classes."""
        return self.draw(self.enlarge(features))


@dataclass(frozen=True, eq=False)
class Detections:
    """Regions that hold an instance, image by image, by falling score.

    Attributes:
        rois: where.
        thing: int64[N], index among the thing classes.
        scores: float32[N], probability that there is a nucleus.
        probabilities: float32[N, T], of all thing classes given that there is a thing; rows sum to 1.
    """

    rois: Rois
    thing: Tensor
    scores: Tensor
    probabilities: Tensor


@torch.no_grad()
def detect(rois: Rois, heads: tuple[Tensor, Tensor], shape: tuple[int, int], config: InstanceConfig) -> Detections:
    """What the box head's outputs ``heads`` (class logits, corrections) make of ``rois``.

    A region has one candidate: its likeliest class, with the probability that there is a nucleus at all. Where the
    paper's classes compete one by one, a nucleus that may be of two kinds would be none.
    """
    logits, deltas = heads
    scores = 1 - logits.float().softmax(1)[:, 0]
    things = logits[:, 1:].float().softmax(1)
    thing = things.argmax(1)
    boxes = clip(decode(deltas[torch.arange(len(rois), device=thing.device), thing], rois.boxes, BOX_WEIGHTS), shape)
    is_big = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    fits = torch.nonzero((scores > config.min_score) & is_big)[:, 0]
    kept = fits[nms(boxes[fits], scores[fits], rois.image[fits], config.max_iou)]
    kept = kept[torch.argsort(rois.image[kept], stable=True)]
    return Detections(Rois(boxes[kept], rois.image[kept]), thing[kept], scores[kept], things[kept])
