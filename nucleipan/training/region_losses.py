"""The losses of a network of regions: EfficientPS's six (arXiv 2004.02307, section 4), under partial labels.

Anchors and boxes are matched with the true nuclei by intersection over union, a random share of both kinds is looked
at, and each of them is asked whether there is a nucleus, where it ends, of which class it is and which pixels are its
own. Where nobody annotated nuclei, nothing is asked. A nucleus of which only a set of classes is known is taught
that set; its box and its mask are then taught in the planes of all of them, each a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nucleipan.network.boxes import Rois, encode, iou, join_rois
from nucleipan.network.mask_rcnn import BOX_WEIGHTS
from nucleipan.network.proposals import ANCHOR_WEIGHTS, ProposalMaps, propose
from nucleipan.network.regions import Pyramid, RegionNet
from nucleipan.training.config import LossConfig
from nucleipan.training.losses import Batch, semantic_loss

# Faster and Mask R-CNN's numbers: what counts as on a nucleus and off it, how many are looked at in an image and which
# share of them may be on nuclei. They look at 512 boxes, in images as large as a few dozen of our crops.
_ON_ANCHOR, _OFF_ANCHOR, _ANCHORS, _ANCHORS_ON = 0.7, 0.3, 256, 0.5
_ON_BOX, _BOXES, _BOXES_ON = 0.5, 128, 0.25
_NONE = -1


@dataclass(frozen=True, eq=False)
class TrueNuclei:
    """The nuclei of a batch.

    Attributes:
        rois: the smallest boxes around them.
        ids: int64[N], their ids in the image they are in.
        allowed: bool[N, T], the thing classes each may be of.
    """

    rois: Rois
    ids: Tensor
    allowed: Tensor


def region_losses(network: RegionNet, image: Tensor, batch: Batch, config: LossConfig) -> dict[str, Tensor]:
    """Every term, weighted, and their sum under ``total``; ``image`` is the batch's, in the network's memory format."""
    pyramid = network.pyramid(image)
    truth = true_nuclei(batch)
    terms = _proposal_losses(pyramid.proposals, truth, batch)
    rois, matched = _training_rois(network, pyramid, truth, batch)
    terms |= _box_losses(network.box_outputs(pyramid, rois), rois, matched, truth)
    on = matched != _NONE
    features = network.mask_features(pyramid, rois[on])
    terms["mask"] = config.mask * _mask_loss(network, features, rois[on], (truth, matched[on]), batch)
    semantic = network.semantic(pyramid, features, rois[on])
    terms["semantic"] = config.semantic * semantic_loss(semantic, batch, config)
    terms["total"] = torch.stack(list(terms.values())).sum()
    return terms


@torch.no_grad()
def true_nuclei(batch: Batch) -> TrueNuclei:
    """Boxes, ids and possible classes of all nuclei that a batch shows."""
    image, y, x = torch.nonzero(batch.ids[:, 0], as_tuple=True)
    ids = batch.ids[image, 0, y, x].long()
    most = int(ids.max()) + 1 if len(ids) else 1
    key, index = torch.unique(image * most + ids, return_inverse=True)
    n, span = len(key), max(batch.ids.shape[-2:])
    none, far = ids.new_zeros(n), ids.new_full((n,), span)
    low = [far.scatter_reduce(0, index, v, "amin") for v in (y, x)]
    high = [none.scatter_reduce(0, index, v + 1, "amax") for v in (y, x)]
    code = none.clone()  # a nucleus has one class: any of its pixels says which it may be
    code[index] = batch.cover[image, y, x]
    things = batch.allowed[batch.thing_code]
    allowed = batch.allowed[code][:, things]
    boxes = torch.stack([*low, *high], 1).float()
    return TrueNuclei(Rois(boxes, key // most), key % most, allowed | ~allowed.any(1, keepdim=True))


def _proposal_losses(maps: ProposalMaps, truth: TrueNuclei, batch: Batch) -> dict[str, Tensor]:
    anchors = torch.cat(maps.anchors)
    logits, deltas = torch.cat(maps.objectness, 1).float(), torch.cat(maps.deltas, 1).float()
    objectness, positions, n_images = logits.sum() * 0, deltas.sum() * 0, len(logits)
    for image in range(n_images):
        boxes = truth.rois.boxes[truth.rois.image == image]
        label, match = _match_anchors(anchors, boxes, _is_annotated(anchors, batch.has_nuclei[image, 0]))
        chosen = _sample(label, _ANCHORS, _ANCHORS_ON)
        if len(chosen) == 0:
            continue
        loss = F.binary_cross_entropy_with_logits(logits[image, chosen], (label[chosen] == 1).float())
        objectness = objectness + loss / n_images
        on = chosen[label[chosen] == 1]
        if len(on):
            target = encode(boxes[match[on]], anchors[on], ANCHOR_WEIGHTS)
            loss = F.smooth_l1_loss(deltas[image, on], target, beta=1 / 9, reduction="sum") / len(chosen)
            positions = positions + loss / n_images
    return {"objectness": objectness, "proposals": positions}


@torch.no_grad()
def _match_anchors(anchors: Tensor, boxes: Tensor, is_annotated: Tensor) -> tuple[Tensor, Tensor]:
    """int64[A] each: 1 = on a nucleus, 0 = off, -1 = neither; and the index of the nearest of ``boxes``.

    The best anchors of a nucleus are on it however badly they fit: every nucleus has some.
    """
    label = torch.where(is_annotated, 0, -1)
    if len(boxes) == 0:
        return label, torch.zeros_like(label)
    overlaps = iou(anchors[:, None], boxes[None])  # [A, N]
    best, match = overlaps.max(1)
    label[best >= _OFF_ANCHOR] = -1
    label[best >= _ON_ANCHOR] = 1
    best_of_box = overlaps.max(0).values.clamp(min=1e-6)
    anchor, box = torch.nonzero(overlaps >= best_of_box * (1 - 1e-6), as_tuple=True)
    label[anchor], match[anchor] = 1, box
    label[~is_annotated] = -1
    return label, match


@torch.no_grad()
def _training_rois(network: RegionNet, pyramid: Pyramid, truth: TrueNuclei, batch: Batch) -> tuple[Rois, Tensor]:
    """Proposals and true boxes, sampled; and int64[N], the index of the nucleus each is on, or none."""
    config = network.config.proposals
    offered = join_rois([propose(pyramid.proposals, pyramid.shape, config), truth.rois])
    parts, matches = [], []
    for image in range(len(batch.image)):
        boxes = offered.boxes[offered.image == image]
        nuclei = torch.nonzero(truth.rois.image == image)[:, 0]
        label = torch.where(_is_annotated(boxes, batch.has_nuclei[image, 0]), 0, -1)
        match = torch.full_like(label, _NONE)
        if len(nuclei):
            best, nearest = iou(boxes[:, None], truth.rois.boxes[nuclei][None]).max(1)
            label[(best >= _ON_BOX) & (label == 0)] = 1
            match = torch.where(label == 1, nuclei[nearest], _NONE)
        chosen = _sample(label, _BOXES, _BOXES_ON)
        parts.append(Rois(boxes[chosen], torch.full_like(chosen, image)))
        matches.append(match[chosen])
    return join_rois(parts), torch.cat(matches)


def _box_losses(outputs: tuple[Tensor, Tensor], rois: Rois, matched: Tensor, truth: TrueNuclei) -> dict[str, Tensor]:
    logits, deltas = outputs[0].float(), outputs[1].float()  # [N, T + 1], [N, T, 4]
    if len(rois) == 0:
        return {"class": logits.sum() * 0, "boxes": deltas.sum() * 0}
    on = torch.nonzero(matched != _NONE)[:, 0]
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    allowed[:, 0] = matched == _NONE
    allowed[on, 1:] = truth.allowed[matched[on]]
    entropy = logits.logsumexp(1) - logits.masked_fill(~allowed, -torch.inf).logsumexp(1)
    target = encode(truth.rois.boxes[matched[on]], rois.boxes[on], BOX_WEIGHTS)
    target = target[:, None].expand_as(deltas[on])
    position = F.smooth_l1_loss(deltas[on], target, beta=1.0, reduction="none").sum(2)  # [M, T]
    return {"class": entropy.mean(), "boxes": _over_allowed(position, truth.allowed[matched[on]]).sum() / len(rois)}


def _mask_loss(
    network: RegionNet, features: Tensor, rois: Rois, target: tuple[TrueNuclei, Tensor], batch: Batch
) -> Tensor:
    """Binary cross-entropy in each region's own plane; ``target`` is the nuclei and which of them each region is on."""
    truth, matched = target
    if len(rois) == 0:
        return features.sum() * 0
    planes = network.mask_head.planes(features).float()  # [N, T, 2s, 2s]
    true = nucleus_masks(batch.ids[:, 0], rois, truth.ids[matched], planes.shape[-1])
    loss = F.binary_cross_entropy_with_logits(planes, true[:, None].expand_as(planes), reduction="none").mean((2, 3))
    return _over_allowed(loss, truth.allowed[matched]).mean()


