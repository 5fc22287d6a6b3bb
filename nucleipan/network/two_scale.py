"""TwoScaleNet: a PanopticNet that also hears what another one saw at half the resolution.

Small crowded nuclei need fine pixels. Large pale ones are told from further away: at 0.25 um per pixel they are larger
than what a head that stops at stride 16 takes in at once. So the image, halved, goes through a network trained at that
scale, and the last features, logit and offsets of its instance head are further inputs of the fine one::

    image ------------------> backbone --> semantic pyramid and head --> nucleus or not, its kind
      |                           |
      |                           +-----> instance head --> nucleus logit, offsets
      |                                         ^
      +--half--> coarse backbone --> coarse instance head (features at stride 4, answers at stride 2)
                        |
                        +----------> coarse semantic pyramid and head --> which tissue

Tissue is told by its surroundings, which the coarse network sees twice as far; that a pixel is no nucleus, and of which
kind a nucleus is, the fine one says: p(tissue) = p(no nucleus; fine) p(tissue | no nucleus; coarse).

The coarse network is trained beforehand. Its backbone and instance head stay as they are; its semantic part may learn
on, so that it can be taught other tissues.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nucleipan.classes import PanopticClasses
from nucleipan.network.backbone import DEEPEST_STRIDE
from nucleipan.network.heads import InstanceHead
from nucleipan.network.layers import upsample
from nucleipan.network.model import (
    INSTANCE_REACH_PX,
    HeadOutputs,
    PanopticNetConfig,
    build_panoptic_net,
    check_size,
    instance_levels,
    semantic_levels,
)

# Answers of the coarse head are brought to about one before they are inputs.
_LOGIT_UNIT, _MOST_LOGIT = 4.0, 8.0
_OFFSET_UNIT_PX = 8.0
_ANSWERS = 3  # logit, dy, dx


class TwoScaleConfig(BaseModel):
    """Sizes of the fine network and of the coarse one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Literal["two-scale"] = Field(
        "two-scale", description="centre voting that hears a network of half the resolution"
    )
    fine: PanopticNetConfig = Field(PanopticNetConfig(), description="at the model's pixel size")
    coarse: PanopticNetConfig = Field(PanopticNetConfig(), description="at twice the model's pixel size")


class TwoScaleNet(nn.Module):
    """``float[B, 3, H, W]``, RGB in [0, 1], H and W multiples of 64 -> ``HeadOutputs``.

    Parts are called as in ``PanopticNet``, so that its weights fit.
    """

    mean: Tensor
    std: Tensor
    is_stuff: Tensor

    def __init__(self, config: TwoScaleConfig, classes: PanopticClasses) -> None:
        super().__init__()
        fine, coarse = (build_panoptic_net(c, len(classes)) for c in (config.fine, config.coarse))
        self.backbone = fine.backbone
        self.semantic_fpn = fine.semantic_fpn
        self.semantic_head = fine.semantic_head
        self.coarse_backbone = coarse.backbone
        self.coarse_head = coarse.instance_head
        self.coarse_semantic_fpn = coarse.semantic_fpn
        self.coarse_semantic_head = coarse.semantic_head
        stride2, stride4, *deeper = instance_levels(self.backbone, self.backbone.channels)
        told = stride2 + _ANSWERS, stride4 + config.coarse.instance_channels[0]
        self.instance_head = InstanceHead([*told, *deeper], config.fine.instance_channels)
        self.register_buffer("mean", fine.mean)
        self.register_buffer("std", fine.std)
        is_stuff = torch.tensor([not c.is_thing for c in classes.classes]).view(-1, 1, 1)
        self.register_buffer("is_stuff", is_stuff, persistent=False)  # the classes of a model are in its header
        for part in self.frozen:
            part.requires_grad_(False)

    @property
    def margin(self) -> int:
        """Pixels of context a tile needs. What the coarse head sees beyond changes nuclei too little to matter."""
        return INSTANCE_REACH_PX[self.backbone.variant]

    @property
    def frozen(self) -> tuple[nn.Module, nn.Module]:
        """The parts that are not trained."""
        return self.coarse_backbone, self.coarse_head

    @property
    def coarse(self) -> dict[str, nn.Module]:
        """The parts of the coarse network, as a ``PanopticNet`` calls them."""
        return {
            "backbone": self.coarse_backbone,
            "instance_head": self.coarse_head,
            "semantic_fpn": self.coarse_semantic_fpn,
            "semantic_head": self.coarse_semantic_head,
        }

    def train(self, mode: bool = True) -> Self:
        """The frozen parts always run as they were trained."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, x: Tensor) -> HeadOutputs:
        check_size(x, 2 * DEEPEST_STRIDE)
        x = (x - self.mean) / self.std
        seen, answers, tissue = self._from_afar(F.avg_pool2d(x, 2))
        features = self.backbone(x)
        stride2, stride4, *deeper = instance_levels(self.backbone, features)
        told = torch.cat([stride2, answers], 1), torch.cat([stride4, seen], 1)
        nucleus, offsets = self.instance_head([*told, *deeper])
        semantic = self.semantic_head(self.semantic_fpn(semantic_levels(self.backbone, features)))
        return HeadOutputs(self._with_tissue(semantic, upsample(tissue, 2)), nucleus, offsets)

    def _with_tissue(self, semantic: Tensor, tissue: Tensor) -> Tensor:
        """``semantic`` with its share of all tissue divided as in ``tissue``, both logits float[B, K, h, w]."""
        if not self.is_stuff.any():
            return semantic
        share, told = (x.masked_fill(~self.is_stuff, -torch.inf).logsumexp(1, keepdim=True) for x in (semantic, tissue))
        return torch.where(self.is_stuff, tissue - told + share, semantic)

    def _from_afar(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the coarse network says of the halved image.

        Returns:
            Features float[B, C, H/4, W/4] and answers float[B, 3, H/2, W/2] of its instance head, and its semantic
            logits float[B, K, H/2s, W/2s].
        """
        with torch.no_grad():
            features = self.coarse_backbone(x)
            seen = self.coarse_head.decode(instance_levels(self.coarse_backbone, features))
            nucleus, offsets = self.coarse_head.at_pixels(seen)
        nucleus = nucleus.clamp(-_MOST_LOGIT, _MOST_LOGIT) / _LOGIT_UNIT
        tissue = semantic_levels(self.coarse_backbone, features)
        semantic = self.coarse_semantic_head(self.coarse_semantic_fpn(tissue))
        return seen, torch.cat([nucleus, offsets / _OFFSET_UNIT_PX], 1), semantic
