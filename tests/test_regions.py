"""The network of regions: parts against slow definitions, losses under partial labels, a slide through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleipan.classes import DEFAULT_CLASSES, PanopticClasses
from nucleipan.errors import ModelError
from nucleipan.geometry import Box
from nucleipan.metrics import instance_quality, overlaps, pool
from nucleipan.network.attention import ForegroundAttention
from nucleipan.network.backbone import load_imagenet_weights
from nucleipan.network.boxes import Rois
from nucleipan.network.build import build_network
from nucleipan.network.fusion import DecodeConfig, decode_tile
from nucleipan.network.mask_rcnn import Detections, InstanceConfig, detect
from nucleipan.network.model import PanopticNetConfig
from nucleipan.network.painting import paint
from nucleipan.network.proposals import ProposalConfig, place_anchors
from nucleipan.network.regions import AttentionConfig, RegionNet, RegionNetConfig, RegionOutputs
from nucleipan.network.voting import VotingConfig
from nucleipan.network.weights import Model, ModelInfo, load_model, save_model
from nucleipan.pipeline import choose_backend
from nucleipan.segment import SegmentOptions, segment_slide
from nucleipan.synthetic import SyntheticScene, write_slide
from nucleipan.tiles import TileGrid
from nucleipan.training.config import LossConfig
from nucleipan.training.data import CoverTable
from nucleipan.training.losses import Batch, total_loss
from nucleipan.training.region_losses import nucleus_masks, region_losses, true_nuclei
from nucleipan.training.targets import offset_targets

K, T = len(DEFAULT_CLASSES), len(DEFAULT_CLASSES.things)
SMALL = RegionNetConfig(
    channels=16,
    semantic_channels=8,
    instances=InstanceConfig(box_features=32, mask_channels=16),
    drop_connect=0,
)
WIDER = InstanceConfig(box_features=64, mask_channels=32)
WITH_ATTENTION = SMALL.model_copy(update={"attention": AttentionConfig(width=8, stuff_to_things=True)})
BOTH = pytest.mark.parametrize("config", [SMALL, WITH_ATTENTION], ids=["efficientps", "aunet"])
SEEDS = st.integers(0, 10**6)


def discs(shape: tuple[int, int], centres: list[tuple[int, int, int]]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    ids = np.zeros(shape, np.int32)
    for i, (cy, cx, r) in enumerate(centres, 1):
        ids[(y - cy) ** 2 + (x - cx) ** 2 <= r**2] = i
    return ids


def batch_of(ids: np.ndarray, codes: dict[int, list[str]], *, has_nuclei: bool = True) -> Batch:
    """One crop; ``codes`` tells what the classes of each nucleus may be. Everything else is stroma."""
    covers, h, w = CoverTable(DEFAULT_CLASSES), *ids.shape
    cover = np.full((h, w), covers.code(["stroma"]))
    for i, names in codes.items():
        cover[ids == i] = covers.code(names)
    is_nucleus = torch.from_numpy(ids > 0)[None, None]
    torch.manual_seed(0)
    return Batch(
        image=torch.rand(1, 3, h, w) * 0.2 + 0.6 * (1 - 0.7 * is_nucleus.float()),
        nucleus=is_nucleus.float(),
        has_nuclei=torch.full((1, 1, h, w), has_nuclei),
        offsets=torch.zeros(1, 2, h, w),
        offset_weights=torch.zeros(1, 1, h, w),
        ids=torch.from_numpy(ids)[None, None],
        cover=torch.from_numpy(cover)[None],
        allowed=torch.from_numpy(covers.allowed()),
        thing_code=covers.things,
    )


def network_of(config: RegionNetConfig) -> RegionNet:
    torch.manual_seed(0)
    network = build_network(config, DEFAULT_CLASSES)
    assert isinstance(network, RegionNet)
    return network


def slow_paint(regions, things, best_stuff, stride, shape):
    """Section 3.4 of EfficientPS, one whole plane for each region."""
    boxes, masks, thing = regions

    def resized(plane: np.ndarray, box: np.ndarray) -> np.ndarray:
        """``plane`` over ``box``, at all pixels of the image."""
        at = []
        for low, high, n, bins in zip(box[:2], box[2:], shape, plane.shape, strict=True):
            at.append(np.clip((np.arange(n) + 0.5 - low) / (high - low) * bins - 0.5, 0, bins - 1))
        y, x = np.meshgrid(*at, indexing="ij")
        y0, x0 = y.astype(int), x.astype(int)
        y1, x1 = np.minimum(y0 + 1, plane.shape[0] - 1), np.minimum(x0 + 1, plane.shape[1] - 1)
        top = plane[y0, x0] * (1 - x + x0) + plane[y0, x1] * (x - x0)
        return top * (1 - y + y0) + (plane[y1, x0] * (1 - x + x0) + plane[y1, x1] * (x - x0)) * (y - y0)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    whole = np.array([0, 0, things.shape[1] * stride, things.shape[2] * stride])
    planes, taken = [resized(best_stuff.astype(float), whole)], np.zeros(shape, bool)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    for box, mask, t in zip(boxes.astype(float), masks.astype(float), thing, strict=True):
        inside = (y >= box[0]) & (y < box[2]) & (x >= box[1]) & (x < box[3])
        a, b = resized(mask, box), resized(things[t].astype(float), whole)
        drawn = inside & (a > 0)
        fused = np.full(shape, -np.inf)
        if drawn.any() and (drawn & taken).sum() <= 0.5 * drawn.sum():
            taken |= drawn
            fused = np.where(inside, (sigmoid(a) + sigmoid(b)) * (a + b), -np.inf)
        planes.append(fused)
    return np.stack(planes)


@given(SEEDS, st.sampled_from([1, 2, 4]), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_painting_is_the_papers_fusion(seed, stride, n):
    rng = np.random.default_rng(seed)
    shape = (40, 32)
    low = rng.uniform(-2, 24, (n, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 20, (n, 2))], 1).astype(np.float32)
    boxes = np.clip(boxes, 0, [*shape, *shape]).astype(np.float32)
    masks = rng.normal(1, 3, (n, 6, 6)).astype(np.float32)
    things = rng.normal(0, 2, (3, 40 // stride, 32 // stride)).astype(np.float32)
    stuff = rng.normal(0, 2, things.shape[1:]).astype(np.float32)
    regions = (boxes, masks, rng.integers(0, 3, n))
    got = paint(regions, things, stuff, stride, shape)
    planes = slow_paint(regions, things, stuff, stride, shape)
    reached = np.take_along_axis(planes, got[None].astype(int), 0)[0]
    np.testing.assert_allclose(reached, planes.max(0), atol=1e-3)


def test_painting_decides_ties_as_it_says():
    """Equal logits everywhere: the better region keeps what two claim; half covered is not more than half; edges of
    boxes that run through the centres of pixels take the pixels after them; what the stuff equals is stuff."""
    boxes = np.array([[0, 0, 4, 4], [0, 2, 4, 6], [0, 3, 4, 7], [6.5, 0.5, 8.5, 2.5]], np.float32)
    masks, thing = np.ones((4, 2, 2), np.float32), np.zeros(4, int)
    things, stuff = np.ones((1, 9, 8), np.float32), np.zeros((9, 8), np.float32)
    expected = np.zeros((9, 8), np.int32)
    expected[:4, :4], expected[:4, 4:6], expected[6:8, :2] = 1, 2, 4
    np.testing.assert_array_equal(paint((boxes, masks, thing), things, stuff, 1, (9, 8)), expected)
    assert not paint((boxes, masks * 0 - 1, thing), things, stuff - 9, 1, (9, 8)).any(), "no mask"
    assert not paint((boxes, masks, thing), -things, stuff, 1, (9, 8)).any(), "fused logits of 0, as those of the stuff"


def test_painting_leaves_out_what_lies_beyond_the_tile():
    boxes = np.array([[40, 2, 50, 9], [2, 40, 9, 50], [2, 2, 9, 9]], np.float32)
    masks, thing = np.full((3, 4, 4), 5, np.float32), np.zeros(3, np.int64)
    things, stuff = np.full((T, 8, 8), 2, np.float32), np.full((8, 8), -9, np.float32)
    painted = paint((boxes, masks, thing), things, stuff, 4, (32, 32))
    assert set(np.unique(painted[2:9, 2:9])) == {3}
    assert np.count_nonzero(painted) == 49


def test_true_masks_come_back_as_the_truth():
    ids = discs((96, 96), [(20, 20, 9), (20, 37, 9), (60, 50, 14), (88, 88, 12)])
    batch = batch_of(ids, {})
    truth = true_nuclei(batch)
    masks = nucleus_masks(batch.ids[:, 0], truth.rois, truth.ids, 28) * 20 - 10
    n = len(truth.ids)
    semantic = torch.full((1, K, 24, 24), -4.0)
    semantic[:, DEFAULT_CLASSES.by_name("stroma").id - 1] = 2.0
    found = Detections(truth.rois, torch.arange(n) % T, torch.linspace(0.9, 0.6, n), torch.eye(T)[torch.arange(n) % T])
    tile = TileGrid((96, 96), Box(0, 0, 96, 96), 96, 0).tile(0, 0)
    out = RegionOutputs(semantic, found, masks, 4)
    panoptic = decode_tile(out, tile, DEFAULT_CLASSES, 0.5, DecodeConfig())
    quality = instance_quality(overlaps(panoptic.instances, ids))
    assert quality.rq == 1
    assert quality.sq > 0.9
    np.testing.assert_allclose(np.sort(panoptic.scores), np.linspace(0.6, 0.9, n), atol=1e-6)
    assert (panoptic.stuff == DEFAULT_CLASSES.by_name("stroma").id).all()
    glass = torch.zeros(96, 96, dtype=torch.bool)
    glass[:, :30] = True
    without = decode_tile(out.without_nuclei(glass), tile, DEFAULT_CLASSES, 0.5, DecodeConfig())
    assert not without.instances[:, :30].any()
    assert without.instances[60, 50] > 0


@pytest.mark.parametrize(("stuff", "is_found"), [(2.0, True), (1e3, False), (None, True)])
def test_only_surer_tissue_takes_pixels_of_regions(stuff, is_found):
    """Of a model of nuclei alone, nothing does."""
    ids = discs((64, 64), [(20, 20, 9), (44, 40, 12)])
    truth = true_nuclei(batch_of(ids, {}))
    masks = nucleus_masks(batch_of(ids, {}).ids[:, 0], truth.rois, truth.ids, 28) * 20 - 10
    classes = DEFAULT_CLASSES if stuff else PanopticClasses(tuple(c for c in DEFAULT_CLASSES.classes if c.is_thing))
    semantic = torch.full((1, len(classes), 16, 16), -4.0)
    if stuff:
        semantic[:, DEFAULT_CLASSES.by_name("stroma").id - 1] = stuff
    found = Detections(truth.rois, torch.tensor([0, 1]), torch.tensor([0.9, 0.8]), torch.eye(T)[:2])
    tile = TileGrid((64, 64), Box(0, 0, 64, 64), 64, 0).tile(0, 0)
    panoptic = decode_tile(RegionOutputs(semantic, found, masks, 4), tile, classes, 0.5, DecodeConfig())
    assert len(panoptic.scores) == (2 if is_found else 0)
    assert panoptic.instances.any() == is_found
    assert panoptic.stuff.any() == bool(stuff)


def test_a_nucleus_of_two_possible_classes_is_found():
    """No class has more than half of the probability, and there is a nucleus for sure."""
    logits = torch.full((3, T + 1), -9.0)
    logits[0, 1:3], logits[1, 1], logits[2, 0] = 5.0, 4.0, 9.0
    boxes = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [30, 30, 50, 50]])
    rois = Rois(boxes, torch.zeros(3, dtype=torch.int64))
    found = detect(rois, (logits, torch.zeros(3, T, 4)), (64, 64), InstanceConfig())
    assert len(found.scores) == 1  # the second is the first once more, the third is nothing
    assert found.scores[0] > 0.99
    torch.testing.assert_close(found.probabilities[0, :2], torch.tensor([0.5, 0.5]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(1))


def test_anchors_lie_around_cell_centres():
    anchors = place_anchors((2, 3), 8, 16.0, (0.5, 1.0, 2.0), torch.device("cpu"))
    assert anchors.shape == (2 * 3 * 3, 4)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres[::3].tolist() == [[4, 4], [4, 12], [4, 20], [12, 4], [12, 12], [12, 20]]
    sides = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(sides.prod(1), torch.full((18,), 256.0))
    torch.testing.assert_close(sides[:3, 0] / sides[:3, 1], torch.tensor([0.5, 1.0, 2.0]))


def test_attention_looks_away_from_where_the_foreground_is():
    """M = 1 - sigmoid(f): with the proposal's plane far above zero nothing is added, far below the features double."""
    attend = ForegroundAttention(1, 4, 1)
    with torch.no_grad():
        first, _, second = attend.where
        first.weight.fill_(1), first.bias.fill_(0), second.weight.fill_(100), second.bias.fill_(-50)
        attend.which[0].weight.fill_(0), attend.which[0].bias.fill_(0), attend.which[1].bias.fill_(-100)  # N = 0
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(attend(x, torch.ones(1, 1, 3, 3)), x)
    torch.testing.assert_close(attend(x, torch.zeros(1, 1, 3, 3)), 2 * x)


