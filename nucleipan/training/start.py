"""What a run starts from: a network with its first weights, and the classes, pixel size and decoding it keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nucleipan.classes import DEFAULT_CLASSES, PanopticClasses
from nucleipan.errors import ModelError
from nucleipan.network.backbone import load_imagenet_weights
from nucleipan.network.build import NetworkConfig, TrainableNetwork, build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.model import PanopticNetConfig
from nucleipan.network.weights import Model, load_model
from nucleipan.training.config import TrainConfig

_DEFAULT_MPP = 0.5
# Rows of these tensors belong to classes, in their order.
_PER_CLASS = ("semantic_head.classify.weight", "semantic_head.classify.bias")


@dataclass(frozen=True)
class Start:
    """The network before the first step, and what stays fixed through the run."""

    network: TrainableNetwork
    network_config: NetworkConfig
    classes: PanopticClasses
    mpp: float
    decode: DecodeConfig


def build_start(config: TrainConfig) -> Start:
    """Build the network that ``config`` describes and fill it with the initial weights.

    From a trained model, everything that fits by name and shape is taken over; of the classifier, the rows of the
    classes that have the same name. What the configuration leaves open is as it was in that model.

    Raises:
        ModelError: the weights cannot be read, or nothing in them fits.
        ConfigError: the classes contradict each other.
    """
    torch.manual_seed(config.schedule.seed)
    given = None if config.initial_weights in ("imagenet", "random") else load_model(config.initial_weights)
    classes = config.own_classes or (given.info.classes if given else DEFAULT_CLASSES)
    network_config = config.network or (given.info.network if given else PanopticNetConfig())
    network = build_network(network_config, classes)
    if config.initial_weights == "imagenet":
        load_imagenet_weights(network.backbone)
    if given:
        _take_over(network, classes, given, config.initial_weights)
    return Start(
        network,
        network_config,
        classes,
        config.mpp or (given.info.mpp if given else _DEFAULT_MPP),
        config.decode or (given.info.decode if given else DecodeConfig()),
    )


def _take_over(network: TrainableNetwork, classes: PanopticClasses, given: Model, source: str) -> None:
    values, own = given.network.state_dict(), network.state_dict()
    for key in _PER_CLASS:
        values[key] = _rows_by_name(values[key], given.info.classes, own[key], classes)
    fitting = {k: v for k, v in values.items() if k in own and own[k].shape == v.shape}
    if not any(k.startswith("backbone.") for k in fitting):
        raise ModelError(f"initial_weights: {source}: no tensor fits the network; check the network's configuration")
    network.load_state_dict(fitting, strict=False)


def _rows_by_name(values: Tensor, names: PanopticClasses, own: Tensor, own_names: PanopticClasses) -> Tensor:
    """``own`` with the rows of classes that ``names`` knows replaced by theirs, if the other axes agree."""
    if values.shape[1:] != own.shape[1:]:
        return values
    row_of_name = {c.name: c.id - 1 for c in names.classes}
    rows = own.clone()
    for c in own_names.classes:
        if c.name in row_of_name:
            rows[c.id - 1] = values[row_of_name[c.name]]
    return rows
