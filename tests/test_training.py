"""What partial labels mean to the losses, and that augmentation keeps image, ids and codes together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.network.model import HeadOutputs
from nucleipan.training.augment import RandJpegd, RandScaledCropd, training_transform
from nucleipan.training.config import AugmentationConfig, LossConfig
from nucleipan.training.data import CoverTable
from nucleipan.training.losses import Batch, mask_loss, offset_loss, semantic_loss
from nucleipan.training.targets import offset_targets

K = len(DEFAULT_CLASSES)


def batch(cover: torch.Tensor, covers: CoverTable, **kw) -> Batch:
    b, h, w = cover.shape
    fields = {
        "image": torch.zeros(b, 3, h, w),
        "nucleus": torch.zeros(b, 1, h, w),
        "has_nuclei": torch.ones(b, 1, h, w, dtype=torch.bool),
        "offsets": torch.zeros(b, 2, h, w),
        "offset_weights": torch.zeros(b, 1, h, w),
        "ids": torch.zeros(b, 1, h, w, dtype=torch.int32),
    }
    return Batch(**(fields | kw), cover=cover, allowed=torch.from_numpy(covers.allowed()), thing_code=covers.things)


def outputs(semantic: torch.Tensor, nucleus: float = -5.0) -> HeadOutputs:
    b, _, h, w = semantic.shape
    return HeadOutputs(semantic, torch.full((b, 1, h, w), nucleus), torch.zeros(b, 2, h, w))


def test_semantic_loss_is_the_log_of_the_sum_of_what_a_label_covers():
    covers = CoverTable(DEFAULT_CLASSES)
    code = covers.code(["stroma", "lymphoid"])
    logits = torch.randn(1, K, 8, 8)
    got = semantic_loss(logits, batch(torch.full((1, 16, 16), code), covers), LossConfig(thing_pixel=1))
    p = logits.softmax(1)[:, [DEFAULT_CLASSES.by_name(n).id - 1 for n in ("stroma", "lymphoid")]].sum(1)
    torch.testing.assert_close(got, -p.log().mean())


def test_unlabelled_pixels_give_no_loss_and_no_gradient():
    covers = CoverTable(DEFAULT_CLASSES)
    logits = torch.randn(1, K, 8, 8, requires_grad=True)
    out = HeadOutputs(logits, torch.zeros(1, 1, 16, 16, requires_grad=True), torch.zeros(1, 2, 16, 16))
    b = batch(torch.zeros(1, 16, 16, dtype=torch.long), covers, has_nuclei=torch.zeros(1, 1, 16, 16, dtype=torch.bool))
    loss = semantic_loss(logits, b, LossConfig(), out.nucleus > 0) + offset_loss(out.offsets, b)
    assert loss == 0
    loss.backward()
    assert logits.grad.abs().max() == 0
    annotated = batch(torch.zeros(1, 16, 16, dtype=torch.long), covers)
    assert mask_loss(out.nucleus, annotated) > mask_loss(out.nucleus - 9, annotated)


def test_a_tissue_map_teaches_things_where_the_network_sees_a_nucleus():
    """Calling everything a nucleus must not satisfy a tissue map, and a nucleus in tumour is no error."""
    covers = CoverTable(DEFAULT_CLASSES)
    cover = torch.full((1, 16, 16), covers.code(["tumour epithelium"]))
    unknown = {"has_nuclei": torch.zeros(1, 1, 16, 16, dtype=torch.bool)}
    says_thing, says_tumour = torch.zeros(1, K, 8, 8), torch.zeros(1, K, 8, 8)
    says_thing[:, 0], says_tumour[:, 6] = 9, 9
    for nucleus, right, wrong in ((-5.0, says_tumour, says_thing), (5.0, says_thing, says_tumour)):
        losses = [
            semantic_loss(s, batch(cover, covers, **unknown), LossConfig(), torch.full((1, 1, 16, 16), nucleus > 0))
            for s in (right, wrong)
        ]
        assert losses[0] < 0.1 < 5 < losses[1]


def test_every_nucleus_weighs_the_same_in_the_offsets():
    ids = np.zeros((32, 32), np.int64)
    ids[2:5, 2:5], ids[10:30, 10:30] = 1, 2
    offsets, weights = offset_targets(ids)
    assert weights[ids == 1].sum() == pytest.approx(1)
    assert weights[ids == 2].sum() == pytest.approx(1)
    y, x = np.mgrid[:32, :32]
    np.testing.assert_allclose((offsets[0] + y)[ids == 1], 3)
    np.testing.assert_allclose((offsets[1] + x)[ids == 2], 19.5)
    assert not offsets[:, ids == 0].any()


# -- augmentation -----------------------------------------------------------------------------------------------


def test_ids_survive_geometry():
    """No id is invented or lost to interpolation, and image, ids and codes stay on each other."""
    rng = np.random.default_rng(0)
    ids = rng.choice([0, 7, 300, 65_535], (1, 60, 90))
    item = {
        "image": torch.from_numpy(np.repeat((ids % 251).astype(np.uint8), 3, 0)),
        "ids": torch.from_numpy(ids),
        "cover": torch.from_numpy((ids % 5).astype(np.uint8)),
        "mpp": 0.5,
        "known": torch.ones(1, *ids.shape[-2:], dtype=torch.uint8),
    }
    still = AugmentationConfig(scale=(1.0, 1.0), stain=0, low_resolution=0, blur=0, noise=0, jpeg=0)
    chain = training_transform(64, 0.5, still)
    chain.transforms = tuple(t for t in chain.transforms if type(t).__name__ != "RandStainJitterd")
    chain.set_random_state(3)
    for _ in range(8):
        out = chain(item)
        seen, crop = out["known"][0].numpy() > 0, out["ids"][0].numpy()
        assert set(np.unique(crop)) <= {0, 7, 300, 65_535}
        np.testing.assert_array_equal(out["cover"][0].numpy()[seen], (crop % 5)[seen])
        np.testing.assert_allclose(out["image"][0].numpy()[seen] * 255, (crop % 251)[seen], atol=1e-3)


@pytest.mark.parametrize("mpp", [0.25, 1.0])
def test_crops_are_at_the_networks_scale(mpp):
    """A square of 20 um is 40 pixels at 0.5 um, whatever the image's own resolution."""
    side = round(20 / mpp)
    ids = torch.zeros(1, 200, 200, dtype=torch.long)
    ids[:, 50 : 50 + side, 50 : 50 + side] = 1
    item = {"image": (ids * 200).expand(3, -1, -1).to(torch.uint8), "ids": ids, "cover": ids, "mpp": mpp}
    item["known"] = torch.ones_like(ids)
    out = RandScaledCropd(1024, 0.5, (1.0, 1.0))(item)
    area = int((out["ids"] == 1).sum())
    assert abs(area - 1600) <= 80
    assert out["image"].shape == (3, 1024, 1024)
    assert out["known"].sum() == (200 * mpp / 0.5) ** 2


