"""Crops of training images on which ranges for int8 are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.transforms import Compose
from torch import Tensor

from nucleipan.training.augment import RandScaledCropd
from nucleipan.training.data import Sample

_N_CROPS = 32
_TOGETHER = 4


def plain_crops(samples_of: Mapping[str, Sequence[Sample]], size: int, mpp: float, seed: int = 0) -> list[Tensor]:
    """32 crops or a few more at ``mpp``, as they are in a slide: without augmentation.

    They are spread over the sources with annotated nuclei (over all, if there are none) and over the images of each.

    Returns:
        Batches float[B, 3, size, size] in [0, 1].
    """
    sources = [samples for samples in samples_of.values() if len(samples)]
    sources = [samples for samples in sources if samples[0].known.any()] or sources
    n = -(-_N_CROPS // len(sources))
    chosen = [samples[i * len(samples) // n] for samples in sources for i in range(n)]
    crop = Compose([RandScaledCropd(size, mpp, (1.0, 1.0))])
    crop.set_random_state(seed)
    return list(torch.stack([crop(vars(sample))["image"] for sample in chosen]).split(_TOGETHER))
