"""Random crops from several sources, drawn with declared weights.

Which crop is number k, and how it is augmented, follows from (seed, k) alone: not from workers, devices or where a
run was interrupted. A run that continues therefore sees exactly the crops that it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch.utils.data import Dataset, Sampler

from nucleipan.training.data import Sample
from nucleipan.training.losses import Batch
from nucleipan.training.targets import offset_targets


class Mixture(Dataset):
    """Item k is a dict of tensors, one crop. A source is drawn by its weight, then one of its images uniformly."""

    def __init__(self, sources: Sequence[tuple[float, Sequence[Sample]]], transform: Compose, seed: int) -> None:
        self.transform = transform
        self.seed = seed
        kept = [(w, s) for w, s in sources if w > 0 and s]
        weights = np.array([w for w, _ in kept])
        self._weights = weights / weights.sum()
        self._samples = [s for _, s in kept]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, index])
        samples = self._samples[rng.choice(len(self._weights), p=self._weights)]
        sample = samples[int(rng.integers(len(samples)))]
        self.transform.set_random_state(seed=int(rng.integers(2**31)))
        return _targets(self.transform(dict(vars(sample))))


class StepBatches(Sampler[list[int]]):
    """The crop numbers of each step from ``start`` on, without end: device ``rank`` of ``world`` takes its share."""

    def __init__(self, batch_size: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.batch_size, self.start, self.rank, self.world = batch_size, start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            first = (step * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            step += 1


def collate(items: Sequence[dict[str, torch.Tensor]], allowed: torch.Tensor, thing_code: int) -> Batch:
    """Stack crops into a ``Batch``."""
    stacked = {k: torch.stack([i[k] for i in items]) for k in items[0]}
    return Batch(**stacked, allowed=allowed, thing_code=thing_code)


def _targets(crop: dict) -> dict[str, torch.Tensor]:
    # Plain tensors: MONAI's MetaTensor would make every operation of the network slower.
    crop = {k: v.as_tensor() if isinstance(v, MetaTensor) else v for k, v in crop.items()}
    ids = crop["ids"][0].long().numpy()
    offsets, weights = offset_targets(ids)
    return {
        "image": crop["image"].clamp(0, 1),
        "nucleus": torch.from_numpy((ids > 0).astype(np.float32))[None],
        "has_nuclei": crop["known"].bool(),
        "offsets": torch.from_numpy(offsets),
        "offset_weights": torch.from_numpy(weights)[None],
        "ids": crop["ids"].int(),
        "cover": crop["cover"][0].long(),
    }
