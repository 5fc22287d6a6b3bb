"""A trained network made ready to run: evaluation mode, BatchNorm folded, the fastest number format of the device.

On a CPU with bf16 instructions, bf16 with folded BatchNorm and channels_last is close to four times as fast as
plain float32; without them, bf16 would be slower, so float32 stays. fp16 is never used on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nucleipan.errors import ModelError
from nucleipan.network.build import TrainableNetwork
from nucleipan.network.model import HeadOutputs
from nucleipan.network.regions import RegionOutputs

#: What the networks there are say about a batch of tiles.
Outputs = HeadOutputs | RegionOutputs
#: uint8[B, 3, H, W], or float in [0, 1], -> outputs.
Network = Callable[[Tensor], Outputs]


class InferenceNetwork:
    """``uint8[B, 3, H, W]``, or float in [0, 1], on any device -> float32 outputs on ``device``.

    It has its own copy of the weights.
    """

    def __init__(self, network: TrainableNetwork, device: torch.device) -> None:
        self.device = device
        self.dtype = best_dtype(device)
        fused = fold_batch_norm(network)
        self._network = fused.to(device, self.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Outputs:
        image = image.to(self.device, non_blocking=True)
        if image.dtype == torch.uint8:
            image = image.float().div_(255)
        out = self._network(image.to(self.dtype, memory_format=torch.channels_last))
        return out.float()


class FlipAverage:
    """Means of a network's logits and offsets over the four mirror images: somewhat better, four times slower."""

    def __init__(self, network: Callable[[Tensor], HeadOutputs]) -> None:
        self._network = network

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> HeadOutputs:
        outputs = [self._network(image), *(self._mirrored(image, axes) for axes in ((2,), (3,), (2, 3)))]
        means = (torch.stack(tensors).mean(0) for tensors in zip(*(vars(o).values() for o in outputs), strict=True))
        return HeadOutputs(*means)

    def rest(self) -> None:
        rest(self._network)

    def _mirrored(self, image: Tensor, axes: tuple[int, ...]) -> HeadOutputs:
        """What the network says about the image mirrored along ``axes`` (2 = y, 3 = x), mirrored back."""
        out = self._network(image.flip(axes))
        semantic, nucleus, offsets = (t.flip(axes) for t in vars(out).values())
        for axis in axes:
            offsets[:, axis - 2] *= -1
        return HeadOutputs(semantic, nucleus, offsets)


def rest(network: Callable[[Tensor], Any]) -> None:
    """Have a network give back the memory that it keeps from tile to tile, if it keeps any."""
    if hasattr(network, "rest"):
        network.rest()


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:i`` -> device.

    Raises:
        ModelError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {name!r} is not here ({torch.cuda.device_count()} CUDA devices); use auto or cpu")
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def best_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware computes in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose every BatchNorm is part of the convolution before it."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        for conv_name, norm_name in _conv_norm_pairs(module):
            conv, norm = getattr(module, conv_name), getattr(module, norm_name)
            setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(module, norm_name, nn.Identity())
    return network


def _conv_norm_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and the BatchNorm that follows, in a Sequential or in MONAI's MBConvBlock."""
    children = list(module.named_children())
    if isinstance(module, nn.Sequential):
        chain = children
    else:
        by_name = dict(children)
        order = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
        chain = [(n, by_name[n]) for n in order if n in by_name]
    return [
        (a_name, b_name)
        for (a_name, a), (b_name, b) in pairwise(chain)
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)
    ]
