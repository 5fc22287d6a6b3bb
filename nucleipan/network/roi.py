"""Features of boxes: RoIAlign (He et al., arXiv 1703.06870) and the way back, RoIUpsample (AUNet, arXiv 1812.03904).

Both are sums of grid values with bilinear weights, one sum per bin of a box. RoIAlign takes it as one gather over rows
of channels (``embedding_bag``), so that neither copies of the map nor the samples themselves are ever in memory; its
gradient is the corresponding scatter. Pixels are areas, as everywhere here: sample positions are shifted by half a
pixel (``aligned=True``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nucleipan.network.boxes import Rois, areas


def roi_align(features: Tensor, rois: Rois, stride: int, size: int, n_samples: int = 2) -> Tensor:
    """Bilinear samples of one feature map, averaged over the bins of each box.

    Samples more than a pixel of the map outside it count as 0, as in Detectron and torchvision.

    Args:
        features: float[B, C, h, w].
        stride: pixels of the tile per pixel of ``features``.
        size: bins along each side.
        n_samples: along each side of a bin.

    Returns:
        float[N, C, size, size], of the type of ``features``.
    """
    b, c, h, w = features.shape
    index_y, weight_y = _axis(rois.boxes[:, 0::2] / stride - 0.5, h, size, n_samples)  # [N, size, 2 * n_samples]
    index_x, weight_x = _axis(rois.boxes[:, 1::2] / stride - 0.5, w, size, n_samples)
    index, weight = _outer(index_y, index_x, w), weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    index = index + (rois.image * (h * w)).view(-1, 1, 1, 1, 1)
    rows = features.permute(0, 2, 3, 1).reshape(b * h * w, c)
    if rows.requires_grad:
        rows = rows.float()  # a pixel's gradient sums over many boxes: more than bf16 can add up
    n_taps = (2 * n_samples) ** 2
    taps = weight.reshape(-1, n_taps).to(rows.dtype) / n_samples**2
    out = F.embedding_bag(index.reshape(-1, n_taps), rows, per_sample_weights=taps, mode="sum")
    return out.to(features.dtype).view(len(rois), size, size, c).permute(0, 3, 1, 2)


def pyramid_align(
    levels: Sequence[Tensor], strides: Sequence[int], rois: Rois, size: int, cells: float = 14.0
) -> Tensor:
    """``roi_align`` of each box from the level on which it is about ``cells`` pixels wide, or the nearest there is.

    The paper on feature pyramids (arXiv 1612.03144) takes a box of 224 pixels from stride 16, which is 14 cells.
    """
    level = _level_of(rois.boxes, strides, cells)
    parts, places = [], []
    for i, (features, stride) in enumerate(zip(levels, strides, strict=True)):
        place = torch.nonzero(level == i)[:, 0]
        parts.append(roi_align(features, rois[place], stride, size))
        places.append(place)
    return torch.cat(parts)[torch.argsort(torch.cat(places))]


def roi_upsample(values: Tensor, rois: Rois, stride: int, shape: tuple[int, int, int]) -> Tensor:
    """Put the bins of boxes back to their places in a map: ``float[N, C, s, s]`` -> ``float[B, C, h, w]``.

    A bin's centre lies between four pixels. They get its value times w / sum(w^2), w their bilinear weights, so that
    ``roi_align`` with one sample there reads exactly the value. A pixel that several bins reach gets the mean of what
    they give; where none does, the map is 0. ``shape`` is (B, h, w).
    """
    (n, c, size, _), (b, h, w) = values.shape, shape
    index_y, weight_y = _axis(rois.boxes[:, 0::2] / stride - 0.5, h, size, 1)  # [N, size, 2]
    index_x, weight_x = _axis(rois.boxes[:, 1::2] / stride - 0.5, w, size, 1)
    index = _outer(index_y, index_x, w) + (rois.image * (h * w)).view(-1, 1, 1, 1, 1)
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    index, weight = index.reshape(-1, 4), weight.reshape(-1, 4)  # [N * size * size, 4]
    gain = weight / weight.square().sum(1, keepdim=True).clamp(min=1e-6)
    rows = values.float().permute(0, 2, 3, 1).reshape(n * size * size, c)
    total = rows.new_zeros(b * h * w, c)
    count = rows.new_zeros(b * h * w)
    for k in range(4):  # one after the other: a quarter of the memory. index_put, for it sums in a fixed order
        total = total.index_put((index[:, k],), rows * gain[:, k : k + 1], accumulate=True)
        count = count.index_put((index[:, k],), (weight[:, k] > 0).float(), accumulate=True)
    mean = total / count.clamp(min=1)[:, None]
    return mean.view(b, h, w, c).permute(0, 3, 1, 2).to(values.dtype)


def _level_of(boxes: Tensor, strides: Sequence[int], cells: float) -> Tensor:
    side = areas(boxes).clamp(min=0).sqrt()
    level = torch.floor(torch.log2((side / (cells * strides[0])).clamp(min=1e-6)) + 1e-6)
    return level.long().clamp(0, len(strides) - 1)


def _outer(index_y: Tensor, index_x: Tensor, w: int) -> Tensor:
    """int64[N, s, t] each -> int64[N, s, s, t, t], flat indices."""
    return index_y[:, :, None, :, None] * w + index_x[:, None, :, None, :]


def _axis(sides: Tensor, n: int, size: int, n_samples: int) -> tuple[Tensor, Tensor]:
    """Where the samples of every bin lie along one axis of ``n`` pixels.

    Args:
        sides: float32[N, 2], both ends of the boxes in pixels of the map, 0 = centre of the first.

    Returns:
        int64 and float32[N, size, 2 * n_samples]: the two pixels around each sample, and their weights.
    """
    step = (sides[:, 1] - sides[:, 0]) / size
    at = (torch.arange(size * n_samples, device=sides.device) + 0.5) / n_samples
    position = sides[:, :1] + at * step[:, None]  # [N, size * n_samples]
    inside = (position >= -1) & (position <= n)
    position = position.clamp(0, n - 1)
    low = position.floor()
    fraction = position - low
    index = torch.stack([low, (low + 1).clamp(max=n - 1)], -1).long()
    weight = torch.stack([1 - fraction, fraction], -1) * inside[..., None]
    shape = (len(sides), size, 2 * n_samples)
    return index.reshape(shape), weight.reshape(shape)