@BOTH
def test_shapes_and_that_a_batch_is_its_images(config):
    network = network_of(config).eval()
    with torch.no_grad():
        network.box_head.classify.bias[1:] = 3.0  # fresh weights find nothing
        images = torch.rand(2, 3, 64, 96)
        both, second = network(images), network(images[1:])
    assert both.semantic.shape == (2, K, 16, 24)
    assert both.masks.shape[1:] == (28, 28)
    n = len(both.found.scores)
    assert n == len(both.masks) == len(both.found.rois) > 0
    assert set(both.found.rois.image.tolist()) == {0, 1}
    own = both.found.rois.image == 1
    torch.testing.assert_close(both.semantic[1:], second.semantic, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.found.rois.boxes[own], second.found.rois.boxes, atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(both.masks[own], second.masks, atol=1e-3, rtol=1e-3)
    boxes = both.found.rois.boxes
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 64).all()
    assert (boxes[:, 3] <= 96).all()


def test_boxes_ids_and_classes_of_true_nuclei():
    ids = discs((64, 64), [(10, 12, 5), (40, 30, 7)])
    truth = true_nuclei(batch_of(ids, {1: ["neoplastic"], 2: ["inflammatory", "connective"]}))
    assert truth.rois.boxes.tolist() == [[5, 7, 16, 18], [33, 23, 48, 38]]
    assert truth.ids.tolist() == [1, 2]
    names = [[DEFAULT_CLASSES.things[i].name for i in torch.nonzero(row)[:, 0]] for row in truth.allowed]
    assert names[0] == ["neoplastic"]
    assert set(names[1]) == {"inflammatory", "connective"}


