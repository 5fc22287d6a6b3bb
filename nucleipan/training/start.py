"""What a run starts from: a network with its first weights, and the classes, pixel size and decoding it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nucleipan.classes import DEFAULT_CLASSES, PanopticClasses
from nucleipan.errors import ConfigError, ModelError
from nucleipan.network.backbone import load_imagenet_weights
from nucleipan.network.build import NetworkConfig, TrainableNetwork, build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.model import PanopticNetConfig
from nucleipan.network.two_scale import TwoScaleNet
from nucleipan.network.weights import Model, load_model
from nucleipan.training.config import TrainConfig

_DEFAULT_MPP = 0.5
# Rows of the tensors whose names end so belong to classes, in their order.
_PER_CLASS = ("semantic_head.classify.weight", "semantic_head.classify.bias")


@dataclass(frozen=True)
class Start:
    """The network before the first step, and what stays fixed through the run.

    Attributes:
        taken_over: copies of the tensors that are a trained model's and of which no part is new.
        trained_on: what the initial weights have seen: its terms bind what becomes of them too.
    """

    network: TrainableNetwork
    network_config: NetworkConfig
    classes: PanopticClasses
    mpp: float
    decode: DecodeConfig
    taken_over: dict[str, Tensor] = field(default_factory=dict, repr=False)
    trained_on: tuple[str, ...] = ()


def build_start(config: TrainConfig) -> Start:
    """Build the network that ``config`` describes and fill it with the initial weights.

    From a trained model, everything that fits by name and shape is taken over; of the classifier, the rows of the
    classes that have the same name; of a convolution that has more inputs here, the weights of those it had, so that at
    first the others change nothing. What the configuration leaves open is as it was in that model.

    Raises:
        ModelError: the weights cannot be read, or nothing in them fits.
        ConfigError: the classes contradict each other, or a part of the network is named that it has not.
    """
    torch.manual_seed(config.schedule.seed)
    given = None if config.initial_weights in ("imagenet", "random") else load_model(config.initial_weights)
    classes = config.own_classes or (given.info.classes if given else DEFAULT_CLASSES)
    network_config = config.network or (given.info.network if given else PanopticNetConfig())
    network = build_network(network_config, classes)
    if config.initial_weights == "imagenet":
        load_imagenet_weights(network.backbone)
    taken_over = _take_over(network, classes, given, config.initial_weights) if given else []
    coarse = None if config.coarse_weights is None else load_model(config.coarse_weights)
    if coarse:
        _take_over_coarse(network, classes, coarse, str(config.coarse_weights))
    before = network.state_dict()
    _keep_all_but(network, config.train_only)
    return Start(
        network,
        network_config,
        classes,
        config.mpp or (given.info.mpp if given else _DEFAULT_MPP),
        config.decode or (given.info.decode if given else DecodeConfig()),
        {name: before[name].clone() for name in taken_over},
        tuple(dict.fromkeys(name for model in (given, coarse) if model for name in model.info.trained_on)),
    )


def _take_over(network: TrainableNetwork, classes: PanopticClasses, given: Model, source: str) -> list[str]:
    """Fill the network; returns the names of the tensors of which no part is its own."""
    own, theirs = network.state_dict(), given.network.state_dict()
    values = _by_name(theirs, given.info.classes, own, classes)
    values = {k: _with_more_inputs(v, own[k]) for k, v in values.items() if k in own}
    fitting = {k: v for k, v in values.items() if own[k].shape == v.shape}
    if not any(k.startswith("backbone.") for k in fitting):
        raise ModelError(f"initial_weights: {source}: no tensor fits the network; check the network's configuration")
    network.load_state_dict(fitting, strict=False)
    knows_all = {c.name for c in classes.classes} <= {c.name for c in given.info.classes.classes}
    return [
        name
        for name, value in fitting.items()
        if (knows_all if name.endswith(_PER_CLASS) else theirs[name].shape == value.shape)
    ]


def _take_over_coarse(network: TrainableNetwork, classes: PanopticClasses, given: Model, source: str) -> None:
    if not isinstance(network, TwoScaleNet):
        raise ConfigError("coarse_weights: only a two-scale network (network: {head: two-scale}) has a coarse part")
    for name, part in network.coarse.items():
        own = {f"{name}.{k}": v for k, v in part.state_dict().items()}
        values = _by_name(given.network.state_dict(), given.info.classes, own, classes)
        if any(k not in values or values[k].shape != v.shape for k, v in own.items()):
            raise ModelError(f"coarse_weights: {source}: its {name} is not that of the network's coarse part")
        part.load_state_dict({k.removeprefix(f"{name}."): values[k] for k in own})


def _keep_all_but(network: TrainableNetwork, names: Sequence[str]) -> None:
    """Of all parts, only those in ``names`` are trained; with none named, all are."""
    parts = dict(network.named_children())
    unknown = sorted(set(names) - parts.keys())
    if unknown:
        raise ConfigError(f"train_only: the network has no {', '.join(unknown)}; its parts are {', '.join(parts)}")
    for name in parts.keys() - set(names) if names else ():
        parts[name].requires_grad_(False)


def _with_more_inputs(value: Tensor, own: Tensor) -> Tensor:
    """A convolution's weights [out, in, h, w] with zeros for the inputs that ``own`` has beyond them."""
    n_more = own.shape[1] - value.shape[1] if own.ndim == value.ndim == 4 else 0
    return F.pad(value, (0, 0, 0, 0, 0, n_more)) if n_more > 0 else value


def _by_name(
    values: dict[str, Tensor], names: PanopticClasses, own: dict[str, Tensor], own_names: PanopticClasses
) -> dict[str, Tensor]:
    """``values``, trained for classes ``names``, in the rows of ``own_names``; of new classes, ``own``'s."""
    per_class = [k for k in values if k.endswith(_PER_CLASS) and k in own]
    return values | {k: _rows_by_name(values[k], names, own[k], own_names) for k in per_class}


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
