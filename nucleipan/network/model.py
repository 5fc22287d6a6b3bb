"""PanopticNet: one backbone, two heads.

The instance head's decoder spans strides 2 to 16 and stops early at stride 16: a nucleus is decided within about
``INSTANCE_REACH_PX`` pixels, so tiles with that margin yield the same nuclei as the whole slide in one piece.
The semantic head's two-way pyramid spans strides 4 to 32: tissue is told by its wider surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nucleipan.network.backbone import DEEPEST_STRIDE, LiteBackbone, Variant
from nucleipan.network.fpn import TwoWayFpn
from nucleipan.network.heads import InstanceHead, SemanticHead

#: Pixels around a pixel that can change its nucleus logit or offset by more than rounding, for each backbone (a test
#: measures it; in theory up to 138 pixels reach it with ``lite0``, with vanishing weight).
INSTANCE_REACH_PX: dict[Variant, int] = {"lite0": 128, "lite1": 160, "lite2": 160}

#: Of RGB in [0, 1], what the backbone's first weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_T = TypeVar("_T")


@dataclass(frozen=True)
class HeadOutputs:
    """What a network says about a batch of tiles.

    Attributes:
        semantic: float[B, K, H/s, W/s], logits over all classes (channel k = class id k + 1) at any stride s that
            divides the tile.
        nucleus: float[B, 1, H, W], logit of "this pixel lies on a nucleus".
        offsets: float[B, 2, H, W], (dy, dx) in pixels from a pixel to the centre of its nucleus.
    """

    semantic: Tensor
    nucleus: Tensor
    offsets: Tensor

    @property
    def stride(self) -> int:
        """Pixels of the tile per pixel of ``semantic``."""
        return self.nucleus.shape[-1] // self.semantic.shape[-1]

    def float(self) -> HeadOutputs:
        return HeadOutputs(self.semantic.float(), self.nucleus.float(), self.offsets.float())

    def without_nuclei(self, where: Tensor) -> HeadOutputs:
        """The same without nuclei at ``where``, bool[h, w]; for a batch of one, which may be larger than ``where``."""
        nucleus = self.nucleus.clone()
        nucleus[0, 0, : where.shape[0], : where.shape[1]][where.to(nucleus.device)] = -torch.inf
        return replace(self, nucleus=nucleus)


Width = Annotated[int, Field(ge=8, le=512)]
Dilation = Annotated[int, Field(ge=1, le=64)]


class PanopticNetConfig(BaseModel):
    """Size of a PanopticNet. Channel counts are those of EfficientPS divided by four."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Literal["centre-voting"] = Field(
        "centre-voting", description="the instance head, which tells the networks apart"
    )
    backbone: Variant = Field("lite0", description="which EfficientNet; lite1 and lite2 are larger and slower")
    instance_channels: tuple[Width, Width, Width, Width] = Field(
        (40, 64, 96, 128), description="of the instance head at strides 2, 4, 8, 16"
    )
    semantic_channels: Width = Field(64, description="of the two-way pyramid, and of each of the head's four parts")
    dilations: tuple[tuple[Dilation, Dilation], ...] = Field(
        ((1, 3), (1, 1), (3, 5), (4, 3), (3, 1)),
        min_length=5,
        max_length=5,
        description="of the dense prediction cell, (dy, dx)",
    )
    drop_connect: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="chance that a crop skips a block of the backbone, rising with depth from 0 to this",
    )


class PanopticNet(nn.Module):
    """``float[B, 3, H, W]``, RGB in [0, 1], H and W multiples of 32 -> ``HeadOutputs``.

    Normalisation is part of the model, so that weights and preprocessing cannot drift apart.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: LiteBackbone,
        semantic_fpn: TwoWayFpn,
        instance_head: InstanceHead,
        semantic_head: SemanticHead,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.semantic_fpn = semantic_fpn
        self.instance_head = instance_head
        self.semantic_head = semantic_head
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> HeadOutputs:
        check_size(x)
        features = self.backbone((x - self.mean) / self.std)
        nucleus, offsets = self.instance_head(instance_levels(self.backbone, features))
        semantic = self.semantic_head(self.semantic_fpn(semantic_levels(self.backbone, features)))
        return HeadOutputs(semantic, nucleus, offsets)

    @property
    def margin(self) -> int:
        """Pixels of context a tile needs."""
        return INSTANCE_REACH_PX[self.backbone.variant]


def instance_levels(backbone: LiteBackbone, of_blocks: Sequence[_T]) -> list[_T]:
    """Of what there is for each block, what is the instance head's, at strides 2, 4, 8 and 16.

    The coarsest is the first block of the fifth stage: without it too little of the backbone is left to tell touching
    nuclei apart, further blocks reach far.
    """
    stride2, stride4, stride8, stride16, *_ = backbone.last_of_stage
    return [of_blocks[i] for i in (stride2, stride4, stride8, stride16 + 1)]


def semantic_levels(backbone: LiteBackbone, of_blocks: Sequence[_T]) -> list[_T]:
    """Of what there is for each block, what is the semantic head's, at strides 4, 8, 16 and 32."""
    _, stride4, stride8, _, stride16, _, stride32 = backbone.last_of_stage
    return [of_blocks[i] for i in (stride4, stride8, stride16, stride32)]


def build_panoptic_net(config: PanopticNetConfig, n_classes: int) -> PanopticNet:
    """A PanopticNet with fresh weights."""
    backbone = LiteBackbone(config.backbone, config.drop_connect)
    instance_in = instance_levels(backbone, backbone.channels)
    semantic_in = semantic_levels(backbone, backbone.channels)
    return PanopticNet(
        backbone=backbone,
        semantic_fpn=TwoWayFpn(semantic_in, config.semantic_channels),
        instance_head=InstanceHead(instance_in, config.instance_channels),
        semantic_head=SemanticHead(config.semantic_channels, config.semantic_channels, n_classes, config.dilations),
    )


def check_size(x: Tensor, stride: int = DEEPEST_STRIDE) -> None:
    """Raises ValueError unless ``x`` is a batch of images that can be halved down to ``stride``."""
    if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % stride or x.shape[3] % stride:
        raise ValueError(f"expected float[B, 3, H, W] with H, W multiples of {stride}; found {tuple(x.shape)}")