@BOTH
def test_six_losses_reach_every_parameter(config):
    batch = batch_of(discs((128, 128), [(30, 30, 9), (70, 60, 12), (100, 100, 8)]), {1: ["neoplastic"]})
    network = network_of(config).train()
    terms = region_losses(network, batch.image, batch, LossConfig(hardest=0.25))
    assert set(terms) == {"objectness", "proposals", "class", "boxes", "mask", "semantic", "total"}
    assert float(terms["total"]) == pytest.approx(sum(float(v) for k, v in terms.items() if k != "total"), rel=1e-5)
    terms["total"].backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


@BOTH
def test_where_nobody_annotated_nuclei_only_tissue_is_taught(config):
    batch = batch_of(np.zeros((64, 64), np.int32), {}, has_nuclei=False)
    network = network_of(config).train()
    terms = region_losses(network, batch.image, batch, LossConfig())
    assert {k for k, v in terms.items() if float(v) != 0} == {"semantic", "total"}
    terms["total"].backward()
    assert network.semantic_head.classify.weight.grad.abs().sum() > 0
    assert network.box_head.classify.weight.grad is None or not network.box_head.classify.weight.grad.any()


def test_the_hardest_pixels_alone_are_worse_than_all():
    batch = batch_of(discs((64, 64), [(30, 30, 9)]), {1: ["neoplastic"]})
    losses = []
    for hardest in (1.0, 0.25):
        torch.manual_seed(3)
        network = network_of(SMALL).eval()
        losses.append(float(region_losses(network, batch.image, batch, LossConfig(hardest=hardest))["semantic"]))
    assert losses[1] > losses[0]


