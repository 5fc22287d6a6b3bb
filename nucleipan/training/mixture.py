"""Endless random crops from several sources, drawn with declared weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch.utils.data import IterableDataset, get_worker_info

from nucleipan.training.data import Sample
from nucleipan.training.losses import Batch
from nucleipan.training.targets import offset_targets


class Mixture(IterableDataset):
    """Yields dicts of tensors, one crop each, forever.

    A source is drawn by its weight, then one of its images uniformly. All images are decoded once and kept in
    memory as bytes. The stream is determined by ``seed`` and the number of loader workers.
    """

    def __init__(self, sources: Sequence[tuple[float, Sequence[Sample]]], transform: Compose, seed: int) -> None:
        self.transform = transform
        self.seed = seed
        kept = [(w, s) for w, s in sources if w > 0 and s]
        weights = np.array([w for w, _ in kept])
        self._weights = weights / weights.sum()
        self._images = [[_tensors(sample) for sample in samples] for _, samples in kept]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        info = get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0])
        self.transform.set_random_state(seed=int(rng.integers(2**31)))
        while True:
            images = self._images[rng.choice(len(self._weights), p=self._weights)]
            yield _targets(self.transform(images[rng.integers(len(images))]))


def collate(items: Sequence[dict[str, torch.Tensor]], allowed: torch.Tensor, thing_code: int) -> Batch:
    """Stack crops into a ``Batch``."""
    stacked = {k: torch.stack([i[k] for i in items]) for k in items[0]}
    return Batch(**stacked, allowed=allowed, thing_code=thing_code)


def _tensors(sample: Sample) -> dict[str, object]:
    image, ids, cover = sample.load()
    return {
        "image": torch.from_numpy(image).permute(2, 0, 1).contiguous(),
        "ids": torch.from_numpy(ids)[None],
        "cover": torch.from_numpy(cover)[None],
        "mpp": sample.mpp,
        "has_instances": sample.has_instances,
    }


def _targets(crop: dict) -> dict[str, torch.Tensor]:
    # Plain tensors: MONAI's MetaTensor would make every operation of the network slower.
    crop = {k: v.as_tensor() if isinstance(v, MetaTensor) else v for k, v in crop.items()}
    ids = crop["ids"][0].numpy()
    offsets, weights = offset_targets(ids)
    return {
        "image": crop["image"].clamp(0, 1),
        "nucleus": torch.from_numpy((ids > 0).astype(np.float32))[None],
        "has_nuclei": crop["seen"] & bool(crop["has_instances"]),
        "offsets": torch.from_numpy(offsets),
        "offset_weights": torch.from_numpy(weights)[None],
        "cover": crop["cover"][0].long(),
    }
