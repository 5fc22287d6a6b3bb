"""Tiles as MONAI data: a dict transform that reads a tile of a slide, a dataset, and a splitter for MONAI's inferers.

``ReadTiled`` does for a tile what MONAI's ``LoadImaged`` does for a file; anything from ``monai.transforms`` can
follow it in a ``Compose``::

    Compose([ReadTiled("image", view), ScaleIntensityRanged("image", 0, 255, 0, 1), ...])

There is no merger for ``monai.inferers.PatchInferer``: mergers add up and average what overlaps, and instance ids
cannot be averaged. Joining tiles is what ``nucleipan.stitch`` does.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.inferers import Splitter
from monai.transforms import Compose, MapTransform, ScaleIntensityRanged

from nucleipan.geometry import Box
from nucleipan.slide import SlideView
from nucleipan.tiles import ALIGN, Tile, TileGrid


class ReadTiled(MapTransform):
    """Replace a ``Tile`` by its pixels, uint8[3, H, W] with channels last in memory, H and W multiples of ``align``.

    The tile's outer box is read; as it was read it stays under ``pixels``, uint8[h, w, 3], for measurements. Where its
    size is no multiple of ``align``, which only happens at the slide's bottom and right, it is extended by reflection:
    the surplus lies outside the slide and is cut off later.
    """

    def __init__(self, keys: Hashable | Sequence[Hashable], view: SlideView, align: int = ALIGN) -> None:
        super().__init__(keys)
        self.view = view
        self.align = align

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out["pixels"] = self.view.read(out[key].outer)
            pixels = pad_to_multiple(out["pixels"], self.align)
            out[key] = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        return out


def default_transforms(view: SlideView) -> Compose:
    """``image`` as MONAI's transforms expect it: float32[3, H, W] in [0, 1]. Networks take uint8 as well."""
    return Compose([ReadTiled("image", view), ScaleIntensityRanged("image", 0, 255, 0, 1)])


class SlideTiles(Dataset):
    """The tiles of a grid as a MONAI dataset: items ``{"image": ..., "tile": Tile, "pixels": ...}``, in order.

    ``image`` is what ``transform`` makes of a tile; by default its pixels as they are, uint8[3, H, W]. Slides cannot be
    pickled; with ``DataLoader`` workers use threads, or processes started by fork.
    """

    def __init__(self, view: SlideView, tiles: Iterable[Tile], transform: Compose | None = None) -> None:
        super().__init__([{"image": t, "tile": t} for t in tiles], transform or ReadTiled("image", view))


class TileSplitter(Splitter):
    """The tiles of a slide for ``monai.inferers.PatchInferer``: patches float32[1, 3, H, W] in [0, 1], and where
    their top left corner lies (y, x).

    ``inputs`` is a ``SlideView``. Tiles at the slide's border are smaller than others; use ``batch_size=1``.
    """

    def __init__(self, core: int, margin: int, device: torch.device | str | None = None) -> None:
        super().__init__(patch_size=core + 2 * margin, device=device)
        self.core, self.margin = core, margin

    def get_input_shape(self, inputs: SlideView) -> tuple[int, int]:
        return inputs.shape

    def get_padded_shape(self, inputs: SlideView) -> tuple[int, int]:
        h, w = inputs.shape
        return -(-h // ALIGN) * ALIGN, -(-w // ALIGN) * ALIGN

    def __call__(self, inputs: SlideView) -> Iterable[tuple[torch.Tensor, Sequence[int]]]:
        whole = Box.of_shape(inputs.shape)
        grid = TileGrid(inputs.shape, whole, self.core, self.margin)
        tiles = SlideTiles(inputs, grid, default_transforms(inputs))
        for i in range(len(tiles)):
            item: dict[str, Any] = tiles[i]
            outer = item["tile"].outer
            yield torch.as_tensor(item["image"])[None].to(self.device), (outer.y0, outer.x0)


def pad_to_multiple(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """Extend uint8[h, w, 3] by reflection at the bottom and right."""
    h, w = pixels.shape[:2]
    pad = ((0, -h % multiple), (0, -w % multiple), (0, 0))
    return np.pad(pixels, pad, mode="symmetric") if any(p[1] for p in pad) else pixels