def test_elastic_deformation_moves_image_ids_and_codes_alike():
    """Discs whose brightness is their id: where a deformed id lies well inside, the image must say the same."""
    y, x = np.mgrid[:96, :96]
    ids = np.zeros((96, 96), np.int64)
    for i in range(9):
        ids[(y - 16 - 32 * (i // 3)) ** 2 + (x - 16 - 32 * (i % 3)) ** 2 < 144] = 20 * (i + 1)
    item = {
        "image": torch.from_numpy(np.repeat(ids[None].astype(np.uint8), 3, 0)),
        "ids": torch.from_numpy(ids)[None],
        "cover": torch.from_numpy((ids // 20).astype(np.uint8))[None],
        "mpp": 0.5,
        "known": torch.ones(1, *ids.shape[-2:], dtype=torch.uint8),
    }
    config = AugmentationConfig(scale=(1.0, 1.0), elastic=1, stain=0, low_resolution=0, blur=0, noise=0, jpeg=0)
    chain = training_transform(96, 0.5, config)
    chain.transforms = tuple(t for t in chain.transforms if type(t).__name__ != "RandStainJitterd")
    moved = 0
    for seed in range(4):
        chain.set_random_state(seed)
        out = chain(item)
        crop, seen = out["ids"][0].numpy(), out["known"][0].numpy() > 0
        assert set(np.unique(crop)) <= set(np.unique(ids))
        np.testing.assert_array_equal((crop // 20)[seen], out["cover"][0].numpy()[seen])
        inside = seen & (ndimage.minimum_filter(crop, 5) == ndimage.maximum_filter(crop, 5))
        np.testing.assert_allclose(out["image"][0].numpy()[inside] * 255, crop[inside], atol=1)
        moved += (crop != ids).sum()
    assert moved > 500


@pytest.mark.parametrize("quality", [40, 95])
def test_jpeg_changes_little_and_keeps_the_range(quality):
    image = torch.rand(3, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    out = RandJpegd("image", (quality, quality), prob=1.0)({"image": image})["image"]
    assert out.shape == image.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert 0 < (out - image).abs().mean() < 0.1