@BOTH
def test_weights_keep_the_architecture(config, tmp_path):
    network = network_of(config)
    info = ModelInfo("regions", 0.5, network.margin, DEFAULT_CLASSES, config, DecodeConfig(), "none", ())
    save_model(network, info, tmp_path / "regions.safetensors")
    model = load_model(tmp_path / "regions.safetensors")
    assert model.info.network == config
    assert isinstance(model.network, RegionNet)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[key], value, rtol=1e-3, atol=1e-7)


def test_a_slide_goes_through_it(tmp_path):
    """Untrained, but with boxes: what it draws must come out as a sound store, the same in one tile and in many."""
    write_slide(SyntheticScene((256, 256), seed=1), tmp_path / "slide.tiff")
    network = network_of(SMALL).eval()
    with torch.no_grad():
        network.box_head.classify.bias[1:] = 2.0
        network.mask_head.draw.bias[:] = 9.0
    decode = DecodeConfig(voting=VotingConfig(min_area=4))
    info = ModelInfo("regions", 0.5, network.margin, DEFAULT_CLASSES, SMALL, decode, "none", (), sha256="0")
    model = Model(info, network)
    result = segment_slide(tmp_path / "slide.tiff", tmp_path, model, SegmentOptions(tile=256))
    ids = result.store.instances()
    assert result.store.n_nuclei > 0
    assert set(np.unique(ids)) - {0} == set(range(1, result.store.n_nuclei + 1))
    with pytest.raises(ModelError, match="mirror images"):
        segment_slide(tmp_path / "slide.tiff", tmp_path, model, SegmentOptions(flips=True, overwrite=True))
    assert choose_backend("auto", "cpu", model) == "torch"
    with pytest.raises(ModelError, match=r"not installed|Mask R-CNN"):
        choose_backend("openvino", "cpu", model)


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of 32"):
        network_of(SMALL)(torch.zeros(1, 3, 50, 64))
    with pytest.raises(ValueError, match="channels"):
        RegionNetConfig(channels=4)
    assert ProposalConfig().anchor_sizes[0] < 30  # a nucleus at 0.5 um per pixel


