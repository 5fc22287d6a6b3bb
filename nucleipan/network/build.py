"""Which network a configuration means."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from nucleipan.classes import PanopticClasses
from nucleipan.network.model import PanopticNet, PanopticNetConfig, build_panoptic_net
from nucleipan.network.regions import RegionNet, RegionNetConfig
from nucleipan.network.two_scale import TwoScaleConfig, TwoScaleNet


def _head_of(config: Any) -> Any:
    """The instance head that ``config`` names; centre voting if it names none."""
    if isinstance(config, dict):
        return config.get("head", "centre-voting")
    return getattr(config, "head", None)


#: The networks there are, told apart by their instance head.
NetworkConfig = Annotated[
    Annotated[PanopticNetConfig, Tag("centre-voting")]
    | Annotated[TwoScaleConfig, Tag("two-scale")]
    | Annotated[RegionNetConfig, Tag("mask-rcnn")],
    Discriminator(_head_of),
]
TrainableNetwork = PanopticNet | TwoScaleNet | RegionNet


def build_network(
    config: PanopticNetConfig | TwoScaleConfig | RegionNetConfig, classes: PanopticClasses
) -> TrainableNetwork:
    """The network with fresh weights for ``classes``."""
    match config:
        case PanopticNetConfig():
            return build_panoptic_net(config, len(classes))
        case TwoScaleConfig():
            return TwoScaleNet(config, classes)
        case RegionNetConfig():
            return RegionNet(config, len(classes.things), len(classes))
