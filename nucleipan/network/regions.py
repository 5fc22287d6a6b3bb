"""RegionNet: nuclei by regions (Mask R-CNN) and tissue by pixels, on one pyramid.

Whole, this is EfficientPS (arXiv 2004.02307); with ``attention`` its branches talk to each other as in AUNet
(arXiv 1812.03904)::

    backbone -> two-way FPN -+-> proposals -> boxes and classes -> masks
                             +-> semantic head

It exists beside ``PanopticNet`` to be compared with it, on the same data, metrics and store. Its pyramid reaches stride
32 for nuclei too, and which proposals survive depends on all others, so where a tile was cut shows more than there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nucleipan.network.attention import Attention, AuNetAttention, NoAttention
from nucleipan.network.backbone import LiteBackbone
from nucleipan.network.boxes import Rois
from nucleipan.network.fpn import TwoWayFpn
from nucleipan.network.heads import SemanticHead
from nucleipan.network.mask_rcnn import BoxHead, Detections, InstanceConfig, MaskHead, detect
from nucleipan.network.model import IMAGENET_MEAN, IMAGENET_STD, Dilation, Width, check_size, semantic_levels
from nucleipan.network.proposals import ProposalConfig, ProposalHead, ProposalMaps, propose
from nucleipan.network.roi import pyramid_align

# Of the blocks that make the pyramid.
_STRIDES = (4, 8, 16, 32)
_SEMANTIC_STRIDE = _STRIDES[0]


@dataclass(frozen=True, eq=False)
class RegionOutputs:
    """What a RegionNet says about a batch of tiles.

    Attributes:
        semantic: float[B, K, H/s, W/s], logits over all classes (channel k = class id k + 1).
        found: the nuclei.
        masks: float[N, m, m], for each the logit of "lies on this nucleus" over its box.
        stride: s, pixels of the tile per pixel of ``semantic``.
        excluded: bool[h, w], where the only tile of the batch has no nuclei, whatever was found.
    """

    semantic: Tensor
    found: Detections
    masks: Tensor
    stride: int
    excluded: Tensor | None = None

    def float(self) -> RegionOutputs:
        return replace(self, semantic=self.semantic.float(), masks=self.masks.float())

    def without_nuclei(self, where: Tensor) -> RegionOutputs:
        """The same without nuclei at ``where``, bool[h, w]; for a batch of one."""
        return replace(self, excluded=where)


class AttentionConfig(BaseModel):
    """AUNet's attention between the branches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Width = Field(64, description="of the layer between the two convolutions that make a plane")
    stuff_to_things: bool = Field(False, description="also from tissue to nuclei, which the paper leaves out")


class RegionNetConfig(BaseModel):
    """A RegionNet. Defaults are EfficientPS's own numbers, but for the size of what is looked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Literal["mask-rcnn"] = Field("mask-rcnn", description="the instance head, which tells the networks apart")
    channels: Width = Field(256, description="of the pyramid")
    semantic_channels: Width = Field(128, description="of each of the semantic head's four parts")
    dilations: tuple[tuple[Dilation, Dilation], ...] = Field(
        ((1, 6), (1, 1), (6, 21), (18, 15), (6, 3)),
        min_length=5,
        max_length=5,
        description="of the dense prediction cell, (dy, dx)",
    )
    proposals: ProposalConfig = Field(ProposalConfig(), description="where a nucleus might be")
    instances: InstanceConfig = Field(InstanceConfig(), description="box and mask heads")
    attention: AttentionConfig | None = Field(None, description="AUNet's; null is EfficientPS")
    drop_connect: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="chance that a crop skips a block of the backbone, rising with depth from 0 to this",
    )


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Levels of a batch as its heads see them, and what the proposal head says; lists are over levels.

    Attributes:
        tissue, regions: float[B, C, h, w], for the semantic head, and for the box and mask heads.
        proposals: of the proposal head.
        shape: (H, W) of the tiles.
    """

    tissue: list[Tensor]
    regions: list[Tensor]
    proposals: ProposalMaps
    shape: tuple[int, int]


class RegionNet(nn.Module):
    """``float[B, 3, H, W]``, RGB in [0, 1], H and W multiples of 32 -> ``RegionOutputs``.

    ``pyramid``, ``box_outputs``, ``mask_features`` and ``semantic`` are its steps: a training needs them one by one,
    with regions of its own choice.
    """

    mean: Tensor
    std: Tensor
    #: Pixels of context a tile needs. Farther pixels still have some influence: there is no exact bound.
    margin = 256

    def __init__(self, config: RegionNetConfig, n_things: int, n_classes: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = LiteBackbone(drop_connect=config.drop_connect)
        self.fpn = TwoWayFpn(semantic_levels(self.backbone, self.backbone.channels), config.channels)
        self.proposals = ProposalHead(config.channels, _STRIDES, config.proposals)
        self.box_head = BoxHead(config.channels, n_things, config.instances)
        self.mask_head = MaskHead(config.channels, n_things, config.instances)
        self.semantic_head = SemanticHead(config.channels, config.semantic_channels, n_classes, config.dilations)
        self.attention: Attention = _build_attention(config)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> RegionOutputs:
        pyramid = self.pyramid(x)
        rois = propose(pyramid.proposals, pyramid.shape, self.config.proposals)
        found = detect(rois, self.box_outputs(pyramid, rois), pyramid.shape, self.config.instances)
        features = self.mask_features(pyramid, found.rois)
        masks = self.mask_head.predict(features, found.thing)
        return RegionOutputs(self.semantic(pyramid, features, found.rois), found, masks, _SEMANTIC_STRIDE)

    def pyramid(self, x: Tensor) -> Pyramid:
        check_size(x)
        features = self.backbone((x - self.mean) / self.std)
        levels = self.fpn(semantic_levels(self.backbone, features))
        maps = self.proposals(levels)
        tissue, regions = self.attention.levels(levels, maps.hidden)
        return Pyramid(tissue, regions, maps, (x.shape[2], x.shape[3]))

    def box_outputs(self, pyramid: Pyramid, rois: Rois) -> tuple[Tensor, Tensor]:
        """Class logits ``float[N, T + 1]`` and corrections ``float[N, T, 4]`` of ``rois``."""
        return self.box_head(pyramid_align(pyramid.regions, _STRIDES, rois, self.config.instances.box_bins))

    def mask_features(self, pyramid: Pyramid, rois: Rois) -> Tensor:
        """``float[N, mask_channels, s, s]`` of ``rois``."""
        return self.mask_head(pyramid_align(pyramid.regions, _STRIDES, rois, self.config.instances.mask_bins))

    def semantic(self, pyramid: Pyramid, mask_features: Tensor, rois: Rois) -> Tensor:
        """``float[B, K, H/s, W/s]``; the mask features of ``rois`` are what attention tells the tissue about nuclei."""
        features = self.semantic_head.features(pyramid.tissue)
        features = self.attention.tissue_features(features, mask_features, rois, _SEMANTIC_STRIDE)
        return self.semantic_head.classify(features)


def _build_attention(config: RegionNetConfig) -> AuNetAttention | NoAttention:
    if config.attention is None:
        return NoAttention()
    widths = (config.channels, config.instances.mask_channels, 4 * config.semantic_channels)
    return AuNetAttention(widths, config.attention.width, len(_STRIDES), config.attention.stuff_to_things)