def scenes(n: int, side: int) -> Batch:
    """The ``n`` squares of a synthetic slide that have the most nuclei, with classes for every pixel."""
    scene = SyntheticScene((4 * side, 4 * side), seed=1)
    squares = [Box(y, x, y + side, x + side) for y in range(0, 4 * side, side) for x in range(0, 4 * side, side)]
    squares.sort(key=lambda box: -len(np.unique(scene.instances(box))))
    parts = []
    for box in squares[:n]:
        _, ids = np.unique(scene.instances(box), return_inverse=True)
        ids = ids.reshape(side, side).astype(np.int32)
        ids *= np.bincount(ids.ravel())[ids] >= DecodeConfig().voting.min_area
        classes = np.where(ids > 0, scene.classes(box), scene.stuff(box))
        offsets, weights = offset_targets(ids)
        arrays = (scene.rgb(box).transpose(2, 0, 1) / np.float32(255), ids[None], classes, offsets, weights[None])
        parts.append([torch.from_numpy(np.ascontiguousarray(a)) for a in arrays])
    image, ids, classes, offsets, weights = (torch.stack(p) for p in zip(*parts, strict=True))
    covers = CoverTable(DEFAULT_CLASSES)
    code = torch.tensor([0, *(covers.code([c.name]) for c in DEFAULT_CLASSES.classes)])
    nucleus, known = (ids > 0).float(), torch.ones_like(ids, dtype=torch.bool)
    allowed = torch.from_numpy(covers.allowed())
    return Batch(image, nucleus, known, offsets, weights, ids, code[classes.long()], allowed, covers.things)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["voting", "efficientps", "aunet"])
def test_four_images_are_learnt_by_heart(head):
    """What cannot even do this has a mistake somewhere between its targets, its heads and its decoding."""
    regions = SMALL.model_copy(update={"channels": 48, "semantic_channels": 16, "instances": WIDER})
    config = {
        "voting": PanopticNetConfig(instance_channels=(16, 24, 32, 32), semantic_channels=16, drop_connect=0),
        "efficientps": regions,
        "aunet": regions.model_copy(update={"attention": AttentionConfig(width=8)}),
    }[head]
    torch.manual_seed(0)
    batch, network = scenes(4, 96), build_network(config, DEFAULT_CLASSES)
    load_imagenet_weights(network.backbone)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    n_steps = 240
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=n_steps, pct_start=0.15)
    for _ in range(n_steps):
        if isinstance(network, RegionNet):
            terms = region_losses(network, batch.image, batch, LossConfig(hardest=0.25, thing_pixel=1))
        else:
            terms = total_loss(network(batch.image), batch, LossConfig())
        optimizer.zero_grad()
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()
        schedule.step()
    network.eval()
    h, w = batch.image.shape[2:]
    tile = TileGrid((h, w), Box(0, 0, h, w), max(h, w), 0).tile(0, 0)
    qualities = []
    for image, ids in zip(batch.image, batch.ids[:, 0].numpy(), strict=True):
        with torch.no_grad():
            found = decode_tile(network(image[None]).float(), tile, DEFAULT_CLASSES, 0.5, DecodeConfig())
        qualities.append(instance_quality(overlaps(found.instances, ids)))
    assert pool(qualities).pq > 0.9
