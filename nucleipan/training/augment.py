"""From an annotated image to a training crop: MONAI dict transforms, ours where MONAI has none.

Keys: ``image`` float[3, h, w] in [0, 1]; ``ids``, ``cover``, ``known`` int[1, h, w], 0 where a crop reaches over its
image. Geometry comes first: crop and scale in one resampling, flips and quarter turns, elastic deformation.
Ids and codes go by nearest neighbour, so none is ever invented; ids are small (they were renumbered when read), so
that float32, in which MONAI resamples, holds them exactly. Then colour.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import imagecodecs
import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import (
    Compose,
    MapTransform,
    Rand2DElasticd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandRotate90d,
    RandSimulateLowResolutiond,
)
from torch import Tensor

from nucleipan.measure import STAIN_VECTORS
from nucleipan.training.config import AugmentationConfig

_LABELS = ("ids", "cover", "known")


class RandScaledCropd(RandomizableTransform):
    """Cut ``size`` x ``size`` pixels at ``mpp`` times a random scale, from an image of any resolution.

    Where the image is smaller than the crop it is mirrored at its border; there, nothing is known.
    """

    def __init__(self, size: int, mpp: float, scale: tuple[float, float]) -> None:
        super().__init__(prob=1.0)
        self.size, self.mpp, self.scale = size, mpp, scale

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        low, high = np.log(self.scale)
        factor = self.mpp * float(np.exp(self.R.uniform(low, high))) / float(data["mpp"])
        side = max(8, round(self.size * factor))
        height, width = data["ids"].shape[-2:]
        y = int(self.R.randint(0, height - side + 1)) if height > side else 0
        x = int(self.R.randint(0, width - side + 1)) if width > side else 0
        window = (slice(None), slice(y, min(y + side, height)), slice(x, min(x + side, width)))
        n_y, n_x = (max(1, min(self.size, round((s.stop - s.start) / factor))) for s in window[1:])
        out = dict(data)
        image = data["image"][window][None].float() / 255
        image = F.interpolate(image, (n_y, n_x), mode="bilinear", align_corners=False, antialias=True)[0]
        out["image"] = _mirror_to(image, self.size)
        for key in _LABELS:
            plane = data[key][window][None].float()
            plane = F.interpolate(plane, (n_y, n_x), mode="nearest-exact")[0]
            out[key] = F.pad(plane, (0, self.size - n_x, 0, self.size - n_y)).long()
        return out


class RandStainJitterd(RandomizableTransform, MapTransform):
    """Scale and shift each stain's optical density by up to ``spread`` (relative, and a tenth of it absolute)."""

    def __init__(self, keys: str, spread: float, prob: float = 0.9) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.spread = spread
        vectors = torch.tensor(STAIN_VECTORS, dtype=torch.float32)
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        self._to_rgb, self._to_stains = vectors, torch.linalg.inv(vectors)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return out
        scale = torch.tensor(self.R.uniform(1 - self.spread, 1 + self.spread, 3), dtype=torch.float32)
        shift = torch.tensor(self.R.uniform(-0.1 * self.spread, 0.1 * self.spread, 3), dtype=torch.float32)
        glass = float(self.R.uniform(-0.02, 0.08))  # how far the empty slide is from white
        # stains' = stains * scale + shift, back to RGB: one 3x3 matrix and one offset.
        matrix = self._to_stains * scale @ self._to_rgb
        offset = shift @ self._to_rgb + glass
        for key in self.key_iterator(out):
            density = -torch.log(out[key].clamp(1 / 256, 1))
            density = torch.einsum("chw,cd->dhw", density, matrix) + offset[:, None, None]
            out[key] = torch.exp(-density).clamp(0, 1)
        return out


class RandJpegd(RandomizableTransform, MapTransform):
    """Compress to JPEG with 4:2:0 chroma at a random quality, as scanners and archives do."""

    def __init__(self, keys: str, quality: tuple[int, int], prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.quality = quality

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return out
        level = int(self.R.randint(self.quality[0], self.quality[1] + 1))
        for key in self.key_iterator(out):
            pixels = (torch.as_tensor(out[key]).permute(1, 2, 0).clamp(0, 1) * 255).round().byte().contiguous().numpy()
            pixels = imagecodecs.jpeg_decode(imagecodecs.jpeg_encode(pixels, level=level, subsampling="420"))
            out[key] = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        return out


def training_transform(crop: int, mpp: float, config: AugmentationConfig) -> Compose:
    """The random chain from a loaded sample to a crop, as a MONAI ``Compose``."""
    keys = ["image", *_LABELS]
    return Compose(
        [
            RandScaledCropd(crop, mpp, config.scale),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandFlipd(keys, prob=0.5, spatial_axis=1),
            RandRotate90d(keys, prob=0.5),
            Rand2DElasticd(
                keys,
                spacing=(32, 32),
                magnitude_range=(1, 3),
                prob=config.elastic,
                mode=["bilinear", *["nearest"] * (len(keys) - 1)],
                padding_mode=["reflection", *["zeros"] * (len(keys) - 1)],  # what comes from outside is unknown
            ),
            RandStainJitterd("image", config.stain),
            RandSimulateLowResolutiond(
                "image",
                prob=config.low_resolution,
                zoom_range=(0.45, 0.9),
                downsample_mode="area",
                upsample_mode="bilinear",
            ),
            RandGaussianSmoothd("image", sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2), prob=config.blur),
            RandGaussianNoised("image", prob=config.noise, std=0.03),
            RandJpegd("image", (40, 95), prob=config.jpeg),
        ],
        map_items=False,
    )


def _mirror_to(image: Tensor, size: int) -> Tensor:
    """Extend ``float[3, h, w]`` to ``size`` at the bottom and right by reflection, as often as needed."""
    while image.shape[1] < size or image.shape[2] < size:
        _, h, w = image.shape
        image = F.pad(image[None], (0, min(size - w, w - 1), 0, min(size - h, h - 1)), mode="reflect")[0]
    return image