def _over_allowed(loss: Tensor, allowed: Tensor) -> Tensor:
    """float[N], the mean of float[N, T] over the classes that are possible."""
    return (loss * allowed).sum(1) / allowed.sum(1)


def nucleus_masks(ids: Tensor, rois: Rois, own: Tensor, size: int) -> Tensor:
    """float32[N, s, s]: 1 where the middle of a bin of a box lies on the nucleus ``own``; ``ids`` is int[B, h, w]."""
    at = (torch.arange(size, device=ids.device) + 0.5) / size
    low, high = rois.boxes[:, :2], rois.boxes[:, 2:]
    position = (low[:, :, None] + at * (high - low)[:, :, None]).long()  # [N, 2, size]
    y, x = position[:, 0].clamp(0, ids.shape[1] - 1), position[:, 1].clamp(0, ids.shape[2] - 1)
    return (ids[rois.image[:, None, None], y[:, :, None], x[:, None, :]] == own[:, None, None]).float()


def _is_annotated(boxes: Tensor, where: Tensor) -> Tensor:
    """bool[N], whether nuclei are annotated at the middle of each box; ``where`` is bool[h, w]."""
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).long()
    return where[middle[:, 0].clamp(0, where.shape[0] - 1), middle[:, 1].clamp(0, where.shape[1] - 1)]


def _sample(label: Tensor, n: int, share_on: float) -> Tensor:
    """Random indices: up to ``share_on`` of ``n`` with label 1, the rest with label 0."""
    on, off = (torch.nonzero(label == k)[:, 0] for k in (1, 0))
    on = on[torch.randperm(len(on), device=label.device)[: int(n * share_on)]]
    off = off[torch.randperm(len(off), device=label.device)[: n - len(on)]]
    return torch.cat([on, off])
