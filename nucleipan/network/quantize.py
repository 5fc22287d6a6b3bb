"""Convolutions in 8-bit integers: what has to be measured for them, and the network that computes so.

A convolution's input is rounded to 256 steps of one range, each output channel's weights to 255 steps about zero
(Jacob et al., arXiv 1712.05877). Ranges are measured on images, so that quantisation belongs to the weights. What
rounding adds to each channel on average is taken off its bias (Nagel et al., arXiv 1906.04721): depthwise convolutions
have few weights a channel, whose errors do not cancel out, and nuclei would be lost without.

Rounding is simulated, in floats. OpenVINO knows the operations for it, and computes in integers what they enclose.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nucleipan.network.inference import fold_batch_norm
from nucleipan.network.model import PanopticNet
from nucleipan.network.two_scale import TwoScaleNet

# The first convolutions see few channels, of very unlike sizes: most of the error was theirs, and little time is.
_IN_FLOAT = {
    f"{backbone}.{name}"
    for backbone in ("backbone", "coarse_backbone")
    for name in ("stem.1", "stages.0.0._depthwise_conv", "stages.0.0._project_conv")
}
_LEAST_STEP = 1e-8


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of one convolution.

    Attributes:
        low: of the range that its input is rounded in, at most 0. high: at least 0.
        correction: float32[C], added to the bias (or is it where there is none).
    """

    low: float
    high: float
    correction: Tensor


@dataclass(frozen=True, eq=False)
class Quantization:
    """``convolutions`` that compute in int8, by their names in the network; all others stay in floats."""

    convolutions: Mapping[str, Measured]


def measure_quantization(network: PanopticNet | TwoScaleNet, images: Sequence[Tensor]) -> Quantization:
    """Measure ranges and corrections of ``network`` on ``images``.

    Args:
        images: batches float[B, 3, H, W] in [0, 1], or uint8, at the network's pixel size, of any sizes. A range is the
            mean over images of the least and of the greatest value: one odd pixel does not make all steps coarser.
    """
    folded = fold_batch_norm(network)
    batches = [_unit(image.to(network.mean.device)) for image in images]
    ranges = _means(folded, batches, lambda name, x, y: torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3))], 1))
    uncorrected = {
        name: Measured(min(0.0, low), max(0.0, high), torch.zeros(_convolution(folded, name).out_channels))
        for name, (low, high) in ((name, found.tolist()) for name, found in ranges.items())
    }
    int8 = {name: Int8Convolution(_convolution(folded, name), found) for name, found in uncorrected.items()}
    errors = _means(folded, batches, lambda name, x, y: (y - int8[name](x)).mean((2, 3)))
    return Quantization(
        {name: Measured(found.low, found.high, errors[name].cpu()) for name, found in uncorrected.items()}
    )


def quantized(network: PanopticNet | TwoScaleNet, quantization: Quantization) -> nn.Module:
    """A copy with BatchNorm folded whose convolutions round as int8 does."""
    folded = fold_batch_norm(network)
    for name, found in quantization.convolutions.items():
        parent, _, child = name.rpartition(".")
        setattr(folded.get_submodule(parent), child, Int8Convolution(_convolution(folded, name), found))
    return folded


class Int8Convolution(nn.Module):
    """``conv`` with its input rounded in the range measured, weights in each channel's own, and its bias corrected."""

    weight_step: Tensor
    weight_zero: Tensor

    def __init__(self, conv: nn.Conv2d, measured: Measured) -> None:
        super().__init__()
        self.conv = copy.deepcopy(conv)
        correction = measured.correction.to(conv.weight)
        self.conv.bias = nn.Parameter(correction if conv.bias is None else conv.bias.detach() + correction)
        self.step = max((measured.high - measured.low) / 255, _LEAST_STEP)
        self.zero = round(-measured.low / self.step)
        greatest = conv.weight.detach().abs().amax((1, 2, 3))
        self.register_buffer("weight_step", greatest.clamp(min=_LEAST_STEP) / 127)
        self.register_buffer("weight_zero", torch.zeros_like(greatest, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        x = torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, 0, 255)
        weight = torch.fake_quantize_per_channel_affine(conv.weight, self.weight_step, self.weight_zero, 0, -127, 127)
        return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


@torch.no_grad()
def _means(
    network: nn.Module, batches: Sequence[Tensor], measure: Callable[[str, Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Name of each convolution that is quantised -> mean over images of ``measure(name, input, output)``, [B, n]."""
    found: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        found[name].append(measure(name, inputs[0], output))

    convolutions = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and n not in _IN_FLOAT}
    handles = [conv.register_forward_hook(partial(hook, name)) for name, conv in convolutions.items()]
    for batch in batches:
        network(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows).mean(0) for name, rows in found.items()}


def _convolution(network: nn.Module, name: str) -> nn.Conv2d:
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def _unit(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image
